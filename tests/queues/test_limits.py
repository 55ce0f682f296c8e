"""engine/queues/limits.py: throttles never pass more than promised and never starve."""

from __future__ import annotations

import gc
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.queues.limits import LocalLimits, Rate, acquire_all, take_all


def test_exactly_the_burst_passes_back_to_back() -> None:
    rate = Rate(0.1, 3)
    assert [rate.take(5.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rate.take(5.0) == pytest.approx(0.1)


def test_a_burst_of_one_is_one() -> None:
    rate = Rate(10.0, 1)
    assert rate.take(0.0) == 0.0
    assert rate.take(0.0) == pytest.approx(10.0)
    assert rate.take(10.0) == 0.0


def test_waits_are_exact_and_below_a_second() -> None:
    rate = Rate(0.01, 1)
    rate.take(0.0)
    assert rate.take(0.0) == pytest.approx(0.01)


def test_give_back_undoes_a_take() -> None:
    rate = Rate(1.0, 1)
    assert rate.take(0.0) == 0.0
    rate.give_back()
    assert rate.take(0.0) == 0.0


@given(
    steps=st.lists(st.floats(0, 3), min_size=1, max_size=200),
    interval=st.floats(0.01, 5),
    burst=st.integers(1, 20),
)
def test_never_above_the_limit(steps: list[float], interval: float, burst: int) -> None:
    rate, now, passed = Rate(interval, burst), 0.0, []
    for step in steps:
        now += step
        while rate.take(now) == 0.0:
            passed.append(now)
    for i, start in enumerate(passed):
        for j in range(i, len(passed)):
            count = j - i + 1
            assert count <= burst + (passed[j] - start) / interval + 1e-6


@given(interval=st.floats(0.01, 5), burst=st.integers(1, 20), taken=st.integers(1, 50))
def test_never_starves(interval: float, burst: int, taken: int) -> None:
    rate, now = Rate(interval, burst), 0.0
    for _ in range(taken):
        now += rate.take(now) + 1e-9
    assert rate.take(now + interval) == 0.0


def test_time_going_backwards_lets_nothing_extra_through() -> None:
    rate = Rate(1.0, 2)
    assert [rate.take(100.0), rate.take(100.0)] == [0.0, 0.0]
    assert rate.take(50.0) > 0.0
    assert rate.take(101.0) == 0.0


def test_changed_numbers_start_a_fresh_bucket() -> None:
    limits = LocalLimits()
    limits.rate("x", 10.0, 1, 0.0).take(0.0)
    assert limits.rate("x", 10.0, 1, 0.0).take(0.0) > 0
    assert limits.rate("x", 5.0, 1, 0.0).take(0.0) == 0.0


def test_idle_throttles_are_forgotten_busy_ones_kept() -> None:
    limits = LocalLimits()
    limits.rate("busy", 1e6, 1, 0.0).take(0.0)
    for i in range(10_001):
        limits.rate(f"idle{i}", 1.0, 1, 0.0)
    assert limits.rate("busy", 1e6, 1, 1.0).take(1.0) > 0
    assert len(limits._rates) < 10_000


def test_a_lease_counts_across_its_holders_and_dies_with_them() -> None:
    limits = LocalLimits()
    one, two = limits.lease("a"), limits.lease("a")
    assert one is two
    assert one.acquire(1)
    assert not two.acquire(1)
    two.release()
    assert one.acquire(1)
    del one, two
    gc.collect()
    assert limits.lease("a").used == 0


def test_all_or_none_of_the_leases_and_the_one_that_refuses_is_named() -> None:
    limits = LocalLimits()
    small, large = limits.lease("small"), limits.lease("large")
    leases = [(1, small), (5, large)]
    assert acquire_all(leases) is None
    assert acquire_all(leases) is small
    assert (small.used, large.used) == (1, 1)
    large.used = 5
    small.release()
    assert acquire_all(leases) is large
    assert (small.used, large.used) == (0, 5)


def test_what_was_counted_is_given_back_when_a_later_rate_refuses() -> None:
    slow, fast = Rate(10.0, 2), Rate(1.0, 1)
    assert take_all([slow, fast], 0.0) == 0.0
    assert take_all([slow, fast], 0.0) == pytest.approx(1.0)
    assert take_all([slow, fast], 1.0) == 0.0
    assert take_all([slow, fast], 2.0) == pytest.approx(8.0)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), min_size=1, max_size=30), st.data())
def test_taking_together_is_never_more_than_each_alone_allows(
    rates: list[tuple[float, int]], data: st.DataObject
) -> None:
    together = [Rate(interval + 0.01, burst) for interval, burst in rates]
    now, passed = 0.0, 0
    for step in data.draw(st.lists(st.floats(0, 2), max_size=20)):
        now += step
        passed += take_all(together, now) == 0.0
    for interval, burst in rates:
        assert passed <= burst + now / (interval + 0.01) + 1e-6


def test_of_many_who_share_a_rate_few_wake_for_each_event() -> None:
    """Each comes when it was told to; all together for every event they would ask a million times."""
    rate, asked, taken = Rate(0.01, 1), 0, 0
    waiting = [(0.0, n) for n in range(1000)]
    while waiting[0][0] < 10.0:
        now, who = heapq.heappop(waiting)
        asked += 1
        wait = rate.take(now)
        taken += not wait
        heapq.heappush(waiting, (now + (wait or 1e-6), who))
    assert 995 <= taken <= 1001, "and the rate is used up all the same"
    assert asked < 40 * 1000, "not 1,000 for each"


def test_one_who_does_not_come_costs_little() -> None:
    rate = Rate(1.0, 1)
    assert rate.take(0.0) == 0.0
    turns = [rate.take(0.0) for _ in range(60)]
    assert turns[:8] == [1.0] * 8 and turns[12] > 1.0 and all(1.0 <= turn <= 2.0 for turn in turns)
    assert rate.take(1.0) == 0.0
