"""What a path and its queue come to together: the least of all limits that hold for one thing.

Several options limit the same: a site's messages by its own rate, by rates that are shared by name, by
the rate of the queue, and by how many connections may be opened with so many messages on each. Which of
them wins is arithmetic, and whoever raises one that does not win waits for an effect in vain.
Rates are compared by their lasting speed; bursts come on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from .egress import EgressPath, QueueConfig
from .units import Throttle

__all__ = ["Ceiling", "Ceilings", "ceilings"]


class Ceiling(msgspec.Struct, frozen=True):
    """The least of the limits of one thing. `value`: as it is written, `20` or `100/s`. `set_by`: the option,
    or the two whose product it is. `per_second`: a rate's lasting speed, None for what is no rate."""

    value: str
    set_by: str
    per_second: float | None = None

    def __str__(self) -> str:
        return f"{self.value} ({self.set_by})"


class Ceilings(msgspec.Struct, frozen=True):
    """Per source and site: `connections` at once, `connection_rate`, `message_rate`, and `selection_rate`:
    how often the source may be chosen. None: nothing limits it. `notes`: options without effect."""

    connections: Ceiling
    connection_rate: Ceiling | None
    message_rate: Ceiling | None
    selection_rate: Ceiling | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.connections.value} connections ({self.connections.set_by})"]
        for what, ceiling in (
            ("new connections", self.connection_rate),
            ("messages", self.message_rate),
            ("choices of the source", self.selection_rate),
        ):
            if ceiling is not None:
                parts.append(f"{what} {ceiling}")
        return ", ".join(parts)


def ceilings(path: EgressPath, queue: QueueConfig) -> Ceilings:
    """What holds for mail of this queue on this path."""
    limits = [("connection_limit", path.connection_limit)]
    limits += _named("additional_connection_limits", path.additional_connection_limits)
    name, least = min(limits, key=lambda one: int(one[1]))
    opening, lasts = path.max_connection_rate, path.max_deliveries_per_connection
    messages: list[tuple[str, Throttle]] = []
    if path.max_message_rate is not None:
        messages.append(("max_message_rate", path.max_message_rate))
    messages += _named("additional_message_rate_throttles", path.additional_message_rate_throttles)
    if queue.max_message_rate is not None:
        messages.append((_OF_QUEUE, queue.max_message_rate))
    if opening is not None:
        product = Throttle(opening.quantity * lasts, opening.period, local=opening.local)
        messages.append(("max_connection_rate x max_deliveries_per_connection", product))
    choices: list[tuple[str, Throttle]] = []
    if path.source_selection_rate is not None:
        choices.append(("source_selection_rate", path.source_selection_rate))
    choices += _named("additional_source_selection_rates", path.additional_source_selection_rates)
    slowest = _slowest(messages)
    return Ceilings(
        Ceiling(str(least), name),
        _slowest([("max_connection_rate", opening)] if opening is not None else []),
        slowest,
        _slowest(choices),
        _unreached(messages, slowest),
    )


V = TypeVar("V")

_OF_QUEUE = "max_message_rate of the queue"


def _named(option: str, entries: Mapping[str, V]) -> list[tuple[str, V]]:
    return [(f'{option}."{name}"', value) for name, value in entries.items()]


def _slowest(rates: Iterable[tuple[str, Throttle]]) -> Ceiling | None:
    """Of equal ones the first."""
    found = max(rates, key=lambda one: one[1].interval, default=None)
    return None if found is None else Ceiling(str(found[1]), found[0], 1 / found[1].interval)


def _unreached(rates: Iterable[tuple[str, Throttle]], slowest: Ceiling | None) -> tuple[str, ...]:
    """The path's and the queue's own rates that something slower makes pointless. Those with a name are
    shared: elsewhere they may well be what counts."""
    return tuple(
        f"{name} = {rate} is never reached, because {slowest.set_by} allows {slowest.value}"
        for name, rate in rates
        if slowest is not None
        and name in ("max_message_rate", _OF_QUEUE)
        and name != slowest.set_by
        and 1 / rate.interval > (slowest.per_second or 0.0)
    )
