"""What the commands say of a secret: its name, version and age, never its value."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import trio

from engine.errors import SecretUnavailable
from engine.keys import KeyRing, Told
from policy.keysource import KeyRef

__all__ = ["Credential", "all_fetched", "fetched"]

_AT_ONCE = 32
"""Secrets that are fetched at one time: where the source is out, each takes seconds."""


class Credential(msgspec.Struct, frozen=True, omit_defaults=True):
    """A secret without its value. `version`: the source's own (a number, in Vault), where it has one.
    `fingerprint` changes with the value; logs call versions by it. `age`: seconds since it was read.
    `changed`: since when the source has it (Unix time). `problem`: why it cannot be had."""

    name: str
    version: str = ""
    fingerprint: str = ""
    age: float | None = None
    changed: float | None = None
    problem: str = ""

    def as_text(self) -> str:
        """For a terminal."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        own = f"{self.version} (fingerprint {self.fingerprint})" if self.version else self.fingerprint
        text = f"{self.name}, version {own}"
        if self.changed is None:
            return f"{text}; its source does not say since when"
        since = datetime.fromtimestamp(self.changed, UTC)
        return f"{text}, since {since:%Y-%m-%d %H:%M:%S} UTC ({_ago(time.time() - self.changed)})"


async def fetched(keys: KeyRing, key: KeyRef) -> Credential:
    """Fetch a secret, and say what may be said of it."""
    try:
        credential = await keys.fetch(key)
    except SecretUnavailable as error:
        return Credential(key.name, problem=str(error).removeprefix(f"{key.name}: "))
    told = keys.told(key) or Told()
    age = trio.current_time() - credential.fetched
    return Credential(key.name, told.version, credential.version, age, told.since)


async def all_fetched(keys: KeyRing, wanted: Iterable[KeyRef]) -> dict[KeyRef, Credential]:
    """Fetch some, several at one time; in the order in which they were asked for."""
    order = list(wanted)
    waiting, found = order[::-1], dict[KeyRef, Credential]()

    async def ask() -> None:
        while waiting:
            key = waiting.pop()
            found[key] = await fetched(keys, key)

    async with trio.open_nursery() as nursery:
        for _ in range(min(_AT_ONCE, len(waiting))):
            nursery.start_soon(ask)
    return {key: found[key] for key in order}


def _ago(seconds: float) -> str:
    """An age for people, in its greatest unit."""
    for size, unit in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return f"{max(0.0, seconds):.0f} s ago"
