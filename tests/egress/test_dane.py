"""TLSA records against certificates: which records count, and whom they let in."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from engine.certificates import key_info
from engine.egress.dane import DaneCheck, Tlsa, parse_tlsa, usable
from engine.net import key_pin
from tests.support.pki import CLIENT_AUTH, Pki, rsa_key
from tests.support.programs import need
from tests.support.tlsa import authority, chain_of, tlsa

BASE = "mx.peer.example"
DOMAIN = "peer.example"


def check(*texts: str, names: tuple[str, ...] = (BASE,)) -> DaneCheck:
    records = usable(texts)
    assert records
    return DaneCheck(records, names)


# Which records count


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("usage", [2, 3])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_every_usable_kind(usage: int, selector: int, matching: int) -> None:
    leaf = chain_of(Pki().server(BASE))[0]
    text = tlsa(leaf, usage, selector, matching)
    (record,) = usable([text])
    assert (record.usage, record.selector, record.matching) == (usage, selector, matching)
    assert record.matches(leaf)
    assert not record.matches(chain_of(Pki().server(BASE))[0])


@pytest.mark.parametrize(
    "text",
    [
        "0 1 1 " + "ab" * 32,  # PKIX-TA and PKIX-EE: RFC 7672 3.1.3
        "1 1 1 " + "ab" * 32,
        "4 1 1 " + "ab" * 32,
        "255 1 1 " + "ab" * 32,
        "3 2 1 " + "ab" * 32,
        "3 1 3 " + "ab" * 32,
        "3 1 1 " + "ab" * 31,
        "3 1 1 " + "ab" * 33,
        "3 1 2 " + "ab" * 32,
        "3 0 0 " + "ab" * 32,  # no certificate
        "3 1 0 " + "ab" * 32,  # no key
        "3 1 1 xyz",
        "3 1 1 abc",
        "3 1 1",
        "3 1",
        "",
    ],
)
def test_what_is_unusable(text: str) -> None:
    assert usable([text]) == ()
    good = "3 1 1 " + "00" * 32
    assert [str(one) for one in usable([text, good])] == ["3 1 1 0000000000000000..."]


def test_the_strongest_digest_counts() -> None:
    """RFC 7671 9: for each usage and selector; whole data always counts."""
    leaf = chain_of(Pki().server(BASE))[0]
    texts = [tlsa(leaf, 3, 1, n) for n in (0, 1, 2)] + [tlsa(leaf, 3, 0, 1), tlsa(leaf, 2, 1, 1)]
    kinds = [(one.usage, one.selector, one.matching) for one in usable(texts)]
    assert kinds == [(3, 0, 1), (3, 1, 0), (3, 1, 2), (2, 1, 1)]


@given(st.lists(st.sampled_from([f"3 1 1 {n:064x}" for n in range(9)]), min_size=1))
def test_order_and_repetition_are_nothing(texts: list[str]) -> None:
    """Equal sets of records make equal checks: sessions are resumed between equals alone."""
    one, other = DaneCheck(usable(texts), (BASE,)), DaneCheck(usable(sorted(texts * 2)), (BASE,))
    assert one == other and hash(one) == hash(other)


@given(st.text(max_size=40))
def test_any_text_is_a_record_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_tlsa(text), Tlsa)


def test_digits_may_be_split() -> None:
    assert parse_tlsa("3 1 1 AB cd\t01") == Tlsa(3, 1, 1, b"\xab\xcd\x01")


# Keys


@pytest.mark.parametrize(
    "key", [rsa_key(2048), ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_the_key_is_taken_as_it_stands(key: Any) -> None:
    leaf = chain_of(Pki().server(BASE, key=key))[0]
    assert key_info(leaf) == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_key_of_an_rsassa_pss_certificate(tmp_path: Any) -> None:
    """The library would encode it as another kind of key; openssl says what is right."""
    openssl = need("openssl", "openssl")
    key, pem, spki = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "spki.der"
    subprocess.run(
        f"{openssl} req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -nodes -keyout {key} -out {pem} "
        "-subj /CN=x -days 2".split(),
        check=True,
        capture_output=True,
    )
    subprocess.run([openssl, "pkey", "-in", key, "-pubout", "-outform", "DER", "-out", spki], check=True)
    assert key_info(x509.load_pem_x509_certificate(pem.read_bytes())) == spki.read_bytes()


# DANE-EE: nothing else matters


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"days": (-9, -2)},
        {"days": (2, 9)},
        {"self_signed": True},
        {"usage": [CLIENT_AUTH]},
    ],
)
def test_ee_ignores_names_dates_and_issuers(how: dict[str, Any]) -> None:
    """RFC 7672 3.1.1."""
    chain = chain_of(Pki().server("other.example", **how))
    verdict = check(tlsa(chain[0], 3, 1, 1))([one.public_bytes(Encoding.DER) for one in chain])
    assert (
        verdict.ok
        and verdict.why.startswith("DANE: TLSA 3 1 1 ")
        and verdict.why.endswith("matches the peer")
    )


def test_ee_is_the_peers_own_certificate() -> None:
    root = Pki()
    chain = der(Pki(issuer=root).server(BASE))
    issuer = x509.load_der_x509_certificate(chain[1])
    verdict = check(tlsa(issuer, 3, 1, 1))(chain)
    assert not verdict.ok
    key = hashlib.sha256(key_info(x509.load_der_x509_certificate(chain[0]))).hexdigest()
    assert verdict.why.endswith(f"its key is 3 1 1 {key}") and f"records of {BASE}" in verdict.why


def test_one_of_several_is_enough() -> None:
    chain = der(Pki().server(BASE))
    leaf = x509.load_der_x509_certificate(chain[0])
    others = [f"3 1 1 {n:064x}" for n in range(5)]
    assert check(*others, tlsa(leaf, 3, 1, 1))(chain).ok
    verdict = check(*others)(chain)
    assert not verdict.ok and "and 1 more" in verdict.why


@pytest.mark.parametrize("chain", [(), (b"",), (b"\x30\x03abc",)])
def test_no_certificate_or_junk(chain: tuple[bytes, ...]) -> None:
    assert not check("3 1 1 " + "00" * 32)(chain).ok


# DANE-TA: the chain up to the issuer, its dates, and a name


@pytest.mark.parametrize(("selector", "matching"), [(s, m) for s in (0, 1) for m in (0, 1, 2)])
def test_ta_by_every_kind_of_record(selector: int, matching: int) -> None:
    root = Pki()
    middle = Pki(issuer=root)
    context = middle.server(BASE)
    verdict = check(tlsa(authority(middle), 2, selector, matching))(der(context))
    assert verdict.ok and "matches an issuer; chain verified for " + BASE in verdict.why
    assert not check(tlsa(authority(Pki()), 2, selector, matching))(der(context)).ok


def test_ta_may_be_the_root_if_the_peer_sends_it() -> None:
    root = Pki()
    middle = Pki(issuer=root)
    text = tlsa(authority(root), 2, 1, 1)
    sent = der(middle.server(BASE))
    assert not check(text)(sent).ok
    assert check(text)([*sent, authority(root).public_bytes(Encoding.DER)]).ok


def test_ta_whole_in_the_zone_need_not_be_sent() -> None:
    root = Pki()
    assert check(tlsa(authority(root), 2, 0, 0))(der(root.server(BASE))).ok


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"days": (-9, -2)}, "not valid at"),
        ({"days": (2, 9)}, "not valid at"),
        ({"usage": [CLIENT_AUTH]}, "not for servers"),
        ({"self_signed": True}, ""),
    ],
)
def test_ta_refuses(how: dict[str, Any], why: str) -> None:
    middle = Pki(issuer=Pki())
    verdict = check(tlsa(authority(middle), 2, 1, 1))(der(middle.server(BASE, **how)))
    assert not verdict.ok and why in verdict.why


def test_ta_refuses_a_named_issuer_that_did_not_sign() -> None:
    """Whoever sends the named certificate along has not been signed by it."""
    named = Pki(issuer=Pki())
    forger = Pki(issuer=Pki())
    chain = [der(forger.server(BASE))[0], authority(named).public_bytes(Encoding.DER)]
    verdict = check(tlsa(authority(named), 2, 1, 1))(chain)
    assert not verdict.ok and "matches an issuer, but" in verdict.why


def test_ta_refuses_an_issuer_that_is_no_ca() -> None:
    middle = Pki(issuer=Pki(), is_ca=False)
    assert not check(tlsa(authority(middle), 2, 1, 1))(der(middle.server(BASE))).ok


def test_ta_is_not_the_peers_own_certificate() -> None:
    chain = der(Pki().server(BASE, self_signed=True))
    own = x509.load_der_x509_certificate(chain[0])
    for matching in (0, 1):
        for sent in (chain, [*chain, chain[0]]):
            assert not check(tlsa(own, 2, 0, matching))(sent).ok
            assert not check(tlsa(own, 2, 1, matching))(sent).ok


def test_ta_refuses_sha1() -> None:
    root = Pki(key=rsa_key(2048))
    text = tlsa(authority(root), 2, 0, 0)
    assert check(text)(der(root.server(BASE))).ok
    assert not check(text)(der(root.server(BASE, sha1=True))).ok


@pytest.mark.parametrize(
    ("certified", "names", "ok"),
    [
        ((BASE,), (BASE,), True),
        (("MX.Peer.Example",), (BASE,), True),
        ((DOMAIN,), (BASE, DOMAIN), True),
        ((DOMAIN,), (BASE,), False),
        (("*.peer.example",), (BASE,), True),
        (("*.example",), (BASE,), False),
        (("other.example",), (BASE, DOMAIN), False),
        ((), (BASE,), False),  # the common name is nobody's
        (("192.0.2.1",), (BASE,), False),
    ],
)
def test_ta_names(certified: tuple[str, ...], names: tuple[str, ...], ok: bool) -> None:
    """RFC 7672 3.2.2, 3.2.3."""
    middle = Pki(issuer=Pki())
    context = middle.server(*certified, common_name=BASE)
    assert check(tlsa(authority(middle), 2, 1, 1), names=names)(der(context)).ok is ok


def test_a_long_chain_is_cut() -> None:
    middle = Pki(issuer=Pki())
    leaf, *rest = der(middle.server(BASE))
    noise = der(Pki().server(BASE))
    assert not check(tlsa(authority(middle), 2, 1, 1))([leaf, *noise * 20, *rest]).ok


def test_the_certificates_in_the_way_to_an_issuer_say_until_when() -> None:
    """A session that resumes this one shows no certificate, so it must know."""
    middle = Pki(issuer=Pki())
    chain = der(middle.server(BASE, days=(-1, 2)))
    end = x509.load_der_x509_certificate(chain[0]).not_valid_after_utc.timestamp()
    assert check(tlsa(authority(middle), 2, 1, 1))(chain).expires == end
    assert check(tlsa(x509.load_der_x509_certificate(chain[0]), 3, 1, 1))(chain).expires == float("inf")


# What a stranger may send


@pytest.mark.parametrize("kind", ["to itself", "to and fro", "keys", "issuers"])
def test_certificates_that_lead_anywhere_cost_little(kind: str) -> None:
    """Everything else stands still meanwhile, and each of thousands of ways costs checks of signatures."""
    key = ec.generate_private_key(ec.SECP521R1())
    names = (BASE, "a.example", "b.example", DOMAIN)
    leaf = issued("a server", "A", key, names=names)
    first = "B" if kind == "to and fro" else "A"
    between = [issued("A", first, key) for _ in range(4)]
    between += [issued("B", "A", key) for _ in range(4 if kind == "to and fro" else 0)]
    anchors = [issued(f"anchor {n}", f"anchor {n}", key) for n in range(15 - len(between))]
    if kind == "keys":
        one, two, *others = [ec.generate_private_key(ec.SECP521R1()) for _ in range(8)]
        leaf = issued("a server", "A", one, names=names)
        between = [issued("A", "A", two, public=one), issued("A", "A", one, public=two)]
        anchors = [issued("A", "A", other) for other in others for _ in range(2)]
    records = [tlsa(one, 2, 0, 1) for one in anchors]
    chain = [one.public_bytes(Encoding.DER) for one in (leaf, *between, *anchors)]
    begun = time.process_time()
    assert not check(*records, names=names)(chain).ok
    assert time.process_time() - begun < 0.5, "it was 15 s"


def test_an_issuer_may_change_its_key() -> None:
    """Then there are two of its name, and one that it issued to itself (RFC 5280 6.1)."""
    old, new = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    leaf = issued("a server", "A", new, names=(BASE,))
    anchor, over = issued("A", "A", old), issued("A", "A", old, public=new)
    for between in ([over, anchor], [anchor, over], [issued("A", "A", new), over, anchor]):
        chain = [one.public_bytes(Encoding.DER) for one in (leaf, *between)]
        assert check(tlsa(anchor, 2, 0, 1))(chain).ok


def test_a_key_that_is_named_is_that_of_all_its_certificates() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), Pki()
    leaf = issued("a server", "A", key, names=(BASE,))
    elsewhere, itself = issued("B", "An authority", other.key, public=key), issued("A", "A", key)
    chain = [one.public_bytes(Encoding.DER) for one in (leaf, elsewhere, itself)]
    assert check(tlsa(itself, 2, 1, 1))(chain).ok


def test_of_several_certificates_of_one_issuer_the_first_counts() -> None:
    """A root that is sent in its own form besides the one that another authority issued is no hindrance."""
    key, named = ec.generate_private_key(ec.SECP256R1()), Pki()
    leaf = issued("a server", "A", key, names=(BASE,))
    itself, crossed = issued("A", "A", key), issued("A", "An authority", named.key, public=key)
    chain = [one.public_bytes(Encoding.DER) for one in (leaf, itself, crossed, authority(named))]
    assert check(tlsa(authority(named), 2, 0, 1))(chain).ok


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("a003020102", "a003020104", id="version"),
        pytest.param("0603551d25", "0603551d11", id="doubled extension"),
        pytest.param("820f6d782e", "830f6d782e", id="strange kind of name"),
    ],
)
def test_a_malformed_certificate_is_a_refusal(old: str, new: str) -> None:
    """None of these is a ValueError for the library."""
    middle = Pki(issuer=Pki())
    leaf, *rest = der(middle.server(BASE))
    bad = leaf.replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    assert bad != leaf
    named = check(tlsa(authority(middle), 2, 1, 1))
    assert named([leaf, *rest]).ok and not named([bad, *rest]).ok
    assert not check("3 1 1 " + "ab" * 32)([bad]).ok
    if not new.startswith("a0"):
        verdict = check(tlsa(x509.load_der_x509_certificate(bad), 3, 0, 1))([bad])
        assert verdict.ok and verdict.name is None, "names do not matter"
    if new.startswith("a0"):
        assert usable([f"2 0 0 {bad.hex()}"]) == () and key_pin(bad) is None


def issued(
    subject: str, issuer: str, key: Any, *, names: tuple[str, ...] = (), public: Any = None
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key((public or key).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        dns = [x509.DNSName(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(dns), critical=False)
    return builder.sign(key, hashes.SHA256())


def der(context: ssl.SSLContext) -> list[bytes]:
    return [one.public_bytes(Encoding.DER) for one in chain_of(context)]
