"""Where damaged octets go: kept for an operator, never delivered, never deleted (reliability D23).

Each piece is two files, ``NNNNNNNN-OFFSET.record`` (the octets as they lay in the segment; what
could not be read is zeros) and ``NNNNNNNN-OFFSET.reason`` (lines for people; no metadata of the
message).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from .files import CREATE, Files, read_salvaging, sync_file, write_at

__all__ = ["Quarantine"]

logger = logging.getLogger("posthorn.spool")

_CHUNK = 1 << 20


class Quarantine:
    """All methods block on the disk: for threads."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory

    def save(self, fd: int, number: int, offset: int, length: int, why: str) -> bool:
        """Keep `length` octets of a segment. False when they are here already.

        Raises: OSError; then nothing is here and the segment must stay as it is.
        """
        name = f"{self._directory}/{number:08d}-{offset:012d}"
        record = f"{name}.record"
        if os.path.lexists(record):
            return False
        text = (
            f"segment: {number:08d}.seg\noffset: {offset}\nlength: {length}\n"
            f"found: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\nreason: {why}\n"
        )
        self._write(f"{name}.reason", [text.encode()])
        self._write(record, _pieces(self._files, fd, offset, length))
        self._files.fsync_directory(self._directory)
        logger.error(
            "%d octets of segment %d at %d are damaged (%s): %s", length, number, offset, why, record
        )
        return True

    def _write(self, path: str, pieces: Iterable[bytes]) -> None:
        part = f"{path}.part"
        with suppress(FileNotFoundError):
            self._files.unlink(part)  # of a process that was killed while writing it
        fd = self._files.open(part, CREATE)
        try:
            at = 0
            for piece in pieces:
                write_at(self._files, fd, piece, at)
                at += len(piece)
            sync_file(self._files, fd)
        except BaseException:
            with suppress(OSError):
                self._files.unlink(part)
            raise
        finally:
            self._files.close(fd)
        self._files.rename(part, path)


def _pieces(files: Files, fd: int, offset: int, length: int) -> Iterator[bytes]:
    end = offset + length
    while offset < end:
        size = min(_CHUNK, end - offset)
        yield read_salvaging(files, fd, size, offset).ljust(size, b"\0")
        offset += size
