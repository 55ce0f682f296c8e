"""What shaping keeps beside the spool, so that a restart forgets nothing: a directory ``SPOOL.shaping``.

::

    orders          what rules have brought about (JSON)
    remote-HASH     what a URL said last

Each file begins with a checksum and is replaced as a whole. One that is damaged is named in the log and
counts as missing: nothing here may keep a relay from starting. All methods wait for the disk: call them in a
thread.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from hashlib import blake2b

import msgspec

from policy.shaping.orders import Order

__all__ = ["State"]

logger = logging.getLogger("posthorn.shaping")

_LARGEST = 64 << 20


class State:
    """The directory. `path`: of the spool. `writes`: False for whoever only looks."""

    def __init__(self, spool: str | os.PathLike[str], *, writes: bool = True) -> None:
        self.path = f"{os.fspath(spool).rstrip('/')}.shaping"
        self._writes = writes

    def orders(self) -> list[Order]:
        """What was written down last."""
        content = self._read("orders")
        if content is None:
            return []
        try:
            return msgspec.json.decode(content, type=list[Order])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            logger.warning("shaping: %s/orders cannot be used: %s; it counts as empty", self.path, error)
            return []

    def keep_orders(self, orders: list[Order]) -> None:
        """Write them down."""
        self._write("orders", msgspec.json.encode(orders))

    def remote(self, name: str) -> bytes | None:
        """What the URL of that name said last; None when nothing is known."""
        return self._read(_remote(name))

    def keep_remote(self, name: str, content: bytes) -> None:
        """Write it down. It may hold passwords; nobody else may read it."""
        self._write(_remote(name), content)

    def _read(self, name: str) -> bytes | None:
        path = f"{self.path}/{name}"
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                content = file.read(_LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("shaping: %s cannot be read: %s; it counts as missing", path, error.strerror)
            return None
        checksum, _, rest = content.partition(b"\n")
        if checksum != _checksum(rest):
            logger.warning("shaping: %s is damaged; it counts as missing", path)
            return None
        return rest

    def _write(self, name: str, content: bytes) -> None:
        """Replace one file. What cannot be written is said, and goes on in memory."""
        if not self._writes:
            return
        path = f"{self.path}/{name}"
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(f"{path}.new")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(f"{path}.new", flags, 0o600), "wb") as file:
                file.write(_checksum(content) + b"\n" + content)
                file.flush()
                os.fdatasync(file.fileno())
            os.replace(f"{path}.new", path)
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            logger.error("shaping: %s cannot be written: %s; a restart would forget it", path, error.strerror)


def _remote(name: str) -> str:
    return f"remote-{blake2b(name.encode(), digest_size=12).hexdigest()}"


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()
