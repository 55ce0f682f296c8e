"""engine/egress/session.py between two messages: parked for a moment, then listening to its peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import session as session_module
from tests.egress.dialing import NAME
from tests.support.bench import Bench, to
from tests.support.certificates import Authority
from tests.support.peer import DROP, Wire, open_peer

QUIET = session_module._QUIET


def says_after_its_message(farewell: str, pause: float = 0.0) -> Callable[[Wire], Awaitable[None]]:
    """The first connection takes a message, says so and, after a pause, `farewell`, and is closed unless that
    is a 250. The others go by the table."""

    async def script(wire: Wire) -> None:
        if wire.number > 1:
            await wire.peer.converse(wire)
            return
        await wire.up_to_data()
        await wire.data()
        await wire.say("250 taken")
        await trio.sleep(pause)
        if farewell:
            await wire.say(farewell)
        if farewell.startswith("250"):
            await wire.until_closed()

    return script


async def only_session(b: Bench) -> Any:
    """The one session, idle."""
    (ready,) = b.ready()
    await b.until(ready.idle_sessions)
    (session,) = b.router._crew.sessions
    return session


@pytest.mark.parametrize("farewell", ["421 idle too long", "250 what", ""])
async def test_a_message_for_a_connection_that_its_peer_has_ended_is_sent_by_another_one(
    farewell: str, bench: Any, clock: MockClock
) -> None:
    """Nobody listened when the peer spoke: neither is that the answer to MAIL, nor an attempt."""
    async with open_peer(says_after_its_message(farewell, 0.05)) as peer:
        async with bench(to(peer, idle_timeout=60, connection_limit=1)) as b:
            await b.submit("one@example.com")
            await b.records("Delivery")
            parked = await only_session(b)
            await trio.sleep(0.15)
            assert (await only_session(b)) is parked, "it need not know yet"
            await b.submit("two@example.com")
            one, two = await b.records("Delivery", 2)
            assert set(b.log.kinds()) == {"Delivery"} and peer.connections == 2
            assert (two.recipient, two.num_attempts) == ("two@example.com", one.num_attempts)
            assert trio.current_time() < QUIET + 1, "no back-off either"
            assert b.router.statistics().queued == 0


async def test_a_peer_that_closes_after_each_message_gets_all_of_them_once(bench: Any) -> None:
    """By a real clock: whichever comes first, the end of the connection or the next message."""

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        wire.peer.commands.append("(data) " + str(hash(await wire.data())))
        await wire.say("250 taken")

    async with open_peer(script) as peer:
        path = {"enable_pipelining_across_messages": False, "idle_timeout": 5, "connection_limit": 2}
        async with bench(to(peer, **path)) as b:
            for number in range(40):
                await b.submit(f"u{number}@example.com", b"Subject: %d\r\n\r\nx\r\n" % number)
                await trio.sleep(0.001 * (number % 5))
            await b.records("Delivery", 40, seconds=20)
            assert set(b.log.kinds()) == {"Delivery"} and peer.connections >= 40
            taken = [line for line in peer.commands if line.startswith("(data)")]
            assert len(taken) == len(set(taken)) == 40


@pytest.mark.parametrize("farewell", ["421 idle too long", "250 what", ""])
async def test_the_end_of_an_idle_connection_is_noticed_soon(
    farewell: str, bench: Any, clock: MockClock
) -> None:
    async with open_peer(says_after_its_message(farewell)) as peer:
        async with bench(to(peer, idle_timeout=600)) as b:
            await b.submit()
            await b.records("Delivery")
            await b.until(lambda: not b.router._crew.sessions)
            assert clock.current_time() < QUIET + 0.2


async def test_an_idle_connection_that_is_listened_to_takes_the_next_message(
    bench: Any, clock: MockClock
) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=600)) as b:
        for number in range(1, 4):
            await b.submit()
            await b.records("Delivery", number)
            await trio.sleep(QUIET * number)
        assert peer.connections == 1 and set(b.log.kinds()) == {"Delivery"}


@pytest.mark.parametrize("idle", [0.0, QUIET / 2, QUIET, QUIET * 2])
async def test_short_times_are_kept(idle: float, bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=idle)) as b:
        await b.submit()
        await b.records("Delivery")
        begun = trio.current_time()
        await b.until(lambda: peer.open == 0)
        assert idle <= trio.current_time() - begun < idle + 0.1 and peer.words()[-1] == "QUIT"


@pytest.mark.parametrize("after", [0.1, QUIET + 1], ids=["parked", "listening"])
async def test_woken_for_nothing_it_goes_on_waiting(after: float, bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=20)) as b:
        await b.submit()
        await b.records("Delivery")
        await only_session(b)
        await trio.sleep(after)
        (ready,) = b.ready()
        assert ready.wake_one()
        await trio.sleep(0.01)
        assert (ready.idle_sessions(), ready.starting) == (1, 0)
        await b.until(lambda: peer.open == 0, 60)
        assert 20 <= clock.current_time() < 22 and peer.words()[-1] == "QUIT"


async def test_work_that_comes_when_the_quiet_time_is_just_over(bench: Any, clock: MockClock) -> None:
    """The session is about to run for the one reason and is woken for the other."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=20)) as b:
        await b.submit()
        await b.records("Delivery")
        await only_session(b)
        b.router.services.alarms.look(trio.current_time() + QUIET)
        (ready,) = b.ready()
        assert ready.wake_one() and not ready.wake_one()
        await b.submit()
        await b.records("Delivery", 2)
        await only_session(b)
        assert peer.connections == 1 and ready.starting == 0


async def test_the_quiet_time_that_is_over_when_work_has_just_come(bench: Any, clock: MockClock) -> None:
    """It is not the peer whose time is over."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=20)) as b:
        await b.submit()
        await b.records("Delivery")
        await only_session(b)
        (ready,) = b.ready()
        assert ready.wake_one()
        b.router.services.alarms.look(trio.current_time() + QUIET)
        await b.submit()
        await b.records("Delivery", 2)
        await only_session(b)
        assert peer.connections == 1 and ready.starting == 0


@pytest.mark.parametrize("after", [0.1, QUIET + 1], ids=["parked", "listening"])
async def test_broken_off_while_it_waits(after: float, bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, idle_timeout=600)) as b:
        await b.submit()
        await b.records("Delivery")
        session = await only_session(b)
        await trio.sleep(after)
        session.abort()
        await b.until(lambda: peer.open == 0)
        (ready,) = b.ready()
        assert ready.starting == ready.sessions == ready.idle_sessions() == 0
        assert len(b.router.services.alarms) == 0
        await b.submit()
        await b.records("Delivery", 2)
        assert peer.connections == 2


async def test_records_of_tls_are_no_words_of_the_peer(bench: Any) -> None:
    """Such as the tickets that TLS 1.3 sends when the handshake is done."""
    authority = Authority()
    tls = {"enable_tls": "Required", "tls_ca": {"key_data": authority.pem.decode()}, "tls_server_name": NAME}
    async with open_peer(tls=authority.server_context(NAME)) as peer:
        async with bench(to(peer, idle_timeout=600, **tls)) as b:
            for number in (1, 2):
                await b.submit()
                await b.records("Delivery", number)
                await only_session(b)
            await trio.sleep(QUIET * 2)
            assert peer.connections == peer.open == 1


async def test_no_alarm_outlives_its_session(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"RCPT": ["250 ok", DROP, "250 ok"]}) as peer:
        async with bench(to(peer, connection_limit=1, idle_timeout=1, queue={"retry_interval": 2})) as b:
            await b.submit_many(5)
            await b.records("Delivery", 5, seconds=60)
            await b.until(lambda: not b.router._crew.sessions)
            assert len(b.router.services.alarms) == 0 and peer.connections > 1
