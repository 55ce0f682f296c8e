"""What shaping keeps beside the spool, so that a restart forgets nothing: a directory ``SPOOL.shaping``.

::

    orders          what rules have brought about (JSON)
    remote-HASH     what a URL said last

All methods wait for the disk: call them in a thread.
"""

from __future__ import annotations

import logging
import os
from hashlib import blake2b

import msgspec

from engine.statedir import StateDir
from policy.shaping.orders import Order

__all__ = ["State"]

logger = logging.getLogger("posthorn.shaping")


class State:
    """The directory. `path`: of the spool. `writes`: False for whoever only looks."""

    def __init__(self, spool: str | os.PathLike[str], *, writes: bool = True) -> None:
        self._files = StateDir(f"{os.fspath(spool).rstrip('/')}.shaping", logger, writes=writes)
        self.path = self._files.path

    def orders(self) -> list[Order]:
        """What was written down last."""
        content = self._files.read("orders")
        if content is None:
            return []
        try:
            return msgspec.json.decode(content, type=list[Order])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            logger.warning("%s/orders cannot be used: %s; it counts as empty", self.path, error)
            return []

    def keep_orders(self, orders: list[Order]) -> None:
        """Write them down."""
        self._files.write("orders", msgspec.json.encode(orders))

    def remote(self, url: str) -> bytes | None:
        """What a URL said last; None when nothing is known."""
        return self._files.read(_remote(url))

    def keep_remote(self, url: str, content: bytes) -> None:
        """Write it down. It may hold passwords; nobody else may read it."""
        self._files.write(_remote(url), content)


def _remote(url: str) -> str:
    return f"remote-{blake2b(url.encode(), digest_size=12).hexdigest()}"
