"""Text in key sources: what may stand in a name, a path, a URL. Errors name the key, never the value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import Wrong, a_type

__all__ = ["segments", "text", "url"]


def text(given: Mapping[str, Any], key: str) -> str:
    """A non-empty string without control characters. The error names the key only."""
    value = given[key]
    if not isinstance(value, str):
        raise Wrong(f'"{key}" is text, not {a_type(value)}')
    if not value:
        raise Wrong(f'"{key}" is empty')
    if not value.isprintable():
        raise Wrong(f'"{key}" holds a control character')
    return value


def segments(path: str, key: str) -> str:
    """A path whose every segment stays where it is put (reliability: no traversal, no query)."""
    for segment in path.split("/"):
        if not segment:
            raise Wrong(f'"{key}" has an empty segment (a "/" too many)')
        if segment in (".", "..") or not segment.isprintable() or any(c in "%?#\\" for c in segment):
            raise Wrong(f'"{key}" has a segment with "..", "%", "?", "#", "\\" or a control character')
    return path


def url(address: str, key: str, like: str) -> str:
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        sound = False
    if not sound:
        raise Wrong(f'"{key}" is no URL like {like}')
    if parts.username is not None or parts.query or parts.fragment:
        hint = '; a token goes into "vault_token"' if key == "vault_address" else ""
        raise Wrong(f'"{key}" holds a user, a query or a fragment{hint}')
    return address.rstrip("/") if key == "vault_address" else address
