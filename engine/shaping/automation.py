"""Automation: replies in, orders out. Judges what peers say by the rules of the shaping files.

`failed` is called where a reply is settled and never waits. One task puts in force what came of it, ends what
is over, and writes down what must outlive a restart. On success nothing of this is called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import trio

from policy.shaping import Failure, Shaper, Stop, Stops
from policy.shaping.orders import Match, clock

from .state import State

__all__ = ["Automation", "Counters"]

logger = logging.getLogger("posthorn.shaping")

CALM = 0.2
"""Seconds between two times that orders are put in force: a storm of replies must not become one of ours."""
SHARE = 20.0
"""Or so many times what putting them in force took: among very many queues it takes long, and must not take
more than a twentieth of all time. The same for whoever carries them out."""
WRITE = 2.0
"""Seconds between two times that orders are written down."""
_LINES = 30
"""Lines of log in a minute."""


class Counters(msgspec.Struct):
    """Totals since the start. `matches`: replies that met a rule; `orders`: what was new of what they led to;
    `extended`: what was in force already; `shadowed`: what would have been done; `silent`: lines that
    were not logged."""

    matches: int = 0
    orders: int = 0
    extended: int = 0
    shadowed: int = 0
    silent: int = 0


class Automation:
    """See the module. `state`: None keeps nothing. `stops_changed` and `paths_changed` are called in the
    event loop when queues stand still, or go on (whether ready queues; the places of scheduled ones), and
    when paths may be others."""

    def __init__(self, shapers: Sequence[Shaper], state: State | None = None) -> None:
        self.counters = Counters()
        self.by_rule: dict[str, int] = {}
        """Matches by rule, as ``file:line``."""
        self.stops_changed: Callable[[bool, frozenset[str]], None] = lambda ready, places: None
        self.paths_changed: Callable[[], None] = lambda: None
        self._shapers = tuple(shapers)
        self._state = state
        self._zero = time.time() - trio.current_time()
        self._stops: tuple[Stops, ...] = ()
        self.stops_queues = False
        """Whether any scheduled queue stands still now, or is bounced."""
        self._changed = trio.Event()
        self._new_stops = self._new_paths = self._unwritten = False
        self._lines: list[float] = []

    def now(self) -> float:
        """Unix time that goes on evenly, whatever is done to the clock."""
        return trio.current_time() + self._zero

    def monotonic(self, moment: float) -> float:
        """Unix time on the clock of the event loop."""
        return moment - self._zero

    # -- replies ---------------------------------------------------------------------------------

    def failed(self, failure: Failure) -> None:
        """A reply that is no success. Never waits."""
        for shaper in self._shapers:
            if not shaper.table.rules:
                continue
            for match in shaper.orders.judge(shaper.table, shaper.classed(failure), self.now()):
                self._note(match)

    def _note(self, match: Match) -> None:
        counters, where = self.counters, match.rule.origin.where
        counters.matches += 1
        self.by_rule[where] = self.by_rule.get(where, 0) + 1
        new = False
        for order, action, fresh in match.orders:
            new = new or fresh
            if order.shadow:
                counters.shadowed += 1
            elif fresh:
                counters.orders += 1
            else:
                counters.extended += 1
            self._unwritten = True
            if not order.shadow:
                if not action.of_path:
                    self._new_stops = True
                elif fresh:
                    self._new_paths = True
            self._changed.set()
        self._say(match, new=new)

    def _say(self, match: Match, *, new: bool) -> None:
        """One line for each match; that of a repeated one is for those who look closely."""
        rule, failure = match.rule, match.failure
        if not match.orders and not match.idle:
            logger.debug(
                "%s automation: %d of %s: %s", rule.origin, match.counted, rule.threshold, failure.line
            )
            return
        done = [
            f"{'would have done ' if order.shadow else ''}{action.shown}"
            f"{'' if fresh else ' (goes on)'} for {order.about} until {clock(order.until)}"
            for order, action, fresh in match.orders
        ]
        level = logging.WARNING if new or match.idle else logging.DEBUG
        if level == logging.WARNING and not self._may_say():
            return
        logger.log(level, "%s automation: %s: %s", rule.origin, "; ".join([*done, *match.idle]), failure.line)

    def _may_say(self) -> bool:
        now = trio.current_time()
        self._lines = [at for at in self._lines if at > now - 60.0]
        if len(self._lines) >= _LINES:
            self.counters.silent += 1
            if len(self._lines) == _LINES:
                self._lines.append(now)
                logger.warning("automation: more than %d lines in a minute; the others are not shown", _LINES)
            return False
        self._lines.append(now)
        return True

    # -- what is in force ------------------------------------------------------------------------

    def of_ready(self, source: str, site_key: str, providers: Iterable[str]) -> Stop | None:
        """What stops mail from a source to a site now."""
        names = tuple(providers)
        return _first(stops.of_ready(source, site_key, names) for stops in self._stops)

    def of_queue(
        self, domain: str, tenant: str | None, campaign: str | None, providers: Iterable[str]
    ) -> Stop | None:
        """What stops the mail of a scheduled queue now. `domain`: where it is routed."""
        names = tuple(providers)
        return _first(stops.of_queue(domain, tenant, campaign, names) for stops in self._stops)

    def reloaded(self, shaper: Shaper) -> None:
        """The files changed: what came of rules that are gone ends."""
        for order in shaper.orders.keep_known(shaper.table):
            logger.info("automation: the rule is gone, so its order for %s ends", order.about)
            self._unwritten = True
        self._new_stops = True
        self._changed.set()

    def _put_in_force(self) -> None:
        now = self.now()
        for shaper in self._shapers:
            for order in shaper.orders.expire(now):
                rule = shaper.table.rules.get(order.rule)
                if rule is None:
                    continue
                action = rule.actions[order.action]
                logger.info("%s automation: %s for %s is over", rule.origin, action.shown, order.about)
                self._new_stops = self._new_stops or not action.of_path
                self._new_paths = self._new_paths or action.of_path
                self._unwritten = True
        paths, stops = self._new_paths, self._new_stops
        self._new_paths = self._new_stops = False
        if paths and any([shaper.use_orders() for shaper in self._shapers]):
            self.paths_changed()
        if stops:
            before = self._stops
            self._stops = tuple(found for one in self._shapers if (found := one.orders.stops(one.table)))
            ready = [one.ready for one in before] != [one.ready for one in self._stops]
            places = frozenset(place for (place, *_), _ in _of_queues(before) ^ _of_queues(self._stops))
            self.stops_queues = any(one.queues for one in self._stops)
            if ready or places:
                self.stops_changed(ready, places)

    # -- the task --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what was in force before the restart."""
        if self._state is not None:
            found = await trio.to_thread.run_sync(self._state.orders)
            taken = sum(one.orders.restore(found, one.table, self.now()) for one in self._shapers)
            if found:
                logger.info("automation: %d orders from before the start are in force", taken)
        self._new_paths = self._new_stops = True
        self._put_in_force()

    async def run(self) -> None:
        """Until cancelled; then what was not written down is."""
        next_write = trio.current_time()
        try:
            while True:
                ends = [end for one in self._shapers if (end := one.orders.next_end()) is not None]
                deadline = min((self.monotonic(end) for end in ends), default=float("inf"))
                if self._unwritten:
                    deadline = min(deadline, next_write)
                with trio.move_on_at(deadline):
                    await self._changed.wait()
                self._changed = trio.Event()
                begun = trio.current_time()
                try:
                    self._put_in_force()
                    spent = trio.current_time() - begun
                    if self._unwritten and trio.current_time() >= next_write:
                        await self._write()
                        next_write = trio.current_time() + WRITE
                except Exception:
                    # A barrier: what a peer said must not end the relay.
                    logger.exception("automation: putting orders in force")
                    spent = trio.current_time() - begun
                await trio.sleep(max(CALM, SHARE * spent))
        finally:
            if self._unwritten:
                with trio.CancelScope(shield=True):
                    await self._write()

    async def _write(self) -> None:
        self._unwritten = False
        if self._state is not None:
            orders = [msgspec.structs.replace(order) for one in self._shapers for order in one.orders]
            await trio.to_thread.run_sync(self._state.keep_orders, orders)


def _of_queues(all_stops: Iterable[Stops]) -> set[tuple[tuple[str, Any, Any], Stop]]:
    return {one for stops in all_stops for one in stops.queues.items()}


def _first(stops: Iterable[Stop | None]) -> Stop | None:
    return max(
        (one for one in stops if one is not None), key=lambda one: (one.bounce, one.until), default=None
    )
