"""What asks the kernel, in plain Python: the meaning of ``sockets``, ``kernel`` and ``groups``.

See ``_reference.py``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice
from zlib import crc32

__all__ = ["GroupWriter", "note_now", "random_now", "receive_now", "send_now", "send_parts_now"]

_VECTORS = 1024
_PATIENCE = 100


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


def note_now(fd: int, data: bytes, offset: int) -> int:
    return os.pwrite(fd, data, offset)


def random_now(size: int) -> bytes:
    if not 0 < size <= 256:
        raise ValueError("size must be 1 to 256")
    return os.urandom(size)


class GroupWriter:
    def __init__(self) -> None:
        self._posted = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._finished = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._records: list[tuple[list[bytes], list[int], list[bytes], int, int]] = []
        self._job: tuple[int, bytes, int, int] | bool | None = None
        self._busy = False
        self._errors = (0, 0)

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
        if not all(isinstance(piece, bytes) for piece in [*envelopes, *bodies]):
            raise TypeError("envelopes and bodies must be bytes")
        for number in recipients:
            number.to_bytes(4)
        earlier.append((list(envelopes), list(recipients), list(bodies), length, room))
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
        os.eventfd_write(self._posted, 1)

    def result(self) -> tuple[int, int] | None:
        try:
            os.eventfd_read(self._finished)
        except BlockingIOError:
            return None
        self._records = []
        self._busy = False
        return self._errors

    def run(self) -> bool:
        while True:
            os.eventfd_read(self._posted)
            job, self._job = self._job, None
            if not isinstance(job, tuple):
                return bool(job)
            fd, nonce, offset, slot = job
            parts = self._pack(nonce, offset, slot)
            self._errors = _write(fd, parts, offset), 0
            if self._errors == (0, 0):
                self._errors = 0, _sync(fd)
            self.report()

    def report(self) -> None:
        os.eventfd_write(self._finished, 1)

    def _check_idle(self) -> None:
        if self._busy:
            raise RuntimeError("a group is under way")

    def _post(self, job: tuple[int, bytes, int, int] | bool) -> None:
        self._job = job
        self._busy = True
        self._errors = (0, 0)
        os.eventfd_write(self._posted, 1)

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
