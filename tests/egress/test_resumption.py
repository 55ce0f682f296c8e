"""TLS sessions are resumed, and never under anything that could have been judged otherwise (C27)."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.egress import tls
from engine.egress.connection import Connection
from engine.egress.resolve import Candidate
from engine.egress.resumption import Kept, SessionKey, Sessions
from engine.egress.tlsneed import TlsNeed
from engine.errors import TlsRequired
from engine.keys import Credential
from engine.net import TlsFacts
from policy.egress import EgressPath, make_egress_path
from policy.keysource import LiteralKey
from policy.secret import Secret
from tests.egress.dialing import NAME, Dial, candidate, hooks_for, open_dial
from tests.support.peer import FakePeer, listening, open_peer
from tests.support.pki import Pki

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
OTHER = "mail.peer.example"


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def context(pki: Pki, version: ssl.TLSVersion | None = None, **how: Any) -> ssl.SSLContext:
    made = pki.server(NAME, OTHER, "127.0.0.1", **how)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


def path(pki: Pki, **options: Any) -> EgressPath:
    return make_egress_path(**{"enable_tls": "Required", "tls_ca": {"key_data": pki.pem.decode()}, **options})


def resumed(connection: Connection) -> bool:
    assert connection.stream.tls is not None
    return connection.stream.tls.resumed


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_next_connection_resumes(version: ssl.TLSVersion, implicit: bool, pki: Pki) -> None:
    async with open_peer(tls=context(pki, version), implicit=implicit) as peer, open_dial() as dial:
        first, *others = [await dial(path(pki, tls_implicit=implicit), peer) for _ in range(4)]
        assert not resumed(first) and all(map(resumed, others))
        for one in others:
            # What was found out then is the result now, and the binding is that of the same certificate.
            assert one.stream.tls is not None and first.stream.tls is not None
            assert msgspec.structs.replace(one.stream.tls, resumed=False) == first.stream.tls
            assert one.stream.binding() == first.stream.binding() is not None


async def test_sessions_go_with_their_context(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would keep it in memory, as many times as it is made anew."""
    monkeypatch.setattr(tls, "_CERTIFICATES", 1)
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        for least in ("1.2", "1.3", "1.2", "1.3"):
            assert not resumed(await dial(path(pki, tls_minimum_version=least), peer))
            dial.opened.pop().stream.close()
            assert len(dial.dialer._safety._sessions._kept) == 1


async def test_a_session_is_used_once(pki: Pki) -> None:
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        await dial(path(pki), peer)
        both: list[Connection] = []

        async def one() -> None:
            both.append(await dial(path(pki), peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert sorted(map(resumed, both)) == [False, True]


async def test_a_peer_that_forgot_is_checked_anew(pki: Pki) -> None:
    """The peer was restarted with a certificate that is not trusted: the offer to resume helps nobody."""
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        await dial(path(pki), peer)
        peer.tls = context(pki)
        assert not resumed(await dial(path(pki), peer))
        peer.tls = context(Pki())
        with pytest.raises(TlsRequired, match="not trusted"):
            await dial(path(pki), peer)


async def test_a_connection_that_failed_leaves_no_session(pki: Pki) -> None:
    pins = ["ab" * 32]
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        for _ in range(2):
            with pytest.raises(TlsRequired, match="tls_pins"):
                await dial(path(pki, tls_pins=pins), peer)
        assert not dial.dialer._safety._sessions._kept


class Way:
    """One way to connect: what may differ from one connection to the next."""

    def __init__(self, pki: Pki, users: Pki) -> None:
        clients = [users.client("one"), users.client("two")]
        self.paths: dict[str, dict[str, Any]] = {
            "plain": {},
            "insecure": {"enable_tls": "RequiredInsecure", "tls_ca": None},
            "opportunistic": {"enable_tls": "Opportunistic"},
            "more authorities": {"tls_ca": {"key_data": (pki.pem + Pki().pem).decode()}},
            "another name": {"tls_server_name": OTHER},
            "version": {"tls_minimum_version": "1.3"},
            "ciphers": {"openssl_cipher_list": "ECDHE"},
            "user": {"smtp_auth": {"username": "scott", "password": {"key_data": "tiger"}}},
            "another user": {"smtp_auth": {"username": "lion", "password": {"key_data": "tiger"}}},
            "another secret": {"smtp_auth": {"username": "scott", "password": {"key_data": "lion"}}},
            "client one": self._client(clients[0]),
            "client two": self._client(clients[1]),
            "provider": {"provider_name": "somebody"},
        }
        self.made = {name: path(pki, **options) for name, options in self.paths.items()}
        self.names = [NAME, OTHER, "127.0.0.1"]
        self.sources = [None, "127.0.0.1", "127.0.0.2"]

    @staticmethod
    def _client(pair: tuple[bytes, bytes]) -> dict[str, Any]:
        chain, key = (part.decode() for part in pair)
        return {"tls_certificate": {"key_data": chain}, "tls_private_key": {"key_data": key}}


USERS = Pki()
ROOT = Pki()
WAYS = Way(ROOT, USERS)


@settings(max_examples=25, deadline=None)
@given(
    ways=st.lists(
        st.tuples(
            st.sampled_from(sorted(WAYS.paths)), st.sampled_from(WAYS.names), st.sampled_from(WAYS.sources)
        ),
        min_size=2,
        max_size=8,
    )
)
def test_nothing_that_differs_shares_a_session(ways: list[tuple[str, str, str | None]]) -> None:
    """Connections in any order: resumed is exactly what was done before in just the same way."""

    async def run() -> None:
        server = context(ROOT, asks=USERS)
        async with open_peer(tls=server, secured=["AUTH PLAIN"]) as peer, open_dial() as dial:
            before = set()
            for way in ways:
                name, host, source = way
                connection = await dial(WAYS.made[name], candidate(peer, host), source_address=source)
                assert resumed(connection) == (way in before), (way, before)
                before.add(way)

    trio.run(run)


async def test_hosts_and_ports_share_none(pki: Pki) -> None:
    """The same name at another address or port may be somebody else with the same keys for tickets."""
    server = context(pki)
    everywhere = open_peer(tls=server, host="0.0.0.0")
    async with everywhere as one, open_peer(tls=server) as other, open_dial() as dial:
        await dial(path(pki), one)
        assert not resumed(await dial(path(pki), other))
        assert not resumed(await dial(path(pki), Candidate(NAME, "127.0.0.2", one.port, NAME)))
        assert resumed(await dial(path(pki), one))


async def test_two_hosts_that_are_checked_for_one_name_share_none(pki: Pki) -> None:
    one = path(pki, tls_server_name=OTHER)
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        await dial(one, candidate(peer, NAME))
        assert not resumed(await dial(one, candidate(peer, "127.0.0.1")))
        assert resumed(await dial(one, candidate(peer, NAME)))


class Password:
    """A key source whose value changes."""

    def __init__(self) -> None:
        self.value = b"tiger"

    async def fetch(self, ref: Any, *, fresh: bool = False) -> Credential:
        await trio.lowlevel.checkpoint()
        value = ref.data.reveal() if isinstance(ref, LiteralKey) else self.value
        return Credential(Secret(value), value.hex(), 0.0)

    def source(self, ref: Any) -> str:
        return ""


async def test_another_version_of_the_password_is_another_session(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    take = Sessions.take

    def taking(self: Sessions, key: SessionKey, context: ssl.SSLContext) -> Kept | None:
        taken.append((kept := take(self, key, context)) is not None)
        return kept

    monkeypatch.setattr(Sessions, "take", taking)
    ring = Password()
    one = path(pki, smtp_auth={"username": "scott", "password": "/relay.password"})
    async with open_peer(tls=context(pki), secured=["AUTH PLAIN"]) as peer, open_dial(ring) as dial:
        await dial(one, peer)
        assert resumed(await dial(one, peer)) and taken == [False, True]
        ring.value = b"lion"
        await dial(one, peer)
        # The new one is tried out first, in a session of its own, which the one for mail may resume.
        assert taken[2:] == [False, True]


async def test_what_others_demand_of_the_peer_counts_too(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """A need that was tightened (by DANE, MTA-STS) is another need."""
    of = TlsNeed.of
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        await dial(path(pki), peer)
        monkeypatch.setattr(TlsNeed, "of", lambda path: of(path).tightened("somebody", sni=OTHER))
        assert not resumed(await dial(path(pki), peer))


async def test_the_record_says_so(pki: Pki, bench: Any) -> None:
    one = path(pki, max_deliveries_per_connection=1, connection_limit=1)
    async with listening(FakePeer(tls=context(pki))) as peer:
        async with bench(hooks_for(peer, one)) as b:
            for count in (1, 2):
                await b.submit()
                records = await b.records("Delivery", count)
            assert [record.tls_resumed for record in records] == [None, True]
            assert records[0].tls_verified is records[1].tls_verified is True
            assert records[0].tls_peer_name == records[1].tls_peer_name == NAME
            assert records[0].tls_peer_subject_name == records[1].tls_peer_subject_name
            assert records[0].tls_peer_subject_name
            assert records[1].tls_why == "chain and name verified for 127.0.0.1"


# -- for how long ---------------------------------------------------------------------------------------


async def dial_again(dial: Dial, peer: FakePeer, one: EgressPath, pause: float) -> bool:
    await dial(one, peer)
    await trio.sleep(pause)
    return resumed(await dial(one, peer))


async def test_an_hour_at_most(pki: Pki, clock: MockClock) -> None:
    async with open_peer(tls=context(pki)) as peer, open_dial() as dial:
        assert await dial_again(dial, peer, path(pki), 3500)
        assert not await dial_again(dial, peer, path(pki, provider_name="x"), 3700)


async def test_not_longer_than_the_certificate(pki: Pki, clock: MockClock) -> None:
    short = {"days": (-1, 100 / 86400)}
    async with open_peer(tls=context(pki, **short)) as peer, open_dial() as dial:
        assert await dial_again(dial, peer, path(pki), 60)
        assert not await dial_again(dial, peer, path(pki, provider_name="x"), 120)


async def test_the_number_of_sessions_is_limited(pki: Pki) -> None:
    sessions = Sessions()
    facts = TlsFacts("TLSv1.3", "", True, None, "")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    session: Any = type("Session", (), {"has_ticket": True, "ticket_lifetime_hint": 7200})()
    one = path(pki)

    def key(port: int) -> SessionKey:
        return SessionKey(one, TlsNeed.of(one), NAME, NAME, "127.0.0.1", port, None, None, "")

    for _ in range(20):
        sessions.keep(key(1), session, client, facts, 10.0)
    taken = 0
    while sessions.take(key(1), client) is not None:
        taken += 1
    assert taken == 8
    assert not sessions._kept
    for port in range(5000):
        for _ in range(3):
            sessions.keep(key(port), session, client, facts, 10.0)
    assert 4090 < sum(map(len, sessions._kept.values())) == sessions._count <= 4096
    assert sessions.take(key(0), client) is None
    assert sessions.take(key(4999), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) is None
    for number in range(20):
        assert (sessions.take(key(4998), client) is not None) is (number < 3)
    assert sum(map(len, sessions._kept.values())) == sessions._count


@pytest.mark.parametrize("count", [150, 1300])
async def test_an_outsize_certificate_is_no_defect_of_ours(count: int) -> None:
    """Of one of more than 64 KiB the ssl module makes no session, and raises; the mail was never settled."""
    names = [f"{'x' * 50}{n:04}.example" for n in range(count)]
    async with open_peer(tls=Pki().server(NAME, *names)) as peer, open_dial() as dial:
        for _ in range(2):
            facts = (await dial(make_egress_path(enable_tls="RequiredInsecure"), peer)).stream.tls
            assert facts is not None and not facts.resumed
