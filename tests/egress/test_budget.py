"""engine/egress/account.py and circuits.py: in no period does a peer see more failed logins than the budget,
whatever happens in between (reliability C42)."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import policy
from engine.egress import circuits as module
from engine.egress.account import Account
from engine.egress.circuits import Circuits
from engine.egress.resolve import Candidate
from engine.errors import LoginRefused
from policy.units import parse_throttle
from tests.egress.logins import HERE, SCOTT, at, may, other, refuse
from tests.support.bench import AUTH, login, to
from tests.support.peer import open_peer


@given(
    quantity=st.integers(1, 5),
    period=st.sampled_from([60, 600]),
    pauses=st.lists(st.sampled_from([1.0, 10.0, 60.0]), min_size=1, max_size=3),
    impatience=st.sampled_from([3.0, 19.0]),
)
@settings(max_examples=25)
def test_in_no_period_are_there_more_failures_than_the_budget(
    quantity: int, period: int, pauses: list[float], impatience: float
) -> None:
    async def main() -> None:
        circuits = Circuits()
        budget = parse_throttle(f"{quantity}/{period}second")
        times: list[float] = []
        while trio.current_time() < 5 * period and len(times) < 100:
            for number, pause in enumerate(pauses):
                wanted = other(pause=pause, budget=budget if not number else parse_throttle("100/s"))
                with suppress(LoginRefused):
                    async with circuits.turn(at(circuits, HERE), wanted):
                        times.append(trio.current_time())
                        raise LoginRefused("535")
            await trio.sleep(impatience)
        for first in times:
            assert sum(first <= time < first + period for time in times) <= quantity
        assert len(times) >= 3, "it is tried again and again"

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_who_is_under_way_is_waited_for_and_counts_for_nobody_else(clock: MockClock) -> None:
    circuits = Circuits()
    wanted = other(budget=parse_throttle("1/h"), source="file")
    order: list[str] = []

    async def session(version: str) -> None:
        async with circuits.turn(
            at(circuits, HERE), msgspec.structs.replace(wanted, version=version)
        ) as turn:
            await turn.begin()
            await trio.sleep(1)
            order.append(version)

    async with trio.open_nursery() as nursery:
        for version in ("1", "2", "1"):
            nursery.start_soon(session, version)
            await wait_all_tasks_blocked()
            assert may(circuits, wanted) and may(circuits, other(version="3", source="file"))
    assert order == ["1", "2", "1"] and trio.current_time() >= 3, "one at a time, of whatever version"
    assert not [*circuits.opened()]


async def test_a_login_that_is_broken_off_counts(clock: MockClock) -> None:
    """The peer has the secret, and we did not wait for what it says."""
    circuits = Circuits()
    for _ in range(3):
        assert may(circuits)
        with trio.move_on_after(1.0):
            async with circuits.turn(at(circuits, HERE), SCOTT) as turn:
                await turn.begin()
                await trio.sleep_forever()
    with pytest.raises(LoginRefused, match="broken off"):
        circuits.check(at(circuits, HERE), SCOTT)
    await trio.sleep(3598)
    assert may(circuits)


async def test_nothing_counts_before_the_secret_leaves(clock: MockClock) -> None:
    circuits = Circuits()
    circuits.commit = trio.sleep_forever
    with trio.move_on_after(1.0):
        async with circuits.turn(at(circuits, HERE), SCOTT) as turn:
            await turn.begin()
    assert not [*circuits.opened()]


async def test_what_is_being_written_anew_is_not_relied_upon(clock: MockClock) -> None:
    circuits, commits = Circuits(), 0

    async def commit() -> None:
        nonlocal commits
        commits += 1
        circuits.writing()()

    async def accepted() -> int:
        async with circuits.turn(at(circuits, HERE), SCOTT) as turn:
            await turn.begin()
        return commits

    circuits.commit = commit
    assert [await accepted(), await accepted()] == [1, 1], "the disk says it already"
    circuits.writing()
    assert await accepted() == 2


async def test_a_version_that_was_refused_leaves_the_last_try_to_another(clock: MockClock) -> None:
    circuits = Circuits()
    old, new = other(source="file"), other(source="file", version="2")
    for _ in range(2):
        await refuse(circuits, old)
        circuits.hurry(at(circuits, HERE), old)
    assert not may(circuits, old), "three an hour, one is kept"
    assert not may(circuits, other(source="file", version="2", trial=True)), "not for trying things out"
    assert may(circuits, new)
    await refuse(circuits, new)
    assert not may(circuits, other(source="file", version="3"))
    assert may(circuits, other(source="elsewhere", version="3")), "another secret for the same name"
    assert not may(circuits, other(source="elsewhere")), "the same secret, from elsewhere"
    await trio.sleep(3600)
    assert may(circuits, old) and may(circuits, new)


async def test_one_failure_an_hour_is_one(clock: MockClock) -> None:
    circuits = Circuits()
    budget = parse_throttle("1/h")
    await refuse(circuits, other(source="file", budget=budget))
    assert not may(circuits, other(source="file", version="2", budget=budget))
    await trio.sleep(3600)
    assert may(circuits, other(source="file", version="2", trial=True, budget=budget))


Step = st.tuples(
    st.sampled_from(["accepted", "refused", "refused", "cut", "deferred"]),
    st.sampled_from("abc"),
    st.sampled_from(["vault", "file"]),
    st.booleans(),
    st.sampled_from([0.0, 10.0, 400.0]),
)


@given(quantity=st.integers(1, 4), steps=st.lists(Step, max_size=60), hurried=st.booleans())
@settings(max_examples=60)
def test_whatever_happens_the_peer_sees_no_more_than_the_budget(
    quantity: int, steps: list[Any], hurried: bool
) -> None:
    async def main() -> None:
        circuits = Circuits()
        budget = parse_throttle(f"{quantity}/10min")
        seen: list[tuple[float, str, str]] = []
        for what, version, source, trial, pause in steps:
            wanted = other(version=version, source=source, trial=trial, budget=budget, pause=10.0)
            if hurried:
                circuits.hurry(at(circuits, HERE), wanted)
            with suppress(LoginRefused), trio.move_on_after(1.0):
                async with circuits.turn(at(circuits, HERE), wanted) as turn:
                    await turn.begin()
                    if what in ("refused", "cut"):
                        seen.append((trio.current_time(), version, source))
                    if what == "cut":
                        await trio.sleep_forever()
                    if what != "accepted":
                        error = LoginRefused("no")
                        error.cause = "login-deferred" if what == "deferred" else error.cause
                        raise error
            await trio.sleep(pause)
        heard = [one for one in seen if one]
        for begun, version, source in heard:
            within = [one for one in heard if begun <= one[0] < begun + 600]
            assert sum(one[1] == version for one in within) <= quantity + cut_and_accepted(steps)
            assert sum(one[2] == source for one in within) <= quantity + cut_and_accepted(steps)

    def cut_and_accepted(steps: list[Any]) -> int:
        """A login that was broken off is forgotten when the same version is accepted: it was none."""
        return sum(what == "cut" for what, *_ in steps) if any(one[0] == "accepted" for one in steps) else 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_peer_that_accepts_now_and_then_sees_no_more_failures_for_it(clock: MockClock) -> None:
    circuits = Circuits()
    failures: list[float] = []
    while trio.current_time() < 4 * 3600:
        if may(circuits):
            failures.append(trio.current_time())
            await refuse(circuits)
        await trio.sleep(10)
        with suppress(LoginRefused):
            async with circuits.turn(at(circuits, HERE), SCOTT) as turn:
                await turn.begin()
    for first in failures:
        assert sum(first <= time < first + 3600 for time in failures) <= 3
    assert len(failures) >= 9


async def test_an_accepted_login_after_a_quiet_time_brings_the_first_pause_back(clock: MockClock) -> None:
    circuits = Circuits()
    for pause in (60, 180):
        await refuse(circuits)
        await trio.sleep(pause)
        assert may(circuits)
    async with circuits.turn(at(circuits, HERE), SCOTT) as turn:
        await turn.begin()
    await trio.sleep(3600)
    await refuse(circuits)
    await trio.sleep(60)
    assert may(circuits)


async def test_what_is_over_is_forgotten(clock: MockClock) -> None:
    """A new token each time, for days: what is known and written down does not grow."""
    circuits = Circuits()
    for number in range(200):
        wanted = other(version=str(number), source="command")
        if may(circuits, wanted):
            await refuse(circuits, wanted)
        await trio.sleep(1200)
    (account,) = at(circuits, HERE).accounts.values()
    assert len([*circuits.opened()]) <= 3 and len(account.circuits) <= 5 and len(account._locks) <= 1
    await trio.sleep(3600)
    assert not [*circuits.opened()]


async def test_not_now_is_not_asked_each_minute_for_ever_nor_for_each_new_token(clock: MockClock) -> None:
    circuits = Circuits()
    begun, tried = trio.current_time(), []
    for number in range(200):
        wanted = other(version=str(number), source="command", budget=parse_throttle("6/h"))
        if may(circuits, wanted):
            tried.append(round((trio.current_time() - begun) / 60))
            await refuse(circuits, wanted, cause="login-deferred")
        await trio.sleep(60)
    assert tried[:8] == [0, 1, 4, 13, 23, 33, 60, 70], "six an hour, for it may count them all the same"


async def test_hosts_of_a_destination_that_are_no_candidates_now_belong_to_it(clock: MockClock) -> None:
    circuits = Circuits()
    one, two = (Candidate(f"mx{i}.example", f"192.0.2.{i}", 25, f"mx{i}.example") for i in (1, 2))
    with pytest.raises(LoginRefused):
        async with circuits.turn(circuits.endpoint([one], ["mx1.example", "MX2.example"]), SCOTT):
            raise LoginRefused("535")
    with pytest.raises(LoginRefused):
        circuits.check(circuits.endpoint([two]), other(name="mx2.example"))


async def test_many_open_circuits_cost_no_look_at_all_of_them_each_time(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 10)
    looks = 0
    counts = Account.counts

    def counting(self: Account, now: float) -> bool:
        nonlocal looks
        looks += 1
        return counts(self, now)

    monkeypatch.setattr(Account, "counts", counting)
    circuits = Circuits()
    circuits._most = 10
    for i in range(500):
        await refuse(circuits, plan=(f"h{i}.example=2001:db8::{i}",))
    assert looks < 2500, "and 125,000 if each is looked at for each new one"
    await trio.sleep(3600)
    for i in range(1000):
        at(circuits, f"n{i}.example=2001:db8:1::{i}")
    assert len(circuits._endpoints) <= 3000 and not any(
        host.startswith("h") for host in circuits._endpoints
    ), "what is over goes"


# With queues and sessions around it


@pytest.mark.parametrize("kind", ["password", "token"])
async def test_a_source_with_another_secret_each_time_is_one_budget(
    kind: str, bench: Any, clock: MockClock
) -> None:
    failures: list[float] = []
    numbers = itertools.count()

    def no(line: str) -> str:
        failures.append(trio.current_time())
        return "535 5.7.8 no"

    offered = "AUTH PLAIN XOAUTH2"
    async with open_peer(capabilities=[offered], replies={"AUTH": no}) as peer:
        source = {"event_name": "secret", "event_args": [], "ttl": 1}
        hooks = to(peer)
        hooks["secret"] = lambda: f"secret-{next(numbers)}"
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled",
            provider_name=domain,
            allow_smtp_auth_plain_without_tls=True,
            smtp_auth={"username": "Scott" if domain < "d3" else "scott", kind: source},
        )
        async with bench(hooks) as b:
            for i in range(60):
                await b.submit(f"u@d{i % 6}.example")
            await trio.sleep(3 * 3600)
            for first in failures:
                assert sum(first <= time < first + 3600 for time in failures) <= 6
            assert len(failures) >= 12
            assert {record.num_attempts for record in b.log.records} == {0}
            peer.replies["AUTH"] = "235 ok"
            await b.records("Delivery", 60, seconds=4000)


async def test_hosts_beyond_those_of_one_attempt_are_of_the_endpoint(bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"], replies={"AUTH": "535 5.7.8 no"}) as peer:
        hosts = [f"127.0.0.1:{peer.port}", *(f"127.0.1.{i}" for i in range(1, 15))]
        async with bench(to(peer, queue={"protocol": {"smtp": {"mx_list": hosts}}}, **AUTH)) as b:
            await b.submit()
            await b.records("TransientFailure")
            (known,) = b.router.services.dialer.circuits.opened()
            assert len(known.hosts) == len(hosts)


async def test_tenants_with_one_user_name_do_not_spend_each_others_budget(
    bench: Any, clock: MockClock
) -> None:
    """Some providers call every user "apikey": who it is stands in the password."""
    right = "sesame-of-d0"
    async with open_peer(capabilities=["AUTH PLAIN"]) as peer:
        peer.replies["AUTH"] = lambda line: "235 ok" if login(line)[1] == right else "535 5.7.8 no"
        hooks = to(peer)
        hooks["secret"] = lambda tenant: f"sesame-of-{tenant}"
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled",
            idle_timeout=1,
            allow_smtp_auth_plain_without_tls=True,
            smtp_auth={
                "username": "apikey",
                "password": {"event_name": "secret", "event_args": [domain[:2]]},
            },
        )
        async with bench(hooks) as b:
            for i in range(1, 9):
                await b.submit(f"u@d{i}.example")
            await trio.sleep(1800)
            for _ in range(5):
                begun = trio.current_time()
                await b.submit("u@d0.example")
                await b.records("Delivery")
                assert trio.current_time() - begun < 5
                b.log.records.clear()
                await trio.sleep(10)
