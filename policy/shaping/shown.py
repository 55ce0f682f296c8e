"""How settings are shown to people: values as a policy would write them, secrets by their name only."""

from __future__ import annotations

import typing
from typing import Any

from ..keysource import KeyRef
from ..login import Login
from ..units import Named, format_duration
from .settings import UNSET, Key

__all__ = ["shown", "shown_key"]


def shown_key(key: Key) -> str:
    """An option, with the entry of a map."""
    option, entry = key
    return f'{option}."{entry}"' if entry else option


def shown(value: Any) -> str:
    """A value of an option of `EgressPath`."""
    if value is None or value is UNSET:
        return "not set"
    if isinstance(value, typing.get_args(KeyRef)):
        return str(value.name)
    if isinstance(value, Login):
        who = value.username or "the certificate's owner"
        secret = f", {value.reference.name}" if value.reference is not None else ""
        return f"{who}{secret}, by {' '.join(value.mechanisms)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_duration(value)
    if isinstance(value, Named):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or "empty"
    return str(value) or "empty"
