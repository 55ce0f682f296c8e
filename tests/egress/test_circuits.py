"""engine/egress/circuits.py, and through the whole of egress: a peer that counts failed logins never locks
the account, whatever queues, sources, hosts and refreshes want to log in (reliability C42)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import policy
from engine.egress import circuits as module
from engine.egress.circuits import Circuits
from engine.errors import LoginRefused
from policy.units import parse_throttle
from tests.egress.logins import HERE, SCOTT, at, may, other, refuse
from tests.support.bench import AUTH, login, to
from tests.support.peer import DROP, HANG, FakePeer, Wire, open_peer

# By itself


async def test_a_login_that_was_accepted_stands_in_nobodys_way(clock: MockClock) -> None:
    circuits = Circuits()
    for _ in range(3):
        async with circuits.turn(at(circuits, HERE), SCOTT):
            pass
    assert may(circuits) and not [*circuits.opened()]


async def test_a_refusal_is_remembered_and_said_to_everybody(clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits)
    await trio.sleep(59.0)
    with pytest.raises(LoginRefused, match=r"535 wrong \(not repeated for another 1 s\)"):
        circuits.check(at(circuits, HERE), SCOTT)
    with pytest.raises(LoginRefused, match=r"535 wrong \(at mx.example:25\)"):
        circuits.check(at(circuits, HERE), other(port=587))
    with pytest.raises(LoginRefused):
        async with circuits.turn(at(circuits, HERE), SCOTT):
            pytest.fail("nobody may say anything to the peer now")
    await trio.sleep(1.0)
    assert may(circuits)


@pytest.mark.parametrize("changes", [{"user": "tiger"}, {"version": "2"}], ids=str)
async def test_another_user_or_version_is_another_login(changes: dict[str, Any], clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits)
    assert may(circuits, other(**changes))
    assert not may(circuits, other(port=465)), "the same accounts behind another port"


async def test_hosts_that_stand_side_by_side_are_one_endpoint(clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits, plan=("mx1.example=192.0.2.1", "mx2.example=192.0.2.2"))
    assert not may(circuits, other(name="mx2.example"), "mx2.example=192.0.2.22")
    assert not may(circuits, other(name="mx9.example"), "mx9.example=192.0.2.1")
    assert may(circuits, other(name="mx3.example"), "mx3.example=192.0.2.3")


async def test_endpoints_that_turn_out_to_be_one_share_what_they_know(clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits, plan=("a.example=192.0.2.1",))
    await trio.sleep(1)
    await refuse(circuits, plan=("b.example=192.0.2.2",))
    assert not may(circuits, SCOTT, "a.example=192.0.2.7", "b.example=192.0.2.8")
    (known,) = circuits.opened()
    assert known.failures == (trio.current_time() - 1, trio.current_time())
    assert known.hosts == ("192.0.2.1", "192.0.2.2", "192.0.2.7", "192.0.2.8", "a.example", "b.example")


async def test_who_waited_for_a_smaller_endpoint_waits_for_the_larger_one(clock: MockClock) -> None:
    circuits = Circuits()
    said: list[str] = []

    async def session(*plan: str) -> None:
        with suppress(LoginRefused):
            async with circuits.turn(at(circuits, *plan), SCOTT):
                said.append(plan[0])
                await trio.sleep(1)
                raise LoginRefused("535 wrong")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(session, "a.example=192.0.2.1")
            nursery.start_soon(session, "b.example=192.0.2.2")
        await wait_all_tasks_blocked()
        nursery.start_soon(session, "a.example=192.0.2.1", "b.example=192.0.2.2")
    assert len(said) == 2, "one each before anybody knew, and nobody afterwards"


async def test_the_pauses_grow_and_a_success_ends_them(clock: MockClock) -> None:
    circuits = Circuits()
    wanted = other(budget=parse_throttle("4/h"))
    begun, tried = trio.current_time(), []
    while len(tried) < 5:
        if may(circuits, wanted):
            tried.append(round(trio.current_time() - begun))
            await refuse(circuits, wanted)
        await trio.sleep(20)
    assert tried == [0, 60, 240, 780, 3600]
    await trio.sleep(3600)
    async with circuits.turn(at(circuits, HERE), wanted):
        pass
    assert not [*circuits.opened()]
    await refuse(circuits, wanted)
    await trio.sleep(60)
    assert may(circuits, wanted)


async def test_good_news_ends_a_pause_and_never_a_budget(clock: MockClock) -> None:
    circuits = Circuits()
    here = at(circuits, HERE)
    for _ in range(2):
        await refuse(circuits)
        assert not may(circuits)
        assert circuits.hurry(here, SCOTT) and may(circuits)
    await refuse(circuits)
    assert not circuits.hurry(here, SCOTT) and not may(circuits), "three an hour"


async def test_the_cause_is_remembered_too(clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits, cause="login-unanswered")
    with pytest.raises(LoginRefused) as caught:
        circuits.check(at(circuits, HERE), SCOTT)
    assert caught.value.cause == "login-unanswered"


async def test_not_now_is_about_one_host_and_port_and_is_no_failure(clock: MockClock) -> None:
    circuits = Circuits()
    await refuse(circuits, cause="login-deferred")
    assert not may(circuits) and may(circuits, other(port=587)) and not [*circuits.opened()]
    await trio.sleep(60)
    assert may(circuits)


async def test_one_at_a_time_and_those_who_waited_hear_of_the_refusal(clock: MockClock) -> None:
    circuits = Circuits()
    said: list[str] = []
    told: list[str] = []

    async def session() -> None:
        try:
            async with circuits.turn(at(circuits, HERE), SCOTT):
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
    circuits = Circuits()
    with pytest.raises(ConnectionError):
        async with circuits.turn(at(circuits, HERE), SCOTT):
            raise ConnectionError
    with trio.move_on_after(1.0):
        async with circuits.turn(at(circuits, HERE), SCOTT):
            await trio.sleep_forever()
    async with circuits.turn(at(circuits, HERE), SCOTT):
        pass


async def test_the_memory_is_bounded_and_keeps_what_counts(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 10)
    circuits = Circuits()
    await refuse(circuits, plan=("refused.example=192.0.2.1",))
    on_the_way = at(circuits, "way.example=192.0.2.3")
    for i in range(100):
        async with circuits.turn(at(circuits, f"h{i}.example=198.51.100.{i}"), SCOTT):
            pass
    assert len(circuits._endpoints) <= 14
    assert not may(circuits, SCOTT, "refused.example=192.0.2.1")
    with pytest.raises(LoginRefused):
        async with circuits.turn(on_the_way, SCOTT):
            raise LoginRefused("535")
    assert not may(circuits, SCOTT, "way.example=192.0.2.3")


# With queues and sessions around it

REFUSING: dict[str, Any] = {"capabilities": ["PIPELINING", "AUTH PLAIN"], "replies": {"AUTH": "535 5.7.8 no"}}


def logins_at(*peers: FakePeer) -> int:
    return sum(peer.words().count("AUTH") for peer in peers)


async def test_a_backlog_with_a_wrong_password_keeps_to_the_budget(bench: Any, clock: MockClock) -> None:
    async with open_peer(**REFUSING) as peer, bench(to(peer, **AUTH, hold_interval=60)) as b:
        for i in range(300):
            await b.submit(f"u{i}@d{i % 5}.example")
        await trio.sleep(30)
        assert logins_at(peer) == 1
        await trio.sleep(180)
        assert logins_at(peer) == 2
        await trio.sleep(4 * 3600)
        assert 20 <= logins_at(peer) <= 25, "six an hour"
        assert "MAIL" not in peer.words() and "Bounce" not in b.log.kinds()


async def test_queues_with_hosts_in_common_are_one_budget_for_the_provider(
    bench: Any, clock: MockClock
) -> None:
    """Five hosts of a provider that counts failures over all of them; each queue knows some of the hosts."""
    failures: list[float] = []

    def no(line: str) -> str:
        failures.append(trio.current_time())
        return "535 5.7.8 no"

    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(
                open_peer(host=f"127.0.0.{i + 2}", capabilities=["AUTH PLAIN"], replies={"AUTH": no})
            )
            for i in range(5)
        ]
        hooks = to(peers[0])
        hosts = [f"127.0.0.{i + 2}:{peer.port}" for i, peer in enumerate(peers)]

        def queue(domain: str, tenant: object, campaign: object, routing_domain: object) -> object:
            known = hosts if domain == "d5.example" else [*hosts, hosts[0]][int(domain[1]) :][:2]
            return policy.make_queue_config(protocol={"smtp": {"mx_list": known}})

        hooks["get_queue_config"] = queue
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled",
            prohibited_hosts=[],
            provider_name=domain,
            allow_smtp_auth_plain_without_tls=True,
            smtp_auth={"username": "scott", "password": {"key_data": "tiger"}, "failure_budget": "3/h"},
        )
        b = await stack.enter_async_context(bench(hooks))
        await b.submit("u@d5.example")
        await b.records("TransientFailure")
        for i in range(120):
            await b.submit(f"u@d{i % 6}.example")
        await trio.sleep(5 * 3600)
        for first in failures:
            assert sum(first <= time < first + 3600 for time in failures) <= 3
        assert 12 <= len(failures) <= 18
        assert {record.num_attempts for record in b.log.records} == {0}
        assert "Bounce" not in b.log.kinds()


async def test_hosts_without_logins_are_not_remembered(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer)) as b:
        await b.submit()
        await b.records("Delivery")
        assert not b.router.services.dialer.circuits._endpoints


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
    turn = Circuits.turn

    @asynccontextmanager
    async def after_its_last_words(self: Circuits, *args: Any) -> AsyncIterator[bool]:
        async with turn(self, *args) as waited:
            await wait_all_tasks_blocked()
            yield waited

    monkeypatch.setattr(Circuits, "turn", after_its_last_words)

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
