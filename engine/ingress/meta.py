"""Connection meta: what a session is known by, and a policy's own notes.

All of it becomes the meta of the session's messages. The values live in one dict that is handed
to the messages as it is (`snapshot`) and copied only when somebody writes again, so a session
that sends a thousand messages has one dict, not a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["QUEUE_PARTS", "ConnectionMeta", "checked_meta"]

QUEUE_PARTS = ("tenant", "campaign", "routing_domain")
"""Meta names that, with the recipient's domain, make the name of the scheduled queue."""

_DEPTH = 16


class ConnectionMeta:
    """The meta of one session; what hooks are handed as `conn_meta`."""

    __slots__ = ("_kept", "_shared", "_values")

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._shared = True
        self._kept = values

    def get_meta(self, name: str) -> Any:
        """The value, or None."""
        return self._values.get(name)

    def set_meta(self, name: str, value: Any) -> None:
        """Set one value, anything that JSON can hold. Counts for the messages that come later.

        Raises: TypeError or ValueError, saying what is wrong with name or value.
        """
        self.put(name, checked_meta(name, value))

    def del_meta(self, name: str) -> None:
        """Forget one value; nothing happens when there is none."""
        if name in self._values:
            self._own().pop(name)

    def put(self, name: str, value: Any) -> None:
        """The engine's own way to set a value it knows to be right."""
        self._own()[name] = value

    def snapshot(self) -> dict[str, Any]:
        """The values as they are now, to be read only; later changes do not touch them."""
        self._shared = True
        return self._values

    def keep(self) -> None:
        """What is known now does not come from the conversation and outlasts STARTTLS."""
        self._kept = self.snapshot()

    def forget(self) -> None:
        """Back to what was known at `keep`: nothing said before TLS counts after it (S9)."""
        self._values = self._kept
        self._shared = True

    def _own(self) -> dict[str, Any]:
        if self._shared:
            self._values = self._values.copy()
            self._shared = False
        return self._values


def checked_meta(name: str, value: Any) -> Any:
    """`value` as plain JSON data of its own, for meta `name`.

    Raises: TypeError, ValueError.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a meta value is a str, not a {type(name).__name__}")
    if name == "queue":
        raise ValueError(
            'meta "queue" (an explicit queue name) is not supported yet; set "tenant", "campaign" or '
            '"routing_domain"'
        )
    if name in QUEUE_PARTS and value is not None:
        if not isinstance(value, str):
            raise TypeError(f'meta "{name}" is part of the queue name: a str or None, not {_kind(value)}')
        if not value or not value.isprintable():
            raise ValueError(f'meta "{name}" is part of the queue name and must be printable and not empty')
    return _json(name, value, 0)


def _json(name: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii():
            value.encode("utf-8")  # half a surrogate pair: UnicodeEncodeError, a ValueError
        return str.__str__(value)  # an enumeration's text is its value, not its name
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f'meta "{name}": an integer beyond 64 bits')
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f'meta "{name}": {value} is no JSON number')
        return float(value)
    if depth >= _DEPTH:
        raise ValueError(f'meta "{name}": nested more than {_DEPTH} deep')
    if isinstance(value, (list, tuple)):
        return [_json(name, item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f'meta "{name}": the keys of a mapping are str')
        return {str(key): _json(name, item, depth + 1) for key, item in value.items()}
    raise TypeError(f'meta "{name}": JSON cannot hold {_kind(value)}')


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
