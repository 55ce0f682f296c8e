"""The certificate that we show: to whom, from where, when it changes, and the login that it stands for."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization

from engine.egress import tls
from engine.errors import AuthNotOffered, LoginRefused, SecretUnavailable, TlsRequired
from engine.keys import Credential
from policy.egress import EgressPath, make_egress_path
from policy.secret import Secret
from tests.egress.dialing import NAME, hooks_for, open_dial
from tests.support.peer import FakePeer, listening, open_peer
from tests.support.pki import Pki, rsa_key
from tests.support.saslpeer import SaslPeer, offering

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
EXTERNAL = {"mechanisms": ["EXTERNAL"]}


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def users() -> Pki:
    """Who issues clients' certificates."""
    return Pki()


def asking(pki: Pki, users: Pki | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server's context that asks clients for a certificate of `users`, if there are any."""
    context = pki.server(NAME, "127.0.0.1", asks=users)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def files(directory: Path, pair: tuple[bytes, bytes]) -> dict[str, Any]:
    chain, key = directory / "client.pem", directory / "client.key"
    chain.write_bytes(pair[0])
    key.write_bytes(pair[1])
    return {
        "tls_certificate": {"file": str(chain), "ttl": 1},
        "tls_private_key": {"file": str(key), "ttl": 1},
    }


def path(pki: Pki, pair: tuple[bytes, bytes] | dict[str, Any], **options: Any) -> EgressPath:
    if isinstance(pair, tuple):
        chain, key = pair
        pair = {
            "tls_certificate": {"key_data": chain.decode()},
            "tls_private_key": {"key_data": key.decode()},
        }
    options = {"enable_tls": "Required", "tls_ca": {"key_data": pki.pem.decode()}, **pair, **options}
    return make_egress_path(**options)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("asks", [True, False])
async def test_who_asks_is_shown_it(asks: bool, version: ssl.TLSVersion, pki: Pki, users: Pki) -> None:
    async with open_peer(tls=asking(pki, users if asks else None, version)) as peer, open_dial() as dial:
        connection = await dial(path(pki, users.client("relay-7")), peer)
        assert connection.stream.tls is not None and connection.stream.tls.asked is asks
        assert peer.shown == ["relay-7" if asks else None]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_peer_that_wants_one_is_nothing_for_a_path_without(
    version: ssl.TLSVersion, pki: Pki, users: Pki
) -> None:
    context = asking(pki, users, version)
    context.verify_mode = ssl.CERT_REQUIRED
    ca = {"key_data": pki.pem.decode()}
    async with open_peer(tls=context) as peer, open_dial() as dial:
        with pytest.raises(Exception, match=r"certificate required|handshake"):
            await dial(make_egress_path(enable_tls="Required", tls_ca=ca), peer)
        await dial(path(pki, users.client()), peer)


KEYS = {
    "PKCS#8": serialization.PrivateFormat.PKCS8,
    "SEC1 or PKCS#1": serialization.PrivateFormat.TraditionalOpenSSL,
}


@pytest.mark.parametrize("form", KEYS)
@pytest.mark.parametrize("kind", ["ec", "rsa"])
async def test_the_forms_of_a_key(form: str, kind: str, pki: Pki, users: Pki) -> None:
    chain, key = users.client(key=rsa_key(2048) if kind == "rsa" else None)
    loaded = serialization.load_pem_private_key(key, None)
    pem = loaded.private_bytes(serialization.Encoding.PEM, KEYS[form], serialization.NoEncryption())
    async with open_peer(tls=asking(pki, users)) as peer, open_dial() as dial:
        await dial(path(pki, (chain, pem)), peer)
        assert peer.shown == ["relay.example"]


def encrypted(key: bytes, form: serialization.PrivateFormat) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"canary-passphrase")
    )


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("another key", "do not belong together"),
        ("an encrypted key", "protected by a passphrase; right would be the key without one"),
        ("an old encrypted key", "protected by a passphrase"),
        ("no key", "is no PEM key"),
        ("no certificate", "is no PEM certificate"),
        ("expired", "is valid from"),
        ("not yet valid", "is valid from"),
    ],
)
async def test_a_pair_that_is_none_holds_the_mail_before_any_connection(
    what: str, words: str, pki: Pki, users: Pki
) -> None:
    chain, key = users.client()
    pairs: dict[str, tuple[bytes, bytes]] = {
        "another key": (chain, users.client()[1]),
        "an encrypted key": (chain, encrypted(key, serialization.PrivateFormat.PKCS8)),
        "an old encrypted key": (chain, encrypted(key, serialization.PrivateFormat.TraditionalOpenSSL)),
        "no key": (chain, b"canary"),
        "no certificate": (b"nothing", key),
        "expired": users.client(days=(-9, -1)),
        "not yet valid": users.client(days=(1, 9)),
    }
    async with open_peer(tls=asking(pki, users)) as peer, open_dial() as dial:
        with pytest.raises(SecretUnavailable, match=words) as caught:
            await dial(path(pki, pairs[what]), peer)
        assert "tls_private_key" in str(caught.value) and "canary" not in str(caught.value)
        assert peer.connections == 0


class Ring:
    """Key sources that hold what a test puts there; `values` by the reference's name."""

    def __init__(self, pair: tuple[bytes, bytes]) -> None:
        self.values: dict[str, bytes] = {}
        self.put(pair)

    def put(self, pair: tuple[bytes, bytes]) -> None:
        self.values["file:/client.pem"], self.values["file:/client.key"] = pair

    def cached(self, ref: Any) -> Credential:
        value = self.values[ref.name] if ref.name in self.values else ref.data.reveal()
        return Credential(Secret(value), hashlib.sha256(value).hexdigest(), 0.0)

    async def fetch(self, ref: Any, *, fresh: bool = False) -> Credential:
        await trio.lowlevel.checkpoint()
        return self.cached(ref)

    def source(self, ref: Any) -> str:
        return str(ref.name)


IN_RING: dict[str, Any] = {"tls_certificate": "/client.pem", "tls_private_key": "/client.key"}


async def test_a_new_pair_is_shown_without_restart(
    pki: Pki, users: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = users.client("first"), users.client("second")
    ring = Ring(first)
    one = path(pki, IN_RING)
    async with open_peer(tls=asking(pki, users)) as peer, open_dial(ring) as dial:
        certificates = dial.dialer.certificates
        old = await dial(one, peer)
        assert certificates.current(one, old.certificate)
        # Halfway: the certificate is new, the key is old.
        ring.put((second[0], first[1]))
        for _ in range(2):
            halfway = await dial(one, peer)
            assert halfway.certificate == old.certificate and certificates.current(one, old.certificate)
        assert caplog.text.count("do not belong together; the pair read before stays in use") == 1
        ring.put(second)
        assert not certificates.current(one, old.certificate)
        new = await dial(one, peer)
        assert certificates.current(one, new.certificate)
        # Resumed handshakes show the certificate of the first one again.
        assert peer.shown == ["first", "first", "first", "second"]
        ring.put(users.client("expired", days=(-9, -1)))
        await dial(one, peer)
        assert caplog.text.count("is valid from") == 1 and peer.shown[-1] == "second"


async def test_a_session_that_showed_the_old_one_ends_before_its_next_message(
    pki: Pki, users: Pki, tmp_path: Path, bench: Any
) -> None:
    options = files(tmp_path, users.client("first"))
    one = path(pki, options, connection_limit=1)
    async with listening(FakePeer(tls=asking(pki, users))) as peer:
        async with bench(hooks_for(peer, one)) as b:
            await b.submit()
            await b.records("Delivery")
            files(tmp_path, users.client("second"))
            with trio.fail_after(10):
                count = 1
                while "second" not in peer.shown:
                    await trio.sleep(0.1)
                    await b.submit()
                    count += 1
                    await b.records("Delivery", count)
            records = await b.records("Delivery", count)
            subjects = [record.tls_client_certificate for record in records]
            assert subjects[0] == "CN=first" and subjects[-1] == "CN=second"


# -- EXTERNAL ------------------------------------------------------------------------------------------


async def test_external_says_nothing_but_for_whom(pki: Pki, users: Pki, bench: Any) -> None:
    login = {"mechanisms": ["EXTERNAL"], "username": "scott"}
    one = path(pki, users.client("scott's relay"), smtp_auth=login)
    context = asking(pki, users)
    async with listening(SaslPeer(tls=context, capabilities=offering("PLAIN", "EXTERNAL"))) as peer:
        async with bench(hooks_for(peer, one)) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert (record.smtp_auth_user, record.smtp_auth_mechanism) == ("scott", "EXTERNAL")
            assert record.tls_client_certificate == "CN=scott's relay"
            assert peer.logins == [("EXTERNAL", "scott")]


async def test_external_is_for_those_only_who_asked_in_the_handshake(pki: Pki, users: Pki) -> None:
    offer = ["AUTH EXTERNAL PLAIN"]
    async with open_peer(tls=asking(pki, None), secured=offer) as peer, open_dial() as dial:
        with pytest.raises(AuthNotOffered, match="did not ask for the client certificate"):
            await dial(path(pki, users.client(), smtp_auth=EXTERNAL), peer)
        assert "AUTH" not in peer.words()
    async with open_peer(tls=asking(pki, users), secured=offer) as peer, open_dial() as dial:
        await dial(path(pki, users.client(), smtp_auth=EXTERNAL), peer)
        assert [line for line in peer.commands if line.startswith("AUTH")] == ["AUTH EXTERNAL ="]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("0b000003000000", False),  # RFC 5246 7.4.2: no certificate
        ("0b00000400000000", False),  # RFC 8446 4.4.2: no context and no certificate
        ("0b00000a00000700000430003000", True),
    ],
)
def test_an_answer_without_a_certificate_shows_nobody(message: str, shown: bool) -> None:
    """What a client sends that was asked, and has none that the server could check."""

    class Sock:
        posthorn_shown = False

    sock: Any = Sock()
    tls._heard(sock, "write", None, 22, 11, bytes.fromhex(message))
    assert sock.posthorn_shown is shown
    tls._heard(sock, "read", None, 22, 11, bytes(1000))  # the server's own
    tls._heard(sock, "write", None, 22, 1, bytes(1000))
    assert sock.posthorn_shown is shown


async def test_what_comes_next_is_used_when_the_peer_did_not_ask(pki: Pki, users: Pki) -> None:
    both = {"mechanisms": ["EXTERNAL", "PLAIN"], "username": "scott", "password": {"key_data": "tiger"}}
    async with open_peer(tls=asking(pki, None), secured=["AUTH EXTERNAL PLAIN"]) as peer:
        async with open_dial() as dial:
            connection = await dial(path(pki, users.client(), smtp_auth=both), peer)
            assert connection.auth_mechanism == "PLAIN"


async def test_external_is_not_said_outside_verified_tls(pki: Pki, users: Pki) -> None:
    offer = ["AUTH EXTERNAL"]
    opportunistic = path(pki, users.client(), smtp_auth=EXTERNAL, enable_tls="Opportunistic")
    async with open_peer(capabilities=offer) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired):
            await dial(opportunistic, peer)
        allowed = path(
            pki,
            users.client(),
            smtp_auth=EXTERNAL,
            enable_tls="Opportunistic",
            allow_smtp_auth_plain_without_tls=True,
        )
        with pytest.raises(AuthNotOffered):
            await dial(allowed, peer)
        assert "AUTH" not in peer.words()


async def test_a_refused_certificate_is_left_alone_until_there_is_another(pki: Pki, users: Pki) -> None:
    one = path(pki, IN_RING, smtp_auth=EXTERNAL, hold_interval="1h")
    replies: Any = {"AUTH": ["535 5.7.8 no", "235 ok"]}
    ring = Ring(users.client("first"))
    async with open_peer(tls=asking(pki, users), secured=["AUTH EXTERNAL"], replies=replies) as peer:
        async with open_dial(ring) as dial:
            for _ in range(3):
                with pytest.raises(LoginRefused):
                    await dial(one, peer)
            assert peer.words().count("AUTH") == 1
            ring.put(users.client("second"))
            await dial(one, peer)
            assert peer.words().count("AUTH") == 2 and peer.shown[-1] == "second"
