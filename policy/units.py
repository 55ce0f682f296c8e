"""Durations, rates, limits and sizes: written for people, parsed once, printed back the same.

Every `parse_*` takes what a policy may write, or a value that is parsed already, and raises
ValueError saying what would be right. Every `format_*` (or `str`) gives text that parses to the
same value. Durations are float seconds everywhere behind this file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from .errors import Wrong, a_type, did_you_mean

__all__ = [
    "Floor",
    "Limit",
    "Named",
    "Throttle",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_floor",
    "parse_limit",
    "parse_size",
    "parse_throttle",
]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_LONGEST = 100 * 365 * _DAY
"""Seconds. Longer durations are taken for a mistake; also keeps dates computable."""
_DIGITS = 15
"""More digits than this in one number are taken for a mistake."""

_DURATION_UNITS: dict[str, float] = {
    unit: seconds
    for units, seconds in (
        ("ns nsec nanos", 1e-9),
        ("us usec micros", 1e-6),
        ("ms msec millis", 1e-3),
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", _MINUTE),
        ("h hr hrs hour hours", _HOUR),
        ("d day days", _DAY),
        ("w week weeks", 7 * _DAY),
        ("M month months", 2_630_016),
        ("y year years", 31_557_600),
    )
    for unit in units.split()
}
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)[ ]*([A-Za-z]+)[ ]*")

_LENGTHS = (1, _MINUTE, _HOUR, _DAY)
_PERIODS = {
    name: seconds
    for names, seconds in zip(("s sec second", "m min minute", "h hr hour", "d day"), _LENGTHS, strict=True)
    for name in names.split()
}
_PERIOD_NAMES = {1: "s", _MINUTE: "m", _HOUR: "h", _DAY: "d"}
_THROTTLE = re.compile(r"(local:)?([0-9][0-9,_]*)/([0-9]*)([A-Za-z]+)(?:,max_burst=([0-9][0-9,_]*))?")
_LIMIT = re.compile(r"(local:)?([0-9][0-9,_]*)")

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9][0-9,_]*)[ ]*([A-Za-z]*)")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)[ ]*%(?:[ ]+or[ ]+(.+))?")


def parse_duration(value: Any) -> float:
    """Seconds from a number of seconds or text such as ``"1h 30m"``, ``"20 minutes"``, ``"500ms"``.

    Raises: ValueError for a negative, infinite or over-long one (100 years), or an unknown unit.
    """
    if isinstance(value, str):
        seconds, at = 0.0, 0
        text = value.strip(" ")
        while at < len(text) or not text:
            part = _DURATION_PART.match(text, at)
            if part is None:
                raise Wrong('is no duration: a number and a unit, e.g. "5 minutes" or "1h 30m", is')
            unit = part[2]
            if unit not in _DURATION_UNITS:
                raise Wrong(f'"{unit}" is no unit of time{did_you_mean(unit, _DURATION_UNITS)}')
            seconds += float(part[1]) * _DURATION_UNITS[unit]
            at = part.end()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _LONGEST else math.inf
    else:
        raise Wrong(f"is no duration but {a_type(value)}")
    if not 0 <= seconds <= _LONGEST:
        raise Wrong("a duration is at least 0 and at most 100 years")
    return seconds


def format_duration(seconds: float) -> str:
    """Text such as ``"1h 30m"``; `parse_duration` gives the same seconds back."""
    if seconds != int(seconds):
        if seconds < 1 and seconds * 1000 == int(seconds * 1000):
            return f"{int(seconds * 1000)}ms"
        plain = repr(seconds)
        return (plain if "e" not in plain else f"{seconds:.15f}") + "s"
    rest = int(seconds)
    parts = []
    for unit, length in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def _integer(text: str) -> int:
    """An integer written with ``,`` or ``_`` as separators. ASCII digits only: the patterns saw to it."""
    digits = text.replace(",", "").replace("_", "")
    if len(digits) > _DIGITS:
        raise Wrong(f"has a number of more than {_DIGITS} digits")
    return int(digits)


class Throttle(msgspec.Struct, frozen=True):
    """A rate: `quantity` events per `period` seconds, `max_burst` of them back to back.

    `local`: counted on this node even where rates are shared between nodes.
    """

    quantity: int
    period: float
    max_burst: int | None = None
    local: bool = False

    @property
    def interval(self) -> float:
        """Seconds from one event to the next at the full rate."""
        return self.period / self.quantity

    @property
    def burst(self) -> int:
        """Events that may pass back to back: `max_burst`, else the whole quantity."""
        return self.quantity if self.max_burst is None else self.max_burst

    def __str__(self) -> str:
        period = _PERIOD_NAMES.get(int(self.period)) or f"{int(self.period)}s"
        burst = "" if self.max_burst is None else f",max_burst={self.max_burst}"
        return f"{'local:' if self.local else ''}{self.quantity}/{period}{burst}"


def parse_throttle(value: Any) -> Throttle:
    """A rate from ``"[local:]QTY/[K]PERIOD[,max_burst=B]"``, e.g. ``"100/s"``, ``"20/30minute,max_burst=5"``.

    PERIOD is s, sec, second, m, min, minute, h, hr, hour, d or day. Raises: ValueError.
    """
    if isinstance(value, Throttle):
        return value
    found = _THROTTLE.fullmatch(value.strip(" ")) if isinstance(value, str) else None
    if found is None:
        raise Wrong("is no rate")
    unit = found[4]
    if unit not in _PERIODS:
        raise Wrong(f'"{unit}" is no period{did_you_mean(unit, _PERIODS)}')
    quantity = _integer(found[2])
    times = _integer(found[3]) if found[3] else 1
    burst = _integer(found[5]) if found[5] else None
    if quantity == 0 or times == 0 or burst == 0:
        raise Wrong("a rate has no zero in it")
    if times * _PERIODS[unit] > _LONGEST:
        raise Wrong("a period is at most 100 years")
    return Throttle(quantity, float(times * _PERIODS[unit]), burst, found[1] is not None)


V = TypeVar("V")


class Named(Mapping[str, V], Generic[V]):
    """Limits or rates by name. A mapping that does not change, so that it can be compared and hashed; the
    order of the names has no meaning."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, V] | None = None) -> None:
        self._entries = dict(sorted((entries or {}).items()))

    def __getitem__(self, name: str) -> V:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Named):
            return self._entries == other._entries
        return isinstance(other, Mapping) and self._entries == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: {str(value)!r}" for name, value in self._entries.items()) + "}"


class Limit(int):
    """How many at once; an int, with `local` as in Throttle."""

    local: bool

    def __new__(cls, quantity: int, local: bool = False) -> Limit:
        limit = super().__new__(cls, quantity)
        limit.local = local
        return limit

    def __str__(self) -> str:
        return f"{'local:' if self.local else ''}{int(self)}"

    def __repr__(self) -> str:
        return f"Limit({self})"

    def __eq__(self, other: object) -> bool:
        # A refreshed path must differ from the old one when only `local` changed.
        return int.__eq__(self, other) is True and (not isinstance(other, Limit) or self.local == other.local)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return int.__hash__(self)


def parse_limit(value: Any) -> Limit:
    """A limit of at least 1 from an integer or text such as ``"1,000"`` or ``"local:20"``.

    Raises: ValueError.
    """
    if isinstance(value, Limit):
        return value
    local = False
    if isinstance(value, str):
        found = _LIMIT.fullmatch(value.strip(" "))
        if found is None:
            raise Wrong("is no limit")
        local, value = found[1] is not None, _integer(found[2])
    elif not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(f"is no limit but {a_type(value)}")
    if not 1 <= value < 10**_DIGITS:
        raise Wrong("a limit is at least 1")
    return Limit(value, local)


def parse_size(value: Any) -> int:
    """Octets from an integer or text such as ``"50 MiB"`` (1024-based) or ``"50 MB"`` (1000-based).

    Raises: ValueError, also for a negative one.
    """
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip(" "))
        if found is None:
            raise Wrong("is no size")
        unit = found[2]
        if unit not in _SIZE_UNITS:
            raise Wrong(f'"{unit}" is no unit of size{did_you_mean(unit, _SIZE_UNITS)}')
        return _integer(found[1]) * _SIZE_UNITS[unit]
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(f"is no size but {a_type(value)}")
    if value < 0:
        raise Wrong("a size is at least 0")
    return value


def format_size(octets: int) -> str:
    """Text such as ``"50MiB"``; `parse_size` gives the same number back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if octets and octets % _SIZE_UNITS[unit] == 0:
            return f"{octets // _SIZE_UNITS[unit]}{unit}"
    return str(octets)


class Floor(msgspec.Struct, frozen=True):
    """How much must stay free: a share of the whole, a fixed amount, or the smaller of the two."""

    percent: float | None = None
    amount: int | None = None

    def of(self, total: int) -> int:
        """The amount that must stay free of `total`."""
        share = None if self.percent is None else int(total * self.percent / 100)
        return min(part for part in (share, self.amount) if part is not None)

    def __str__(self) -> str:
        parts = [] if self.percent is None else [f"{self.percent:g}%"]
        return " or ".join(parts if self.amount is None else [*parts, format_size(self.amount)])


def parse_floor(value: Any) -> Floor:
    """A floor from ``"10%"``, an amount (``1000``, ``"1 GiB"``) or both: ``"10% or 1 GiB"`` (the smaller).

    Raises: ValueError.
    """
    if isinstance(value, Floor):
        return value
    found = _PERCENT.fullmatch(value.strip(" ")) if isinstance(value, str) else None
    if found is None:
        return Floor(amount=parse_size(value))
    percent = float(found[1])
    if percent > 100:
        raise Wrong("a share is at most 100%")
    return Floor(percent, None if found[2] is None else parse_size(found[2]))
