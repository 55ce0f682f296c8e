"""Moments at which something is over: one task watches those of all sessions.

A session gives its peer time for each reply, several times a message. As the deadline of a cancel scope
each of these would be taken out of Trio's heap and put in again; as an `Alarm` it is a number that is
written down, and the one task (`Alarms.run`) looks at all the numbers when the first of those it saw would
be over. By then nearly all have been moved on: with limits of minutes it looks a few times a minute.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

__all__ = ["Alarm", "Alarms"]

_NEVER = float("inf")

_GRAIN = 0.05
"""Seconds between two looks at least, and that an alarm may go off late: with thousands of sessions each look
takes a while, and each session may have a moment of its own."""


class Alarms:
    """All alarms of an engine. They go off while `run` runs."""

    __slots__ = ("_alarms", "_looked", "_sleep", "next_look")

    def __init__(self) -> None:
        self._alarms: set[Alarm] = set()
        self._looked = -_NEVER
        self._sleep = trio.CancelScope()
        self.next_look = _NEVER
        """No alarm set for an earlier moment goes unnoticed (monotonic clock)."""

    def __len__(self) -> int:
        return len(self._alarms)

    def enter(self, alarm: Alarm) -> None:
        """Watch this one from now on."""
        self._alarms.add(alarm)

    def leave(self, alarm: Alarm) -> None:
        """Watch it no longer."""
        self._alarms.discard(alarm)

    def sooner(self, at: float) -> None:
        """An alarm was set for a moment before the next look."""
        earliest = self._looked + _GRAIN
        self.next_look = at if at > earliest else earliest
        self._sleep.deadline = self.next_look

    def look(self, now: float) -> None:
        """Let go off what is over; each alarm does so once. Those that are left say when to look again."""
        soonest = _NEVER
        for alarm in tuple(self._alarms):
            at = alarm.at
            if at <= now:
                alarm.at = _NEVER
                alarm.ring()
            elif at < soonest:
                soonest = at
        self._looked = now
        earliest = now + _GRAIN
        self.next_look = soonest if soonest > earliest else earliest

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look(trio.current_time())
            with trio.CancelScope(deadline=self.next_look) as self._sleep:
                await trio.sleep_forever()


class Alarm:
    """A moment (`at`, monotonic) after which `ring` is called, once; at most `_GRAIN` seconds late. It can
    go off between `open` and `close`. `ring` must neither wait nor fail, nor set this alarm."""

    __slots__ = ("_alarms", "at", "ring")

    def __init__(self, alarms: Alarms, ring: Callable[[], object]) -> None:
        self._alarms = alarms
        self.at = _NEVER
        self.ring = ring

    def open(self) -> None:
        """Set to nothing, to be watched from now on."""
        self._alarms.enter(self)

    def move(self, at: float) -> None:
        """Go off then, and not when it was set for before."""
        self.at = at
        if at < self._alarms.next_look:
            self._alarms.sooner(at)

    def off(self) -> None:
        """Do not go off."""
        self.at = _NEVER

    def close(self) -> None:
        """Be watched no longer."""
        self.at = _NEVER
        self._alarms.leave(self)
