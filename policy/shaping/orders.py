"""Orders: what rules have brought about and for how long; and the counting of matches that leads there.

One order is one action of one rule about one place (a site, a provider, a domain) and, where the action has
them, one source, tenant and campaign. A repeated match extends it. Everything here is bounded, whatever peers
say. Times are Unix seconds and an argument.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from .names import name_key
from .rules import Action, Failure, Rule, meeting
from .settings import Key, Setting
from .table import Table

__all__ = ["Match", "Order", "OrderKey", "Orders", "Stop", "clock"]

OrderKey: TypeAlias = tuple[str, int, str, str, str | None, str | None]

_MOST_ORDERS = 20_000
_MOST_COUNTED = 500_000
"""Matches remembered for thresholds, all together: 16 octets each, about."""
_MOST_COUNTERS = 50_000
_MOST_ANSWERS = 4096
"""Replies, and destinations, for which it is remembered which rules they meet."""
_REPLY = 300
"""Characters of the reply that an order keeps."""


def clock(moment: float) -> str:
    """A moment for people: ``2026-11-26 09:10:00 UTC``."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


class Order(msgspec.Struct):
    """See the module. `rule`: its identity; `action`: which of its actions; `about`: `place`, for people.
    `reply`: the one that led to it. `shadow`: it is only reported."""

    rule: str
    action: int
    place: str
    source: str
    tenant: str | None
    campaign: str | None
    about: str
    reply: str
    since: float
    until: float
    matches: int = 1
    shadow: bool = False

    @property
    def key(self) -> OrderKey:
        """What it is one of a kind by."""
        return (self.rule, self.action, self.place, self.source, self.tenant, self.campaign)


class Match(msgspec.Struct, frozen=True):
    """A reply that met a rule. `orders`: what it led to and whether each is new; empty where the threshold
    is not reached (`counted` of it so far), or where an action has no effect (`idle` says why)."""

    rule: Rule
    failure: Failure
    counted: int
    orders: tuple[tuple[Order, Action, bool], ...] = ()
    idle: tuple[str, ...] = ()


class Stop(msgspec.Struct, frozen=True):
    """Something stands still, or is bounced. `text`: by which rule, until when and why."""

    until: float
    text: str
    bounce: bool = False


class Orders:
    """Everything in force of one list of files. `shadow`: all rules only report."""

    def __init__(self, *, shadow: bool = False) -> None:
        self.shadow = shadow
        self.refused = 0
        """Orders that were not given because there are too many."""
        self._orders: dict[OrderKey, Order] = {}
        self._counters: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()
        self._counted = 0
        self._table: Table | None = None
        self._rules: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._met: dict[tuple[int, str, str, bool], tuple[Rule, ...]] = {}

    def __iter__(self) -> Iterator[Order]:
        return iter(list(self._orders.values()))

    def __len__(self) -> int:
        return len(self._orders)

    # -- from replies to orders ------------------------------------------------------------------

    def judge(self, table: Table, failure: Failure, now: float) -> list[Match]:
        """What a reply leads to. The orders are in force when this returns."""
        if not table.rules:
            return []
        return [self._matched(rule, failure, now) for rule in self._meeting(table, failure)]

    def _meeting(self, table: Table, failure: Failure) -> tuple[Rule, ...]:
        """As `meeting`. Peers repeat themselves, so answers are remembered."""
        if table is not self._table:
            self._table, self._rules, self._met = table, {}, {}
        where = (failure.domain, failure.asked.key)
        rules = self._rules.get(where)
        if rules is None:
            if len(self._rules) >= _MOST_ANSWERS:
                # What was met goes, too: it is found by the identity of these tuples.
                self._rules, self._met = {}, {}
            rules = self._rules[where] = table.rules_for(failure.domain, failure.asked)
        if not rules:
            return ()
        asked = (id(rules), failure.line, failure.command.partition(" ")[0], failure.internal)
        met = self._met.get(asked)
        if met is None:
            if len(self._met) >= _MOST_ANSWERS:
                self._met = {}
            met = self._met[asked] = meeting(rules, failure)
        return met

    def _matched(self, rule: Rule, failure: Failure, now: float) -> Match:
        counted = 1
        if rule.threshold is not None:
            counted = self._count(rule, failure, now)
            if counted < rule.threshold.number:
                return Match(rule, failure, counted)
        made: list[tuple[Order, Action, bool]] = []
        idle: list[str] = []
        domain = name_key(failure.domain)
        for number, action in enumerate(rule.actions):
            if action.per_tenant and failure.tenant is None:
                idle.append(f"{action.shown} has no effect: the message has no tenant")
                continue
            place = rule.place_of(action, failure, domain)
            order = Order(
                rule.identity,
                number,
                place,
                "" if action.of_queue else failure.source,
                failure.tenant if action.per_tenant else None,
                failure.campaign if action.per_campaign else None,
                _about(place, failure, action),
                failure.line[:_REPLY],
                now,
                now + rule.duration,
                shadow=rule.shadow or self.shadow,
            )
            before = self._orders.get(order.key)
            if before is not None and before.until > now:
                before.until = max(before.until, order.until)
                before.matches += 1
                made.append((before, action, False))
            elif before is None and len(self._orders) >= _MOST_ORDERS:
                self.refused += 1
                idle.append(f"{action.shown} has no effect: {_MOST_ORDERS} are in force already")
            else:
                self._orders[order.key] = order
                made.append((order, action, True))
        return Match(rule, failure, counted, tuple(made), tuple(idle))

    def _count(self, rule: Rule, failure: Failure, now: float) -> int:
        """Matches within the threshold's period that ends now, this one included."""
        assert rule.threshold is not None
        number, period = rule.threshold.number, rule.threshold.period
        key = rule.counted_with(failure)
        times = self._counters.pop(key, None)
        if times is None:
            times = deque()
        self._counters[key] = times  # the one used last stands last
        before = len(times)
        while times and (times[0] <= now - period or len(times) >= number):
            times.popleft()
        times.append(now)
        self._counted += len(times) - before
        while len(self._counters) > 1 and (
            self._counted > _MOST_COUNTED or len(self._counters) > _MOST_COUNTERS
        ):
            self._counted -= len(self._counters.popitem(last=False)[1])
        return len(times)

    # -- the end of orders -----------------------------------------------------------------------

    def expire(self, now: float) -> list[Order]:
        """Forget and return what is over."""
        over = [order for order in self._orders.values() if order.until <= now]
        for order in over:
            del self._orders[order.key]
        return over

    def keep_known(self, table: Table) -> list[Order]:
        """Forget and return the orders of rules that are not in the table any more."""
        gone = [
            order
            for order in self._orders.values()
            if (rule := table.rules.get(order.rule)) is None or order.action >= len(rule.actions)
        ]
        for order in gone:
            del self._orders[order.key]
        for key in [key for key in self._counters if key[0] not in table.rules]:
            self._counted -= len(self._counters.pop(key))
        return gone

    def next_end(self) -> float | None:
        """When the first order ends."""
        return min((order.until for order in self._orders.values()), default=None)

    def restore(self, orders: Iterable[Order], table: Table, now: float) -> int:
        """Take over what was written down; how many are still of use."""
        taken = 0
        for order in orders:
            rule = table.rules.get(order.rule)
            if rule is None or order.action >= len(rule.actions) or order.until <= now:
                continue
            if order.shadow != (rule.shadow or self.shadow) or len(self._orders) >= _MOST_ORDERS:
                continue
            # A clock that was set back must not make of ten minutes a year.
            order.until = min(order.until, now + rule.duration)
            self._orders[order.key] = order
            taken += 1
        return taken

    # -- what is in force ------------------------------------------------------------------------

    def overrides(self, table: Table) -> dict[tuple[str, str], list[tuple[Key, Setting]]]:
        """What SetConfig and SetDomainConfig say, by source and place, in the order they were given."""
        found: dict[tuple[str, str], list[tuple[Key, Setting]]] = {}
        for order, rule, action in self._in_force(table):
            for key, value in action.settings:
                origin = msgspec.structs.replace(rule.origin, rule=f"automation, until {clock(order.until)}")
                found.setdefault((order.source, order.place), []).append((key, Setting(value, origin)))
        return found

    def _in_force(self, table: Table) -> list[tuple[Order, Rule, Action]]:
        found: list[tuple[Order, Rule, Action]] = []
        for order in self._orders.values():
            rule = table.rules.get(order.rule)
            if rule is not None and not order.shadow:
                found.append((order, rule, rule.actions[order.action]))
        return found

    def stops(self, table: Table) -> Stops:
        """What stands still or is bounced, for look-up."""
        return Stops(self._in_force(table))


class Stops:
    """A snapshot of suspensions and bounces. `ready`: of ready queues, by source and place; `queues`: of
    scheduled ones, by place, tenant and campaign."""

    def __init__(self, orders: Sequence[tuple[Order, Rule, Action]] = ()) -> None:
        self.ready: dict[tuple[str, str], Stop] = {}
        self.queues: dict[tuple[str, Any, Any], Stop] = {}
        for order, rule, action in orders:
            if action.of_path:
                continue
            done = "bounced" if action.kind.startswith("Bounce") else "suspended"
            text = (
                f"{done} until {clock(order.until)} by {rule.origin} {action.shown}, because a peer said: "
                f"{order.reply}"
            )
            stop = Stop(order.until, text, done == "bounced")
            if action.kind == "Suspend":
                _longer(self.ready, (order.source, order.place), stop)
            else:
                key = (
                    order.place,
                    order.tenant if action.per_tenant else _ANY,
                    order.campaign if action.per_campaign and order.campaign is not None else _ANY,
                )
                _longer(self.queues, key, stop)

    def __bool__(self) -> bool:
        return bool(self.ready or self.queues)

    def of_ready(self, source: str, site_key: str, providers: Iterable[str]) -> Stop | None:
        """What stops mail from a source to a site."""
        if not self.ready:
            return None
        places = [f"site:{site_key}", *(f"provider:{name}" for name in providers)]
        return _strongest(self.ready.get((source, place)) for place in places)

    def of_queue(
        self, domain: str, tenant: str | None, campaign: str | None, providers: Iterable[str]
    ) -> Stop | None:
        """What stops the mail of a scheduled queue. `domain`: where it is routed. Bouncing goes before."""
        if not self.queues:
            return None
        places = [f"domain:{name_key(domain)}", *(f"provider:{name}" for name in providers)]
        whose = {(_ANY, _ANY), (tenant, _ANY), (tenant, campaign)}
        return _strongest(self.queues.get((place, *who)) for place in places for who in whose)


_ANY = object()
"""Mail of every tenant, or campaign."""


def _longer(stops: dict[Any, Stop], key: Any, stop: Stop) -> None:
    found = _strongest((stops.get(key), stop))
    assert found is not None
    stops[key] = found


def _strongest(stops: Iterable[Stop | None]) -> Stop | None:
    return max(
        (one for one in stops if one is not None), key=lambda one: (one.bounce, one.until), default=None
    )


def _about(place: str, failure: Failure, action: Action) -> str:
    kind, _, name = place.partition(":")
    shown = f"the provider {name}" if kind == "provider" else failure.asked.site_name
    if kind in ("domain", "block"):
        shown = name
    parts = [f"from {failure.source}"] if not action.of_queue else []
    if action.per_tenant:
        parts.append(f"tenant {failure.tenant}")
    if action.per_campaign and failure.campaign is not None:
        parts.append(f"campaign {failure.campaign}")
    return " ".join([shown, *parts])
