"""engine/queues/retry.py: the doubling schedule, its jitter, and the last attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.queues.retry import delay_after, next_attempt

HOUR = 3600.0


def test_the_default_schedule_doubles() -> None:
    delays = [delay_after(k, 1200.0, None, 0.5) for k in range(5)]
    assert delays == [1200.0, 2400.0, 4800.0, 9600.0, 19200.0]


def test_the_cap_holds() -> None:
    assert delay_after(10, 1200.0, HOUR, 0.5) == HOUR


def test_jitter_comes_from_the_base_and_is_at_most_a_minute_wide() -> None:
    assert delay_after(3, 1200.0, None, 0.0) == 9600.0 - 30.0
    assert delay_after(0, 60.0, None, 0.0) == pytest.approx(60.0 - 1.5)


def test_a_message_lives_its_whole_max_age_not_half() -> None:
    """Under the plain doubling the message would expire at 85 of its 168 hours."""
    now, age_limit, attempts, tries = 0.0, 168 * HOUR, 0, [0.0]
    while True:
        due = next_attempt(now, age_limit, attempts, 1200.0, None, 0.5)
        if due is None:
            break
        now, attempts = due, attempts + 1
        tries.append(now / HOUR)
    assert tries[-2] == pytest.approx(85.0, abs=0.1)
    assert tries[-1] == 168.0


@given(
    now=st.floats(0, 1e7),
    left=st.floats(-1e6, 1e6),
    attempts=st.integers(0, 5000),
    base=st.floats(0.1, 1e5),
    cap=st.none() | st.floats(0.1, 1e6),
    fraction=st.floats(0, 1, exclude_max=True),
)
def test_never_behind_the_last_moment_and_never_in_the_past(
    now: float, left: float, attempts: int, base: float, cap: float | None, fraction: float
) -> None:
    last = now + left
    due = next_attempt(now, last, attempts, base, cap, fraction)
    if due is None:
        assert now >= last
    else:
        assert now <= due <= last
