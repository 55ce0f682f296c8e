"""What rules on replies bring to a standstill, or bounce: put on the queues, and taken off again.

A *suspended* ready queue starts no session, and those at work end after their message; where the pool has
another source, mail takes that. A *stopped* scheduled queue keeps its mail in its line, and what was in a
ready queue goes back there; a *bounced* one gives everything back that is not in a session's hands.
Waiting is no attempt.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio

from engine.queues.ready import SUSPENDED_LOOK
from engine.shaping.automation import SHARE
from policy.shaping import Failure
from policy.shaping.names import name_key

from . import outcome
from .outcome import INTERNAL, Outcome
from .site import asked_for

if TYPE_CHECKING:
    from engine.model import QueueName
    from engine.queues.queued import Queued
    from engine.queues.ready import ReadyQueue
    from engine.queues.scheduled import ScheduledQueue, Timer
    from engine.shaping import Automation

    from .router import Router
    from .routes import RouteFinder

__all__ = ["Stopper", "standing_still"]

logger = logging.getLogger("posthorn.egress")

_SLICE = 4096
"""Messages of a line that are looked at between two checkpoints."""
_LOOKS = 1024
"""Queues that are looked at between two checkpoints."""
_NOTHING: tuple[bool, frozenset[str]] = (False, frozenset())


class Stopper:
    """See the module. Part of one router."""

    def __init__(
        self,
        router: Router,
        nursery: trio.Nursery,
        finder: RouteFinder,
        timer: Timer,
        automation: Automation,
    ) -> None:
        self._router = router
        self._nursery = nursery
        self._finder = finder
        self._timer = timer
        self._automation = automation
        self._walking = False
        self._owed = _NOTHING
        """What another walk has to look at after this one: as `renew` is told."""
        self._bouncing: set[ScheduledQueue] = set()
        self._expiring: set[ScheduledQueue] = set()
        automation.stops_changed = self.renew
        router.settler.failed = self._failed

    def _failed(self, entry: Queued, name: QueueName, result: Outcome, ready: ReadyQueue) -> None:
        reply = result.reply
        self._automation.failed(
            Failure(
                domain=name.route,
                source=ready.source.name,
                asked=asked_for(ready.site),
                code=reply.code,
                enhanced=reply.enhanced,
                line=reply.line,
                command=result.command,
                internal=reply.text.startswith(INTERNAL),
                tenant=name.tenant,
                campaign=name.campaign,
            )
        )

    # -- putting on and taking off ---------------------------------------------------------------

    def renew(self, ready: bool, places: frozenset[str]) -> None:
        """Orders were given, extended, or are over: of `ready` queues, and of scheduled ones at these places
        (`Rule.place_of`). Never waits: more queues than a slice are looked at by a task."""
        if self._router.services.draining:
            return
        if self._walking:
            self._owed = (self._owed[0] or ready, self._owed[1] | places)
            return
        walk = self._walk(ready, places)
        if next(walk, False):
            self._walking = True
            self._nursery.start_soon(self._walk_on, walk)

    def _walk(self, ready: bool, places: frozenset[str]) -> Iterator[bool]:
        """Look at all of them; gives True after each slice."""
        if ready:
            for number, one in enumerate(self._finder.ready_queues(), 1):
                self.meet_ready(one)
                if not number % _LOOKS:
                    yield True
        if places:
            domains = {name for place in places if (name := place.removeprefix("domain:")) != place}
            providers = {name for place in places if (name := place.removeprefix("provider:")) != place}
            for number, queue in enumerate(self._router.scheduled_queues(), 1):
                if (
                    queue.stop is not None
                    or name_key(queue.name.route) in domains
                    or (providers and not providers.isdisjoint(_providers(queue)))
                ):
                    self.meet(queue)
                if not number % _LOOKS:
                    yield True

    async def _walk_on(self, walk: Iterator[bool]) -> None:
        """Go on with a walk, and with those that were asked for meanwhile. They come one after the other, and
        with rests: a storm of replies must not become one of ours."""
        try:
            while True:
                busy = await self._slices(walk)
                if self._owed == _NOTHING or self._router.services.draining:
                    return
                await trio.sleep(SHARE * busy)
                walk = self._walk(*self._owed)
                self._owed = _NOTHING
        finally:
            self._walking = False
            self._owed = _NOTHING

    async def _slices(self, walk: Iterator[bool]) -> float:
        """The seconds that they kept the loop."""
        busy = 0.0
        more = True
        while more and not self._router.services.draining:
            await trio.lowlevel.checkpoint()
            begun = trio.current_time()
            try:
                more = next(walk, False)
            except Exception:
                # The router's barrier: the walk is over, and the next order begins another.
                logger.exception("carrying out rules on replies")
                more = False
            busy += trio.current_time() - begun
        return busy

    def meet_ready(self, ready: ReadyQueue) -> None:
        """Look up what holds for a ready queue."""
        stop = self._automation.of_ready(ready.source.name, ready.site.key, ready.providers)
        now = trio.current_time()
        if stop is None:
            if ready.suspended(now):
                ready.suspended_until, ready.suspended_text = float("-inf"), ""
                self._router.look_at(ready)
            return
        new = not ready.suspended(now)
        ready.suspended_until = self._automation.monotonic(stop.until)
        ready.suspended_text = stop.text
        if not new or not ready.suspended(now):
            return
        ready.wake_all()  # whoever is idle says goodbye
        self._router.wake_at(ready, ready.next_look(now))
        if ready.entries:
            self._start(self._empty, ready)

    async def _empty(self, ready: ReadyQueue) -> None:
        """What waits here leaves by another source, where there is one; of the others a record says so."""
        now = trio.current_time()
        ways: dict[ScheduledQueue, bool] = {}
        for entry in list(ready.entries):
            queue = entry.queue
            if queue not in ways:
                routes = queue.routes
                ways[queue] = routes is not None and any(not one.suspended(now) for one in routes.all())
        for queue, other in ways.items():
            if other:
                for entry in ready.take_out(queue):
                    self._router.place(entry)
        if ready.entries:
            await self._router.settler.suspend(ready)

    def meet(self, queue: ScheduledQueue) -> None:
        """Look up what holds for a scheduled queue."""
        if queue.stop is None and not self._automation.stops_queues:
            return
        name, ready = queue.name, _ready_of(queue)
        stop = self._automation.of_queue(name.route, name.tenant, name.campaign, _providers(queue))
        before, queue.stop = queue.stop, stop
        if stop is None:
            queue.stop_until = float("-inf")
            if before is not None:
                self._router.look_at(queue)
            return
        queue.stop_until = self._automation.monotonic(stop.until)
        if before is None or before.bounce != stop.bounce:
            for one in ready:
                for entry in one.take_out(queue):
                    self._router.place(entry)
                one.call_back()
        if stop.bounce:
            self._bounce(queue)

    # -- what is placed meanwhile ----------------------------------------------------------------

    def holds(self, entry: Queued, queue: ScheduledQueue, now: float) -> bool:
        """A message is due in a queue with a stop: whether it waits in the line (or is bounced)."""
        stop = queue.stop
        if stop is None or now >= queue.stop_until:
            return False
        queue.waiting.append(entry)
        if stop.bounce:
            self._bounce(queue)
            return True
        if entry.message is not None:
            self._router.settler.note_stop(entry, stop.text, queue.stop_until, None)
            self._router.settler.drop(entry)
        self._router.wake_at(queue, min(queue.stop_until, now + SUSPENDED_LOOK))
        return True

    # -- what gets too old meanwhile -------------------------------------------------------------

    def waits(self, ready: ReadyQueue, now: float) -> bool:
        """Whether a ready queue is suspended; then its mail is looked at for its age, and again later."""
        if not ready.suspended(now):
            return False
        self._router.wake_at(ready, ready.next_look(now))
        if ready.entries:
            self._start(self._router.settler.expire_waiting, ready)
        return True

    def stays(self, queue: ScheduledQueue, now: float) -> bool:
        """The same for the line of a scheduled queue that is stopped."""
        if queue.stop is None or now >= queue.stop_until:
            return False
        self._router.wake_at(queue, min(queue.stop_until, now + SUSPENDED_LOOK))
        if queue.stop.bounce:
            self._bounce(queue)
        elif queue.waiting:
            self._start(self._expire_line, queue)
        return True

    async def _expire_line(self, queue: ScheduledQueue) -> None:
        """Looks along the line in slices: a million messages may stand in it."""
        if queue in self._expiring:
            return
        self._expiring.add(queue)
        try:
            old = await self._too_old(queue)
            if old:
                await self._expire(queue, old)
        finally:
            self._expiring.discard(queue)

    async def _too_old(self, queue: ScheduledQueue) -> dict[int, Queued]:
        """By identity; the entries are held, so that none of them is another one's by then."""
        settler = self._router.settler
        old: dict[int, Queued] = {}
        at = 0
        # Whoever leaves the line meanwhile moves others past this look; there is another one soon.
        while at < len(queue.waiting):
            part = islice(queue.waiting, at, at + _SLICE)
            old.update((id(entry), entry) for entry in part if settler.too_old(entry))
            at += _SLICE
            await trio.lowlevel.checkpoint()
        return old

    async def _expire(self, queue: ScheduledQueue, which: dict[int, Queued]) -> None:
        settler = self._router.settler
        old = deque(entry for entry in queue.waiting if id(entry) in which)
        kept = [entry for entry in queue.waiting if id(entry) not in which]
        queue.waiting.clear()
        queue.waiting.extend(kept)
        try:
            while old:
                await settler.expire(old[0])
                old.popleft()
        finally:
            queue.waiting.extendleft(reversed(old))

    # -- bouncing --------------------------------------------------------------------------------

    def _bounce(self, queue: ScheduledQueue) -> None:
        if (queue.waiting or queue.timed) and queue not in self._bouncing:
            self._bouncing.add(queue)
            self._start(self._bounce_line, queue)

    async def _bounce_line(self, queue: ScheduledQueue) -> None:
        try:
            while queue.waiting or queue.timed:
                stop = queue.stop
                if stop is None or not stop.bounce or trio.current_time() >= queue.stop_until:
                    break
                if not queue.waiting and (entry := self._timer.take(queue)) is not None:
                    queue.waiting.append(entry)  # it would be due later
                reply = outcome.internal(551, "5.7.1", stop.text)
                await self._router.settle_first(queue, Outcome("permanent", reply, by_rule=True))
                await trio.lowlevel.checkpoint()
        finally:
            self._bouncing.discard(queue)
        if queue.waiting:
            self._router.look_at(queue)

    def _start(self, function: Callable[[Any], Awaitable[object]], argument: object) -> None:
        self._nursery.start_soon(self._guarded, function, argument)

    async def _guarded(self, function: Callable[[Any], Awaitable[object]], argument: object) -> None:
        """The router's barrier: a defect met here ends only this."""
        try:
            await function(argument)
        except Exception:
            logger.exception("carrying out a rule on replies")


def _ready_of(queue: ScheduledQueue) -> Sequence[ReadyQueue]:
    ready: Sequence[ReadyQueue] = queue.routes.all() if queue.routes is not None else ()
    return ready


def _providers(queue: ScheduledQueue) -> set[str]:
    """Those that the queue's mail belongs to, as far as is known."""
    return {provider for one in _ready_of(queue) for provider in one.providers}


def standing_still(
    ready_queues: Iterable[ReadyQueue], queues: Iterable[ScheduledQueue]
) -> Iterator[tuple[str, str]]:
    """The queues in which mail waits for something that is no retry, and what for."""
    now = trio.current_time()
    for ready in ready_queues:
        if ready.suspended(now):
            yield ready.name, ready.suspended_text
        elif ready.hold_cause:
            yield ready.name, ready.hold_text
    for queue in queues:
        if queue.stop is not None and now < queue.stop_until:
            yield str(queue.name), queue.stop.text
