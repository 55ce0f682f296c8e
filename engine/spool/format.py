"""The bytes of the spool. Pure: packs and reads them, touches no file.

A segment is two files. ``NNNNNNNN.seg`` holds transactions and is only ever appended to;
``NNNNNNNN.jnl`` holds what became of its messages, so that both go together.

Segment: a header of 4,096 octets (magic, version, number, nonce, the numbers of segments it
replaces, CRC), then records, back to back::

    header    60  magic, version, nonce, own offset, length of the record, slot of the first
                  message in the journal, counts, CRC of the tables and envelopes, CRC of this header
    tables        per body: length and CRC; per message: number of recipients, length of its envelope
    envelopes     msgpack, one after the other
    bodies        as they came
    end        8  CRC of the header again, end mark

Lengths rule everything; no octet that a peer can send has a meaning (reliability D12). A CRC
covers each octet, directly or through the CRC of a CRC, so a record cut or changed anywhere is
recognised (D11), and envelopes can be trusted without reading bodies.

The nonce is random per segment and stands in each record beside the record's own offset. Old
blocks that turn up in a file after a crash, a reused file, or a spool file sent as mail are
therefore never taken for records, also when reading goes on behind a damaged place by searching.

Journal: a header, two *mark* cells, then a *slot* per message, at an offset that the record's
header names. A slot is two cells used in turn, each with a sequence number and a CRC: the newer
valid one counts. A torn write can so lose the newest note but not the one before. Slots are
overwritten in place: a message that is postponed a thousand times needs no more room than one
that is finished at once, and the room is there before the message gets its 250, so a full disk
can still record results (D19).

The mark says up to where the segment was synced and acknowledged. Below it everything must be
valid, damage is damage; above it an invalid end is merely a commit that did not complete.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from zlib import crc32

import msgspec

__all__ = [
    "DATA_START",
    "JOURNAL_START",
    "MAX_RECORD",
    "MAX_SOURCES",
    "RECORD_HEADER",
    "TRAILER",
    "VERSION",
    "Mark",
    "RecordHeader",
    "SegmentHeader",
    "Tables",
    "cell_size",
    "find_record",
    "journal_header",
    "pack_cell",
    "pack_mark",
    "pack_record",
    "parse_journal_header",
    "parse_record_header",
    "parse_segment_header",
    "parse_tables",
    "read_marks",
    "read_slot",
    "record_length",
    "relocate",
    "segment_header",
    "slot_size",
    "trailer",
]

VERSION = 1
DATA_START = 4096
JOURNAL_START = 256
MAX_SOURCES = 500
"""Segments one segment may replace; their numbers must fit its header."""
MAX_RECORD = 0xFFFF_FFFF
"""Octets of one record: 4 GiB, kept in 32 bits in memory."""

_SEGMENT_MAGIC = b"\xf5Posthrn"
_JOURNAL_MAGIC = b"\xf5PhJrnl\n"
_RECORD_MAGIC = b"\xf5PT\n"
_END_MARK = b"\nTP\xf5"

_SEGMENT = struct.Struct("<8sHHIQ8sd")
_JOURNAL = struct.Struct("<8sHHIQ8s")
_RECORD = struct.Struct("<4sHH8sQQQIIII")
_CRC = struct.Struct("<I")
_BODY_ROW = struct.Struct("<QI")
_MESSAGE_ROW = struct.Struct("<II")
_TRAILER = struct.Struct("<I4s")
_MARK = struct.Struct("<QIII")
_CELL = struct.Struct("<IId")
_NARROW = struct.Struct("<IIdI")

RECORD_HEADER = _RECORD.size + _CRC.size
TRAILER = _TRAILER.size
_MARK_OFFSET = 128


class SegmentHeader(msgspec.Struct, frozen=True):
    """`created` is Unix time. `sources`: numbers of the segments this one replaces."""

    version: int
    number: int
    nonce: bytes
    created: float
    sources: tuple[int, ...]


def segment_header(number: int, nonce: bytes, created: float, sources: Sequence[int] = ()) -> bytes:
    """The first `DATA_START` octets of a segment."""
    assert len(sources) <= MAX_SOURCES
    head = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, len(sources), number, nonce, created)
    head += struct.pack(f"<{len(sources)}Q", *sources)
    return (head + _CRC.pack(crc32(head))).ljust(DATA_START, b"\0")


def parse_segment_header(data: bytes) -> SegmentHeader | None:
    """None when damaged or incomplete. Later versions keep this layout of the header."""
    if len(data) < _SEGMENT.size:
        return None
    magic, version, _, count, number, nonce, created = _SEGMENT.unpack_from(data)
    end = _SEGMENT.size + 8 * count
    if magic != _SEGMENT_MAGIC or count > MAX_SOURCES or len(data) < end + 4:
        return None
    if _CRC.unpack_from(data, end)[0] != crc32(data[:end]):
        return None
    sources = struct.unpack_from(f"<{count}Q", data, _SEGMENT.size)
    return SegmentHeader(version, number, nonce, created, sources)


# -- records ---------------------------------------------------------------------------------------


class RecordHeader(msgspec.Struct, gc=False):
    """`length` is the whole record with header and end; `slots` the journal offset of the first slot."""

    offset: int
    length: int
    slots: int
    bodies: int
    messages: int
    envelopes: int
    tables_crc: int
    crc: int

    @property
    def tables_length(self) -> int:
        """Octets of tables and envelopes, which follow the header."""
        return self.bodies * _BODY_ROW.size + self.messages * _MESSAGE_ROW.size + self.envelopes


def _ends(
    nonce: bytes, offset: int, length: int, slots: int, bodies: int, messages: int, envelopes: int, crc: int
) -> tuple[bytes, bytes]:
    """Header and end of a record."""
    head = _RECORD.pack(
        _RECORD_MAGIC, VERSION, 0, nonce, offset, length, slots, bodies, messages, envelopes, crc
    )
    check = _CRC.pack(crc32(head))
    return head + check, check + _END_MARK


def pack_record(
    nonce: bytes,
    offset: int,
    slots: int,
    envelopes: list[bytes],
    recipients: list[int],
    bodies: Sequence[bytes],
    length: int,
) -> tuple[bytes, bytes]:
    """What goes before and behind the bodies of a transaction whose `record_length` is known."""
    rows = [_BODY_ROW.pack(len(body), crc32(body)) for body in bodies]
    octets = 0
    for at, envelope in enumerate(envelopes):
        size = len(envelope)
        octets += size
        rows.append(_MESSAGE_ROW.pack(recipients[at], size))
    rows += envelopes
    tables = b"".join(rows)
    head, end = _ends(nonce, offset, length, slots, len(bodies), len(envelopes), octets, crc32(tables))
    return head + tables, end


def record_length(envelopes: int, messages: int, bodies: int, size: int) -> int:
    """Octets of a record with so many octets of envelopes and bodies."""
    return (
        RECORD_HEADER
        + bodies * _BODY_ROW.size
        + messages * _MESSAGE_ROW.size
        + envelopes
        + size
        + _TRAILER.size
    )


def parse_record_header(data: bytes, at: int, nonce: bytes, offset: int) -> RecordHeader | None:
    """The header at `data[at:]`, which must belong to this segment and this offset; else None."""
    if at + RECORD_HEADER > len(data) or data[at : at + 4] != _RECORD_MAGIC:
        return None
    fields = _RECORD.unpack_from(data, at)
    crc = _CRC.unpack_from(data, at + _RECORD.size)[0]
    if (
        fields[1] != VERSION
        or fields[3] != nonce
        or fields[4] != offset
        or crc != crc32(data[at : at + _RECORD.size])
    ):
        return None
    return RecordHeader(offset, fields[5], fields[6], fields[7], fields[8], fields[9], fields[10], crc)


def find_record(data: bytes, start: int, nonce: bytes, offset: int) -> int:
    """Where in `data` (which begins at segment offset `offset`) a valid header begins, from `start`; -1."""
    while True:
        at = data.find(_RECORD_MAGIC, start)
        if at < 0:
            return -1
        if parse_record_header(data, at, nonce, offset + at) is not None:
            return at
        start = at + 1


class Tables(msgspec.Struct, gc=False):
    """The tables of a record. `envelopes_at` is relative to the record, like `bodies_at`."""

    bodies: list[tuple[int, int]]
    """Length and CRC of each body."""
    messages: list[tuple[int, int]]
    """Number of recipients and length of the envelope of each message."""
    envelopes_at: int
    bodies_at: int


def parse_tables(data: bytes, at: int, header: RecordHeader) -> Tables | None:
    """The tables behind the header at `data[at:]`; None when they are damaged or incomplete."""
    begin = at + RECORD_HEADER
    end = begin + header.tables_length
    if end > len(data) or crc32(data[begin:end]) != header.tables_crc:
        return None
    rows_at = begin + header.bodies * _BODY_ROW.size
    bodies = list(_BODY_ROW.iter_unpack(data[begin:rows_at]))
    envelopes_at = rows_at + header.messages * _MESSAGE_ROW.size
    messages = list(_MESSAGE_ROW.iter_unpack(data[rows_at:envelopes_at]))
    return Tables(bodies, messages, envelopes_at - at, end - at)


def trailer(header: RecordHeader) -> bytes:
    """The last `TRAILER` octets of this record."""
    return _TRAILER.pack(header.crc, _END_MARK)


def relocate(header: RecordHeader, nonce: bytes, offset: int, slots: int) -> tuple[bytes, bytes]:
    """Header and end of the same record in another place; what is between stays as it is."""
    return _ends(
        nonce,
        offset,
        header.length,
        slots,
        header.bodies,
        header.messages,
        header.envelopes,
        header.tables_crc,
    )


# -- journal ---------------------------------------------------------------------------------------


class Mark(msgspec.Struct, frozen=True):
    """Up to where the segment is acknowledged, and whether nothing was to follow."""

    seq: int
    end: int
    sealed: bool


def journal_header(number: int, nonce: bytes) -> bytes:
    """The first `JOURNAL_START` octets of a journal, without marks."""
    head = _JOURNAL.pack(_JOURNAL_MAGIC, VERSION, 0, 0, number, nonce)
    return (head + _CRC.pack(crc32(head))).ljust(JOURNAL_START, b"\0")


def parse_journal_header(data: bytes) -> tuple[int, bytes] | None:
    """Number and nonce; None when damaged, incomplete or newer."""
    if len(data) < _JOURNAL.size + 4:
        return None
    magic, version, _, _, number, nonce = _JOURNAL.unpack_from(data)
    if magic != _JOURNAL_MAGIC or version != VERSION:
        return None
    if _CRC.unpack_from(data, _JOURNAL.size)[0] != crc32(data[: _JOURNAL.size]):
        return None
    return number, nonce


def pack_mark(seed: int, mark: Mark) -> tuple[int, bytes]:
    """Offset in the journal and octets."""
    body = _MARK.pack(mark.end, mark.seq, int(mark.sealed), 0)
    return _MARK_OFFSET + 64 * (mark.seq & 1), body + _CRC.pack(crc32(body, seed))


def read_marks(data: bytes, seed: int) -> Mark:
    """The newest valid mark; all zero when there is none."""
    best = Mark(0, 0, False)
    for at in (_MARK_OFFSET, _MARK_OFFSET + 64):
        body = data[at : at + _MARK.size]
        if len(body) < _MARK.size or at + _MARK.size + 4 > len(data):
            continue
        end, seq, sealed, _ = _MARK.unpack(body)
        if seq > best.seq and _CRC.unpack_from(data, at + _MARK.size)[0] == crc32(body, seed):
            best = Mark(seq, end, bool(sealed))
    return best


def cell_size(recipients: int) -> int:
    """Octets of one cell: sequence number, attempts, due, a bit per recipient, CRC."""
    return 24 if recipients <= 32 else _CELL.size + 4 * ((recipients + 31) >> 5) + 4


def slot_size(recipients: int) -> int:
    """Octets of a slot."""
    return 2 * cell_size(recipients)


def pack_cell(
    seed: int, slot: int, size: int, seq: int, attempts: int, due: float, left: int
) -> tuple[int, bytes]:
    """Offset in the journal and octets of a note about the message whose slot begins at `slot`."""
    if size == 24:
        body = _NARROW.pack(seq, attempts, due, left)
    else:
        body = _CELL.pack(seq, attempts, due) + left.to_bytes(size - _CELL.size - 4, "little")
    return slot + size * (seq & 1), body + crc32(body, seed ^ (slot & 0xFFFF_FFFF)).to_bytes(4, "little")


def read_slot(data: bytes, seed: int, slot: int, recipients: int) -> tuple[int, int, float, int] | None:
    """(seq, attempts, due, left) as last noted; None when nothing (valid) was.

    Damage means: not noted. The message is then tried again, never lost (reliability D31).
    """
    size = cell_size(recipients)
    best: tuple[int, int, float, int] | None = None
    for at in (slot, slot + size):
        end = at + size
        if end > len(data):
            continue
        seq, attempts, due = _CELL.unpack_from(data, at)
        if not seq or (best is not None and seq <= best[0]):
            continue
        body = data[at : end - 4]
        if crc32(body, seed ^ (slot & 0xFFFF_FFFF)) == int.from_bytes(data[end - 4 : end], "little"):
            best = (seq, attempts, due, int.from_bytes(body[_CELL.size :], "little"))
    return best
