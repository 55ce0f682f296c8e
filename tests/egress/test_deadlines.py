"""Everything a peer can do slowly meets a limit, with the message still queued (reliability C3, C18, C19)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import session as session_module
from tests.support.bench import AUTH, to
from tests.support.peer import HANG, Wire, open_peer

LARGE = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 110_000


# Each step has its time


STAGES = {
    "banner_timeout": ("connect", "greeting"),
    "ehlo_timeout": ("EHLO", "EHLO"),
    "starttls_timeout": ("STARTTLS", "STARTTLS"),
    "mail_from_timeout": ("MAIL", "MAIL FROM"),
    "rcpt_to_timeout": ("RCPT", "RCPT TO"),
    "data_timeout": ("DATA", "DATA"),
    "data_dot_timeout": (".", "final dot"),
}


@pytest.mark.parametrize("option", STAGES)
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_silent_peer(option: str, pipelining: bool, bench: Any, clock: MockClock) -> None:
    word, stage = STAGES[option]
    capabilities = ["STARTTLS", *(["PIPELINING"] if pipelining else [])]
    mode = "Opportunistic" if word == "STARTTLS" else "Disabled"
    async with open_peer(replies={word: HANG}, capabilities=capabilities) as peer:
        async with bench(to(peer, enable_tls=mode, **{option: 7})) as b:
            await b.submit()
            record = await b.first(60)
            assert record.type == "TransientFailure" and stage in record.content
            assert 7 <= clock.current_time() < 7.5
            assert ("twice" in record.content) == (word == ".")
            assert b.spool.statistics().messages == 1


async def test_a_silent_handshake(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.say("220 go")
        await wire.until_closed()

    async with open_peer(script) as peer:
        async with bench(to(peer, enable_tls="Opportunistic", starttls_timeout=7)) as b:
            await b.submit()
            record = await b.first(60)
            assert record.type == "TransientFailure" and "handshake" in record.content
            assert 7 <= clock.current_time() < 7.5


async def test_a_silent_login(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"AUTH": HANG}, capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, auth_timeout=7, **AUTH)) as b:
            await b.submit()
            assert (await b.first(60)).cause == "login-unanswered"
            assert 7 <= clock.current_time() < 7.5


async def test_a_silent_rset_is_no_attempt_of_the_next_message(bench: Any, clock: MockClock) -> None:
    path = {"connection_limit": 1, "enable_pipelining_across_messages": False, "rset_timeout": 7}
    async with open_peer(replies={"RSET": HANG}) as peer, bench(to(peer, **path)) as b:
        await b.submit_many(2)
        await b.records("Delivery", 2, seconds=60)
        assert peer.connections == 2 and "TransientFailure" not in b.log.kinds()
        assert 7 <= clock.current_time() < 10


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port that is listened to and where no connection comes to be: its backlog is full."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        try:
            yield deaf.getsockname()[1]
        finally:
            for each in waiting:
                each.close()


async def test_a_connection_that_does_not_come_to_be(bench: Any, clock: MockClock) -> None:
    with deaf_port() as port:
        nobody: Any = SimpleNamespace(port=port)
        async with bench(to(nobody, connect_timeout=7)) as b:
            await b.submit()
            record = await b.first(60)
            assert record.type == "TransientFailure" and "no connection within 7 s" in record.content
            assert 7 <= clock.current_time() < 7.5


# One deadline for one reply, in however many pieces it drips in


DRIPS = {
    "octets": ["250-", *"x" * 50],
    "lines": [f"250-line {i}\r\n" for i in range(50)],
}


@pytest.mark.parametrize("pieces", DRIPS.values(), ids=list(DRIPS))
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_reply_that_drips(pieces: list[str], pipelining: bool, bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet()
        await wire.line()
        await wire.say("250 ok")
        await wire.line()
        await wire.drip(pieces, 1.5)

    async with open_peer(script) as peer:
        async with bench(to(peer, rcpt_to_timeout=5, enable_pipelining=pipelining)) as b:
            await b.submit()
            record = await b.first(60)
            assert "RCPT TO" in record.content
            assert clock.current_time() < 7


async def test_a_greeting_that_drips(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.drip([*"220-" + "x" * 50], 1.5)

    async with open_peer(script) as peer, bench(to(peer, banner_timeout=5)) as b:
        await b.submit()
        assert "greeting" in (await b.first(60)).content
        assert clock.current_time() < 7


async def test_a_reply_without_end(bench: Any, clock: MockClock) -> None:
    """It costs bounded memory, and no more time than it takes to say so much."""

    async def script(wire: Wire) -> None:
        await wire.greet()
        for _ in range(3):
            await wire.line()
        while True:
            await wire.say(*["250-x"] * 100)

    async with open_peer(script) as peer, bench(to(peer)) as b:
        await b.submit()
        assert (await b.first()).type == "TransientFailure"
        await b.until(lambda: peer.open == 0)


# The whole session has one limit


async def test_a_session_under_steady_load_is_replaced(
    bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_SESSION_LIMIT", 60.0)

    async def script(wire: Wire) -> None:
        await wire.greet()
        while (word := await wire.word()) != "QUIT":
            if word == "DATA":
                await wire.say("354 go")
                await wire.data()
                await trio.sleep(5)
            await wire.say("250 ok")

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit_many(40)
        await b.records("Delivery", 40, seconds=600)
        gaps = [after - before for before, after in zip(peer.times, peer.times[1:], strict=False)]
        assert all(54 <= gap <= 61 for gap in gaps) and len(gaps) >= 3
        assert set(b.log.kinds()) == {"Delivery"} and peer.words().count("QUIT") >= len(gaps)


async def test_a_tar_pit_that_stays_just_within_each_limit(
    bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty recipients, each answered just in time, are hours."""
    monkeypatch.setattr(session_module, "_SESSION_LIMIT", 60.0)

    async def script(wire: Wire) -> None:
        await wire.greet()
        while True:
            await wire.line()
            await trio.sleep(4.5)
            await wire.say("250 ok")

    async with open_peer(script) as peer:
        async with bench(to(peer, rcpt_to_timeout=5, mail_from_timeout=5)) as b:
            await b.submit([f"p{i}@example.com" for i in range(50)])
            assert (await b.first(100)).type == "TransientFailure"
            assert clock.current_time() <= 61


async def test_the_answer_to_the_dot_is_awaited_beyond_it(
    bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving up then would be a duplicate (RFC 1047)."""
    monkeypatch.setattr(session_module, "_SESSION_LIMIT", 60.0)

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        await trio.sleep(300)
        await wire.say("250 taken at last")

    async with open_peer(script) as peer, bench(to(peer, data_dot_timeout=600)) as b:
        await b.submit()
        await b.records("Delivery", seconds=400)


# Peers that do not read


async def test_a_zero_window(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await trio.sleep(600)

    async with open_peer(script, window=4096) as peer:
        async with bench(to(peer, data_timeout=7)) as b:
            await b.submit(body=LARGE)
            record = await b.first(60)
            assert record.type == "TransientFailure" and "twice" not in record.content
            assert 7 <= clock.current_time() < 8


async def test_a_peer_that_reads_octet_by_octet(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        while await wire.socket.receive_some(1):
            await trio.sleep(1)

    async with open_peer(script, window=4096) as peer:
        async with bench(to(peer, data_timeout=7)) as b:
            await b.submit(body=LARGE)
            assert (await b.first(60)).type == "TransientFailure"
            assert clock.current_time() < 30


async def test_a_half_closed_connection(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet()
        await wire.socket.send_eof()
        await wire.until_closed()

    async with open_peer(script) as peer, bench(to(peer)) as b:
        await b.submit()
        assert (await b.first()).type == "TransientFailure"
        assert clock.current_time() < 1
        await b.until(lambda: peer.open == 0)


# The end of a session


@pytest.mark.parametrize("idle", [0, 20])
async def test_an_idle_connection_is_given_up(idle: float, bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=idle)) as b:
        await b.submit()
        await b.records("Delivery")
        await b.until(lambda: peer.open == 0, 60)
        assert idle <= clock.current_time() <= idle + 2 and peer.words()[-1] == "QUIT"


async def test_a_woken_connection_counts_before_it_has_a_message(bench: Any, clock: MockClock) -> None:
    """Whoever looks at the queue between the waking and the taking must not open another one for it."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=100)) as b:
        await b.submit()
        await b.records("Delivery")
        (ready,) = b.ready()
        await b.until(ready.idle_sessions)
        await b.submit()
        b.router._crew.set_to_work(ready, trio.current_time())
        # Of two, whichever runs first would take the message: the new one perhaps, and connect.
        assert b.router.statistics().sessions == 1
        await b.records("Delivery", 2)
        assert peer.connections == 1


async def test_an_idle_connection_is_used_again(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=20)) as b:
        for number in range(1, 6):
            await b.submit()
            await b.records("Delivery", number)
            await trio.sleep(15)
        assert peer.connections == 1


async def test_a_quit_without_an_answer_counts_until_the_connection_is_closed(
    bench: Any, clock: MockClock
) -> None:
    """The peer must not see more connections than the limit, and does not hold the slot for long."""
    path = {"connection_limit": 1, "max_deliveries_per_connection": 1, "idle_timeout": 60}
    async with open_peer(replies={"QUIT": HANG}) as peer, bench(to(peer, **path)) as b:
        await b.submit_many(10)
        await b.records("Delivery", 10, seconds=60)
        assert peer.most_open <= 2  # the peer sees our end a moment after we made it
        assert 9 * 4 <= clock.current_time() <= 10 * 6


# The end of the engine


async def test_a_drain_waits_as_long_as_the_path_says(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={".": HANG}) as peer:
        async with bench(to(peer, system_shutdown_timeout=1)) as b:
            await b.submit()
            await b.until(lambda: "DATA" in peer.words())
            begun = clock.current_time()
            with trio.fail_after(60):
                await b.router.drain()
            assert 1 <= clock.current_time() - begun <= 1.1
            assert "twice" in b.log.records[0].content


async def test_a_session_that_is_still_connecting_begins_nothing_more(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await trio.sleep(0.5)
        await wire.peer.converse(wire)

    async with open_peer(script) as peer, bench(to(peer)) as b:
        await b.submit()
        await trio.sleep(0.2)
        await b.router.drain()
        assert "MAIL" not in peer.words() and not b.log.records
        assert b.spool.statistics().messages == 1
