"""Disks that fail on purpose, one that hangs, and one that can lose its power."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import trio

from engine.spool import Files
from engine.spool.format import JOURNAL_START

__all__ = ["BadDisk", "PowerDisk", "SlowDisk", "failing", "until"]

Plan = Callable[[str, str], OSError | int | None]


class BadDisk(Files):
    """Asks `plan(call, path)` before each call: None lets it through, an error is raised, a number
    is how many octets a write may write."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan: Plan = plan if plan is not None else lambda call, path: None
        self.paths: dict[int, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def _ask(self, call: str, path: str) -> int | None:
        with self.lock:
            self.calls.append((call, path))
            answer = self.plan(call, path)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def open(self, path: str, flags: int) -> int:
        self._ask("open", path)
        fd = super().open(path, flags)
        self.paths[fd] = path
        return fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._ask("pread", self.paths[fd])
        return super().pread(fd, size, offset)

    def read_cached(self, fd: int, size: int, offset: int) -> bytes | None:
        return None  # every read is seen by the plan

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        limit = self._ask("pwrite", self.paths[fd])
        return super().pwrite(fd, data if limit is None else data[:limit], offset)

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        limit = self._ask("pwrite", self.paths[fd])
        if limit is None:
            return super().pwritev(fd, parts, offset)
        return os.pwrite(fd, b"".join(parts)[:limit], offset)

    def fdatasync(self, fd: int) -> None:
        self._ask("fdatasync", self.paths[fd])
        super().fdatasync(fd)

    def fsync_directory(self, path: str) -> None:
        self._ask("fsync_directory", path)
        super().fsync_directory(path)

    def truncate(self, fd: int, size: int) -> None:
        self._ask("truncate", self.paths[fd])
        super().truncate(fd, size)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        self._ask("allocate", self.paths[fd])
        super().allocate(fd, offset, size)

    def unlink(self, path: str) -> None:
        self._ask("unlink", path)
        super().unlink(path)

    def rename(self, old: str, new: str) -> None:
        self._ask("rename", old)
        super().rename(old, new)


class SlowDisk(Files):
    """Syncs of segments wait for `go`; counts them and remembers what was written before each."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.hold = False
        self.written = 0
        self.synced: list[int] = []

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        count = super().pwritev(fd, parts, offset)
        self.written = offset + count
        return count

    def fdatasync(self, fd: int) -> None:
        covered = self.written
        if self.hold:
            self.go.wait(10)
        super().fdatasync(fd)
        self.synced.append(covered)


async def until(condition: object) -> None:
    """Wait for something a thread does."""
    assert callable(condition)
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


def failing(number: int, *calls: str, suffix: str = "") -> Plan:
    """These calls fail with this errno (on files whose name ends so)."""

    def plan(call: str, path: str) -> OSError | None:
        if call in calls and path.endswith(suffix):
            return OSError(number, os.strerror(number))
        return None

    return plan


class _Inode:
    """Octets that are safe, and writes that are not: (offset, octets), or (size, None) for a cut."""

    def __init__(self) -> None:
        self.safe = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []

    def settle(self) -> None:
        for offset, data in self.pending:
            _apply(self.safe, offset, data)
        self.pending.clear()


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class PowerDisk(Files):
    """Real files, and beside them a model of what a power cut could leave.

    Nothing is safe before its sync: any part of what was written since may be there or not, in any
    order, torn at any sector; names change on disk only when the directory is synced, each change
    independently of the others. `cut` draws one such disk.
    """

    SECTOR = 512

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.inodes: dict[int, _Inode] = {}
        self.names: dict[str, _Inode] = {}
        self.safe_names: dict[str, _Inode] = {}
        self.changes: list[tuple[str | None, str | None, _Inode]] = []
        self.lock = threading.RLock()
        self.before: Callable[[str], None] = lambda call: None

    def adopt(self, root: Path) -> None:
        """What lies below `root` is on the disk, names and all."""
        for path in root.rglob("*"):
            if path.is_file():
                inode = self.names[str(path)] = self.safe_names[str(path)] = _Inode()
                inode.safe[:] = path.read_bytes()

    def open(self, path: str, flags: int) -> int:
        with self.lock:
            self.before("open")
            fd = super().open(path, flags)
            if path not in self.names:
                inode = self.names[path] = _Inode()
                inode.safe[:] = os.pread(fd, 1 << 30, 0)
                self.changes.append((None, path, inode))
            self.inodes[fd] = self.names[path]
            return fd

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self.lock:
            self.before("pwrite")
            self.inodes[fd].pending.append((offset, bytes(data)))
            return super().pwrite(fd, data, offset)

    def pwritev(self, fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        return self.pwrite(fd, b"".join(parts), offset)

    def truncate(self, fd: int, size: int) -> None:
        with self.lock:
            self.before("truncate")
            self.inodes[fd].pending.append((size, None))
            super().truncate(fd, size)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        with self.lock:
            self.before("allocate")
            have = self.size(fd)
            if offset + size > have:
                self.inodes[fd].pending.append((have, bytes(offset + size - have)))
            super().allocate(fd, offset, size)

    def fdatasync(self, fd: int) -> None:
        with self.lock:
            self.before("fdatasync")
            self.inodes[fd].settle()

    def unlink(self, path: str) -> None:
        with self.lock:
            self.before("unlink")
            super().unlink(path)
            self.changes.append((path, None, self.names.pop(path)))

    def rename(self, old: str, new: str) -> None:
        with self.lock:
            self.before("rename")
            super().rename(old, new)
            inode = self.names[new] = self.names.pop(old)
            self.changes.append((old, new, inode))

    def fsync_directory(self, path: str) -> None:
        with self.lock:
            self.before("fsync_directory")
            mine = [
                change for change in self.changes if os.path.dirname(change[0] or change[1] or "") == path
            ]
            for change in mine:
                self._rename(self.safe_names, change)
            self.changes = [change for change in self.changes if change not in mine]

    @staticmethod
    def _rename(names: dict[str, _Inode], change: tuple[str | None, str | None, _Inode]) -> None:
        old, new, inode = change
        if old is not None and names.get(old) is inode:
            del names[old]
        if new is not None:
            names[new] = inode

    def unsynced_notes(self) -> bool:
        """Whether a journal has a note that is not safe yet. Its marks, in front, are mere hints."""
        with self.lock:
            return any(
                offset >= JOURNAL_START and data is not None
                for name, inode in self.names.items()
                if name.endswith(".jnl")
                for offset, data in inode.pending
            )

    def cut(self, root: Path, target: Path) -> None:
        """Write to `target` what could be found of `root` after a power cut now."""
        with self.lock:
            names = dict(self.safe_names)
            for change in self.changes:
                if self.rng.random() < 0.5:
                    self._rename(names, change)
            for path, inode in names.items():
                content = bytearray(inode.safe)
                for offset, data in inode.pending:
                    if data is None:
                        if self.rng.random() < 0.5:
                            _apply(content, offset, None)
                        continue
                    luck = self.rng.choice((0.0, 0.5, 1.0))
                    at = 0
                    while at < len(data):
                        end = at + self.SECTOR - (offset + at) % self.SECTOR
                        if self.rng.random() < luck:
                            _apply(content, offset + at, data[at:end])
                        at = end
                place = target / Path(path).relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
