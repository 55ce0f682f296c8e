"""Mail that stands still, in a held or backed-off queue or in the line before a full one, is not forgotten.

It is looked through when its queue is tried: what got too old is given up, routes that are due are worked
out again, whoever waits behind it moves up; and it costs no memory. A hold meanwhile takes nothing out of
the hands of sessions that work (reliability C41-C45, D34, O1).
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, HookSet, login, to
from tests.support.peer import FakePeer, Wire, open_peer

LOGINS: dict[str, Any] = {"capabilities": ["PIPELINING", "AUTH PLAIN"], "replies": {"AUTH": "535 5.7.8 no"}}


def in_memory(b: Any) -> int:
    return int(b.router.settler.resident)


async def test_a_held_message_is_given_up_for_its_age(bench: Any, clock: MockClock) -> None:
    async with open_peer(**LOGINS) as peer:
        async with bench(to(peer, hold_interval=10, queue={"max_age": 60}, **AUTH)) as b:
            await b.submit_many(5)
            await b.records("Expiration", 5, seconds=90)
            assert "Bounce" not in b.log.kinds() and b.router.statistics().queued == 0
            assert b.spool.statistics().messages == 0 and in_memory(b) == 0
            assert {record.num_attempts for record in b.log.records} == {0}


async def test_a_backed_off_message_too(bench: Any, clock: MockClock) -> None:
    """At about its age, not when its turn would have come after ten others with five minutes each."""
    async with open_peer(replies={"connect": "421 no"}) as peer:
        async with bench(to(peer, queue={"max_age": 60, "retry_interval": 20})) as b:
            await b.submit_many(10)
            await b.records("Expiration", 10, seconds=180)
            assert b.router.statistics().queued == 0 and in_memory(b) == 0


async def test_the_line_moves_up_when_those_before_it_are_given_up(bench: Any, clock: MockClock) -> None:
    path = {**AUTH, "max_ready": 6, "hold_interval": 10}
    async with open_peer(**LOGINS) as peer, bench(to(peer, queue={"max_age": 60}, **path)) as b:
        for i in range(7):
            await b.submit(f"old{i}@example.com", created=time.time() - 30)
        for i in range(4):
            await b.submit(f"young{i}@example.com", created=time.time() + 1000)
        await b.records("Expiration", 7, seconds=90)
        await b.until(lambda: b.router.statistics().waiting == 0, 30)
        peer.replies["AUTH"] = "235 ok"
        await b.records("Delivery", 4, seconds=90)
        assert all(b.outcomes()[f"young{i}"][-1] == "Delivery" for i in range(4))


def changing_user(peer: FakePeer, users: list[str], **path: Any) -> HookSet:
    """Hooks whose path is worked out again each 10 seconds, for the last of `users`."""
    peer.replies["AUTH"] = lambda line: "235 ok" if login(line)[0] == "right" else "535 5.7.8 no"
    return {
        **to(peer),
        "get_egress_path_config": lambda domain, egress_source, site_name: policy.make_egress_path(
            **{
                "enable_tls": "Disabled",
                "refresh_interval": 10,
                "hold_interval": 20,
                **AUTH,
                **path,
                "smtp_auth_plain_username": users[-1],
            }
        ),
    }


async def test_a_mended_policy_reaches_mail_that_is_held(bench: Any, clock: MockClock) -> None:
    """No new mail comes that would ask for the routes."""
    users = ["wrong"]
    async with open_peer(**LOGINS) as peer, bench(changing_user(peer, users)) as b:
        await b.submit()
        await b.records("TransientFailure")
        users.append("right")
        await b.records("Delivery", seconds=60)
        assert b.router.statistics().ready_queues == 1


async def test_and_mail_that_is_backed_off(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"connect": "421 no"}) as dead, open_peer() as good:
        routes = to(dead)
        config = [routes["get_queue_config"]]
        hooks = {
            "get_queue_config": lambda *names: config[-1](*names),
            "get_egress_path_config": lambda domain, egress_source, site_name: policy.make_egress_path(
                enable_tls="Disabled", refresh_interval=10
            ),
        }
        async with bench(hooks) as b:
            await b.submit_many(20)
            await trio.sleep(12)
            config.append(to(good)["get_queue_config"])
            assert b.router.statistics().ready > 5
            await b.until(lambda: b.router.statistics().ready == 0, 30)
            assert len(good.arrived) > 5


async def test_and_mail_that_waits_in_line_though_new_mail_keeps_coming(bench: Any, clock: MockClock) -> None:
    users = ["wrong"]
    async with open_peer(**LOGINS) as peer, bench(changing_user(peer, users, max_ready=2)) as b:
        await b.submit_many(6)
        await b.records("TransientFailure")
        users.append("right")
        for _ in range(40):
            await b.submit()
            await trio.sleep(1)
        await b.records("Delivery", 46)
        assert b.router.statistics().waiting == 0


async def test_idle_sessions_do_not_outlive_their_path(bench: Any, clock: MockClock) -> None:
    """A changed path means another queue; the connections of the old one close, all of them."""

    async def script(wire: Wire) -> None:
        await wire.greet("AUTH PLAIN")
        while (word := await wire.word()) != "QUIT":
            if word == "DATA":
                await wire.say("354 go")
                await wire.data()
                await trio.sleep(0.5)
            await wire.say("235 ok" if word == "AUTH" else "250 ok")

    users = ["one"]
    async with open_peer(script) as peer:
        async with bench(changing_user(peer, users, idle_timeout=600)) as b:
            await b.submit_many(10)
            await b.records("Delivery", 10)
            assert peer.open > 3
            users.append("two")
            await trio.sleep(11)
            await b.submit_many(2)
            await b.records("Delivery", 12)
            await b.submit()
            await b.records("Delivery", 13)
            assert b.recorded("Delivery")[-1].smtp_auth_user == "two"
            await b.until(lambda: peer.open <= 2)


async def test_a_hold_keeps_no_body_in_memory(bench: Any, clock: MockClock) -> None:
    """Each held message gets a record, for which it is read, and no more."""

    async def script(wire: Wire) -> None:
        await trio.sleep(1)
        await wire.peer.converse(wire)

    async with open_peer(script, **LOGINS) as peer, bench(to(peer, **AUTH)) as b:
        b.router._resident_limit = 1_000_000
        body = b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 100
        await b.submit_many(60, body=body)
        await b.until(lambda: len(b.outcomes()) == 60)
        assert in_memory(b) < 1_200_000


async def test_a_hold_while_other_sessions_work_on_the_queue(bench: Any, clock: MockClock) -> None:
    """Some sessions are logged in and deliver; the peer refuses further ones. The hold looks through the
    queue, which takes a while as the messages have to be read, and the working sessions go on."""
    logins = 0

    async def script(wire: Wire) -> None:
        nonlocal logins
        await wire.greet("PIPELINING", "AUTH PLAIN")
        while True:
            word = await wire.word()
            if word == "AUTH":
                logins += 1
                await wire.say("235 ok" if logins <= 3 else "454 4.7.0 too many sessions")
            elif word == "DATA":
                await wire.say("354 go")
                await wire.data()
                await trio.sleep(0.05)
                await wire.say("250 ok")
            else:
                await wire.say("250 ok")

    async with open_peer(script) as peer, bench(to(peer, idle_timeout=5, **AUTH)) as b:
        b.router._resident_limit = 0
        read = b.spool.read

        async def slow_read(handle: Any) -> Any:
            message, _ = await read(handle)
            await trio.sleep(0.5 if message.recipients[0].startswith("u7") else 0.01)
            return await read(handle)

        b.spool.read = slow_read
        await b.submit_many(100)
        await trio.sleep(60)
        assert "Delayed" in b.log.kinds(), "there was a hold"
        ended: set[str] = set()
        for record in b.log.records:
            assert record.id not in ended, f"{record.type} of a message that was delivered"
            if record.type == "Delivery":
                ended.add(record.id)
        statistics, settler = b.router.statistics(), b.router.settler
        assert settler.counters.unreadable == 0
        assert statistics.queued == b.spool.statistics().messages == 100 - len(ended)
        assert statistics.queued == statistics.ready + statistics.timed + statistics.waiting
        assert in_memory(b) == 0


@pytest.mark.parametrize("busy", [True, False])
async def test_a_withdrawn_secret_ends_the_sessions_that_were_opened_with_it(
    busy: bool, bench: Any, clock: MockClock
) -> None:
    """C45: also a session that never falls idle."""
    given = ["tiger"]

    def password() -> str:
        if not given:
            raise LookupError("withdrawn")
        return given[-1]

    path = {**AUTH, "smtp_auth_plain_password": {"event_name": "password", "event_args": []}}
    async with open_peer(capabilities=LOGINS["capabilities"]) as peer:
        hooks = to(peer, connection_limit=1, idle_timeout=20, **path)
        async with bench({**hooks, "password": password}) as b:
            await b.submit()
            await b.records("Delivery")
            given.clear()
            for entry in b.router.services.keys._entries.values():
                entry.credential = None  # what the ring does when the withdrawal is confirmed
            if not busy:
                await b.until(lambda: peer.open == 0, 30)
            for _ in range(30):
                await b.submit()
                await trio.sleep(0.5)
            assert b.log.kinds().count("Delivery") <= 2 and peer.open == 0


async def test_a_rotated_secret_is_used_from_the_next_message_on(bench: Any, clock: MockClock) -> None:
    given = ["one"]
    path = {**AUTH, "smtp_auth_plain_password": {"event_name": "password", "event_args": []}}
    async with open_peer(capabilities=LOGINS["capabilities"]) as peer:
        hooks = to(peer, connection_limit=1, idle_timeout=600, **path)
        async with bench({**hooks, "password": lambda: given[-1]}) as b:
            await b.submit()
            await b.records("Delivery")
            given.append("two")
            await b.router.services.keys.fetch(next(iter(b.router.services.keys._entries)), fresh=True)
            await b.submit()
            await b.records("Delivery", 2)
            tried = [login(line)[1] for line in peer.commands if line.startswith("AUTH")]
            assert tried == ["one", "two", "two"], "one to try it, one to carry mail"


async def test_equal_arguments_of_another_type_are_another_secret(bench: Any, clock: MockClock) -> None:
    """C44: 1, True and 1.0 are equal and different questions to the hook; they share no connection."""
    arguments = {"int.example": 1, "bool.example": True, "float.example": 1.0}
    async with open_peer(capabilities=LOGINS["capabilities"]) as peer:
        hooks = to(peer)
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled",
            idle_timeout=10,
            **{
                **AUTH,
                "smtp_auth_plain_password": {"event_name": "pw", "event_args": [arguments[domain]]},
            },
        )
        async with bench({**hooks, "pw": lambda argument: f"secret-of-{argument!r}"}) as b:
            for domain in arguments:
                await b.submit(f"u@{domain}")
            await b.records("Delivery", 3)
            tried = {login(line)[1] for line in peer.commands if line.startswith("AUTH")}
            assert tried == {"secret-of-1", "secret-of-True", "secret-of-1.0"}
