"""The seam: what a key source is, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import msgspec

from policy.keysource import KeyRef
from policy.secret import Secret

__all__ = [
    "MAX_SECRET",
    "Credential",
    "Dated",
    "Fetch",
    "KeySource",
    "SourceFailure",
    "Tells",
    "Told",
    "Watch",
    "unwatched",
]

MAX_SECRET = 1 << 20
"""Octets a secret may have; enough for any PEM bundle."""


class SourceFailure(Exception):
    """A source could not give its value. The text is for operators and never holds a secret; it is said
    after the reference's name and does not repeat it.

    `definite`: the source answered, and the answer is that there is no such value. Anything else (an
    outage, a refusal) says nothing about the value, so an older one stays in use (reliability V3).
    `denied`: it answered that we may not have it; the reference's `on_denied` decides.
    `retry_after`: seconds the source asked to be left alone.
    """

    def __init__(
        self, reason: str, *, definite: bool = False, denied: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.definite = definite
        self.denied = denied
        self.retry_after = retry_after

    def bare(self) -> SourceFailure:
        """The same again, without the frames and causes that this one has collected: they hold values."""
        return SourceFailure(
            self.reason, definite=self.definite, denied=self.denied, retry_after=self.retry_after
        )


class Credential(msgspec.Struct, frozen=True):
    """A secret with what identifies this version of it.

    `version` is a fingerprint that is good for comparing within this process, or those that have its key,
    and for nothing else. `fetched` is the monotonic time (`trio.current_time`) of the last
    successful read.
    """

    secret: Secret
    version: str
    fetched: float


class Fetch(Protocol):
    """How a source reads the secrets that its references name: the ring's `fetch`."""

    async def __call__(self, ref: KeyRef, *, fresh: bool = False) -> Credential:
        """Raises: SecretUnavailable."""
        ...


Watch = Callable[[Hashable, str, Secret], None]
"""Told what somebody holds now, and by which name it may be called: `Tripwire.watch`."""


def unwatched(owner: Hashable, name: str, secret: Secret) -> None:
    """A Watch for a source that stands alone."""


class Dated(msgspec.Struct, frozen=True):
    """A secret with a life of its own, in seconds from now: `fresh_for` until it should be read again,
    `lasts` until it must not be used any more."""

    secret: Secret
    fresh_for: float
    lasts: float


class Told(msgspec.Struct, frozen=True):
    """What a source itself knows of a value besides the value. `version`: its own name for it, empty where it
    has none; `since`: since when it holds it (`time.time`), None where it does not say."""

    version: str = ""
    since: float | None = None


@runtime_checkable
class Tells(Protocol):
    """A source that knows more of its values."""

    def told(self, ref: Any) -> Told | None:
        """Of the value that was read last; None when none was. Never waits."""
        ...


class KeySource(Protocol):
    """Reads one kind of reference. The ring caches, waits and retries; a source only reads."""

    fresh_for: float | None
    """Seconds until the ring reads again; None = the ring's own `ttl`."""

    async def read(self, ref: Any) -> Secret | Dated:
        """The value now. Must be cancellable, and must not block the event loop.

        Raises: SourceFailure.
        """
        ...
