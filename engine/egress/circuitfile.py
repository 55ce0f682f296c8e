"""Open circuits beside the spool, in a directory ``SPOOL.logins``, so that a restart spends no budget twice.

::

    key       32 random octets: the key of the fingerprints that tell versions of secrets apart
    circuits  the open circuits (JSON): hosts, user, fingerprint, ages of the failures, what the peer said

No secret is written. A fingerprint has 32 bits and is keyed, so that it compares with nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

import msgspec
import trio

from engine.statedir import StateDir

from .circuits import Circuits, OpenCircuit

__all__ = ["CircuitFile", "directory"]

logger = logging.getLogger("posthorn.egress")

_PAUSE = 1.0
"""Seconds between two writings."""

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


class _Content(msgspec.Struct, frozen=True):
    written: float
    circuits: list[_Row]


def directory(spool: str | os.PathLike[str], *, writes: bool = True) -> StateDir:
    """The directory for a spool."""
    return StateDir(f"{os.fspath(spool).rstrip('/')}.logins", logger, writes=writes)


class CircuitFile:
    """See the module. Made by `load`."""

    def __init__(self, state: StateDir, key: bytes, content: _Content | None) -> None:
        self._state = state
        self.key = key
        self._content = content

    @classmethod
    def load(cls, state: StateDir) -> CircuitFile:
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
            )
            for row in self._content.circuits
        ]

    def save(self, circuits: Sequence[OpenCircuit], now: float) -> None:
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
            )
            for one in circuits
        ]
        self._state.write("circuits", msgspec.json.encode(_Content(time.time(), rows)))

    async def keep(self, circuits: Circuits) -> None:
        """Take over what was open, and write down what changes from now on; never returns."""
        for one in self.circuits():
            circuits.restore(one)
        while True:
            await circuits.changed.wait()
            circuits.changed = trio.Event()
            await trio.to_thread.run_sync(self.save, [*circuits.opened()], trio.current_time())
            await trio.sleep(_PAUSE)
