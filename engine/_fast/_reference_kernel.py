"""What asks the kernel, in plain Python: the meaning of ``sockets`` and ``groups``.

See ``_reference.py``.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVarTuple, Unpack
from zlib import crc32

__all__ = ["GroupWriter", "events_now", "receive_now", "send_now", "send_parts_now"]

_VECTORS = 1024
_PATIENCE = 100

_Args = TypeVarTuple("_Args")


def receive_now(fd: int, limit: int) -> bytes | None:
    if limit < 1:
        raise ValueError("limit must be at least 1")
    try:
        return os.read(fd, min(limit, 65536))
    except BlockingIOError:
        return None


def send_now(fd: int, data: bytes | bytearray | memoryview) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def send_parts_now(fd: int, parts: list[bytes], index: int, offset: int) -> tuple[int, int]:
    group: list[bytes | memoryview] = list(parts[index : index + 512])
    if not 0 <= index <= len(parts) or offset < 0 or (offset and offset > len(group[0] if group else b"")):
        raise ValueError("there is no such place in the parts")
    if offset and group:
        group[0] = memoryview(group[0])[offset:]
    try:
        sent = os.writev(fd, group) if group else 0
    except BlockingIOError:
        return index, offset
    for at, part in enumerate(group):
        if sent < len(part):
            return index + at, (0 if at else offset) + sent
        sent -= len(part)
    return index + len(group), 0


def events_now(epoll: select.epoll) -> list[tuple[int, int]]:
    return epoll.poll(0, 256)


class GroupWriter:
    def __init__(self) -> None:
        self._posted = self._finished = -1
        self._posted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        try:
            self._finished = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self.close()
            raise
        self._records: list[tuple[list[bytes], list[int], list[bytes], int, int]] = []
        self._job: tuple[int, bytes, int, int] | bool | None = None
        self._busy = False

    def __del__(self) -> None:
        self.close()

    def fileno(self) -> int:
        return self._finished

    def close(self) -> None:
        for fd in (self._posted, self._finished):
            if fd >= 0:
                os.close(fd)
        self._posted = self._finished = -1

    def add(
        self, envelopes: list[bytes], recipients: list[int], bodies: Sequence[bytes], length: int, room: int
    ) -> None:
        self._check_idle()
        earlier, self._records = self._records, []
        if len(recipients) != len(envelopes):
            raise ValueError("recipients has not one number for each envelope")
        bodies = list(bodies)
        if not all(type(piece) is bytes for piece in [*envelopes, *bodies]):
            raise TypeError("envelopes and bodies must be bytes")
        for number in recipients:
            number.to_bytes(4)
        earlier.append((list(envelopes), list(recipients), bodies, length, room))
        self._records = earlier

    def start(self, fd: int, nonce: bytes, offset: int, slot: int) -> None:
        self._check_idle()
        if len(nonce) != 8:
            raise ValueError("a nonce has 8 octets")
        self._post((fd, nonce, offset, slot))

    def call(self) -> None:
        self._check_idle()
        self._post(True)

    def end(self) -> None:
        _repeat(os.eventfd_write, self._posted, 1)

    def result(self) -> bool:
        try:
            _repeat(os.eventfd_read, self._finished)
        except BlockingIOError:
            return False
        self._records = []
        self._busy = False
        return True

    def run(self) -> tuple[int, int] | None:
        while True:
            _repeat(os.eventfd_read, self._posted)
            job, self._job = self._job, None
            if not isinstance(job, tuple):
                return (0, 0) if job else None
            fd, nonce, offset, slot = job
            unwritten = _write(fd, self._pack(nonce, offset, slot), offset)
            unsynced = 0 if unwritten else _sync(fd)
            if unwritten or unsynced:
                return unwritten, unsynced
            self.report()

    def report(self) -> None:
        _repeat(os.eventfd_write, self._finished, 1)

    def _check_idle(self) -> None:
        if self._busy:
            raise RuntimeError("a group is under way")

    def _post(self, job: tuple[int, bytes, int, int] | bool) -> None:
        self._job = job
        self._busy = True
        try:
            _repeat(os.eventfd_write, self._posted, 1)
        except BaseException:
            self._job, self._busy, self._records = None, False, []
            raise

    def _pack(self, nonce: bytes, offset: int, slot: int) -> list[bytes]:
        parts = []
        for envelopes, recipients, bodies, length, room in self._records:
            rows = [struct.pack("<QI", len(body), crc32(body)) for body in bodies]
            rows += [
                struct.pack("<II", count, len(envelope))
                for count, envelope in zip(recipients, envelopes, strict=True)
            ]
            joined = b"".join(envelopes)
            tables = b"".join([*rows, joined])
            counts = (len(bodies), len(envelopes), len(joined), crc32(tables))
            head = struct.pack("<4sHH8sQQQIIII", b"\xf5PT\n", 1, 0, nonce, offset, length, slot, *counts)
            check = struct.pack("<I", crc32(head))
            parts += [head + check + tables, *bodies, check + b"\nTP\xf5"]
            offset += length
            slot += room
        return parts


def _repeat(call: Callable[[int, Unpack[_Args]], object], fd: int, *args: *_Args) -> None:
    """An eventfd's calls are the ones that Python does not begin again after a signal."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    while True:
        try:
            call(fd, *args)
            return
        except InterruptedError:
            continue


def _write(fd: int, parts: list[bytes], offset: int) -> int:
    left: deque[bytes | memoryview] = deque(part for part in parts if part)
    interrupted = 0
    while left:
        try:
            wrote = os.pwritev(fd, list(islice(left, _VECTORS)), offset)
        except OSError as error:
            interrupted += 1
            if error.errno not in (errno.EINTR, errno.EAGAIN) or interrupted > _PATIENCE:
                return error.errno or errno.EIO
            continue
        if not wrote:
            return errno.EIO
        interrupted = 0
        offset += wrote
        while left and wrote >= len(left[0]):
            wrote -= len(left.popleft())
        if wrote:
            left[0] = memoryview(left[0])[wrote:]
    return 0


def _sync(fd: int) -> int:
    for _ in range(_PATIENCE):
        try:
            os.fdatasync(fd)
        except InterruptedError:
            continue
        except OSError as error:
            return error.errno or errno.EIO
        return 0
    return errno.EIO
