"""Pins come on top of whatever else is checked, and say so in one table."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from engine.egress.pins import pinned
from engine.egress.site import Sts
from engine.errors import AuthNotOffered, TlsRequired
from engine.net import key_pin
from policy.egress import EgressPath, make_egress_path
from tests.egress.dialing import NAME, hooks_for, inside, open_dial
from tests.support.peer import FakePeer, listening, open_peer
from tests.support.pki import Pki, rsa_key

LOGIN = {"username": "scott", "password": {"key_data": "tiger"}, "mechanisms": ["PLAIN"]}
STRANGER = "ab" * 32


def der(pem: bytes) -> list[bytes]:
    return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem)]


def pins_of(pem: bytes) -> list[str]:
    found = [key_pin(one) for one in der(pem)]
    assert None not in found
    return [pin for pin in found if pin]


class Chain:
    """A root, an intermediate, a leaf for `NAME`, and their pins."""

    def __init__(self) -> None:
        self.root = Pki()
        self.middle = Pki(issuer=self.root)
        self.chain, self.key = self.middle.pair(NAME)
        self.leaf, self.issuer = pins_of(self.chain)
        (self.top,) = pins_of(self.root.pem)

    def path(self, mode: str, *pins: str, ca: Pki | None = None, **options: Any) -> EgressPath:
        if mode == "Required":
            options["tls_ca"] = {"key_data": (ca or self.root).pem.decode()}
        return make_egress_path(enable_tls=mode, tls_pins=pins, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def server(chain: Chain) -> Any:
    return chain.middle.server(NAME, given=(chain.chain, chain.key))


@pytest.mark.parametrize(
    ("mode", "whose", "result"),
    [
        ("Required", "leaf", "leaf"),
        ("Required", "issuer", "issuer"),
        ("Required", "top", "issuer"),
        ("Required", None, None),
        ("RequiredInsecure", "leaf", "leaf"),
        ("RequiredInsecure", "issuer", None),
        ("RequiredInsecure", "top", None),
        ("RequiredInsecure", None, None),
    ],
)
async def test_whose_pin_counts(mode: str, whose: str | None, result: str | None, chain: Chain) -> None:
    pin = STRANGER if whose is None else getattr(chain, whose)
    path = chain.path(mode, pin, STRANGER)
    async with open_peer(tls=server(chain)) as peer, open_dial() as dial:
        if result is None:
            with pytest.raises(TlsRequired, match=r"is among tls_pins; its own is sha256//") as caught:
                await dial(path, peer)
            assert chain.leaf in str(caught.value) and inside(peer) == []
            return
        connection = await dial(path, peer)
        facts = connection.stream.tls
        assert facts is not None and facts.pin == result
        assert facts.verified == (mode == "Required")


async def test_a_policy_that_demands_the_chain_makes_no_more_pins_count(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under MTA-STS there is a verified chain where the path asks for the peer's own key alone."""
    (tmp_path / "roots.pem").write_bytes(chain.root.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    async with open_peer(tls=server(chain)) as peer, open_dial() as dial:
        for pin in (chain.issuer, chain.top):
            with pytest.raises(TlsRequired, match="no key of its certificate is among tls_pins"):
                await dial(chain.path("RequiredInsecure", pin), peer, sts=Sts("enforce"))
        connection = await dial(chain.path("RequiredInsecure", chain.leaf), peer, sts=Sts("enforce"))
        assert connection.stream.tls is not None and connection.stream.tls.verified


async def test_a_pin_replaces_nothing(chain: Chain) -> None:
    """The right key does not help a certificate that is not verified for another reason."""
    expired = chain.middle.pair(NAME, days=(-9, -1))
    other_name = chain.middle.pair("mx.other.example")
    strange = Pki().pair(NAME)
    for pair, words in ((expired, "expired"), (other_name, "mismatch"), (strange, "issuer certificate")):
        pins = pins_of(pair[0])
        async with open_peer(tls=Pki().server(given=pair)) as peer, open_dial() as dial:
            with pytest.raises(TlsRequired, match=words):
                await dial(chain.path("Required", *pins), peer)
            assert inside(peer) == []
            await dial(chain.path("RequiredInsecure", *pins), peer)


async def test_issuers_that_were_only_sent_along_do_not_count(chain: Chain) -> None:
    """Anybody can send a pinned authority's certificate behind his own."""
    own, key = Pki().pair(NAME)
    forged = own + chain.middle.pem + chain.root.pem
    for mode in ("RequiredInsecure", "Required"):
        async with open_peer(tls=Pki().server(given=(forged, key))) as peer, open_dial() as dial:
            with pytest.raises(TlsRequired):
                await dial(chain.path(mode, chain.issuer, chain.top), peer)
            assert inside(peer) == []


async def test_who_holds_the_pinned_key_gets_the_login(chain: Chain) -> None:
    """Reliability C40: verified, or by fingerprint. Not by an issuer that was not verified."""
    offer = ["AUTH PLAIN"]
    async with open_peer(tls=server(chain), secured=offer) as peer, open_dial() as dial:
        connection = await dial(chain.path("RequiredInsecure", chain.leaf, smtp_auth=LOGIN), peer)
        assert connection.auth_mechanism == "PLAIN"
        with pytest.raises(TlsRequired, match="not sent over TLS whose certificate was not verified"):
            await dial(make_egress_path(enable_tls="RequiredInsecure", smtp_auth=LOGIN), peer)  # type: ignore[arg-type]
        with pytest.raises(AuthNotOffered):
            peer.secured = []
            await dial(chain.path("RequiredInsecure", chain.leaf, smtp_auth=LOGIN), peer)


async def test_the_record_says_whose_key_it_was(bench: Any) -> None:
    root = Pki()
    served = root.pair("127.0.0.1")
    ca = {"key_data": root.pem.decode()}
    for pins, whose in ((pins_of(served[0]), "leaf"), (pins_of(root.pem), "issuer")):
        path = make_egress_path(enable_tls="Required", tls_ca=ca, tls_pins=pins)
        async with listening(FakePeer(tls=root.server(given=served))) as peer:
            async with bench(hooks_for(peer, path)) as b:
                await b.submit()
                (record,) = await b.records("Delivery")
                assert (record.tls_pin, record.tls_verified) == (whose, True)


def test_the_first_of_the_chain_that_is_pinned_is_named(chain: Chain) -> None:
    certificates = [*der(chain.chain), *der(chain.root.pem)]
    assert pinned(certificates, [chain.top, chain.leaf]) == "leaf"
    assert pinned(certificates, [chain.top]) == "issuer"
    assert pinned(certificates, []) is None and pinned([], [chain.leaf]) is None
    assert pinned([b"no certificate"], [chain.leaf]) is None


@pytest.mark.parametrize("key", [None, rsa_key(2048)], ids=["ec", "rsa"])
def test_the_command_of_the_documentation_prints_the_pin(key: Any, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tls.md").read_text()
    command = text.split("```sh\n")[1].split("```")[0]
    chain, _ = Pki().pair(NAME, key=key)
    (tmp_path / "cert.pem").write_bytes(chain)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [done.stdout.strip()] == pins_of(chain)
