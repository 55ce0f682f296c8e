"""The ring's rules of time, with a source that does as it is told and a clock that jumps."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

from engine.errors import SecretUnavailable
from engine.keys import Credential, KeyRing, SourceFailure, open_keys
from policy.keysource import FileKey, LiteralKey
from policy.keyterms import Terms
from policy.secret import Secret
from tests.contract.key_source import CANARY, assert_no_canary


class Ref(msgspec.Struct, frozen=True):
    name: str = "fake:one"


class FakeSource:
    """Gives `value`, or raises it; takes `seconds`."""

    fresh_for: float | None = None

    def __init__(self) -> None:
        self.value: str | BaseException = CANARY
        self.seconds = 0.0
        self.reads: list[float] = []

    async def read(self, ref: Any) -> Secret:
        self.reads.append(trio.current_time())
        await trio.sleep(self.seconds)
        if isinstance(self.value, BaseException):
            raise self.value
        return Secret(self.value)


DOWN = SourceFailure("the server is down")
GONE = SourceFailure("nothing there", definite=True)
ONE: Any = Ref()


@asynccontextmanager
async def ring(source: FakeSource, **options: float) -> AsyncIterator[KeyRing]:
    async with open_keys(sources={Ref: source}, **options) as keys:  # type: ignore[arg-type]
        yield keys


async def outcome(keys: KeyRing, **options: bool) -> str:
    """The value, or the reason there is none."""
    try:
        return (await keys.fetch(ONE, **options)).secret.reveal().decode()
    except SecretUnavailable as error:
        return str(error)


async def test_the_first_fetch_reads_and_the_next_do_not(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        assert keys.cached(ONE) is None
        first = await keys.fetch(ONE)
        assert first.secret == Secret(CANARY) and first.fetched == trio.current_time()
        await trio.sleep(200)
        assert keys.cached(ONE) is first
        assert await keys.fetch(ONE) is first
    assert len(source.reads) == 1


async def test_past_its_ttl_a_value_is_used_and_refreshed_meanwhile(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.seconds = 2
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = "new"
        await trio.sleep(301)
        start = trio.current_time()
        assert await outcome(keys) == CANARY
        assert trio.current_time() == start
        await trio.sleep(3)
        assert await outcome(keys) == "new"
        assert len(source.reads) == 2


async def test_a_near_source_is_waited_for_a_moment(autojump_clock: MockClock) -> None:
    """A file that was just repaired is used at once, and one that hangs holds nobody up."""
    source = FakeSource()
    source.fresh_for = 1.0
    source.seconds = 0.25
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = "new"
        await trio.sleep(10)
        start = trio.current_time()
        assert await outcome(keys) == "new"
        assert trio.current_time() == start + 0.25
        assert await outcome(keys) == "new" and trio.current_time() == start + 0.25, "it is fresh"
        await trio.sleep(10)
        source.value, source.seconds = "newer", 100
        start = trio.current_time()
        assert await outcome(keys) == "new"
        assert trio.current_time() == start + 1
        await trio.sleep(10)
        source.value, source.seconds = DOWN, 0
        assert await outcome(keys) == "new", "what cannot be read changes nothing"


async def test_cached_refreshes_too(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = "new"
        await trio.sleep(301)
        old = keys.cached(ONE)
        assert old is not None and old.secret == Secret(CANARY)
        await trio.sleep(1)
        new = keys.cached(ONE)
        assert new is not None and new.secret == Secret("new") and new.version != old.version


async def test_a_version_tells_values_apart_and_no_more(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys, ring(source) as others:
        one = await keys.fetch(ONE)
        await trio.sleep(2)
        again = await keys.fetch(ONE, fresh=True)
        assert again.version == one.version and again.fetched > one.fetched
        assert (await others.fetch(ONE)).version != one.version
        assert_no_canary(one)


async def test_many_waiters_share_one_read(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.seconds = 1
    found: list[Credential] = []
    async with ring(source) as keys:

        async def one() -> None:
            found.append(await keys.fetch(ONE))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
    assert len(found) == 100 and len(source.reads) == 1


async def test_a_cancelled_waiter_does_not_stop_the_read(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.seconds = 1
    async with ring(source) as keys:
        with trio.move_on_after(0.5):
            await keys.fetch(ONE)
        await trio.sleep(1)
        assert keys.cached(ONE) is not None


async def test_nobody_waits_longer_than_five_seconds(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.seconds = 1000
    async with ring(source) as keys:
        start = trio.current_time()
        assert await outcome(keys) == "fake:one: no answer in 5 s"
        assert trio.current_time() - start == pytest.approx(5)
        start = trio.current_time()
        assert "no answer" in await outcome(keys)
        assert trio.current_time() == start
        source.seconds = 0
        await trio.sleep(2)
        assert await outcome(keys) == CANARY


async def test_a_hanging_secret_holds_up_no_other(autojump_clock: MockClock) -> None:
    class Slow(msgspec.Struct, frozen=True):
        name: str = "slow"

    hanging, quick = FakeSource(), FakeSource()
    hanging.seconds = 1000
    async with open_keys(sources={Slow: hanging, Ref: quick}) as keys, trio.open_nursery() as nursery:

        async def hang() -> None:
            with pytest.raises(SecretUnavailable):
                await keys.fetch(Slow())  # type: ignore[arg-type]

        nursery.start_soon(hang)
        await trio.sleep(1)
        start = trio.current_time()
        assert await outcome(keys) == CANARY
        assert trio.current_time() == start


async def test_an_outage_of_an_hour_changes_nothing_and_of_a_day_does(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = DOWN
        for _ in range(60):
            await trio.sleep(60)
            assert await outcome(keys) == CANARY
        await trio.sleep(23 * 3600 + 300)
        assert "is down; the last value is 86700 s old and not used any more" in await outcome(keys)
        source.value = "new"
        await trio.sleep(60)
        assert await outcome(keys) == "new"


async def test_a_failing_source_is_asked_at_growing_intervals(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.value = DOWN
    async with ring(source) as keys:
        for _ in range(3000):
            assert "the server is down" in await outcome(keys)
            await trio.sleep(0.1)
    gaps = [later - before for before, later in zip(source.reads, source.reads[1:], strict=False)]
    assert min(gaps) >= 1
    assert 10 <= len(source.reads) <= 20
    assert gaps[-2] > 25


async def test_fresh_reads_again_but_never_twice_in_a_second(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = "new"
        assert await outcome(keys, fresh=True) == "new"
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(outcome_fresh, keys)
    gaps = [later - before for before, later in zip(source.reads, source.reads[1:], strict=False)]
    assert len(source.reads) == 3 and min(gaps) >= 1


async def outcome_fresh(keys: KeyRing) -> None:
    await keys.fetch(ONE, fresh=True)


async def test_the_pause_between_two_reads_counts_as_waiting(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.seconds = 1000
        start = trio.current_time()
        assert await outcome(keys, fresh=True) == CANARY
        assert trio.current_time() - start == pytest.approx(5)


async def test_fresh_ignores_the_back_off_and_falls_back_on_the_old_value(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        first = await keys.fetch(ONE)
        source.value = DOWN
        for _ in range(5):
            assert (await keys.fetch(ONE, fresh=True)).version == first.version
        source.value = "new"
        assert await outcome(keys, fresh=True) == "new"


async def test_an_invalidated_value_is_read_again_before_it_is_used(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        keys.invalidate(ONE)
        assert keys.cached(ONE) is None
        source.value = "new"
        assert await outcome(keys) == "new"
        keys.invalidate(ONE)
        source.value = DOWN
        assert await outcome(keys) == "new"
        assert keys.cached(ONE) is not None


async def test_a_value_that_is_gone_ends_after_three_answers_over_a_minute(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = GONE
        await trio.sleep(301)
        asked = len(source.reads)
        start = trio.current_time()
        for _ in range(300):
            if await outcome(keys) != CANARY:
                break
            await trio.sleep(0.5)
        assert 60 <= trio.current_time() - start <= 130
        assert len(source.reads) - asked >= 3
        assert "nothing there" in await outcome(keys)


async def test_two_answers_are_not_enough_however_far_apart(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = GONE
        for waited in (301, 3600, 3600):
            await trio.sleep(waited)
            assert await outcome(keys) == CANARY
        await trio.sleep(1)
        assert "nothing there" in await outcome(keys)


async def test_a_permission_refusal_does_not_end_a_value(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = SourceFailure("permission denied")
        for _ in range(100):
            await trio.sleep(60)
            assert await outcome(keys) == CANARY


async def test_retry_after_is_obeyed(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.value = SourceFailure("slow down", retry_after=120)
    async with ring(source) as keys:
        for _ in range(119):
            await outcome(keys)
            await trio.sleep(1)
    assert len(source.reads) == 1


async def test_retry_after_is_obeyed_also_after_a_refused_login(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        first = await keys.fetch(ONE)
        source.value = SourceFailure("slow down", retry_after=60)
        await keys.fetch(ONE, fresh=True)
        asked = len(source.reads)
        start = trio.current_time()
        while trio.current_time() < start + 59:
            assert (await keys.fetch(ONE, fresh=True)).version == first.version
            keys.invalidate(ONE)
            await keys.fetch(ONE)
            await trio.sleep(1)
        assert len(source.reads) == asked
        source.value = "new"
        await trio.sleep(20)
        assert await outcome(keys, fresh=True) == "new"


@pytest.mark.parametrize("value", ["", "x" * ((1 << 20) + 1)])
async def test_an_empty_or_huge_value_is_never_a_secret(value: str, autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.value = value
    async with ring(source) as keys:
        assert "empty or larger" in await outcome(keys)


async def test_a_broken_source_hurts_only_its_own_secret(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    source.value = ZeroDivisionError(CANARY)
    async with ring(source) as keys:
        with caplog.at_level(logging.DEBUG):
            assert await outcome(keys) == "fake:one: internal error (ZeroDivisionError)"
        with pytest.raises(SecretUnavailable):
            await keys.fetch(LiteralKey(Secret(CANARY)))
    assert CANARY not in caplog.text


async def test_failures_are_logged_once_per_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        with caplog.at_level(logging.INFO, "posthorn.keys"):
            await outcome(keys)
            for reason in (DOWN, DOWN, SourceFailure("permission denied"), CANARY):
                source.value = reason
                for _ in range(400):
                    await outcome(keys)
                    await trio.sleep(1)
    assert [record.message for record in caplog.records] == [
        "fake:one: the server is down; the last value stays in use",
        "fake:one: permission denied; the last value stays in use",
        "fake:one can be read again",
    ]
    assert {record.name for record in caplog.records} == {"posthorn.keys"}


async def test_a_failure_that_whoever_asks_is_told_of_is_not_said_twice(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    source.value = DOWN
    async with ring(source, ttl=300, stale_for=200) as keys:
        with caplog.at_level(logging.INFO, "posthorn.keys"):
            for _ in range(3):
                assert await outcome(keys) == "fake:one: the server is down"
                await trio.sleep(40)
            source.value = CANARY
            assert await outcome(keys) == CANARY
            await trio.sleep(600)  # older than `ttl` and `stale_for`: nothing is in use that could stay so
            source.value = GONE
            assert "nothing there" in await outcome(keys)
    assert [record.message for record in caplog.records] == ["fake:one can be read again"]


async def test_leaving_the_block_ends_the_reads(autojump_clock: MockClock) -> None:
    source = FakeSource()
    source.seconds = 1000
    start = trio.current_time()
    async with ring(source) as keys:
        with trio.move_on_after(0.5):
            await keys.fetch(ONE)
    assert trio.current_time() - start == pytest.approx(0.5)


async def test_the_ring_is_bounded(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with trio.open_nursery() as nursery:
        keys = KeyRing(nursery, {Ref: source}, capacity=3)
        refs: list[Any] = [Ref(f"fake:{i}") for i in range(5)]
        for ref in refs[:3]:
            await keys.fetch(ref)
        assert keys.cached(refs[0])
        await keys.fetch(refs[3])
        assert keys.cached(refs[0]) and not keys.cached(refs[1])
        assert keys.statistics().entries == 3


async def test_statistics(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with ring(source) as keys:
        await keys.fetch(ONE)
        source.value = DOWN
        await trio.sleep(400)
        await outcome(keys)
        await trio.sleep(1)
        statistics = keys.statistics()
    assert (statistics.entries, statistics.failing, statistics.reads, statistics.failures) == (1, 1, 2, 1)
    assert statistics.oldest == pytest.approx(401)


async def test_every_fetch_is_a_checkpoint() -> None:
    async with open_keys() as keys:
        ref = LiteralKey(Secret("tiger"))
        await keys.fetch(ref)
        with assert_checkpoints():
            await keys.fetch(ref)
        assert keys.cached(LiteralKey(Secret("tiger"))) is not None


async def test_the_reason_names_the_reference_and_not_the_value() -> None:
    async with open_keys() as keys:
        with pytest.raises(SecretUnavailable) as caught:
            await keys.fetch(FileKey("/none/x"))
    assert str(caught.value) == "file:/none/x: No such file or directory"
    assert caught.value.cause == "secret-unavailable"


# What a reference says itself


class TermedRef(msgspec.Struct, frozen=True):
    terms: Terms
    name: str = "fake:termed"


@asynccontextmanager
async def termed(source: FakeSource, **terms: Any) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Gives what a delivery would get, the value or the reason there is none."""
    ref: Any = TermedRef(Terms(**terms))
    async with open_keys(sources={TermedRef: source}) as keys:  # type: ignore[arg-type]

        async def say() -> str:
            try:
                return (await keys.fetch(ref)).secret.reveal().decode()
            except SecretUnavailable as error:
                return str(error)

        yield say


async def test_the_ttl_of_a_reference(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with termed(source, ttl=20.0) as say:
        for _ in range(10):
            await say()
            await trio.sleep(10)
    assert [round(gap) for gap in gaps_of(source)] == [20] * 4


async def test_stale_for_counts_from_the_end_of_the_ttl(autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with termed(source, ttl=100.0, stale_for=50.0) as say:
        assert await say() == CANARY
        source.value = DOWN
        await trio.sleep(149)
        assert await say() == CANARY
        await trio.sleep(2)
        assert (await say()).endswith("is down; the last value is 151 s old and not used any more")


async def test_on_outage_hold_uses_nothing_past_its_ttl_and_reads_again_before(
    autojump_clock: MockClock,
) -> None:
    source = FakeSource()
    async with termed(source, ttl=100.0, on_outage="hold") as say:
        assert await say() == CANARY
        await trio.sleep(80)
        source.value = "new"
        assert await say() == CANARY  # and is read again meanwhile
        await trio.sleep(2)
        assert await say() == "new"
        source.value = DOWN
        await trio.sleep(90)
        assert "the server is down" not in await say()
        await trio.sleep(10)
        assert "the server is down" in await say()
        source.value = "back"
        await trio.sleep(60)
        assert await say() == "back"


@pytest.mark.parametrize("on_denied", ["stale", "hold"])
async def test_on_denied(on_denied: str, autojump_clock: MockClock) -> None:
    source = FakeSource()
    async with termed(source, ttl=100.0, on_denied=on_denied) as say:
        await say()
        source.value = SourceFailure("permission denied", denied=True)
        await trio.sleep(101)
        await say()
        await trio.sleep(0.1)
        assert (await say() == CANARY) is (on_denied == "stale")
        source.value = DOWN
        await trio.sleep(60)
        assert (await say() == CANARY) is (on_denied == "stale")
        source.value = "new"
        await trio.sleep(60)
        await say()
        await trio.sleep(1)
        assert await say() == "new"


def gaps_of(source: FakeSource) -> list[float]:
    return [later - before for before, later in zip(source.reads, source.reads[1:], strict=False)]
