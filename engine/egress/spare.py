"""While memory is short, bodies of queued messages do not stay in it (reliability O1).

They are in the spool and are read again when their turn comes. A message in a session's hands keeps its own.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.queues.queued import Queued

    from .router import Router
    from .routes import RouteFinder

__all__ = ["Spare"]

logger = logging.getLogger("posthorn.egress")

_SLICE = 4096
"""Messages that are looked at between two checkpoints."""
_QUEUES = 1024
"""The same of queues."""


class Spare:
    """See the module. Part of one router. `short`: no body is kept beside the spool now."""

    def __init__(self, router: Router, nursery: trio.Nursery, finder: RouteFinder) -> None:
        self._router = router
        self._nursery = nursery
        self._finder = finder
        self._dropping = False
        self.short = False

    def memory_is_short(self, short: bool) -> None:
        """From now on it is, or is not. Never waits."""
        self.short = short
        if short and not self._dropping:
            self._dropping = True
            self._nursery.start_soon(self._drop_all)

    async def _drop_all(self) -> None:
        try:
            for ready in self._finder.ready_queues():
                self._drop(ready.entries)
                await trio.lowlevel.checkpoint()
            for number, queue in enumerate(self._router.scheduled_queues(), 1):
                at = 0
                # Whoever leaves the line meanwhile moves others past this look; a session drops theirs.
                while at < len(queue.waiting):
                    self._drop(islice(queue.waiting, at, at + _SLICE))
                    at += _SLICE
                    await trio.lowlevel.checkpoint()
                if not number % _QUEUES:
                    await trio.lowlevel.checkpoint()
        except Exception:
            logger.exception("letting go of bodies")
        finally:
            self._dropping = False

    def _drop(self, entries: Iterable[Queued]) -> None:
        settler = self._router.settler
        for entry in entries:
            if entry.message is not None:
                settler.drop(entry)
