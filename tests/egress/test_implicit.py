"""TLS before the greeting, and what is refused, demanded and remembered on the way there."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress.dial import NoHostReached
from engine.egress.resolve import Candidate
from engine.errors import TlsRequired
from engine.net import Stream, connect
from policy.egress import make_egress_path
from tests.egress.dialing import NAME, candidate, inside, open_dial
from tests.support.peer import DROP, HANG, FakePeer, Wire, open_peer
from tests.support.pki import Pki


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def implicit(pki: Pki, **options: Any) -> Any:
    return make_egress_path(
        **{
            "enable_tls": "Required",
            "tls_implicit": True,
            "tls_ca": {"key_data": pki.pem.decode()},
            **options,
        }
    )


async def test_the_handshake_comes_first_and_starttls_never(pki: Pki) -> None:
    # A peer that offers STARTTLS inside TLS is not taken at its word.
    async with open_peer(tls=pki.server(NAME), implicit=True, secured=["STARTTLS", "SIZE 1000"]) as peer:
        async with open_dial() as dial:
            connection = await dial(implicit(pki), peer)
            assert peer.commands == ["(tls)", "EHLO relay.example"]
            assert connection.stream.tls is not None and connection.stream.tls.verified
            assert connection.tls_why == f"chain and name verified for {NAME}"
            assert connection.client.tls and connection.client.capabilities.size == 1000


async def test_a_login_follows_without_starttls(pki: Pki) -> None:
    login = {"username": "scott", "password": {"key_data": "tiger"}}
    async with open_peer(tls=pki.server(NAME), implicit=True, secured=["AUTH PLAIN"]) as peer:
        async with open_dial() as dial:
            connection = await dial(implicit(pki, smtp_auth=login), peer)
            assert connection.auth_mechanism == "PLAIN" and "STARTTLS" not in peer.words()


@pytest.mark.parametrize("mode", ["Required", "RequiredInsecure"])
async def test_the_certificate_is_checked_as_after_starttls(mode: str, pki: Pki) -> None:
    options = {"enable_tls": mode} if mode == "Required" else {"enable_tls": mode, "tls_ca": None}
    async with open_peer(tls=Pki().server(NAME), implicit=True) as peer, open_dial() as dial:
        if mode == "Required":
            with pytest.raises(TlsRequired, match="certificate not trusted"):
                await dial(implicit(pki, **options), peer)
            assert inside(peer) == []
        else:
            connection = await dial(implicit(pki, **options), peer)
            assert connection.stream.tls is not None and not connection.stream.tls.verified


async def test_a_peer_that_begins_in_clear_text_hears_nothing_but_a_handshake(pki: Pki) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"]) as peer, open_dial() as dial:
        login = {"username": "scott", "password": {"key_data": "tiger"}}
        with pytest.raises(TlsRequired, match="begin in clear text, and tls_implicit is set"):
            await dial(implicit(pki, smtp_auth=login), peer)
        assert not any(word.isalpha() for word in peer.words())


async def test_a_peer_that_says_nothing_gets_the_time_of_a_handshake(pki: Pki, clock: MockClock) -> None:
    async def silent(wire: Wire) -> None:
        await wire.until_closed()

    async with open_peer(silent) as peer, open_dial() as dial:
        began = trio.current_time()
        with pytest.raises(NoHostReached, match=r"TLS handshake not done within 7 s \(TLS\)"):
            await dial(implicit(pki, starttls_timeout=7), peer)
        assert 7 <= trio.current_time() - began < 8


async def test_waiting_for_a_greeting_at_465_has_a_hint(pki: Pki, clock: MockClock) -> None:
    async with open_peer(replies={"connect": HANG}) as peer, open_dial() as dial:

        async def at_465(address: str, port: int, *, source_address: str | None = None) -> Stream:
            stream = await connect(address, peer.port)
            stream.peer = (address, port)
            return stream

        dial.dialer._connect = at_465
        for port, hint in ((465, "see tls_implicit"), (25, "no answer within 3 s")):
            with pytest.raises(NoHostReached, match=hint) as caught:
                await dial(make_egress_path(banner_timeout=3), Candidate(NAME, "127.0.0.1", port, NAME))
            assert ("tls_implicit" in str(caught.value)) == (port == 465)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_an_address_is_verified_by_its_entry_in_the_certificate(address: str, pki: Pki) -> None:
    async with open_peer(tls=pki.server(address), implicit=True) as peer, open_dial() as dial:
        connection = await dial(implicit(pki), candidate(peer, address))
        assert connection.tls_why == f"chain and name verified for {address}"
        with pytest.raises(TlsRequired, match="mismatch"):
            await dial(implicit(pki), candidate(peer, "127.0.0.9"))


# -- the least version, ciphers -----------------------------------------------------------------------


def only(context: ssl.SSLContext, version: ssl.TLSVersion, ciphers: str | None = None) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    return context


@pytest.mark.parametrize("mode", ["Required", "Opportunistic"])
async def test_the_least_version(mode: str, pki: Pki) -> None:
    path = make_egress_path(
        enable_tls=mode,  # type: ignore[arg-type]
        tls_ca={"key_data": pki.pem.decode()},
        tls_minimum_version="1.3",
    )
    async with open_peer(tls=only(pki.server(NAME), ssl.TLSVersion.TLSv1_2)) as peer, open_dial() as dial:
        with pytest.raises((TlsRequired, NoHostReached), match="TLS handshake failed"):
            await dial(path, peer)
        assert inside(peer) == []
    async with open_peer(tls=only(pki.server(NAME), ssl.TLSVersion.TLSv1_3)) as peer, open_dial() as dial:
        await dial(path, peer)


async def test_ciphers(pki: Pki) -> None:
    path = make_egress_path(
        enable_tls="Required",
        tls_ca={"key_data": pki.pem.decode()},
        openssl_cipher_list="ECDHE-ECDSA-CHACHA20-POLY1305",
    )
    version = ssl.TLSVersion.TLSv1_2
    async with open_peer(tls=only(pki.server(NAME), version)) as peer, open_dial() as dial:
        connection = await dial(path, peer)
        assert connection.stream.tls is not None
        assert connection.stream.tls.cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"
    other = only(pki.server(NAME), version, "ECDHE-ECDSA-AES128-GCM-SHA256")
    async with open_peer(tls=other) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match="TLS handshake failed"):
            await dial(path, peer)


# -- broken TLS ---------------------------------------------------------------------------------------


def fallback(**options: Any) -> Any:
    return make_egress_path(opportunistic_tls_reconnect_on_failed_handshake=True, **options)


async def closes_in_the_handshake(wire: Wire) -> None:
    await wire.greet("STARTTLS")
    await wire.line()
    await wire.say("220 go")


async def test_a_peer_that_closes_in_the_handshake_has_broken_tls() -> None:
    async def script(wire: Wire) -> None:
        if wire.number == 1:
            await closes_in_the_handshake(wire)
        else:
            await wire.greet("STARTTLS")
            await wire.until_closed()

    async with open_peer(script) as peer, open_dial() as dial:
        connection = await dial(fallback(), peer)
        assert connection.stream.tls is None and "handshake" in connection.tls_why
        assert peer.connections == 2


@pytest.mark.parametrize("reply", [DROP, "554 5.5.1 no"])
async def test_an_ehlo_that_fails_right_after_it_counts_too(reply: str, pki: Pki) -> None:
    said = iter(["250-peer.example\r\n250 STARTTLS", reply, "250-peer.example\r\n250 STARTTLS"])
    replies: dict[str, Any] = {"EHLO": lambda line: next(said), "HELO": "554 no"}
    async with open_peer(tls=pki.server(NAME), replies=replies) as peer, open_dial() as dial:
        connection = await dial(fallback(enable_tls="OpportunisticInsecure"), peer)
        assert connection.stream.tls is None and peer.connections == 2


async def test_a_peer_that_must_have_tls_gets_no_clear_text() -> None:
    async with open_peer(closes_in_the_handshake) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match=r"in the TLS handshake|TLS handshake failed"):
            await dial(fallback(enable_tls="Required"), peer)
        login = {"username": "scott", "password": {"key_data": "tiger"}}
        with pytest.raises(TlsRequired, match=r"in the TLS handshake|TLS handshake failed"):
            await dial(fallback(smtp_auth=login), peer)
        assert peer.connections == 2


async def test_broken_tls_is_the_hosts_and_not_the_sites(pki: Pki) -> None:
    """Egress 3.2, its trap: one bad host of a site must not take TLS from the others."""
    bad, good = FakePeer(tls=Pki().server(NAME)), FakePeer(tls=pki.server(NAME))
    path = fallback(enable_tls="Opportunistic", tls_ca={"key_data": pki.pem.decode()})
    async with open_peer(tls=bad.tls) as one, open_peer(tls=good.tls) as other, open_dial() as dial:
        first = await dial(path, one)
        second = await dial(path, other)
        assert first.stream.tls is None and second.stream.tls is not None


async def test_what_is_remembered_says_nothing_of_stricter_options(pki: Pki) -> None:
    async with open_peer(tls=Pki().server(NAME)) as peer, open_dial() as dial:
        ca = {"key_data": pki.pem.decode()}
        assert (await dial(fallback(tls_ca=ca), peer)).stream.tls is None
        with pytest.raises(TlsRequired):
            await dial(make_egress_path(enable_tls="Required", tls_ca=ca), peer)
        insecure = await dial(fallback(enable_tls="OpportunisticInsecure"), peer)
        assert insecure.stream.tls is not None
