"""When to look at what again: the messages that wait for their time, and moments noted for queues.

One task (`run`) serves both. What is then to be done is its owner's: the four functions given to `run`. Each
call has a barrier of its own: a defect met with one message or queue puts off that one for a minute.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable

import trio

from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import ScheduledQueue, Timer

__all__ = ["Timetable"]

logger = logging.getLogger("posthorn.egress")

_RUN = 256
"""Messages taken from the timer in one go, between two checkpoints."""

_SWEEP = 60.0
"""Seconds between two sweeps, and until what failed is tried again."""


class Timetable:
    """See the module."""

    __slots__ = ("_changed", "_notes", "_serial", "timer")

    def __init__(self) -> None:
        self.timer = Timer()
        self._changed = trio.Event()
        self._notes: list[tuple[float, int, ReadyQueue | ScheduledQueue]] = []
        self._serial = itertools.count()

    def later(self, entry: Queued) -> None:
        """A message waits until it is due."""
        if self.timer.add(entry):
            self._changed.set()

    def wake_at(self, queue: ReadyQueue | ScheduledQueue, when: float) -> None:
        """Look at this queue again then, unless it is noted to be looked at before."""
        if trio.current_time() < queue.noted_for <= when:
            return
        queue.noted_for = when
        heapq.heappush(self._notes, (when, next(self._serial), queue))
        if self._notes[0][2] is queue:
            self._changed.set()

    async def run(
        self,
        *,
        place: Callable[[Queued, float], None],
        let_in: Callable[[ScheduledQueue, float], None],
        look_at: Callable[[ReadyQueue, float], None],
        sweep: Callable[[float], None],
    ) -> None:
        """Until cancelled: `place` each message that is due, `let_in` or `look_at` each queue whose noted
        moment has come, `sweep` once a minute. Each is given the time."""
        next_sweep = trio.current_time() + _SWEEP
        while True:
            now = trio.current_time()
            for entry in self.timer.pop_due(now, _RUN):
                try:
                    place(entry, now)
                except Exception:
                    logger.exception("message %s cannot be placed; again in a minute", entry.id.hex())
                    entry.due = now + _SWEEP
                    self.later(entry)
            notes = self._notes
            while notes and notes[0][0] <= now:
                queue = heapq.heappop(notes)[2]
                queue.noted_for = float("-inf")
                try:
                    if isinstance(queue, ScheduledQueue):
                        let_in(queue, now)
                    else:
                        look_at(queue, now)
                except Exception:
                    logger.exception("queue %s; again in a minute", queue.name)
                    self.wake_at(queue, now + _SWEEP)
            if now >= next_sweep:
                try:
                    sweep(now)
                except Exception:
                    logger.exception("sweeping queues")
                next_sweep = now + _SWEEP
            due = self.timer.next_due()
            until = next_sweep if due is None else min(due, next_sweep)
            if notes:
                until = min(until, notes[0][0])
            if until <= now:
                await trio.lowlevel.checkpoint()
                continue
            if self._changed.is_set():
                self._changed = trio.Event()
            with trio.move_on_at(until):
                await self._changed.wait()
