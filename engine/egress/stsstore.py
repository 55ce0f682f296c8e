"""Policies beside the spool, in a directory ``SPOOL.mta-sts``, so that a restart is no moment without them
(RFC 8461 section 10.2). The methods wait for the disk: call them in a thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import msgspec

from engine.egress.mta_sts import Policy
from engine.statedir import StateDir

__all__ = ["Kept", "Store"]

logger = logging.getLogger("posthorn.egress")

_FILE = "policies"


class Kept(msgspec.Struct, frozen=True):
    """A policy as it was fetched. `id`: of the record that announced it; `fetched`: Unix seconds; `route`: an
    operator named the domain."""

    domain: str
    id: str
    policy: Policy
    fetched: float
    route: bool = False


class Store:
    """The directory. `spool`: that of the spool. `writes`: False for whoever only looks."""

    def __init__(self, spool: str | os.PathLike[str], *, writes: bool = True) -> None:
        self._state = StateDir(f"{os.fspath(spool).rstrip('/')}.mta-sts", logger, writes=writes)

    def read(self) -> list[Kept]:
        """What was written last."""
        content = self._state.read(_FILE)
        if content is None:
            return []
        try:
            return msgspec.json.decode(content, type=list[Kept])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            logger.warning("%s/%s cannot be used: %s; it counts as missing", self._state.path, _FILE, error)
            return []

    def write(self, kept: Sequence[Kept]) -> None:
        """Write it down, in place of the last."""
        self._state.write(_FILE, msgspec.json.encode(kept))
