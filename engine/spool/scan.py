"""Reading a segment at the start: envelopes only, as far as they can be trusted.

Below the mark (see `format`) everything was acknowledged: what is invalid there is damage, goes to
the quarantine and reading goes on at the next valid record. Above it a record counts only if all
of it is there and right; otherwise its commit did not complete and nobody was promised anything
(reliability D27), so it is passed over.
"""

from __future__ import annotations

import logging
from zlib import crc32

import msgspec

from engine.model import Message

from .files import READ_WRITE, Files, read_at
from .format import (
    DATA_START,
    RECORD_HEADER,
    TRAILER,
    RecordHeader,
    Tables,
    find_record,
    parse_record_header,
    parse_tables,
    read_slot,
    slot_size,
    trailer,
)
from .quarantine import Quarantine
from .segment import Segment

__all__ = ["Found", "Scanner"]

logger = logging.getLogger("posthorn.spool")

_WIDE = 256 << 10
_NARROW = 16 << 10
"""Octets read at a time: many small records at once, or only the head of a large one."""
_SEARCH = 1 << 20

_UNKNOWN = "an envelope cannot be decoded"

_decoder = msgspec.msgpack.Decoder(Message)

State = tuple[int, int, float, int]


class Found(msgspec.Struct, gc=False):
    """A message in a record that has unfinished messages. `message` is None for a finished one."""

    offset: int
    length: int
    slot: int
    recipients: int
    state: State | None
    message: Message | None
    duplicate: bool


class Scanner:
    """Reads one segment from front to back. For threads, one call at a time.

    `seen` holds the identifiers of all unfinished messages found so far, in all segments.
    """

    def __init__(self, files: Files, quarantine: Quarantine, segment: Segment, seen: set[bytes]) -> None:
        self._files = files
        self._quarantine = quarantine
        self._segment = segment
        self._seen = seen
        self._fd = -1
        self._notes = b""
        self._offset = DATA_START
        self._limit = segment.end
        self._window = b""
        self._base = 0
        self._step = _WIDE
        self._end_of_records = DATA_START
        self._found: list[Found] = []
        self.done = False
        self.weight = 0
        """Octets of the records that have unfinished messages."""
        self.quarantined = 0
        self.torn = 0

    def open(self) -> None:
        """Raises: OSError."""
        segment, files = self._segment, self._files
        journal = files.open(segment.journal_path, READ_WRITE)
        try:
            self._notes = read_at(files, journal, files.size(journal), 0, segment.journal_path)
        finally:
            files.close(journal)
        self._fd = files.open(segment.path, READ_WRITE)
        if segment.mark.sealed:
            self._limit = min(self._limit, segment.mark.end)

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def read(self, limit: int) -> list[Found]:
        """The next messages, about `limit`; `done` is set behind the last one.

        Raises: OSError when the disk does not give the octets: that is no damage, nothing was passed
                over, and the next call begins where this one stopped.
        """
        found = self._found
        while len(found) < limit:
            if self._offset >= self._limit:
                self._end()
                break
            offset = self._offset
            header, tables, why = self._record(offset)
            if header is None:
                self._skip(offset, self._resync(offset + 1), why)
            elif tables is None or not self._take(header, tables, found):
                self._skip(offset, offset + header.length, why or _UNKNOWN)
            else:
                self._offset = self._end_of_records = offset + header.length
                self._step = _WIDE if header.length < _WIDE // 4 else _NARROW
        self._found = []
        return found

    def _end(self) -> None:
        self.done = True
        segment = self._segment
        if segment.mark.end > segment.end:
            missing = segment.mark.end - segment.end
            logger.error("segment %d: its last %d octets are missing", segment.number, missing)
        segment.end = self._end_of_records

    def _data(self, offset: int, size: int) -> tuple[bytes, int]:
        """Octets that hold `size` octets from `offset` on (fewer at the end), and where they begin."""
        at = offset - self._base
        if at < 0 or at + size > len(self._window):
            self._window = self._octets(max(size, self._step), offset)
            self._base = offset
            at = 0
        return self._window, at

    def _octets(self, size: int, offset: int) -> bytes:
        return read_at(self._files, self._fd, size, offset, self._segment.path)

    def _record(self, offset: int) -> tuple[RecordHeader | None, Tables | None, str]:
        data, at = self._data(offset, RECORD_HEADER)
        header = parse_record_header(data, at, self._segment.nonce, offset)
        if header is None:
            return None, None, "no valid record"
        inner = RECORD_HEADER + header.tables_length
        if offset + header.length > self._limit or inner + TRAILER > header.length:
            return None, None, "a record longer than the file"
        data, at = self._data(offset, inner)
        tables = parse_tables(data, at, header)
        if tables is None:
            return header, None, "checksum of the envelopes"
        if offset >= self._segment.mark.end and not self._complete(header, tables):
            return header, None, "incomplete"
        return header, tables, ""

    def _complete(self, header: RecordHeader, tables: Tables) -> bool:
        """Whether all bodies and the end of a record above the mark are right."""
        begin = header.offset + tables.bodies_at
        size = header.length - tables.bodies_at
        data, at = self._data(begin, size)
        for length, crc in tables.bodies:
            if at + length > len(data) or crc32(data[at : at + length]) != crc:
                return False
            at += length
        return data[at : at + TRAILER] == trailer(header)

    def _take(self, header: RecordHeader, tables: Tables, found: list[Found]) -> bool:
        """Add the record's messages if one is unfinished; False when an envelope makes no sense."""
        notes, seed = self._notes, self._segment.seed
        slot = header.slots
        states: list[tuple[int, State | None]] = []
        wanted = False
        for recipients, _ in tables.messages:
            state = read_slot(notes, seed, slot, recipients)
            states.append((slot, state))
            wanted = wanted or state is None or state[3] != 0
            slot += slot_size(recipients)
        if not wanted:
            return True
        data, at = self._data(header.offset, tables.bodies_at)
        at += tables.envelopes_at
        batch = []
        for (recipients, size), (slot, state) in zip(tables.messages, states, strict=True):
            message = None
            duplicate = False
            if state is None or state[3]:
                try:
                    message = _decoder.decode(data[at : at + size])
                except (msgspec.DecodeError, UnicodeDecodeError):
                    return False
                message.prefix = b""
                duplicate = message.id in self._seen
                self._seen.add(message.id)
            batch.append(Found(header.offset, header.length, slot, recipients, state, message, duplicate))
            at += size
        found.extend(batch)
        self.weight += header.length
        return True

    def _resync(self, start: int) -> int:
        """Where the next valid record begins; the end of the file when there is none."""
        nonce = self._segment.nonce
        while start < self._limit:
            size = min(_SEARCH + RECORD_HEADER, self._limit - start)
            data = self._octets(size, start)
            at = find_record(data, 0, nonce, start)
            if at >= 0:
                return start + at
            start += _SEARCH
        return self._limit

    def _skip(self, begin: int, end: int, why: str) -> None:
        """Pass over what is not valid: damage below the mark, an unfinished commit above it."""
        segment = self._segment
        mark = segment.mark.end
        if begin >= mark and why != _UNKNOWN:
            data, at = self._data(begin, RECORD_HEADER)
            if data[at + 8 : at + 16] == segment.nonce:
                self.torn += 1
                logger.info("segment %d: an incomplete commit at %d is dropped", segment.number, begin)
            self._offset = end
            return
        stop = min(end, mark) if begin < mark else end
        try:
            self.quarantined += self._quarantine.save(self._fd, segment.path, begin, stop - begin, why)
        except OSError as error:
            segment.unsaved.append((begin, stop - begin, why))
            logger.error(
                "segment %d: damage at %d, which could not be copied yet: %s", segment.number, begin, error
            )
        self._offset = end
