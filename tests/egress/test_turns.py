"""Turns: to log in one after the other, to use a connection that two queues share, to be tried again.

Waiting for one's turn is nobody's failure, and a turn that was not due is not taken.
"""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, to
from tests.support.peer import Wire, open_peer, slowly

LOGINS = ("PIPELINING", "AUTH PLAIN")


async def test_waiting_for_the_turn_to_log_in_is_no_failed_login(bench: Any, clock: MockClock) -> None:
    """The password is right. The peer takes three seconds to say so, and closes connections on which nothing
    is said for five seconds behind EHLO; those of our sessions that wait for their turn are among them."""
    impatient = 0

    async def script(wire: Wire) -> None:
        nonlocal impatient
        await wire.greet(*LOGINS)
        word = ""
        with trio.move_on_after(5):
            word = await wire.word()
        if word != "AUTH":
            impatient += 1
            return
        await trio.sleep(3)
        await wire.say("235 ok")
        await slowly(wire.peer.obey, taken=2)(wire)

    async with open_peer(script) as peer:
        async with bench(to(peer, connection_limit=8, idle_timeout=50, hold_interval=3600, **AUTH)) as b:
            await b.submit_many(60)
            await b.records("Delivery", 60, seconds=120)
            assert impatient >= 2, "sessions did lose their connection while they waited"
            assert set(b.log.kinds()) == {"Delivery"}


async def test_a_host_that_offers_no_login_leaves_the_next_one_free(bench: Any, clock: MockClock) -> None:
    """A demand that one host does not meet is said aloud only where no host meets it."""
    async with open_peer() as one, open_peer(capabilities=LOGINS) as two:
        async with bench(to(one, two, **AUTH)) as b:
            await b.submit()
            await b.records("Delivery")
            assert b.log.kinds() == ["Delivery"] and one.connections == 1
            assert "MAIL" not in one.words() and not b.router.statistics().held


async def test_a_session_that_logged_in_before_says_nothing_about_a_hold(
    bench: Any, clock: MockClock
) -> None:
    """It goes on delivering; nobody else is let go before the interval is over."""
    answers = ["235 ok", "454 4.7.0 not now"]
    async with open_peer(slowly(taken=3), capabilities=LOGINS, replies={"AUTH": answers}) as peer:
        async with bench(to(peer, connection_limit=4, hold_interval=300, idle_timeout=2, **AUTH)) as b:
            await b.submit_many(6)
            await b.records("TransientFailure")
            (ready,) = b.ready()
            until = ready.retry_at
            assert ready.hold_cause == "login-deferred" and until > trio.current_time() + 290
            await trio.sleep(100)
            assert b.log.kinds().count("Delivery") == 6
            assert ready.hold_cause and ready.retry_at == until
            assert {record.cause for record in b.recorded("Delivery")} == {None}
            await b.submit()
            await trio.sleep(100)
            assert peer.words().count("AUTH") == 2


async def test_two_queues_that_share_one_connection_take_turns_of_a_run(bench: Any, clock: MockClock) -> None:
    """Not of a message, or all would be spent on connecting."""
    async with open_peer() as peer:
        hooks = to(peer)
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled", connection_limit=1, ehlo_domain=domain, idle_timeout=1
        )
        async with bench(hooks) as b:
            for i in range(200):
                await b.submit(f"x@{('one', 'two')[i % 2]}.example")
            await b.records("Delivery", 200, seconds=30)
            assert 4 <= peer.connections < 20 and peer.most_open <= 2


async def test_a_rate_is_no_reason_to_leave_the_schedule(bench: Any, clock: MockClock) -> None:
    """The first two of four recipients are put off by the peer, the rate stops the other two: the attempt
    counts, so all are due by the schedule, and not when the rate would allow it."""
    path = {"max_recipients_per_batch": 2, "max_message_rate": "1/20s", "connection_limit": 1}
    async with open_peer(replies={"RCPT": "451 4.2.1 later"}) as peer:
        async with bench(to(peer, queue={"retry_interval": 3600}, **path)) as b:
            await b.submit([f"r{i}@example.com" for i in range(4)])
            await b.records("TransientFailure")
            await trio.sleep(600)
            assert peer.words().count("RCPT") == 2
            assert {record.num_attempts for record in b.log.records} == {1}
            assert b.router.statistics().timed == 1
            peer.replies.clear()
            await b.records("Delivery", 2, seconds=3600)
            assert {tuple(kinds)[-1] for kinds in b.outcomes().values()} == {"Delivery"}
