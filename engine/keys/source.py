"""The seam: what a key source is, and how it says that it cannot."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from policy.secret import Secret

__all__ = ["MAX_SECRET", "Dated", "KeySource", "SourceFailure"]

MAX_SECRET = 1 << 20
"""Octets a secret may have; enough for any PEM bundle."""


class SourceFailure(Exception):
    """A source could not give its value. The text is for operators and never holds a secret; it is said
    after the reference's name and does not repeat it.

    `definite`: the source answered, and the answer is that there is no such value. Anything else (an
    outage, a refusal) says nothing about the value, so an older one stays in use (reliability V3).
    `retry_after`: seconds the source asked to be left alone.
    """

    def __init__(self, reason: str, *, definite: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.definite = definite
        self.retry_after = retry_after

    def bare(self) -> SourceFailure:
        """The same again, without the frames and causes that this one has collected: they hold values."""
        return SourceFailure(self.reason, definite=self.definite, retry_after=self.retry_after)


class Dated(msgspec.Struct, frozen=True):
    """A secret with a life of its own, in seconds from now: `fresh_for` until it should be read again,
    `lasts` until it must not be used any more."""

    secret: Secret
    fresh_for: float
    lasts: float


class KeySource(Protocol):
    """Reads one kind of reference. The ring caches, waits and retries; a source only reads."""

    fresh_for: float | None
    """Seconds until the ring reads again; None = the ring's own `ttl`."""

    async def read(self, ref: Any) -> Secret | Dated:
        """The value now. Must be cancellable, and must not block the event loop.

        Raises: SourceFailure.
        """
        ...
