"""engine/egress/rotation.py and its surroundings: a new version of a secret is tried before it is used, the
old one stays until then, and no message fails for it."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.egress.rotation import AGAIN, FALLBACK, Rotation
from engine.keys import Credential
from policy.secret import Secret
from tests.support.bench import login, to
from tests.support.peer import FakePeer, open_peer

# By itself


def version(name: str) -> Credential:
    return Credential(Secret(name), name, 0.0)


def proven(name: str = "old") -> Rotation:
    rotation = Rotation()
    assert rotation.choose(version(name), 0.0) == (version(name), False)
    rotation.accepted(name)
    return rotation


OLD, NEW, NEWER = version("old"), version("new"), version("newer")


def test_one_session_tries_and_the_others_go_on() -> None:
    rotation = proven()
    assert rotation.choose(NEW, 1.0) == (NEW, True)
    assert rotation.choose(NEW, 2.0) == (OLD, False)
    assert rotation.current("old", "new", 2.0) and rotation.current("new", "new", 2.0)
    assert rotation.promote("new") == "old"
    assert rotation.choose(NEW, 3.0) == (NEW, False)
    assert not rotation.current("old", "new", 3.0)


def test_who_may_not_try_is_given_what_is_in_use() -> None:
    rotation = proven()
    assert rotation.choose(NEW, 1.0, may_try=False) == (OLD, False)
    assert rotation.choose(NEW, 1.0) == (NEW, True)


def test_what_was_never_accepted_gives_way_at_once() -> None:
    rotation = Rotation()
    rotation.choose(OLD, 0.0)
    assert rotation.choose(NEW, 1.0) == (NEW, False)


def test_a_trial_that_came_to_nothing_is_repeated() -> None:
    rotation = proven()
    rotation.choose(NEW, 1.0)
    rotation.undecided("new", 1.0 + AGAIN)
    assert rotation.choose(NEW, AGAIN) == (OLD, False)
    assert rotation.choose(NEW, 1.0 + AGAIN) == (NEW, True)


def test_the_old_one_does_not_outlive_the_new_one_for_ever() -> None:
    rotation = proven()
    rotation.choose(NEW, 1.0)
    rotation.undecided("new", 2.0)
    assert rotation.choose(NEW, FALLBACK) == (NEW, True)
    rotation.undecided("new", FALLBACK)
    assert rotation.choose(NEW, FALLBACK + 1.0) == (NEW, False)


def test_one_session_is_asked_to_end_for_a_trial() -> None:
    rotation = proven()
    asked = [rotation.current("old", "new", 1.0) for _ in range(10)]
    assert asked == [False, *[True] * 9]
    assert not rotation.current("old", "new", 7.0), "nobody began one"
    rotation.choose(NEW, 8.0)
    assert rotation.current("old", "new", 100.0)


def test_a_newer_version_does_not_wait_for_what_stopped_the_one_before() -> None:
    rotation = proven()
    rotation.choose(NEW, 1.0)
    rotation.undecided("new", 1e9)
    assert rotation.choose(NEWER, 2.0) == (NEWER, True)


def test_a_trial_that_is_overtaken_counts_all_the_same() -> None:
    rotation = proven()
    rotation.choose(NEW, 1.0)
    assert rotation.choose(NEWER, 2.0) == (OLD, False)
    assert rotation.current("new", "newer", 2.0)
    assert rotation.promote("new") == "old"
    assert rotation.choose(NEWER, 3.0) == (NEWER, True)


def test_back_to_the_old_one() -> None:
    rotation = proven()
    rotation.choose(NEW, 1.0)
    rotation.undecided("new", 1.0)
    assert rotation.choose(OLD, 2.0) == (OLD, False) and rotation.current("old", "old", 2.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["choose", "promote", "undecided", "current", "accepted", "replace"]),
            st.sampled_from("abc"),
            st.sampled_from([0.0, 1.0, 20.0, 90_000.0]),
        )
    )
)
def test_whatever_happens_there_is_one_trial_at_most_and_it_is_of_the_newest(steps: list[Any]) -> None:
    rotation, now = Rotation(), 0.0
    trying: str | None = None
    begun = 0.0
    for what, name, pause in steps:
        now += pause
        if what == "choose":
            chosen, trial = rotation.choose(version(name), now)
            if trial:
                assert chosen.version == name and (trying is None or now - begun >= 900)
                trying, begun = name, now
            else:
                assert chosen.version in (name, rotation.active.version)  # type: ignore[union-attr]
            if rotation._trial is None:
                trying = None
        elif what == "promote":
            if rotation.promote(name) is not None:
                assert trying == name
                trying = None
        elif what == "undecided":
            rotation.undecided(name, now)
            trying = None if trying == name else trying
        elif what == "replace":
            rotation.replace(version(name))
            trying = None
        elif what == "current":
            rotation.current(name, "c", now)
        else:
            rotation.accepted(name)


# With queues and sessions around it


class Accounts:
    """A peer's list: which passwords are good now; what was tried."""

    def __init__(self, *good: str) -> None:
        self.good = set(good)
        self.tried: list[tuple[str, bool]] = []
        self.failures: list[float] = []

    def answer(self, line: str) -> str:
        password = login(line)[1]
        right = password in self.good
        self.tried.append((password, right))
        if not right:
            self.failures.append(trio.current_time())
        return "235 ok" if right else "535 5.7.8 no"

    def most_failures(self, period: float) -> int:
        """The most that were seen in a period of so many seconds."""
        return max(
            (sum(first <= time < first + period for time in self.failures) for first in self.failures),
            default=0,
        )


class Source:
    """A secret that changes."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __call__(self) -> str:
        return self.value


KEY = {"event_name": "password", "event_args": [], "ttl": 1}


def hooks(peer: FakePeer, source: Source, **path: Any) -> dict[str, Any]:
    auth: dict[str, Any] = {"username": "scott", "password": KEY, "failure_budget": "4/h"}
    options = {"smtp_auth": auth, "allow_smtp_auth_plain_without_tls": True, "idle_timeout": 5, **path}
    return {**to(peer, **options), "password": source}


def peer_of(accounts: Accounts, **options: Any) -> Any:
    return open_peer(capabilities=["AUTH PLAIN"], replies={"AUTH": accounts.answer}, **options)


async def test_probe_canary_and_then_all(bench: Any, clock: MockClock) -> None:
    accounts, source = Accounts("one", "two"), Source("one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=1)) as b:
        await b.submit()
        await b.records("Delivery")
        source.value = "two"
        await trio.sleep(3)
        peer.commands.clear()
        for number in range(2, 8):
            await b.submit()
            await b.records("Delivery", number)
            await trio.sleep(1)
        words = [word for word in peer.words() if word in ("AUTH", "MAIL", "QUIT")]
        new = words[words.index("AUTH") :]
        assert new[:4] == ["AUTH", "QUIT", "AUTH", "MAIL"]
        assert [password for password, _ in accounts.tried] == ["one", "two", "two"]
        assert peer.most_open <= 2  # the peer sees our end a moment after we made it


async def test_a_new_version_that_is_refused_leaves_the_old_one_in_use(
    bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "posthorn.egress")
    accounts, source = Accounts("one"), Source("one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=3)) as b:
        await b.submit()
        await b.records("Delivery")
        source.value = "typo-4711"
        for _ in range(120):  # each wants a session: the one before has been idle for too long
            await b.submit()
            await trio.sleep(30)
        await b.records("Delivery", 121, seconds=60)
        assert set(b.log.kinds()) == {"Delivery"}, "nothing was held and nothing failed"
        assert accounts.tried.count(("typo-4711", False)) <= 4, "the budget holds for trials, too"
        assert "is not taken into use" in caplog.text and "stays in use" in caplog.text
        assert "typo-4711" not in caplog.text
        accounts.good = {"typo-4711"}
        await trio.sleep(3600)
        await b.submit()
        await b.records("Delivery", 122, seconds=60)


async def test_versions_that_are_all_refused_are_one_budget(bench: Any, clock: MockClock) -> None:
    """A source that is rotated again and again to what the peer does not know: it sees four failures an hour,
    and the last of them is not spent on a trial, for the old version is needed all the while."""
    accounts, source = Accounts("good"), Source("good")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=3)) as b:
        await b.submit()
        await b.records("Delivery")
        for number in range(500):
            source.value = f"bad {number}"
            await b.submit()
            await trio.sleep(10)
        await b.records("Delivery", 501, seconds=60)
        assert set(b.log.kinds()) == {"Delivery"}
        assert accounts.most_failures(3600) == 3


async def test_a_source_that_cannot_decide_costs_no_message(bench: Any, clock: MockClock) -> None:
    """Two replicas, say, one of which is behind; the peer knows one of the two versions."""

    class Torn(Source):
        reads = 0

        def __call__(self) -> str:
            self.reads += 1
            return "good" if self.reads == 1 or dice.random() < 0.5 else "bad"

    accounts, source, dice = Accounts("good"), Torn(""), random.Random(1)
    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=3)) as b:
        for _ in range(1000):
            await b.submit()
            await trio.sleep(1)
        await b.records("Delivery", 1000, seconds=60)
        assert source.reads > 100
        assert set(b.log.kinds()) == {"Delivery"}
        assert 1 <= accounts.most_failures(3600) <= 3


async def flow(b: Any, seconds: float, pause: float) -> int:
    """Messages all the time. Returns: how many."""
    number = 0
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        await b.submit(f"u{number}@example.com")
        number += 1
        await trio.sleep(pause)
    return number


MESSAGES = pytest.mark.parametrize(
    "pause", [pytest.param(0.3, id="some"), pytest.param(0.05, id="many", marks=pytest.mark.slow)]
)


@MESSAGES
@pytest.mark.parametrize("limit", [1, 8])
async def test_every_ten_seconds_with_an_overlap(
    limit: int, pause: float, bench: Any, clock: MockClock
) -> None:
    accounts, source = Accounts("0"), Source("0")

    async def rotate() -> None:
        for i in range(1, 11):
            accounts.good.add(str(i))
            source.value = str(i)
            await trio.sleep(5)
            accounts.good -= {str(old) for old in range(i - 1)}
            await trio.sleep(5)

    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=limit)) as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rotate)
            number = await flow(b, 100, pause)
        await b.records("Delivery", number, seconds=60)
        assert set(b.log.kinds()) == {"Delivery"}
        assert all(right for _, right in accounts.tried)
        assert len({password for password, _ in accounts.tried}) >= 8, "the new ones were taken into use"


@MESSAGES
@pytest.mark.parametrize("lead", [-2.0, 2.0], ids=["the peer first", "the source first"])
async def test_every_ten_seconds_without_an_overlap(
    lead: float, pause: float, bench: Any, clock: MockClock
) -> None:
    """There are moments in which no password is right: mail may wait, and none fails or spends an attempt."""
    accounts, source = Accounts("0"), Source("0")

    async def rotate() -> None:
        for i in range(1, 11):
            for side in ("source", "peer") if lead > 0 else ("peer", "source"):
                if side == "source":
                    source.value = str(i)
                else:
                    accounts.good = {str(i)}
                await trio.sleep(abs(lead) if side == ("source" if lead > 0 else "peer") else 10 - abs(lead))

    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=4)) as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rotate)
            number = await flow(b, 100, pause)
        await b.records("Delivery", number, seconds=4000)
        assert "Bounce" not in b.log.kinds()
        for record in b.log.records:
            assert record.type == "Delivery" or record.num_attempts == 0
        assert accounts.most_failures(3600) <= 4


async def test_when_the_old_one_is_refused_the_new_one_is_not_kept_waiting(
    bench: Any, clock: MockClock
) -> None:
    """The source was first and the peer refused the trial; when the peer follows, the old one's refusal is
    what speaks for the new one."""
    accounts, source = Accounts("one"), Source("one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, idle_timeout=0)) as b:
        await b.submit()
        await b.records("Delivery")
        source.value = "two"
        await trio.sleep(3)
        await b.submit()
        await trio.sleep(3)
        await b.submit()
        await b.records("Delivery", 3)
        assert ("two", False) in accounts.tried
        accounts.good = {"two"}
        begun = trio.current_time()
        await b.submit()
        await b.records("Delivery", 4)
        assert trio.current_time() - begun < 5 and set(b.log.kinds()) == {"Delivery"}


async def test_which_version_is_in_use_can_be_known(bench: Any, clock: MockClock) -> None:
    accounts, source = Accounts("one"), Source("one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, idle_timeout=0)) as b:
        circuits = b.router.services.dialer.circuits
        for number, value in enumerate(["one", "two", "two"], start=1):
            source.value = value
            await b.submit()
            await b.records("Delivery", number)
            await trio.sleep(3)
        ((hosts, user, behind),) = circuits.behind()
        assert (hosts, user, behind.trying) == (("127.0.0.1",), "scott", False)
        assert {record.smtp_auth_version for record in b.log.records} == {behind.active} != {behind.newest}
        circuits.changed = trio.Event()
        accounts.good.add("two")
        await trio.sleep(300)
        await b.submit()
        await b.records("Delivery", 4)
        assert b.log.records[-1].smtp_auth_version == behind.newest
        assert not [*circuits.behind()] and circuits.changed.is_set()


async def test_a_canary_that_carries_nothing_decides_nothing(bench: Any, clock: MockClock) -> None:
    accounts, source = Accounts("one", "two"), Source("one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, connection_limit=1)) as b:
        await b.submit()
        await b.records("Delivery")
        source.value = "two"
        await trio.sleep(3)
        await b.submit()
        await b.records("Delivery", 2)  # begins a refresh
        await trio.sleep(3)
        peer.replies["MAIL"] = "421 4.3.2 bye"
        await b.submit()
        await b.records("TransientFailure")
        (rotation,) = {
            id(r): r
            for e in b.router.services.dialer.circuits._endpoints.values()
            for r in e.root().rotations.values()
        }.values()
        assert (
            rotation.active.version
            != b.router.services.keys.cached(next(iter(b.router.services.keys._entries))).version
        )
        del peer.replies["MAIL"]
        await b.records("Delivery", 3, seconds=300)
        await b.submit()
        await trio.sleep(AGAIN)
        await b.submit()
        await b.records("Delivery", 5, seconds=60)
        assert accounts.tried[-1][0] == "two"


async def test_an_old_version_that_is_used_on_is_searched_for_as_long(bench: Any, clock: MockClock) -> None:
    accounts, source = Accounts("one-4711-one"), Source("one-4711-one")
    async with peer_of(accounts) as peer, bench(hooks(peer, source, idle_timeout=0)) as b:
        tripwire = b.router.services.keys._tripwire
        tripwire._clock = trio.current_time
        for number in range(1, 100):
            await b.submit()
            await b.records("Delivery", number)
            source.value = "a typo in it"
            await trio.sleep(60)
        assert accounts.tried[-1][0] == "one-4711-one"
        tripwire.tidy()
        assert "one-4711-one" not in tripwire.text("it is one-4711-one", "here")
