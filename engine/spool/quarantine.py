"""Where damaged octets go: kept for an operator, never delivered, never deleted (reliability D23).

Only what was really read and is not what was written comes here; a disk that does not answer is
no damage. Each piece is two files, ``NNNNNNNN-OFFSET.record`` (the octets as they lay in the
segment) and ``NNNNNNNN-OFFSET.reason`` (lines for people; no metadata of the message). The segment
may go only when the copy was synced and read back from the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from zlib import crc32

from .files import CREATE, READ_WRITE, Files, read_at, sync_file, write_at

__all__ = ["Quarantine"]

logger = logging.getLogger("posthorn.spool")

_CHUNK = 1 << 20
_COPIES = 100
"""Different octets of one place: a segment that goes on decaying. A guess."""


class Quarantine:
    """All methods block on the disk: for threads."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory

    def save(self, fd: int, segment: str, offset: int, length: int, why: str) -> bool:
        """Keep `length` octets of the segment file `segment`, open as `fd`. False when they are here
        already.

        Raises: OSError; then they are not safe here and the segment must stay as it is.
        """
        number = os.path.basename(segment).partition(".")[0]
        wanted = _crc(self._files, fd, offset, length, segment)
        for copy in range(_COPIES):
            name = f"{self._directory}/{number}-{offset:012d}" + (f".{copy}" if copy else "")
            record = f"{name}.record"
            if not os.path.lexists(record):
                break
            if self._holds(record, wanted):
                return False
        else:
            raise OSError(errno.EEXIST, "many different copies are there already", record)
        text = (
            f"segment: {number}.seg\noffset: {offset}\nlength: {length}\n"
            f"found: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\nreason: {why}\n"
        )
        self._write(f"{name}.reason", [text.encode()])
        self._write(record, _pieces(self._files, fd, offset, length, segment))
        self._files.fsync_directory(self._directory)
        if not self._holds(record, wanted):
            with suppress(OSError):
                self._files.unlink(record)
            raise OSError(errno.EIO, "the copy does not read back", record)
        logger.error("%d octets of %s at %d are damaged (%s): %s", length, segment, offset, why, record)
        return True

    def _holds(self, record: str, wanted: tuple[int, int]) -> bool:
        """Whether the file has these octets, on the disk and not only in memory."""
        fd = self._files.open(record, READ_WRITE)
        try:
            self._files.forget_cache(fd)
            return _crc(self._files, fd, 0, self._files.size(fd), record) == wanted
        finally:
            self._files.close(fd)

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


def _pieces(files: Files, fd: int, offset: int, length: int, path: str) -> Iterator[bytes]:
    """The octets, fewer when the file ends before."""
    end = offset + length
    while offset < end:
        data = read_at(files, fd, min(_CHUNK, end - offset), offset, path)
        if not data:
            return
        yield data
        offset += len(data)


def _crc(files: Files, fd: int, offset: int, length: int, path: str) -> tuple[int, int]:
    """Length and checksum of what is there."""
    size = crc = 0
    for piece in _pieces(files, fd, offset, length, path):
        size += len(piece)
        crc = crc32(piece, crc)
    return size, crc
