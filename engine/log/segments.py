"""Where lines end up: compressed segment files, or standard output. Blocking; called in a thread.

A segment is one zstd frame of JSON lines, with a checksum of them at its end. Each write ends a block,
so a reader that follows the file sees every line written so far. A finished segment is read-only: that
is the mark for whoever collects segments (operations specification, 1.5).

Who writes a segment holds a kernel lock on it (flock), so that another process that uses the same
directory leaves it alone, while what a killed process left behind is free to be marked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import re
import select
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "ChecksumWrong",
    "SegmentSink",
    "Sink",
    "StandardOutput",
    "read_segment",
    "segment_lines",
    "segments_in",
]

logger = logging.getLogger("posthorn.log")

_NAME = re.compile(r"[0-9]{8}-[0-9]{6}\.[0-9]{1,9}")
"""UTC date, time and fraction: how our segments are called. Files of other names are not touched."""

_LAST_BLOCK = b"\x01\x00\x00"
"""An empty raw last block (RFC 8878 section 3.1.1.2): ends a frame whose compressor is gone, together
with ..."""
_CHECKSUM = 4
"""... so many octets of checksum (section 3.1.1)."""

_READ = 65536

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class Sink(Protocol):
    """Takes blocks of lines. Called from one thread at a time, `now` is monotonic."""

    deadline: float
    """Monotonic time at which `tick` wants to be called; infinity for never."""

    def open(self) -> None:
        """Prepare. Raises: OSError."""

    def write(self, lines: bytes, now: float) -> None:
        """Hand `lines` to the kernel. Raises: OSError; the same lines may then be written again."""

    def tick(self, now: float) -> None:
        """Do what is due although there is nothing to write."""

    def close(self) -> None:
        """Finish. Never raises."""


class ChecksumWrong(ValueError):
    """All of a segment could be read, and it is not what was written."""


class SegmentSink:
    """Segments in a directory.

    `max_file_size`: uncompressed octets after which a segment is finished (looked at after each
    block of lines). `max_segment_duration`: seconds, None for no limit. `level`: of zstd, 0 for the
    library's default.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_file_size: int = 1_000_000_000,
        max_segment_duration: float | None = None,
        level: int = 0,
    ) -> None:
        self._directory = directory
        self._max_size = max_file_size
        self._duration = max_segment_duration
        self._level = level or None
        self._fd = -1
        self._path = directory
        self._compressor: Any = None
        self._raw = 0
        self._stored = 0
        self.deadline = math.inf

    def open(self) -> None:
        """Make the directory; mark what an earlier run left as done, unless somebody still writes it."""
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for entry in os.scandir(self._directory):
            ours = _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            if ours and entry.stat(follow_symlinks=False).st_mode & _WRITABLE:
                _mark_abandoned(entry.path)

    def write(self, lines: bytes, now: float) -> None:
        """One block. After a failure the segment is ended where it was last whole; the next write
        begins a new one."""
        self.tick(now)
        if self._fd < 0:
            self._begin(now)
        data = self._compressor.compress(lines, self._compressor.FLUSH_BLOCK)
        try:
            _write_all(self._fd, data)
        except OSError:
            self._break_off()
            raise
        self._raw += len(lines)
        self._stored += len(data)
        if self._raw >= self._max_size:
            self._finish()

    def tick(self, now: float) -> None:
        """Finish the segment when its time is over."""
        if now >= self.deadline:
            self._finish()

    def close(self) -> None:
        """Finish the segment."""
        self._finish()

    def _begin(self, now: float) -> None:
        instant = time.time_ns() // 1000
        while True:
            second, micro = divmod(instant, 1_000_000)
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(second))}.{micro:06d}"
            path = self._directory / name
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            except FileExistsError:
                instant += 1  # names only have to be in order
                continue
            if _owned(fd):
                break
            os.close(fd)  # marked by a process that was just starting: it stays behind, empty
        self._fd = fd
        self._path = path
        self._compressor = _compressor(self._level)
        self._raw = self._stored = 0
        self.deadline = math.inf if self._duration is None else now + self._duration

    def _finish(self) -> None:
        """End the frame and mark the file. All lines are in it already, so a failure costs none."""
        if self._fd < 0:
            return
        try:
            _write_all(self._fd, self._compressor.flush(self._compressor.FLUSH_FRAME))
        except OSError as error:
            logger.warning("log segment %s has no proper end: %s", self._path, os.strerror(error.errno or 0))
        self._release()

    def _break_off(self) -> None:
        """Cut off what was written in part, and end the frame by hand."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._stored)
            if self._stored:
                os.lseek(self._fd, self._stored, os.SEEK_SET)
                _write_all(self._fd, _LAST_BLOCK + _checksum_of(self._path))
            else:
                self._path.unlink()
        self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        self._compressor = None
        self.deadline = math.inf
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) & ~_WRITABLE)
        with contextlib.suppress(OSError):
            os.close(fd)


class StandardOutput:
    """Plain lines on a descriptor, for containers and for watching.

    When it fails in the middle of a block, the next write begins on a new line and repeats the
    block: a reader may see records twice, never one missing.
    """

    deadline = math.inf

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._torn = False

    def open(self) -> None:
        """Nothing to prepare."""

    def write(self, lines: bytes, now: float) -> None:
        """Write and wait as long as the reader takes."""
        torn, self._torn = self._torn, True
        _write_all(self._fd, b"\n" + lines if torn else lines)
        self._torn = False

    def tick(self, now: float) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """The descriptor is not ours to close."""


def _compressor(level: int | None) -> Any:
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    if level is not None:
        options[zstd.CompressionParameter.compression_level] = level
    return zstd.ZstdCompressor(options=options)


def _checksum_of(path: Path) -> bytes:
    """The checksum of a segment whose compressor has seen more than is in it: compressed once more for that,
    which takes seconds for a gigabyte. Rare, as it needs a disk that fails."""
    decompressor, again = zstd.ZstdDecompressor(), _compressor(1)
    with path.open("rb") as file:
        while data := file.read(_READ):
            again.compress(decompressor.decompress(data))
    return bytes(again.flush(again.FLUSH_FRAME)[-_CHECKSUM:])


def _owned(fd: int) -> bool:
    """Lock a new segment. False when another process that starts now has taken it for an old one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody marks what is not his own there
        pass
    return bool(os.fstat(fd).st_mode & _WRITABLE)


def _mark_abandoned(path: str) -> None:
    """Mark a segment as done if nobody writes it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # collected meanwhile
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody writes it, or the file system cannot tell
            return
        os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) & ~_WRITABLE)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Somebody made the descriptor non-blocking (a terminal shared with another program).
            select.select([], [fd], [])
        except OSError as error:
            if error.errno != errno.EINTR:
                raise


def segments_in(directory: Path) -> list[Path]:
    """The segments of a log directory, oldest first. Raises: OSError."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def segment_lines(path: Path) -> Iterator[bytes]:
    """The lines of one segment, without their ends, as far as it goes: it may still be written to or
    be cut off.

    Raises: OSError; ValueError at a damaged place, after everything that stands before it; ChecksumWrong at
    the end, when all of it can be read and is not what was written.
    """
    rest = b""
    for data in _plain(path):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line:
                yield line


def _plain(path: Path) -> Iterator[bytes]:
    """What a segment holds, in pieces; likewise."""
    with path.open("rb") as file:
        plain = file.read(1) == b"{"
        file.seek(0)
        decompressor = zstd.ZstdDecompressor()
        good = 0
        while data := file.read(_READ):
            try:
                piece = data if plain else decompressor.decompress(data)
            except (zstd.ZstdError, EOFError):
                yield from _up_to_the_damage(file, good)
                return
            good += len(data)
            yield piece


def _up_to_the_damage(file: BinaryIO, good: int) -> Iterator[bytes]:
    """What stands between the octet `good` and the damage behind it, which is raised."""
    file.seek(0)
    decompressor = zstd.ZstdDecompressor()
    while good and (data := file.read(min(good, _READ))):
        decompressor.decompress(data)
        good -= len(data)
    try:
        while octet := file.read(1):
            if piece := decompressor.decompress(octet):
                yield piece
    except zstd.ZstdError as error:
        if "checksum" in str(error):
            raise ChecksumWrong("the checksum is that of other records") from None
        raise ValueError(str(error)) from None
    except EOFError as error:
        raise ValueError(str(error)) from None


def read_segment(path: Path) -> list[dict[str, Any]]:
    """The records of one segment, as far as it goes: it may still be written to or be cut off.

    Raises: OSError. A damaged tail ends the list without an error.
    """
    records: list[dict[str, Any]] = []
    lines = segment_lines(path)
    while True:
        try:
            records.append(msgspec.json.decode(next(lines)))
        except (StopIteration, ValueError):  # msgspec's errors are among the latter
            return records
