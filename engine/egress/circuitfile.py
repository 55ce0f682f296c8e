"""Open circuits beside the spool, in a directory ``SPOOL.logins``, so that a restart spends no budget twice.

::

    key       32 random octets: the key of the fingerprints that tell versions of secrets apart
    circuits  logins that failed lately (JSON): hosts, user, fingerprints, ages of the failures, what the peer
              said; logins that are under way, which count as failed if they are found here; and which
              versions are in use that are not the newest

No secret is written. A fingerprint has 32 bits and is keyed, so that it compares with nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol, Self

import msgspec
import trio

from engine.statedir import StateDir

from .circuits import Circuits, OpenCircuit

__all__ = ["CircuitFile", "InUse", "directory"]

logger = logging.getLogger("posthorn.egress")

_PAUSE = 1.0
"""Seconds between two writings for which nobody waits."""

_PATIENCE = 5.0
"""Seconds a login waits for the disk."""

_KEY = 32


class _Row(msgspec.Struct, frozen=True):
    """`left`: seconds until the next try, `ages`: of the failures, both at the moment of writing."""

    hosts: tuple[str, ...]
    user: str
    version: str
    ages: tuple[float, ...]
    streak: int
    left: float
    said_by: str
    text: str
    cause: str
    unheard: tuple[float, ...] = ()
    source: str = ""
    refused: bool = True
    period: float = 86400.0


class InUse(msgspec.Struct, frozen=True):
    """The version that is in use while the `newest` one is not. `age`: seconds since that was seen, at the
    moment of writing; `trying`: a trial was under way then."""

    hosts: tuple[str, ...]
    user: str
    active: str
    newest: str
    age: float
    trying: bool


class _Content(msgspec.Struct, frozen=True):
    written: float
    circuits: list[_Row]
    in_use: list[InUse] = []


def directory(spool: str | os.PathLike[str], *, writes: bool = True) -> StateDir:
    """The directory for a spool."""
    return StateDir(f"{os.fspath(spool).rstrip('/')}.logins", logger, writes=writes)


class State(Protocol):
    """Where the files lie: a `StateDir`."""

    path: str

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, content: bytes) -> None: ...


class CircuitFile:
    """See the module. Made by `load`."""

    def __init__(self, state: State, key: bytes, content: _Content | None) -> None:
        self._state = state
        self.key = key
        self._content = content
        self._limiter = trio.CapacityLimiter(1)  # its own: a login waits for this thread
        self._urgent = trio.Event()
        """Somebody waits for the next writing."""
        self._written = trio.Event()
        """Set when what `_write` takes next was written."""

    @classmethod
    def load(cls, state: State) -> Self:
        """What is there; a key is made when there is none. Waits for the disk."""
        key = state.read("key")
        if key is None or len(key) != _KEY:
            key = os.urandom(_KEY)
            state.write("key", key)
            return cls(state, key, None)
        content = state.read("circuits")
        try:
            return cls(state, key, None if content is None else msgspec.json.decode(content, type=_Content))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            logger.warning("%s/circuits cannot be used: %s; it counts as empty", state.path, error)
            return cls(state, key, None)

    def circuits(self) -> list[OpenCircuit]:
        """What was open, in the times of this process. A clock that was set back makes nothing older."""
        if self._content is None:
            return []
        now = trio.current_time()
        passed = max(0.0, time.time() - self._content.written)
        return [
            OpenCircuit(
                row.hosts,
                row.user,
                row.version,
                tuple(now - passed - max(0.0, age) for age in row.ages),
                max(1, row.streak),
                now + row.left - passed,
                row.said_by,
                row.text,
                row.cause,
                # Under way when the process was killed: the answer may have come as late as that.
                tuple(now - passed for _ in row.unheard),
                row.source,
                row.refused,
                row.period,
            )
            for row in self._content.circuits
        ]

    def in_use(self) -> list[InUse]:
        """Where an earlier version was in use, as of now."""
        if self._content is None:
            return []
        passed = max(0.0, time.time() - self._content.written)
        return [msgspec.structs.replace(one, age=one.age + passed) for one in self._content.in_use]

    def restore(self, circuits: Circuits) -> None:
        """Take over what was open. Before anybody logs in."""
        for one in self.circuits():
            circuits.restore(one)
        if self.in_use():
            circuits.changed.set()  # an earlier version is not known any more: let nobody believe it

    def save(self, circuits: Sequence[OpenCircuit], now: float, in_use: Sequence[InUse] = ()) -> None:
        """Write them down. Waits for the disk. `now`: the moment of `circuits`."""
        rows = [
            _Row(
                one.hosts,
                one.user,
                one.version,
                tuple(now - time for time in one.failures),
                one.streak,
                max(0.0, one.until - now),
                one.said_by,
                one.text,
                one.cause,
                tuple(now - time for time in one.unheard),
                one.source,
                one.refused,
                one.period,
            )
            for one in circuits
        ]
        self._state.write("circuits", msgspec.json.encode(_Content(time.time(), rows, [*in_use])))

    async def keep(self, circuits: Circuits) -> None:
        """Write down what changes, at once where somebody waits for it; never returns. What changed last is
        written when this is cancelled."""
        circuits.commit = self._commit
        try:
            while True:
                await circuits.changed.wait()
                with trio.move_on_after(_PAUSE):
                    await self._urgent.wait()
                await self._write(circuits)
        finally:
            circuits.commit = None
            if circuits.changed.is_set():
                with trio.CancelScope(shield=True):
                    await self._write(circuits)

    async def _write(self, circuits: Circuits) -> None:
        written, self._written = self._written, trio.Event()
        self._urgent, circuits.changed = trio.Event(), trio.Event()
        try:
            # Not to be left alone half-way: the next one would write the same file.
            now, done = trio.current_time(), circuits.writing()
            in_use = [
                InUse(hosts, user, one.active, one.newest, now - one.since, one.trying)
                for hosts, user, one in circuits.behind()
            ]
            await self._store([*circuits.opened()], now, in_use)
            done()
        finally:
            written.set()

    async def _store(self, *what: Any) -> None:
        await trio.to_thread.run_sync(self.save, *what, limiter=self._limiter)

    async def _commit(self) -> None:
        """See `Circuits.commit`. A disk that does not answer is waited for no longer than `_PATIENCE`: the
        mail waits for it elsewhere."""
        self._urgent.set()
        with trio.move_on_after(_PATIENCE):
            await self._written.wait()
