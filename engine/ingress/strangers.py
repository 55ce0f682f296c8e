"""What SCRAM shows of users that do not exist: a salt and iterations, as of any other.

Those of a known user are the same at every listener, today and tomorrow. So must these be, or the question
asked twice, elsewhere or after a restart, would tell who exists (reliability S53). Kept beside the spool, in
a directory ``SPOOL.listeners``::

    strangers   32 random octets, from which salts are made, and the iterations of stored keys (JSON)
"""

from __future__ import annotations

import hmac
import logging
import os

import msgspec
import trio

from engine.statedir import StateDir
from policy.scramkeys import LEAST_ITERATIONS, ScramHash, ScramKeys
from policy.secret import Secret

__all__ = ["Strangers", "state_of"]

logger = logging.getLogger("posthorn.ingress")

_FILE = "strangers"
_KEY = 32
_PAUSE = 60.0
"""Seconds between two writings: users may have different iterations."""


class _Content(msgspec.Struct, frozen=True):
    key: bytes
    iterations: int


def state_of(spool: str | os.PathLike[str]) -> StateDir:
    """The directory for a spool."""
    return StateDir(f"{os.fspath(spool).rstrip('/')}.listeners", logger)


class Strangers:
    """See the module. One for all listeners. `state`: None keeps nothing; what is there is read, so the
    constructor waits for the disk then."""

    def __init__(self, state: StateDir | None = None) -> None:
        self._state = state
        content = _read(state) if state is not None else None
        self._key = content.key if content is not None else os.urandom(_KEY)
        self._iterations = content.iterations if content is not None else LEAST_ITERATIONS
        self._next_write = float("-inf")
        if content is None:
            self._write(self._iterations)

    def keys(self, user: str, hash_: ScramHash) -> ScramKeys:
        """What to show for a name that nobody has. No password fits."""
        salt = hmac.digest(self._key, f"{hash_} {user}".encode(), "sha256")[:16]
        nothing = Secret(os.urandom(32 if hash_ == "SHA-256" else 20))
        return ScramKeys(hash_, self._iterations, salt, nothing, nothing)

    async def saw(self, iterations: int) -> None:
        """Those of stored keys: unknown users are shown the same from now on."""
        if iterations == self._iterations:
            return
        self._iterations = iterations
        now = trio.current_time()
        if self._state is not None and now >= self._next_write:
            self._next_write = now + _PAUSE
            await trio.to_thread.run_sync(self._write, iterations)

    def _write(self, iterations: int) -> None:
        if self._state is not None:
            self._state.write(_FILE, msgspec.json.encode(_Content(self._key, iterations)))


def _read(state: StateDir) -> _Content | None:
    content = state.read(_FILE)
    if content is None:
        return None
    try:
        found = msgspec.json.decode(content, type=_Content)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        logger.warning("%s/%s cannot be used: %s; it is made anew", state.path, _FILE, error)
        return None
    return found if len(found.key) == _KEY and found.iterations >= LEAST_ITERATIONS else None
