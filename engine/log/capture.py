"""Which metadata and header fields of a message are copied into its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .records import Record

__all__ = ["Capture"]


class Capture:
    """What loggers were asked to copy: `meta` keys and `headers` names; a final ``*`` matches a prefix.

    Metadata keys are compared as they are, header names without regard to case. Whoever builds
    records asks `wanted` first, so capture costs nothing where nobody wants it.
    """

    __slots__ = ("_headers", "_meta", "wanted", "wants_headers", "wants_meta")

    def __init__(self, meta: Iterable[str] = (), headers: Iterable[str] = ()) -> None:
        self._meta = _Names(meta)
        self._headers = _Names(name.lower() for name in headers)
        self.wants_meta = bool(self._meta)
        self.wants_headers = bool(self._headers)
        self.wanted = self.wants_meta or self.wants_headers

    def fill(self, record: Record, meta: Mapping[str, Any], prefix: bytes, body: bytes | None) -> None:
        """Copy what is wanted into `record`. `prefix`, `body`: the message's bytes, the fields put in
        front of it first; with body None (it is only in the spool) the prefix alone is looked at."""
        if self.wants_meta:
            record.meta = self.pick_meta(meta)
        if self.wants_headers:
            record.headers = self._pick_fields(prefix, body)

    def pick_meta(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """The wanted part of `meta`, as a new dict."""
        return self._meta.pick(meta)

    def pick_headers(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The wanted part of captured `headers`, as a new dict."""
        has = self._headers.has
        return {name: value for name, value in headers.items() if has(name.lower())}

    def _pick_fields(self, prefix: bytes, body: bytes | None) -> dict[str, str | list[str]]:
        # Imported here: the header scanner is only needed where a logger asks for headers.
        from engine.mail.headers import HeaderMap

        found: dict[str, str | list[str]] = {}
        keys: dict[str, str] = {}
        has = self._headers.has
        for part in (prefix, body):
            if not part:
                continue
            for name, value in HeaderMap(part).items():
                lower = name.lower()
                if not has(lower):
                    continue
                key = keys.setdefault(lower, name)
                before = found.get(key)
                if before is None:
                    found[key] = value
                elif isinstance(before, list):
                    before.append(value)
                else:
                    found[key] = [before, value]
        return found


class _Names:
    """A set of names and prefixes."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, names: Iterable[str]) -> None:
        listed = tuple(names)
        self._exact = frozenset(name for name in listed if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes)

    def has(self, name: str) -> bool:
        return name in self._exact or (bool(self._prefixes) and name.startswith(self._prefixes))

    def pick(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not self._prefixes:
            return {name: values[name] for name in self._exact if name in values}
        return {name: value for name, value in values.items() if self.has(name)}
