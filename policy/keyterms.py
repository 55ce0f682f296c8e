"""How long a secret serves, and what becomes of it while its source cannot give it: the outage contract.

Every key source may say these beside its other keys::

    {"vault_mount": "secret", "vault_path": "relay", "ttl": "1m", "stale_for": "2h", "on_denied": "hold"}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from .errors import Wrong, a_type, did_you_mean
from .units import parse_duration

__all__ = ["TERMS", "Termed", "Terms", "read_terms"]

_LONGEST = 400 * 86400.0


class Terms(msgspec.Struct, frozen=True):
    """What one reference asks of the ring (reliability V3).

    `ttl`: seconds until a value is read again; None = what suits the kind of source: 300, of files 1.
    `stale_for`: seconds that a value serves after its `ttl` while the source is out; None = a day.
    `on_outage`: "stale" does that; "hold" uses nothing past its `ttl`, mail is held until the source is back.
    `on_denied`: "stale" takes a refusal (403, exit status 77, a file one may not read) for an outage; "hold"
    stops using the value at the first one.
    """

    ttl: float | None = None
    stale_for: float | None = None
    on_outage: Literal["stale", "hold"] = "stale"
    on_denied: Literal["stale", "hold"] = "stale"


class Termed(msgspec.Struct, frozen=True, kw_only=True):
    """A reference whose value is read from elsewhere and may not be there: it says what then."""

    terms: Terms = Terms()


TERMS = ("ttl", "stale_for", "on_outage", "on_denied")
"""The keys, in the order of the documentation."""


def read_terms(given: Mapping[str, Any]) -> Terms:
    """The terms that stand in a mapping, with the defaults for the others. Raises: Wrong."""
    ttl = _seconds(given, "ttl", 1.0)
    stale_for = _seconds(given, "stale_for", 0.0)
    on_outage = _choice(given, "on_outage")
    if on_outage == "hold" and stale_for is not None:
        raise Wrong('"stale_for" says how long an old value serves, but "on_outage" is "hold": none does')
    return Terms(
        ttl=ttl,
        stale_for=stale_for,
        on_outage=on_outage,
        on_denied=_choice(given, "on_denied"),
    )


def _seconds(given: Mapping[str, Any], key: str, least: float) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Wrong(f'"{key}" is a duration like 300 or "5m", not {a_type(value)}')
    try:
        seconds = parse_duration(value)
    except ValueError:
        raise Wrong(f'"{key}" is no duration; right would be seconds, or text like "5m"') from None
    if not (math.isfinite(seconds) and least <= seconds <= _LONGEST):
        raise Wrong(f'"{key}" is a duration from {least:g} s to 400 days')
    return seconds


def _choice(given: Mapping[str, Any], key: str) -> Literal["stale", "hold"]:
    value = given.get(key)
    if value is None or value == "stale":
        return "stale"
    if value == "hold":
        return "hold"
    hint = did_you_mean(value, ("stale", "hold")) if isinstance(value, str) else ""
    raise Wrong(f'"{key}" is "stale" or "hold"{hint}')
