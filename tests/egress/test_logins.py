"""engine/egress/logins.py, and through the whole of egress: a peer that counts failed logins never locks
the account, whatever queues, sources, hosts and refreshes want to log in (reliability C42)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import policy
from engine.egress import logins as module
from engine.egress.logins import LoginKey, Logins
from engine.errors import LoginRefused
from tests.support.bench import AUTH, login, to
from tests.support.peer import DROP, HANG, FakePeer, Wire, open_peer

# The gate by itself


def key(user: str = "scott", version: str = "1", host: str = "mx.example", port: int = 25) -> LoginKey:
    return (host, port, user, version)


async def refuse(logins: Logins, which: LoginKey, interval: float = 60.0, cause: str = "") -> None:
    with pytest.raises(LoginRefused):
        async with logins.turn(which, interval):
            error = LoginRefused("535 wrong")
            if cause:
                error.cause = cause
            raise error


async def test_a_login_that_was_accepted_stands_in_nobodys_way(clock: MockClock) -> None:
    logins = Logins()
    for _ in range(3):
        async with logins.turn(key(), 60.0):
            pass
    logins.check(key())


async def test_a_refusal_is_remembered_for_its_interval_and_said_to_everybody(clock: MockClock) -> None:
    logins = Logins()
    await refuse(logins, key(), 60.0)
    await trio.sleep(59.0)
    with pytest.raises(LoginRefused, match=r"535 wrong \(not repeated for another 1 s\)"):
        logins.check(key())
    with pytest.raises(LoginRefused):
        async with logins.turn(key(), 60.0):
            pytest.fail("nobody may say anything to the peer now")
    await trio.sleep(1.0)
    logins.check(key())


@pytest.mark.parametrize(
    "other", [key(user="tiger"), key(version="2"), key(host="other.example"), key(port=587)], ids=str
)
async def test_another_user_secret_or_host_is_another_login(other: LoginKey, clock: MockClock) -> None:
    logins = Logins()
    await refuse(logins, key())
    logins.check(other)
    async with logins.turn(other, 60.0):
        pass


async def test_the_cause_is_remembered_too(clock: MockClock) -> None:
    logins = Logins()
    await refuse(logins, key(), cause="login-deferred")
    with pytest.raises(LoginRefused) as caught:
        logins.check(key())
    assert caught.value.cause == "login-deferred"


async def test_one_at_a_time_and_those_who_waited_hear_of_the_refusal(clock: MockClock) -> None:
    logins = Logins()
    said: list[str] = []
    told: list[str] = []

    async def session() -> None:
        try:
            async with logins.turn(key(), 60.0):
                said.append("AUTH")
                await trio.sleep(1.0)
                raise LoginRefused("535 wrong")
        except LoginRefused as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(session)
    assert said == ["AUTH"] and len(told) == 30


async def test_another_failure_is_no_refusal_and_a_cancelled_turn_is_given_on(clock: MockClock) -> None:
    logins = Logins()
    with pytest.raises(ConnectionError):
        async with logins.turn(key(), 60.0):
            raise ConnectionError
    with trio.move_on_after(1.0):
        async with logins.turn(key(), 60.0):
            await trio.sleep_forever()
    async with logins.turn(key(), 60.0):
        pass


async def test_the_memory_is_bounded_and_keeps_what_counts(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 10)
    logins = Logins()
    await refuse(logins, key("refused"), 3600.0)
    async with trio.open_nursery() as nursery:

        async def busy() -> None:
            async with logins.turn(key("busy"), 60.0):
                await trio.sleep_forever()

        nursery.start_soon(busy)
        await wait_all_tasks_blocked()
        for i in range(100):
            async with logins.turn(key(f"user{i}"), 60.0):
                pass
        assert len(logins._states) <= 11
        assert key("busy") in logins._states
        with pytest.raises(LoginRefused):
            logins.check(key("refused"))
        nursery.cancel_scope.cancel()


# With queues and sessions around it

REFUSING: dict[str, Any] = {"capabilities": ["PIPELINING", "AUTH PLAIN"], "replies": {"AUTH": "535 5.7.8 no"}}


def logins_at(*peers: FakePeer) -> int:
    return sum(peer.words().count("AUTH") for peer in peers)


async def test_a_backlog_with_a_wrong_password_is_one_try_for_each_interval(
    bench: Any, clock: MockClock
) -> None:
    async with open_peer(**REFUSING) as peer, bench(to(peer, **AUTH, hold_interval=60)) as b:
        for i in range(300):
            await b.submit(f"u{i}@d{i % 5}.example")
        await trio.sleep(30)
        assert logins_at(peer) == 1
        await trio.sleep(180)
        assert 3 <= logins_at(peer) <= 4
        assert "MAIL" not in peer.words() and "Bounce" not in b.log.kinds()


async def test_a_pool_of_sources_is_one_credential(bench: Any, clock: MockClock) -> None:
    async with open_peer(**REFUSING) as peer:
        hooks = to(peer, queue={"egress_pool": "p"}, **AUTH)
        names = [f"s{i}" for i in range(5)]
        hooks["get_egress_pool"] = lambda name: policy.make_egress_pool(
            name=name, entries=[{"name": source} for source in names]
        )
        hooks["get_egress_source"] = lambda name: policy.make_egress_source(
            name=name, source_address=f"127.0.0.{names.index(name) + 2}"
        )
        async with bench(hooks) as b:
            await b.submit_many(50)
            await trio.sleep(50)
            assert len(b.router.statistics().held) == 5, "every source tried to get ready"
            assert logins_at(peer) == 1


async def test_domains_with_paths_of_their_own_are_one_credential(bench: Any, clock: MockClock) -> None:
    async with open_peer(**REFUSING) as peer:
        hooks = to(peer)
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled", provider_name=domain, **AUTH
        )
        async with bench(hooks) as b:
            for i in range(50):
                await b.submit(f"u@d{i % 5}.example")
            await trio.sleep(50)
            assert logins_at(peer) == 1


async def test_a_path_that_differs_at_each_refresh_does_not_forget_the_refusal(
    bench: Any, clock: MockClock
) -> None:
    asked = 0

    def path(domain: str, egress_source: str, site_name: str) -> object:
        nonlocal asked
        asked += 1
        return policy.make_egress_path(
            enable_tls="Disabled", provider_name=f"p{asked}", refresh_interval=1, **AUTH
        )

    async with open_peer(**REFUSING) as peer:
        async with bench({**to(peer), "get_egress_path_config": path}) as b:
            for i in range(50):
                await b.submit(f"u{i}@example.com")
                await trio.sleep(1)
            assert asked > 10, "the path was worked out again and again"
            assert logins_at(peer) == 1


async def test_a_password_that_is_wrong_since_the_queue_fell_idle(bench: Any, clock: MockClock) -> None:
    """It was good once; a backlog that comes up later must not try it with thirty sessions at once."""
    async with open_peer(capabilities=REFUSING["capabilities"]) as peer, bench(to(peer, **AUTH)) as b:
        await b.submit()
        await b.records("Delivery")
        await b.until(lambda: peer.open == 0)
        peer.replies["AUTH"] = "535 5.7.8 no longer"
        peer.commands.clear()
        await b.submit_many(300)
        await trio.sleep(50)
        assert logins_at(peer) == 1


@pytest.mark.parametrize("answer", [DROP, HANG, "junk", "250 ok", "334 !!!"])
async def test_a_login_without_a_proper_answer_is_no_licence_to_repeat_it(
    answer: str, bench: Any, clock: MockClock
) -> None:
    """The peer has the password and did not say what it thinks of it: as good as refused, at every host."""
    options: dict[str, Any] = {"capabilities": ["AUTH PLAIN"], "replies": {"AUTH": answer}}
    async with open_peer(**options) as one, open_peer(**options) as two:
        async with bench(to(one, two, **AUTH, hold_interval=60, auth_timeout=5)) as b:
            await b.submit_many(50)
            await trio.sleep(50)
            assert logins_at(one, two) == 1
            record = b.log.records[0]
            assert (record.type, record.num_attempts) == ("TransientFailure", 0)
            assert record.cause == "login-unanswered"
            assert "MAIL" not in [*one.words(), *two.words()]


@pytest.mark.parametrize("answer", ["454 4.7.0 later", "421 4.3.2 bye"])
async def test_a_host_that_takes_no_login_now_leaves_the_next_one_free(
    answer: str, bench: Any, clock: MockClock
) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"]) as one, open_peer(capabilities=["AUTH PLAIN"]) as two:
        one.replies["AUTH"] = two.replies["AUTH"] = answer
        async with bench(to(one, two, **AUTH, hold_interval=60)) as b:
            await b.submit_many(50)
            await trio.sleep(50)
            assert logins_at(one) == logins_at(two) == 1
            assert b.log.records[0].cause == "login-deferred"
            two.replies["AUTH"] = "235 ok"
            await b.records("Delivery", 50, seconds=60)
            assert not one.arrived


async def test_a_secret_that_was_rotated_is_tried_at_once(bench: Any, clock: MockClock) -> None:
    password = "old"
    async with open_peer(capabilities=["AUTH PLAIN"]) as peer:
        peer.replies["AUTH"] = lambda line: "235 ok" if login(line)[1] == "new" else "535 5.7.8 no"
        source = {"event_name": "password", "event_args": []}
        hooks = to(peer, **{**AUTH, "smtp_auth_plain_password": source}, hold_interval=60)
        async with bench({**hooks, "password": lambda: password}) as b:
            await b.submit()
            await b.records("TransientFailure")
            assert logins_at(peer) == 1
            password = "new"
            await b.records("Delivery", seconds=120)
            tried = [login(line) for line in peer.commands if line.startswith("AUTH")]
            assert tried[-1] == ("scott", "new") and tried.count(("scott", "old")) <= 2


async def test_one_login_for_each_connection(bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=REFUSING["capabilities"]) as peer:
        async with bench(to(peer, connection_limit=2, **AUTH)) as b:
            await b.submit_many(40)
            await b.records("Delivery", 40)
            assert logins_at(peer) == peer.connections


async def test_endless_challenges_end(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet("AUTH LOGIN")
        while True:
            await wire.line()
            await wire.say("334 VXNlcm5hbWU6")

    async with open_peer(script) as peer, bench(to(peer, **AUTH)) as b:
        await b.submit()
        await b.records("TransientFailure")
        assert len(peer.commands) < 12


@pytest.mark.parametrize("last", [[], ["421 4.3.2 busy"]], ids=["closes", "421"])
async def test_a_peer_that_leaves_before_auth_is_not_met_again_at_once(
    last: list[str], bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = Logins.turn

    @asynccontextmanager
    async def after_its_last_words(self: Logins, *args: Any) -> AsyncIterator[bool]:
        async with turn(self, *args) as waited:
            await wait_all_tasks_blocked()
            yield waited

    monkeypatch.setattr(Logins, "turn", after_its_last_words)

    async def script(wire: Wire) -> None:
        await wire.say("220 peer.example ESMTP")
        await wire.line()
        await wire.say("250-peer.example", "250 AUTH PLAIN")
        await wire.say(*last)

    async with open_peer(script) as peer, bench(to(peer, **AUTH)) as b:
        await b.submit()
        await trio.sleep(50)
        assert 1 <= peer.connections <= 6, "1, 2, 4, 8 ... seconds, and the schedule of the message"
        assert b.log.records and {record.type for record in b.log.records} == {"TransientFailure"}
