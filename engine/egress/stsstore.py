"""Policies on disk, so that a restart is no moment without them (RFC 8461 section 10.2): ``SPOOL.mta-sts``.

One file, replaced as a whole and begun with a checksum. One that is damaged is named in the log and counts as
missing: nothing here may keep a relay from starting. The methods wait for the disk: call them in a thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b

import msgspec

from engine.egress.mta_sts import Policy

__all__ = ["Kept", "Store"]

logger = logging.getLogger("posthorn.egress")

_LARGEST = 256 << 20


class Kept(msgspec.Struct, frozen=True):
    """A policy as it was fetched. `id`: of the record that announced it; `fetched`: Unix seconds."""

    domain: str
    id: str
    policy: Policy
    fetched: float
    route: bool = False


class Store:
    """The file. `spool`: the spool's directory. `writes`: False for whoever only looks."""

    def __init__(self, spool: str | os.PathLike[str], *, writes: bool = True) -> None:
        self.path = f"{os.fspath(spool).rstrip('/')}.mta-sts"
        self._writes = writes

    def read(self) -> list[Kept]:
        """What was written last."""
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                content = file.read(_LARGEST)
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("MTA-STS: %s cannot be read: %s; it counts as missing", self.path, error.strerror)
            return []
        checksum, _, rest = content.partition(b"\n")
        try:
            if checksum != _checksum(rest):
                raise ValueError("its checksum is wrong")
            return msgspec.json.decode(rest, type=list[Kept])
        except ValueError as error:  # those of msgspec are some, too
            logger.warning("MTA-STS: %s is damaged (%s); it counts as missing", self.path, error)
            return []

    def write(self, kept: Sequence[Kept]) -> None:
        """Replace it. What cannot be written is said, and goes on in memory."""
        if not self._writes:
            return
        content = msgspec.json.encode(kept)
        new = f"{self.path}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(new)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(new, flags, 0o600), "wb") as file:
                file.write(_checksum(content) + b"\n" + content)
                file.flush()
                os.fdatasync(file.fileno())
            os.replace(new, self.path)
        except OSError as error:
            logger.error(
                "MTA-STS: %s cannot be written: %s; a restart would forget it", self.path, error.strerror
            )


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()
