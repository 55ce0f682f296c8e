"""A line of JSON with other strings in it, and still JSON. Only for lines in which something was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["rewritten"]

# What JSON does not escape although a terminal acts on it: DEL and the C1 controls.
_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def rewritten(line: bytes, mask: Callable[[str], str], ours: frozenset[str]) -> bytes:
    """`line` with `mask` applied to the strings of its values, and to the names of members below the outer
    ones, which are not ours. The values of outer members that `ours` names stay as they are.

    What is no object of JSON (a writer's mistake) is masked as text, since no reader could use it anyway.
    """

    def inner(value: Any) -> Any:
        if isinstance(value, str):
            return mask(value)
        if isinstance(value, list):
            return [inner(item) for item in value]
        if isinstance(value, dict):
            return {mask(name): inner(item) for name, item in value.items()}
        return value

    try:
        found = msgspec.json.decode(line)
        if isinstance(found, dict):
            found = {name: value if name in ours else inner(value) for name, value in found.items()}
        else:
            found = inner(found)
    except (ValueError, RecursionError):
        return mask(line.decode("utf-8", "replace")).encode()
    text = msgspec.json.encode(found).decode().translate(_CONTROLS)
    return text.encode() + (b"\n" if line.endswith(b"\n") else b"")
