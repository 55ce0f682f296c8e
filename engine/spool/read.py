"""Reading one message back, checked.

A record that is small and in the page cache is read on the loop: `preadv` with RWF_NOWAIT answers
at once or says that it would have to wait (3 us instead of 120 us for a thread). Everything else,
and whatever looks wrong, is read by a thread. What is damaged goes to the quarantine there; what
the disk does not give is not damaged and stays, to be asked for again later.
"""

from __future__ import annotations

from zlib import crc32

import msgspec
import trio

from engine.errors import MessageUnreadable, SpoolError
from engine.model import Message

from .files import as_spool_error, read_at
from .format import RECORD_HEADER, TRAILER, parse_record_header, parse_tables, trailer
from .protocol import Handle
from .segment import Segment
from .shelf import Shelf

__all__ = ["Reader"]

_SMALL = 64 << 10
"""Octets of a record that is read on the loop: copying and checking it takes some 30 us."""
_HEAD = 8192
"""Octets a thread reads first: all of a small record, or the tables of a large one."""
_THREADS = 8

_decoder = msgspec.msgpack.Decoder(Message)


class _Bad(Exception):
    """The record was read and is not what was written."""


class Reader:
    """`read` of the contract."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def read(self, handle: Handle) -> tuple[Message, bytes]:
        """See `Spool.read`."""
        shelf = self._shelf
        if not handle.left:
            raise MessageUnreadable("the message is not in the spool any more")
        if shelf.closed:
            raise SpoolError("the spool is closed")
        segment: Segment = handle.place
        ordinal = handle.ordinal
        offset, length = segment.offsets[ordinal], segment.lengths[ordinal]
        index = segment.index(ordinal)
        try:
            with shelf.descriptors.pinned(segment.path) as fd:
                if length <= _SMALL:
                    found = self._read_nowait(segment, fd, offset, length, index)
                    if found is not None:
                        await trio.lowlevel.checkpoint()
                        return found
                return await trio.to_thread.run_sync(
                    self._read_blocking, segment, fd, offset, length, index, limiter=self._limiter
                )
        except _Bad as damage:
            shelf.counters.quarantined += 1
            shelf.finish(handle, handle.left)
            raise MessageUnreadable(str(damage)) from None
        except OSError as error:
            # Not known is not damaged: the message stays as it is, whatever there is of it.
            shelf.fail_reading(error, segment)
            raise as_spool_error(error, "reading mail") from None

    def _read_nowait(
        self, segment: Segment, fd: int, offset: int, length: int, index: int
    ) -> tuple[Message, bytes] | None:
        """From memory; None when it is not there or not right, which is for a thread to find out."""
        data = self._shelf.files.read_cached(fd, length, offset)
        if data is None:
            return None
        try:
            message, at, size, crc, end = _locate(data, segment, offset, length, index)
        except _Bad:
            return None
        body = data[at : at + size]
        if crc32(body) != crc or data[-TRAILER:] != end:
            return None
        return message, body

    def _read_blocking(
        self, segment: Segment, fd: int, offset: int, length: int, index: int
    ) -> tuple[Message, bytes]:
        files, path = self._shelf.files, segment.path
        try:
            data = read_at(files, fd, min(length, _HEAD), offset, path)
            header = parse_record_header(data, 0, segment.nonce, offset)
            if header is not None and header.length == length:
                inner = RECORD_HEADER + header.tables_length
                if len(data) < inner <= length:
                    data = read_at(files, fd, inner, offset, path)
            message, at, size, crc, end = _locate(data, segment, offset, length, index)
            inside = at + size <= len(data)
            body = data[at : at + size] if inside else read_at(files, fd, size, offset + at, path)
            if len(body) != size or crc32(body) != crc:
                raise _Bad("checksum of the body")
            tail = read_at(files, fd, TRAILER, offset + length - TRAILER, path)
            if tail != end:
                raise _Bad("no end")
        except _Bad as bad:
            self._shelf.quarantine.save(fd, path, offset, length, str(bad))
            raise _Bad(f"segment {segment.number} at {offset}: {bad}") from None
        return message, body


def _locate(
    data: bytes, segment: Segment, offset: int, length: int, index: int
) -> tuple[Message, int, int, int, bytes]:
    """The envelope; where in the record its body is, how long, with which CRC; the record's end."""
    header = parse_record_header(data, 0, segment.nonce, offset)
    if header is None or header.length != length:
        raise _Bad("no valid record")
    tables = parse_tables(data, 0, header)
    if tables is None or index >= len(tables.messages):
        raise _Bad("checksum of the envelopes")
    at = tables.envelopes_at + sum(size for _, size in tables.messages[:index])
    try:
        message = _decoder.decode(data[at : at + tables.messages[index][1]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _Bad("an envelope cannot be decoded") from None
    if message.body_index >= len(tables.bodies):
        raise _Bad("an envelope without its body")
    size, crc = tables.bodies[message.body_index]
    at = tables.bodies_at + sum(size for size, _ in tables.bodies[: message.body_index])
    return message, at, size, crc, trailer(header)
