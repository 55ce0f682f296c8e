"""engine/egress/sts: which policy a domain has, as time goes by and things go wrong."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from engine.egress import sts
from engine.egress.dns import StubResolver
from engine.egress.mta_sts import Policy
from engine.egress.resolve import Resolver
from engine.egress.sts import Policies, open_policies
from engine.egress.stsfetch import NoPolicy
from engine.egress.stsstore import Kept, Store
from tests.support.fakedns import SERVFAIL, StaticDns

DAY = 86400.0


class Server:
    """In place of all policy servers: `says` by domain, an exception is a failure."""

    def __init__(self, says: dict[str, Policy | Exception], seconds: float = 0.0) -> None:
        self.says = says
        self.seconds = seconds
        self.asked: Counter[str] = Counter()

    async def fetch(self, domain: str, *, route: bool = False) -> Policy:
        self.asked[domain] += 1
        await trio.sleep(self.seconds)
        found = self.says.get(domain, NoPolicy("there is no such server"))
        if isinstance(found, Exception):
            raise found
        return found


def policy(mode: Any = "enforce", max_age: int = 3 * 86400) -> Policy:
    return Policy(mode, ("mx.a.example",), max_age)


class World:
    """A domain ``a.example`` with a policy, unless a test changes it."""

    def __init__(self, store: Store | None = None) -> None:
        self.zones: dict[str, dict[str, Any]] = {}
        self.announce("1")
        self.dns = StaticDns(self.zones)
        self.server = Server({"a.example": policy()})
        self.store = store

    def announce(self, id: str, ttl: float = 300) -> None:
        self.zones["_mta-sts.a.example"] = {"TXT": [f'"v=STSv1; id={id};"'], "ttl": ttl}

    @property
    def looked(self) -> int:
        return self.dns.asked["_mta-sts.a.example", "TXT"]

    @property
    def fetched(self) -> int:
        return self.server.asked["a.example"]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Policies]:
        async with open_policies(Resolver(self.dns), self.server, self.store, clock=time.time) as policies:
            yield policies


async def mode(policies: Policies, domain: str = "a.example") -> str | None:
    found = await policies.of(domain)
    return found.mode if found is not None else None


async def test_the_first_waits_and_many_ask_once(clock: MockClock) -> None:
    world = World()
    world.server.seconds = 2.0
    found: list[str | None] = []

    async def ask(policies: Policies) -> None:
        found.append(await mode(policies))

    async with world.open() as policies:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, policies)
        assert found == ["enforce"] * 20 and trio.current_time() == pytest.approx(2.0)
        assert (world.looked, world.fetched) == (1, 1)
        before = trio.current_time()
        assert await mode(policies) == "enforce" and trio.current_time() == before


async def test_who_gives_up_waiting_leaves_the_others_their_turn(clock: MockClock) -> None:
    world = World()
    world.server.seconds = 2.0
    async with world.open() as policies, trio.open_nursery() as nursery:

        async def impatient() -> None:
            with trio.move_on_after(1.0):
                await policies.of("a.example")

        nursery.start_soon(impatient)
        await trio.sleep(0.5)
        assert await mode(policies) == "enforce"
        assert trio.current_time() == pytest.approx(3.0)


async def test_absence_is_remembered_for_the_ttl_of_the_answer(clock: MockClock) -> None:
    world = World()
    world.zones["b.example"] = {}
    world.zones["_mta-sts.b.example"] = {"ttl": 1000}
    async with world.open() as policies:
        for _ in range(3):
            assert await mode(policies, "b.example") is None
            await trio.sleep(300)
        assert world.dns.asked["_mta-sts.b.example", "TXT"] == 1
        await trio.sleep(200)
        assert await mode(policies, "b.example") is None
        assert world.dns.asked["_mta-sts.b.example", "TXT"] == 2 and world.server.asked["b.example"] == 0


@pytest.mark.parametrize("seconds", [sts.FAILED])
async def test_a_failed_fetch_without_a_policy_is_none_and_not_repeated_at_once(
    clock: MockClock, seconds: float
) -> None:
    world = World()
    world.server.says.clear()
    async with world.open() as policies:
        for _ in range(3):
            assert await mode(policies) is None
        assert world.fetched == 1
        world.server.says["a.example"] = policy()
        await trio.sleep(seconds - 1)
        assert await mode(policies) is None
        await trio.sleep(2)
        assert await mode(policies) == "enforce"


async def test_dns_that_cannot_say_is_asked_again_soon(clock: MockClock) -> None:
    world = World()
    world.zones["_mta-sts.a.example"] = {"TXT": SERVFAIL}
    async with world.open() as policies:
        assert await mode(policies) is None
        world.announce("1")
        await trio.sleep(31)
        assert await mode(policies) == "enforce"


async def test_a_new_id_is_a_new_policy_and_the_same_id_is_not_fetched_again(clock: MockClock) -> None:
    world = World()
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        world.server.says["a.example"] = policy("none")
        await trio.sleep(301)
        assert await mode(policies) == "enforce"
        await trio.sleep(1)
        assert (world.looked, world.fetched) == (2, 1)
        world.announce("2")
        await trio.sleep(301)
        assert await mode(policies) == "enforce", "what is known answers, and is looked at behind the scenes"
        await trio.sleep(1)
        assert await mode(policies) == "none" and (world.looked, world.fetched) == (3, 2)


@pytest.mark.parametrize("trouble", ["record gone", "record broken", "dns", "server", "no policy"])
async def test_a_known_policy_stays_until_its_end_whatever_happens(
    clock: MockClock, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        if trouble == "record gone":
            del world.zones["_mta-sts.a.example"]
        elif trouble == "record broken":
            world.zones["_mta-sts.a.example"] = {"TXT": ['"v=STSv1;"']}
        elif trouble == "dns":
            world.zones["_mta-sts.a.example"] = {"TXT": SERVFAIL}
        else:
            world.announce("2")
            world.server.says["a.example"] = NoPolicy("the server is gone")
        with caplog.at_level(logging.WARNING, "posthorn.egress"):
            while trio.current_time() < 3 * DAY - 10:
                assert await mode(policies) == "enforce"
                await trio.sleep(DAY / 4 - 1)
        assert "the one known serves for" in caplog.text
        await trio.sleep(DAY)
        assert await mode(policies) is None


async def test_a_policy_is_fetched_anew_long_before_its_end_without_mail_at_that_moment(
    clock: MockClock,
) -> None:
    world = World()
    world.server.says["a.example"] = policy(max_age=86400)
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        await trio.sleep(43000)
        assert world.fetched == 1
        await trio.sleep(43200 - 10)
        assert world.fetched == 2
        world.server.says.clear()
        await trio.sleep(43000)
        assert await mode(policies) == "enforce", "the first policy alone would be over"


async def test_a_policy_that_nobody_asks_for_is_forgotten(clock: MockClock) -> None:
    world = World()
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        await trio.sleep(10 * DAY)
        assert len(policies) == 0 and world.fetched == 2


async def test_a_policy_of_no_age_serves_as_long_as_the_routes_made_with_it(clock: MockClock) -> None:
    world = World()
    world.server.says["a.example"] = policy(max_age=0)
    async with world.open() as policies:
        for seconds, fetched in ((0, 1), (20, 1), (61, 2)):
            await trio.sleep(seconds)
            assert await mode(policies) == "enforce" and world.fetched == fetched
            await trio.lowlevel.checkpoint()


async def test_a_defect_in_a_look_behind_the_scenes_ends_only_that(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        world.announce("2")
        world.server.says["a.example"] = RuntimeError("a defect")
        await trio.sleep(301)
        assert await mode(policies) == "enforce"
        await trio.sleep(1)
        assert "a defect" in caplog.text
        world.server.says["a.example"] = policy("testing")
        await trio.sleep(sts.FAILED)
        await mode(policies)
        await trio.sleep(1)
        assert await mode(policies) == "testing"


async def test_what_is_remembered_is_limited(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts, "KNOWN", 3)
    world = World()
    async with world.open() as policies:
        assert await mode(policies) == "enforce"
        for domain in ("b", "c", "d", "b", "e"):
            await policies.of(domain)
        assert len(policies) == 4
        assert policies.reason("b") and policies.reason("e") and not policies.reason("c")
        assert await mode(policies) == "enforce" and world.looked == 1, (
            "whoever has none pushes out no policy"
        )


async def test_the_policy_that_was_used_longest_ago_goes_first(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sts, "KNOWN", 2)
    world = World()
    for domain in ("b.example", "c.example"):
        world.zones[f"_mta-sts.{domain}"] = world.zones["_mta-sts.a.example"]
        world.server.says[domain] = policy()
    async with world.open() as policies:
        for domain in ("a.example", "b.example", "a.example", "c.example", "a.example", "c.example"):
            assert await mode(policies, domain) == "enforce"
        assert world.server.asked == {"a.example": 1, "b.example": 1, "c.example": 1}


async def test_while_old_policies_are_looked_through_new_ones_are_safe(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes its time, and meanwhile policies are pushed out and replaced."""
    monkeypatch.setattr(sts, "KNOWN", 3)
    monkeypatch.setattr(sts, "_SWEEP", 4000.0)
    world = World()
    world.announce("1", 10)
    for domain in ("b.example", "c.example", "d.example"):
        world.zones[f"_mta-sts.{domain}"] = world.zones["_mta-sts.a.example"]
        world.server.says[domain] = policy(max_age=5000)
    world.server.says["a.example"] = policy(max_age=6000)
    world.server.says["c.example"] = policy(max_age=3000)
    async with world.open() as policies:
        for domain in ("a.example", "b.example", "c.example"):
            await policies.of(domain)
        await trio.sleep(4500)  # the first round, in which a is fetched anew, waits
        world.server.says["b.example"] = policy("testing")
        await trio.sleep(600)
        assert await mode(policies, "b.example") == "testing"
        await policies.of("d.example")  # c, which has ended, is pushed out
        await trio.sleep(1000)
        assert world.server.asked["b.example"] == 2
        assert await mode(policies, "b.example") == "testing" and world.server.asked["b.example"] == 2


async def test_large_policies_count_as_more(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose policies are very long push out nobody else's."""
    world = World()
    world.server.says["a.example"] = policy()
    for domain, hosts in (("b.example", 4), ("c.example", 2), ("d.example", 2)):
        world.zones[f"_mta-sts.{domain}"] = world.zones["_mta-sts.a.example"]
        many = Policy("enforce", tuple(f"mx{i}.example" for i in range(hosts)), 86400)
        world.server.says[domain] = many
    monkeypatch.setattr(sts, "OCTETS", 2500)
    async with world.open() as policies:
        for domain in ("a.example", "b.example", "c.example", "d.example"):
            assert await mode(policies, domain) == "enforce"
        assert len(policies) == 3
        for domain in ("a.example", "c.example", "d.example"):
            assert await mode(policies, domain) == "enforce" and world.server.asked[domain] == 1


def test_the_weight_of_a_policy_is_about_what_it_takes() -> None:
    """Of short names most is what surrounds them."""
    names = tuple(f"{n:x}" for n in range(5000))
    kept = Kept("a.example", "1", Policy("enforce", names, 1), 0.0)
    real = sum(sys.getsizeof(name) for name in names) + sys.getsizeof(names)
    weight = sts._Known(kept, 0.0, 0.0, 0.0).weight
    assert real <= weight <= 2 * real
    assert len(msgspec.json.encode(kept)) < weight


async def test_routes_and_strangers_are_not_told_each_other_s_answer(clock: MockClock) -> None:
    world = World()
    async with world.open() as policies:
        await policies.of("a.example", route=True)
        await policies.of("a.example")
        assert world.fetched == 2


async def test_a_domain_as_long_as_can_be_has_none(clock: MockClock) -> None:
    """Its record's name would not fit into DNS; dnspython refuses to make it."""
    longest = ".".join(["a" * 60] * 4)
    resolver = Resolver(StubResolver(["127.0.0.1:1"]))
    async with open_policies(resolver, Server({})) as policies:
        assert await mode(policies, longest + ".example") is None
        assert "too long" in policies.reason(longest + ".example")


# -- over a restart ------------------------------------------------------------------------------


async def test_policies_survive_a_restart_and_end_when_they_would_have(tmp_path: Path) -> None:
    now = 1_000_000.0
    world = World(Store(tmp_path / "spool"))
    world.server.says["a.example"] = policy(max_age=1000)

    async def again(seconds: float) -> str | None:
        at = now + seconds
        resolver = Resolver(world.dns)
        async with open_policies(resolver, world.server, world.store, clock=lambda: at) as policies:
            return await mode(policies)

    assert await again(0) == "enforce"
    assert (tmp_path / "spool.mta-sts" / "policies").stat().st_mode & 0o777 == 0o600
    world.zones.clear()
    world.server.says.clear()
    assert await again(990) == "enforce" and world.fetched == 1
    assert await again(1001) is None


async def test_changes_are_written_while_it_runs(clock: MockClock, tmp_path: Path) -> None:
    clock.autojump_threshold = float("inf")
    clock.rate = 1000.0
    world = World(Store(tmp_path / "spool"))
    async with world.open() as policies:
        await policies.of("a.example")
        with trio.fail_after(5000):
            while not (tmp_path / "spool.mta-sts" / "policies").exists():
                await trio.sleep(1)
    assert [kept.domain for kept in Store(tmp_path / "spool").read()] == ["a.example"]


@pytest.mark.parametrize("damage", [b"", b"x", b"0" * 32 + b"\n[]", None])
async def test_a_damaged_file_counts_as_missing_and_is_named(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "spool")
    store.write([Kept("a.example", "1", policy(), 1.0)])
    file = tmp_path / "spool.mta-sts" / "policies"
    file.write_bytes(damage if damage is not None else file.read_bytes()[:-1])
    assert store.read() == []
    assert str(file) in caplog.text and "damaged" in caplog.text


def test_who_only_looks_writes_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "spool", writes=False).write([Kept("a.example", "1", policy(), 1.0)])
    assert list(tmp_path.iterdir()) == []
