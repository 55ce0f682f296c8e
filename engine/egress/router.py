"""Placing: from a message that is due to the ready queue that will carry it.

`enqueue` (a new message), `restore` (one found in the spool) and the timer all end in `_place`,
which never waits: a scheduled queue knows its routes, or its messages wait in its line while one
task works them out (configuration hook, pool and sources, DNS, path hook). Routes are worked out
again every `refresh_interval`; until the new ones are there the old ones serve.

This file owns two kinds of tasks, each behind a barrier: the timer (`timetable`), and the workers that
find routes. The third, the outgoing sessions, is `crew`'s.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import HookError, ResolveError
from engine.net import Connect, connect
from engine.queues.limits import Limits
from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import ScheduledQueue

from . import outcome
from .crew import Crew
from .dial import Dialer
from .resolve import Candidate, Plan, Resolver
from .routes import NoRouteNow, RouteFinder, Routes
from .settle import Settler
from .spare import Spare
from .stops import Stopper, standing_still
from .timetable import Timetable
from .tlsa import Dane, dane_for
from .work import Services, selection_rate

if TYPE_CHECKING:
    from engine.hooks import Hooks
    from engine.keys import KeyRing
    from engine.log import Log
    from engine.model import Message, QueueName
    from engine.shaping import Automation
    from engine.spool import Handle, Recovered, Spool

    from .circuitfile import CircuitFile
    from .sts import Policies

__all__ = ["Router", "RouterStatistics", "open_router"]

logger = logging.getLogger("posthorn.egress")

_CALL_BACK = 32
"""Messages one scheduled queue may move into a ready queue before the next one's turn."""

_ROUTE_PATIENCE = 60.0
"""Seconds before routes that could not be worked out because of a failing hook are tried again."""

_LOOKS = 1024
"""Queues that are looked at between two checkpoints, whether they are still wanted."""

_RECONSIDERED = 16
"""Queues whose routes are begun to be worked out again between two checkpoints."""

_READY_IDLE = 600.0
"""Seconds an empty ready queue without sessions is kept."""


class RouterStatistics(msgspec.Struct, frozen=True):
    """A snapshot. `queued`: messages in the engine; of these `timed`, `waiting` and `ready`."""

    queued: int
    timed: int
    waiting: int
    ready: int
    sessions: int
    scheduled_queues: int
    ready_queues: int
    held: tuple[tuple[str, str], ...]


class Router:
    """See the module. Made by `open_router`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        spool: Spool,
        log: Log,
        hooks: Hooks,
        keys: KeyRing,
        resolver: Resolver,
        limits: Limits,
        hostname: str,
        resident_limit: int = 256 * 1024 * 1024,
        dice: random.Random | None = None,
        automation: Automation | None = None,
        connect: Connect = connect,
        policies: Policies | None = None,
    ) -> None:
        self._nursery = nursery
        self._timetable = Timetable()
        self._later = self._timetable.later
        self._queues: dict[QueueName, ScheduledQueue] = {}
        self._limits = limits
        self._log = log
        self._resolver = resolver
        self._finder = RouteFinder(hooks, resolver, limits, policies)
        self._finder.refill = self._call_back
        self._count = 0
        self._resident_limit = resident_limit
        self._sweeping = False
        self._generation = 0
        """Grows whenever the policy's answers may have changed."""
        self.settler = Settler(spool, log, later=self._later, forget=self._forget, dice=dice)
        self.services = Services(
            dialer=Dialer(keys, lambda name: name in resolver.own.names, connect),
            keys=keys,
            limits=limits,
            settler=self.settler,
            spool=spool,
            plan=self._plan,
            dane=self._dane,
            hostname=hostname,
        )
        self._crew = Crew(
            nursery, self.services, limits, self._finder, wake_at=self.wake_at, over=self._session_over
        )
        self._stopper = (
            Stopper(self, nursery, self._finder, self._timetable.timer, automation)
            if automation is not None
            else None
        )
        self.spare = Spare(self, nursery, self._finder)
        self._finder.proceed = lambda ready: self._crew.set_to_work(ready, trio.current_time())

    # -- in --------------------------------------------------------------------------------------

    def enqueue(self, message: Message, body: bytes, handle: Handle) -> None:
        """A message that was just committed to the spool. Never waits."""
        queue = self._queue(message.queue)
        queue.count += 1
        self._count += 1
        now = trio.current_time()
        entry = Queued(message.id, handle, queue, message.created, now, message.size)
        if message.first_attempt:
            wait = message.first_attempt - time.time()
            if wait > 0:
                entry.due = now + wait
                self._later(entry)
                return
        room = self.settler.resident < self._resident_limit and not self.spare.short
        if room and not self.services.draining:
            self.settler.keep(entry, message, body)
        self._place(entry, now)

    def restore(self, found: Recovered) -> None:
        """A message that was found in the spool at the start; due when it was due before."""
        message = found.message
        queue = self._queue(message.queue)
        queue.count += 1
        self._count += 1
        due = trio.current_time() + max(0.0, found.due - time.time())
        entry = Queued(
            message.id, found.handle, queue, message.created, due, message.size, found.attempts, found.done
        )
        self._later(entry)

    def _queue(self, name: QueueName) -> ScheduledQueue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = ScheduledQueue(name)
            if self._stopper is not None:
                self._stopper.meet(queue)
        return queue

    def _forget(self, entry: Queued) -> None:
        queue = entry.queue
        queue.count -= 1
        self._count -= 1
        if not queue.count:
            queue.idle_since = trio.current_time()

    # -- placing ---------------------------------------------------------------------------------

    def _place(self, entry: Queued, now: float) -> None:
        queue = entry.queue
        if queue.stop is not None and self._stopper is not None and self._stopper.holds(entry, queue, now):
            return
        routes: Routes | None = queue.routes
        if routes is None or now >= queue.refresh_at:
            self._work_out(queue)
        if routes is None or queue.waiting:
            queue.waiting.append(entry)
            return
        if not self._promote(entry, queue, routes, now):
            queue.waiting.append(entry)

    def _promote(self, entry: Queued, queue: ScheduledQueue, routes: Routes, now: float) -> bool:
        """Move a due message into a ready queue; False when every candidate is full, or the queue's own
        rate says not yet. Somebody will call the queue's line in then."""
        if now < queue.stop_until:
            self.wake_at(queue, queue.stop_until)
            return False
        config = queue.config
        rate = None
        if config is not None and (spec := config.max_message_rate) is not None:
            rate = self._limits.rate(f"schedq:{queue.name}", spec.interval, spec.burst, now)
            wait = rate.take(now)
            if wait > 0.0:
                # One note for the line, not one for each message in it.
                self.wake_at(queue, now + wait)
                return False
        ready: ReadyQueue | None = routes.pick()
        wait = 0.0
        assert ready is not None
        if ready.selection_rates or ready.suspended(now) or not ready.put(entry):
            ready, wait = self._select(entry, (ready, *routes.all()), now)
        if ready is None:
            if rate is not None:
                rate.give_back()
            if wait:
                self.wake_at(queue, now + wait)
                return False
            for full in routes.all():
                full.hungry[queue] = None
            return False
        ready.touched = now
        if ready.hold_cause and entry.message is not None:
            reply = outcome.internal(451, "4.7.0", f"held: {ready.hold_text}")
            self.settler.note_held(ready, entry, "Delayed", reply)
        elif ready.suspended(now) and entry.message is not None:
            self.settler.note_stop(entry, ready.suspended_text, ready.suspended_until, ready)
            self.settler.drop(entry)
        self._crew.set_to_work(ready, now)
        return True

    def _select(
        self, entry: Queued, candidates: Sequence[ReadyQueue], now: float
    ) -> tuple[ReadyQueue | None, float]:
        """Put a message into the first candidate that has room and whose source may be chosen now. Without
        one: None, and the seconds until a source may be chosen, 0 if room is all that is missing."""
        waits: list[float] = []
        # A source that a rule has suspended only where there is no other.
        going = [ready for ready in candidates if not ready.suspended(now)] or candidates
        for ready in dict.fromkeys(going):
            if ready.room() <= 0:
                continue
            wait = selection_rate(self._limits, ready, now)
            if not wait:
                ready.put(entry)
                return ready, 0.0
            waits.append(wait)
        return None, min(waits, default=0.0)

    def _call_back(self, ready: ReadyQueue) -> None:
        """Room again: let the scheduled queues in line move messages in, a few each, in turn."""
        now = trio.current_time()
        hungry = ready.hungry
        while hungry and ready.room() > 0:
            queue = next(iter(hungry))
            del hungry[queue]
            routes: Routes | None = queue.routes
            if routes is None:
                continue
            # A queue whose routes changed while it waited here goes to its new ones, as far as they
            # have room; `_promote` puts it in their lines then, and never again in this one.
            turn = _CALL_BACK if ready in routes.all() else len(queue.waiting)
            waiting = queue.waiting
            while waiting and turn and self._promote(waiting[0], queue, routes, now):
                waiting.popleft()
                turn -= 1
            if waiting and not turn:
                hungry[queue] = None

    def wake_at(self, queue: ReadyQueue | ScheduledQueue, when: float) -> None:
        """See `Timetable.wake_at`."""
        self._timetable.wake_at(queue, when)

    # -- tasks -----------------------------------------------------------------------------------

    def _session_over(self, ready: ReadyQueue, now: float) -> None:
        if ready.retired:
            self._scatter(ready)
        elif ready.entries or ready.hungry:
            if now < ready.closed_until:
                self.wake_at(ready, ready.next_look(now))
            else:
                self._call_back(ready)
                self._crew.set_to_work(ready, now)

    async def _plan(self, ready: ReadyQueue) -> Plan:
        path = ready.path
        return await self._resolver.plan(
            ready.site,
            strategy=path.ip_lookup_strategy,
            prohibited_hosts=path.prohibited_hosts,
            skip_hosts=path.skip_hosts,
            smtp_port=path.port,
            remote_port=ready.source.remote_port,
        )

    async def _dane(self, ready: ReadyQueue, candidate: Candidate, domain: str) -> Dane:
        path = ready.path
        return await dane_for(
            self._resolver,
            ready.site,
            candidate,
            domain,
            strategy=path.ip_lookup_strategy,
            own_name=path.login is not None,
        )

    def _work_out(self, queue: ScheduledQueue) -> None:
        if not queue.resolving:
            queue.resolving = True
            self._nursery.start_soon(self._find_routes, queue)

    def reconsider(self) -> None:
        """The policy's answers may have changed: work out the routes of all queues again. Until the new
        ones are there the old ones serve. Never waits."""
        if self.services.draining:
            return
        self._generation += 1
        self._nursery.start_soon(self._reconsider, self._generation)

    async def _reconsider(self, generation: int) -> None:
        queues = list(self._queues.values())
        for queue in queues:
            queue.refresh_at = float("-inf")
        started = 0
        for queue in queues:
            if generation != self._generation or self.services.draining:
                return
            if queue.routes is not None and queue.refresh_at < 0.0:
                self._work_out(queue)
                started += 1
                if not started % _RECONSIDERED:
                    await trio.lowlevel.checkpoint()

    async def _find_routes(self, queue: ScheduledQueue) -> None:
        """Work out a queue's routes and let its line in; or settle the line if there is no route. The
        barrier: a defect met here leaves the line waiting and is tried again later."""
        try:
            await self._find(queue)
        except Exception:
            logger.exception("the line of %s", queue.name)
            queue.refresh_at = trio.current_time() + _ROUTE_PATIENCE
            self.wake_at(queue, queue.refresh_at)

    async def _find(self, queue: ScheduledQueue) -> None:
        generation = self._generation
        try:
            found = await self._finder.find(queue)
        except ResolveError as error:
            text = f"the destination cannot be resolved now: {error}"
            found = NoRouteNow(outcome.Outcome("transient", outcome.internal(451, "4.4.3", text)), 0.0)
        except HookError as error:
            logger.error("routes for %s: %s", queue.name, error)
            text = f"the policy failed for this destination: {error}"
            found = NoRouteNow(outcome.Outcome("held", outcome.internal(451, "4.3.5", text)), _ROUTE_PATIENCE)
        except Exception:
            logger.exception("routes for %s", queue.name)
            text = "internal error, see the diagnostics"
            found = NoRouteNow(outcome.Outcome("held", outcome.internal(451, "4.3.0", text)), _ROUTE_PATIENCE)
        finally:
            queue.resolving = False
        if generation != self._generation and not self.services.draining:
            self._work_out(queue)  # it may be that a part of it is old already
            return
        now = trio.current_time()
        if isinstance(found, NoRouteNow):
            if queue.routes is not None and found.outcome.verdict in ("transient", "held"):
                # What served until now goes on serving; look again soon.
                queue.refresh_at = now + 10.0
                self._go_on(queue.routes, now)
                return
            old: Routes | None = queue.routes
            self._swap(queue, None)
            self._go_on(old, now)
            waiting = queue.waiting
            while waiting and queue.routes is None:
                await self.settle_first(queue, found.outcome)
            return
        queue.refresh_at = now + found.lifetime
        old = queue.routes
        if self._stopper is not None:
            for ready in found.all():
                self._stopper.meet_ready(ready)
        self._swap(queue, found)
        if self._stopper is not None:
            self._stopper.meet(queue)  # whose mail it is for shows only now
        # Whoever stands still may have waited for this answer, also where it leads elsewhere now.
        self._go_on(old, now)
        self._let_in(queue, now)
        self._go_on(found, now)

    async def settle_first(self, queue: ScheduledQueue, result: outcome.Outcome) -> None:
        """One outcome for the first of a line."""
        entry = queue.waiting.popleft()
        try:
            await self.settler.all_recipients(entry, result, None)
        except Exception as error:
            logger.exception("message %s cannot be settled", entry.id.hex())
            self.settler.unreachable(entry, error)
        except BaseException:
            queue.waiting.appendleft(entry)
            raise

    def _let_in(self, queue: ScheduledQueue, now: float) -> None:
        """Move a line in as far as there is room and the queue's rate allows."""
        if self._stopper is not None and self._stopper.stays(queue, now):
            return
        routes: Routes | None = queue.routes
        waiting = queue.waiting
        if routes is None and waiting:
            self._work_out(queue)
        while routes is not None and waiting and self._promote(waiting[0], queue, routes, now):
            waiting.popleft()

    def _go_on(self, routes: Routes | None, now: float) -> None:
        for ready in routes.all() if routes is not None else ():
            if ready.entries and not ready.retired:
                self._crew.set_to_work(ready, now)

    def _swap(self, queue: ScheduledQueue, new: Routes | None) -> None:
        """Give a scheduled queue its new routes; ready queues that nobody uses any more are emptied."""
        old: Routes | None = queue.routes
        queue.routes = new
        retired = self._finder.replace(queue, old, new)
        for ready in retired:
            ready.retired = True
            ready.wake_all()
            if not ready.sessions:
                self._scatter(ready)
        if old is not None and new is not None:
            left = set(old.all()) - set(new.all()) - set(retired)
            for ready in left:
                # Others still use it; what this queue has put there takes the new way.
                for entry in ready.take_out(queue):
                    self._place(entry, trio.current_time())
                ready.call_back()

    def _scatter(self, ready: ReadyQueue) -> None:
        """The messages of a retired ready queue are placed anew. Lines for it there are none: who stood in
        one was let in elsewhere when its routes changed."""
        now = trio.current_time()
        ready.hungry.clear()
        while (entry := ready.take()) is not None:
            self._place(entry, now)

    async def run(self) -> None:
        """Places what is due, starts held and backed-off queues again, sweeps; until cancelled."""
        await self._timetable.run(
            place=self._place, let_in=self._let_in, look_at=self._look_at, sweep=self._sweep
        )

    def _look_at(self, ready: ReadyQueue, now: float) -> None:
        """A moment noted for this queue has come: the end of a wait, or a backlog left to others."""
        patient = self._crew.noticed(ready)
        if ready.retired or not (ready.entries or ready.hungry):
            return
        if self._stopper is not None and self._stopper.waits(ready, now):
            return
        if now < ready.retry_at:
            self.wake_at(ready, ready.retry_at)
            return
        ready.call_back()
        if (ready.hold_cause or ready.back_off) and self._refresh_for(ready, now):
            return  # they look at this queue again when they are done
        if patient:
            self._crew.help_out(ready, now)
        else:
            self._crew.set_to_work(ready, now)

    # -- for the stopper -------------------------------------------------------------------------

    def scheduled_queues(self) -> Sequence[ScheduledQueue]:
        """All of them."""
        return tuple(self._queues.values())

    def place(self, entry: Queued) -> None:
        """A message is due, or has to find its way anew."""
        self._place(entry, trio.current_time())

    def look_at(self, queue: ReadyQueue | ScheduledQueue) -> None:
        """Something that stood in the way is gone."""
        self.wake_at(queue, trio.current_time())

    def _refresh_for(self, ready: ReadyQueue, now: float) -> bool:
        """Work out what is due of the routes into a queue that stands still: perhaps the policy was
        mended, and no new mail comes that would ask for it. True when something is being worked out."""
        found = False
        for queue in {id(entry.queue): entry.queue for entry in ready.entries}.values():
            if now >= queue.refresh_at:
                self._work_out(queue)
            # Where its routes do not lead here any more the answer will not either.
            routes: Routes | None = queue.routes
            found = found or (queue.resolving and routes is not None and ready in routes.all())
        return found

    def _sweep(self, now: float) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._nursery.start_soon(self._forget_idle)

    async def _forget_idle(self) -> None:
        """In slices, for there may be a million queues."""
        try:
            for number, (name, queue) in enumerate(list(self._queues.items()), 1):
                if not number % _LOOKS:
                    await trio.lowlevel.checkpoint()
                limit = queue.config.reap_interval if queue.config is not None else 600.0
                idle = trio.current_time() - queue.idle_since
                if not queue.count and not queue.resolving and idle >= limit:
                    del self._queues[name]
                    self._swap(queue, None)
            for ready in self._finder.sweep(trio.current_time(), _READY_IDLE):
                logger.debug("ready queue %s is idle and forgotten", ready.name)
        except Exception:
            logger.exception("sweeping queues")
        finally:
            self._sweeping = False

    # -- the end ---------------------------------------------------------------------------------

    async def drain(self) -> None:
        """See `Crew.drain`."""
        await self._crew.drain()

    def longest_drain(self) -> float:
        """See `Crew.longest_drain`."""
        return self._crew.longest_drain()

    def statistics(self) -> RouterStatistics:
        """A snapshot of the queues."""
        ready_queues: Sequence[ReadyQueue] = self._finder.ready_queues()
        return RouterStatistics(
            queued=self._count,
            timed=len(self._timetable.timer),
            waiting=sum(len(queue.waiting) for queue in self._queues.values()),
            ready=sum(len(ready.entries) for ready in ready_queues),
            sessions=len(self._crew.sessions),
            scheduled_queues=len(self._queues),
            ready_queues=len(ready_queues),
            held=tuple(standing_still(ready_queues, self._queues.values())),
        )


@asynccontextmanager
async def open_router(circuits: CircuitFile | None = None, **parts: object) -> AsyncIterator[Router]:
    """A running router; leaving the block ends its tasks (call `Router.drain` first). `circuits`: where open
    circuits are kept; None: in memory alone."""
    async with trio.open_nursery() as nursery:
        router = Router(nursery, **parts)  # type: ignore[arg-type]
        nursery.start_soon(router.run)
        nursery.start_soon(router.services.alarms.run)
        if circuits is not None:
            circuits.restore(router.services.dialer.circuits)
            nursery.start_soon(circuits.keep, router.services.dialer.circuits)
        try:
            yield router
        finally:
            router.services.draining = True  # nothing is begun any more
        nursery.cancel_scope.cancel()
