"""The few things the spool asks of the operating system, in one place.

`Files` is what tests replace to make a disk fail. The functions below it complete short writes
and interrupted calls (reliability D24). `Descriptors` keeps a bounded number of files open, so
thousands of segments do not use up the process's descriptors.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from engine.errors import SpoolError, SpoolFull

__all__ = [
    "CREATE",
    "READ_WRITE",
    "Descriptors",
    "Files",
    "OpenFile",
    "as_spool_error",
    "is_full",
    "is_shortage",
    "read_at",
    "sync_file",
    "write_at",
    "write_parts",
]

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

_IOV_MAX = 1024
"""Buffers per pwritev; the kernel's UIO_MAXIOV."""
_PATIENCE = 100
"""Interrupted calls in a row before we call it a failure; a guess."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHORTAGE = _FULL | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Files:
    """The operating system. Each method is one call; failures are OSError."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def read_cached(self, fd: int, size: int, offset: int) -> bytes | None:
        """Exactly `size` octets if they are in memory, without waiting for the disk; else None."""
        buffer = bytearray(size)
        try:
            count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:  # it would have to wait, or the file system cannot tell
            return None
        return bytes(buffer) if count == size else None

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        return os.pwritev(fd, parts, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        """Make room: later writes inside it cannot fail for want of space."""
        os.posix_fallocate(fd, offset, size)

    def forget_cache(self, fd: int) -> None:
        """Ask that the next read comes from the disk (reading back what was just synced)."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def list(self, path: str) -> list[str]:
        return os.listdir(path)

    def free(self, path: str) -> tuple[int, int, int, int]:
        """Octets free (to us) and in all, inodes free and in all."""
        found = os.statvfs(path)
        return (
            found.f_bavail * found.f_frsize,
            found.f_blocks * found.f_frsize,
            found.f_favail,
            found.f_files,
        )


def is_full(error: OSError) -> bool:
    """Whether space, quota or a size limit is the reason (reliability D17)."""
    return error.errno in _FULL


def is_shortage(error: OSError) -> bool:
    """Whether something ran out that says nothing about the disk: space, descriptors, memory."""
    return error.errno in _SHORTAGE


def as_spool_error(error: OSError, what: str) -> SpoolError:
    """The same trouble in the engine's words."""
    text = f"{what}: {error.strerror or type(error).__name__}"
    if error.filename is not None:
        text += f" ({os.fsdecode(error.filename)})"
    return SpoolFull(text) if is_full(error) else SpoolError(text)


def write_at(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`. Raises: OSError."""
    rest = data
    interrupted = 0
    while rest:
        try:
            count = files.pwrite(fd, rest, offset)
        except (InterruptedError, BlockingIOError):
            interrupted += 1
            if interrupted > _PATIENCE:
                raise
            continue
        if count <= 0:
            raise OSError(errno.EIO, "nothing was written")
        offset += count
        rest = rest[count:]


def write_parts(files: Files, fd: int, parts: list[bytes | memoryview], offset: int) -> None:
    """Write the parts back to back without joining them. Raises: OSError."""
    if len(parts) <= _IOV_MAX:
        _write_chunk(files, fd, parts, offset)
        return
    for first in range(0, len(parts), _IOV_MAX):
        offset = _write_chunk(files, fd, parts[first : first + _IOV_MAX], offset)


def _write_chunk(files: Files, fd: int, parts: list[bytes | memoryview], offset: int) -> int:
    wanted = interrupted = 0
    for part in parts:
        wanted += len(part)
    while True:
        try:
            count = files.pwritev(fd, parts, offset)
        except (InterruptedError, BlockingIOError):
            interrupted += 1
            if interrupted > _PATIENCE:
                raise
            continue
        offset += count
        wanted -= count
        if not wanted:
            return offset
        if count <= 0:
            raise OSError(errno.EIO, "nothing was written")
        parts = _behind(parts, count)


def _behind(parts: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """What is left of `parts` after the first `count` octets."""
    for index, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[index + 1 :]]
        count -= len(part)
    return []


def read_at(files: Files, fd: int, size: int, offset: int, path: str) -> bytes:
    """Up to `size` octets; fewer only at the end of the file.

    Raises: OSError with the name `path`. What the disk does not give is not known, which is never
            the same as damaged: the caller leaves everything as it is.
    """
    pieces = []
    have = interrupted = 0
    while have < size:
        try:
            data = files.pread(fd, size - have, offset + have)
        except (InterruptedError, BlockingIOError):
            interrupted += 1
            if interrupted > _PATIENCE:
                raise
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror or type(error).__name__, path) from None
        if not data:
            break
        if len(data) == size:
            return data
        pieces.append(data)
        have += len(data)
    return b"".join(pieces)


def sync_file(files: Files, fd: int) -> None:
    """fdatasync, begun again when a signal interrupts it. Any other failure is final (D20)."""
    for _ in range(_PATIENCE):
        try:
            files.fdatasync(fd)
            return
        except InterruptedError:
            continue
    raise OSError(errno.EIO, "the sync was interrupted again and again")


class OpenFile:
    """A descriptor and how many threads are using it."""

    __slots__ = ("fd", "gone", "pins")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pins = 0
        self.gone = False


class Descriptors:
    """At most `limit` open files, the least recently used closed first. For the loop's thread only.

    A file in use by a thread is pinned and is closed when the thread is done.
    """

    def __init__(self, files: Files, limit: int = 128) -> None:
        self._files = files
        self._limit = limit
        self._open: OrderedDict[str, OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: str) -> OpenFile:
        """The open file, opened when need be. Raises: OSError."""
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        self._make_room()
        try:
            fd = self._files.open(path, READ_WRITE)
        except OSError as error:
            # Somebody else used up the descriptors (reliability O4): give one of ours up for it.
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._give_up_one():
                raise
            fd = self._files.open(path, READ_WRITE)
        found = self._open[path] = OpenFile(fd)
        return found

    def put(self, path: str, fd: int) -> None:
        """Take over a descriptor that is open already."""
        self._make_room()
        self._open[path] = OpenFile(fd)

    def pin(self, path: str) -> OpenFile:
        """The open file, kept open for a thread until `unpin`. Raises: OSError."""
        found = self.get(path)
        found.pins += 1
        return found

    def unpin(self, found: OpenFile) -> None:
        """The thread is done with it."""
        found.pins -= 1
        if found.gone and not found.pins:
            self._release(found)

    @contextmanager
    def pinned(self, path: str) -> Iterator[int]:
        """The descriptor, kept open for a thread while the block lasts. Raises: OSError."""
        found = self.pin(path)
        try:
            yield found.fd
        finally:
            self.unpin(found)

    def forget(self, path: str) -> None:
        """Close it, now or when the last thread is done."""
        found = self._open.pop(path, None)
        if found is not None:
            self._close(found)

    def close_all(self) -> None:
        for path in list(self._open):
            self.forget(path)

    def _make_room(self) -> None:
        while len(self._open) >= self._limit:
            _, oldest = self._open.popitem(last=False)
            self._close(oldest)

    def _give_up_one(self) -> bool:
        for path, found in self._open.items():
            if not found.pins:
                self.forget(path)
                return True
        return False

    def _close(self, found: OpenFile) -> None:
        found.gone = True
        if not found.pins:
            self._release(found)

    def _release(self, found: OpenFile) -> None:
        # Whatever close says, what mattered was synced before (reliability D10).
        with suppress(OSError):
            self._files.close(found.fd)
