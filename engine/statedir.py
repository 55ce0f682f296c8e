"""A directory beside the spool for what a restart should not forget: small files, each replaced as a whole.

Each file begins with a checksum. One that is damaged is named in the log and counts as missing: nothing here
may keep a relay from starting. All methods wait for the disk: call them in a thread.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from hashlib import blake2b

from policy.files import open_regular

__all__ = ["StateDir"]

_LARGEST = 64 << 20


class StateDir:
    """See the module. `path`: the directory, made with the first file. `logger`: who says what is wrong.
    `writes`: False for whoever only looks."""

    def __init__(self, path: str, logger: logging.Logger, *, writes: bool = True) -> None:
        self.path = path
        self._logger = logger
        self._writes = writes

    def read(self, name: str) -> bytes | None:
        """The content of a file; None when there is none."""
        path = f"{self.path}/{name}"
        try:
            with open_regular(path, os.O_NOFOLLOW) as file:
                content = file.read(_LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._logger.warning("%s cannot be read: %s; it counts as missing", path, error.strerror)
            return None
        checksum, _, rest = content.partition(b"\n")
        if checksum != _checksum(rest):
            self._logger.warning("%s is damaged; it counts as missing", path)
            return None
        return rest

    def write(self, name: str, content: bytes) -> None:
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
            self._logger.error("%s cannot be written: %s; a restart would forget it", path, error.strerror)


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()
