"""When to try again, and when to give up. Pure: times and the random number are arguments.

With base B, cap C and k attempts made before this failure, the next attempt is
``min(B * 2**k, C)`` later, plus or minus half of ``min(B / 20, 60)`` seconds. So with the default
base of 20 minutes: 20 min, 40 min, 80 min, ...

A message is given up only after an attempt at or past its last moment (`max_age` after arrival,
or `expires`): where the next ordinary retry would fall behind that moment, the retry is moved to
it instead. A plain doubling schedule would give up at half of ``max_age``.
"""

from __future__ import annotations

__all__ = ["delay_after", "next_attempt"]

_MAX_DOUBLINGS = 40
"""2**40 times any base is beyond every max_age; keeps the arithmetic small."""


def delay_after(attempts: int, base: float, cap: float | None, fraction: float) -> float:
    """Seconds from a failure to the next attempt.

    `attempts`: attempts made before the one that just failed (0 for the first failure).
    `base`, `cap`: seconds. `fraction`: uniform in [0, 1), the jitter's dice.
    """
    delay: float = base * 2 ** min(attempts, _MAX_DOUBLINGS)
    if cap is not None and delay > cap:
        delay = cap
    jitter = min(base / 20, 60.0)
    return max(0.0, delay + (fraction - 0.5) * jitter)


def next_attempt(
    now: float,
    last_moment: float,
    attempts: int,
    base: float,
    cap: float | None,
    fraction: float,
) -> float | None:
    """The time of the next attempt, or None when the message has had its last one.

    `now` and `last_moment` are on the same clock. Called right after a failed attempt, so None is
    only possible when an attempt was made at or after `last_moment`; a clock that jumped far ahead
    still leaves the message the attempt that just failed (reliability O5).
    """
    if now >= last_moment:
        return None
    return min(now + delay_after(attempts, base, cap, fraction), last_moment)
