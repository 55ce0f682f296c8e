"""engine/egress/session.py and transactions.py: what has no file of its own."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.errors import SpoolError
from engine.model import Message, QueueName, new_message_id
from engine.spool import Handle, MemorySpool, MemoryStore
from tests.egress.dialing import NAME
from tests.support.bench import AUTH, to
from tests.support.certificates import Authority
from tests.support.peer import PLAIN, Wire, hello, open_peer
from tests.support.pki import Pki

LARGE = b"Subject: large\r\n\r\n" + (b"y" * 78 + b"\r\n") * 150_000
"""12 megabytes: more than the buffers of a connection on loopback take."""


@pytest.mark.parametrize("polite", [True, False])
async def test_tls_has_an_end_where_the_session_has_one(bench: Any, polite: bool) -> None:
    """close_notify after the reply to QUIT (RFC 8446 6.1); a session that is broken off looks like it."""
    pki = Pki()
    ends: list[str] = []

    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.say("220 go")
        tls = trio.SSLStream(wire.socket, pki.server("127.0.0.1"), server_side=True)
        await tls.do_handshake()
        wire.stream = tls
        await wire.line()
        await wire.say(hello(()))
        while (word := await wire.word()) != "QUIT":
            await wire.say(
                "354 go" if word == "DATA" else "250 ok" if polite or word != "RCPT" else "2-0 what"
            )
            if word == "DATA":
                await wire.data()
                await wire.say("250 ok")
            if word == "RCPT" and not polite:
                break
        if polite:
            await wire.say("221 bye")
        try:
            while await tls.receive_some():
                pass
            ends.append("said")
        except trio.BrokenResourceError:
            ends.append("broken off")

    options = {"enable_tls": "Required", "tls_ca": {"key_data": pki.pem.decode()}, "idle_timeout": "10ms"}
    async with open_peer(script) as peer, bench(to(peer, **options)) as b:
        await b.submit()
        await b.until(lambda: ends)
    assert ends == ["said" if polite else "broken off"]


async def test_the_record_says_how_the_message_left(bench: Any) -> None:
    authority = Authority()
    path = {
        **AUTH,
        "enable_tls": "Required",
        "tls_ca": {"key_data": authority.pem.decode()},
        "tls_server_name": NAME,
    }
    async with open_peer(tls=authority.server_context(NAME), capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, **path)) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert (record.smtp_auth_user, record.smtp_auth_mechanism) == ("scott", "PLAIN")
            assert record.tls_verified and record.tls_why == f"chain and name verified for {NAME}"
            assert record.tls_protocol_version == "TLSv1.3" and record.tls_peer_name == NAME
            assert (record.peer_addr, record.source_address) == ("127.0.0.1", "127.0.0.1")
            assert record.site == f"unspecified->mx_list:127.0.0.1:{peer.port}@smtp_client"
            assert record.command == "." and record.delivery_protocol == "ESMTP" and record.session_id


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("after", ["closes", "stops"])
async def test_a_refusal_in_the_middle_of_a_message_is_heard_from_a_peer_that_reads_no_more(
    after: str, tls: bool, bench: Any, clock: MockClock
) -> None:
    context = Authority().server_context(NAME)

    async def script(wire: Wire) -> None:
        if tls:
            await wire.greet("STARTTLS", *PLAIN)
            await wire.line()
            await wire.say("220 go")
            await wire.start_tls(context)
            await wire.line()
            await wire.say("250-peer.example", "250 PIPELINING")
            await wire.envelope()
        else:
            await wire.up_to_data()
        await wire.more()
        await wire.say("552 5.3.4 too big")
        if after == "stops":
            await trio.sleep_forever()

    options = {"enable_tls": "RequiredInsecure"} if tls else {}
    async with open_peer(script) as peer, bench(to(peer, queue={"retry_interval": "1h"}, **options)) as b:
        await b.submit(body=LARGE)
        record = await b.first(seconds=1000)
        assert (record.type, record.code, record.content) == ("Bounce", 552, "too big")


async def test_a_drain_says_goodbye_to_idle_peers(bench: Any, clock: MockClock) -> None:
    """RFC 5321 4.1.1.10: no connection is closed on purpose without QUIT."""
    async with open_peer() as peer, bench(to(peer, idle_timeout="5m")) as b:
        await b.submit()
        await b.records("Delivery")
        await b.router.drain()
        assert peer.words()[-1] == "QUIT"


# -- trouble with the spool ------------------------------------------------------------------------


class Unreachable(MemorySpool):
    """Cannot be read `failures` times."""

    failures = 0

    async def read(self, handle: Handle) -> tuple[Message, bytes]:
        if self.failures:
            self.failures -= 1
            raise SpoolError("the disk does not answer")
        return await super().read(handle)


async def left_behind(number: int) -> MemoryStore:
    """So many messages as an earlier process left them: they have to be read."""
    store, body = MemoryStore(), b"Subject: hello\r\n\r\nHello\r\n"
    messages = [
        Message(
            id=new_message_id(),
            sender="alice@sender.example",
            recipients=[f"u{i}@example.com"],
            queue=QueueName("example.com"),
            created=time.time(),
            size=len(body),
        )
        for i in range(number)
    ]
    await MemorySpool(store).commit([body], messages)
    return store


async def test_a_damaged_message_harms_no_other(bench: Any, clock: MockClock) -> None:
    store = await left_behind(3)
    spool = MemorySpool(store)
    async with open_peer() as peer, bench(to(peer, connection_limit=1), spool=spool) as b:
        store.messages[2].envelope = b"\xc1"
        await b.records("Delivery", 2)
        await b.until(lambda: b.router.statistics().queued == 0)
        assert b.router.settler.counters.unreadable == 1
        assert b.log.kinds() == ["Delivery"] * 2 and peer.connections == 1


async def test_a_spool_that_cannot_be_read_now_is_asked_again_in_a_minute(
    bench: Any, clock: MockClock
) -> None:
    store = await left_behind(3)
    spool = Unreachable(store)
    spool.failures = 2
    async with open_peer() as peer, bench(to(peer, connection_limit=1), spool=spool) as b:
        begun = trio.current_time()
        await b.records("Delivery", 1)
        records = await b.records("Delivery", 3, seconds=100)
        assert trio.current_time() - begun == pytest.approx(60.0, abs=0.1)
        assert b.log.kinds() == ["Delivery"] * 3 and all(r.num_attempts == 0 for r in records)
