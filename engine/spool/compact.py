"""Moving what is left of some segments into a fresh one, so that their files can go.

Two occasions: a few old messages pin a large file, or a file failed and must not be written to
any more (its acknowledged records are still there; they are checked and copied).

The steps, and what a crash between them leaves:

1. A thread copies the records and notes into ``N.tmp`` and ``N.jnl`` and syncs both and the directory. Its
   header names the segments it replaces. Crash: the ``.tmp`` means nothing, the old segments count.
2. On the loop, without a pause: notes that came during 1 are written again to the new journal, and
   the file is renamed to ``N.seg``; then the handles are told. Crash: whichever name the directory
   shows is the truth, and it has all notes that were handed to the kernel.
3. A thread syncs journal and directory, removes the old segments, syncs the directory, removes
   their journals. Crash: the next start sees that ``N.seg`` replaces them and removes them.

Only then may the new segment itself be removed, or its sources would come back to life.
"""

from __future__ import annotations

import errno
import logging
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from zlib import crc32

import msgspec
import trio

from .files import CREATE, read_at, sync_file, write_at, write_parts
from .format import (
    DATA_START,
    JOURNAL_START,
    MAX_SOURCES,
    RECORD_HEADER,
    TRAILER,
    journal_header,
    pack_cell,
    parse_record_header,
    parse_tables,
    relocate,
    segment_header,
    trailer,
)
from .segment import Segment
from .shelf import JOURNAL_STEP, Shelf

__all__ = ["compact"]

logger = logging.getLogger("posthorn.spool")

_NARROW = 24
_FINISHED_SEQ = 0xFFFF_FFF0
"""Sequence number of "finished" in a copy: above whatever the copied note has."""


class _Move(msgspec.Struct, gc=False):
    """A record that was copied; its messages are `count` ordinals of `source` from `first` on."""

    source: Segment
    first: int
    count: int
    offset: int
    length: int
    slot: int


class _Copy(msgspec.Struct):
    """What the thread made: the open files, what moved and what was damaged."""

    fd: int
    journal: int
    moves: list[_Move]
    lost: list[tuple[Segment, int, int]]


async def compact(
    shelf: Shelf, sources: Sequence[Segment], limiter: trio.CapacityLimiter, prove: bool = False
) -> None:
    """Replace `sources` by one fresh segment. `prove`: read it back from the disk before believing it.

    Raises: OSError; then the sources are as before. Its `filename` is that of a source which the
            disk does not give.
    """
    target = shelf.new_segment()
    temporary = target.path[:-3] + "tmp"
    with ExitStack() as stack:
        descriptors = [stack.enter_context(shelf.descriptors.pinned(source.path)) for source in sources]
        for source in sources:
            source.compacting = True
            source.touched = set()
        try:
            copy = await shelf.in_thread(
                limiter, _copy_blocking, shelf, sources, descriptors, target, temporary, prove
            )
            try:
                _switch(shelf, copy, target, temporary)
            except BaseException:
                shelf.files.close(copy.fd)
                shelf.files.close(copy.journal)
                shelf.discard_blocking(temporary, target.path, target.journal_path)
                raise
        except BaseException:
            for source in sources:
                source.compacting = False
                source.touched = None
                shelf.thinned(source)
            raise
    old = [*sources, *(older for source in sources for older in source.sources)]
    for source in sources:
        shelf.forget(source)
    shelf.counters.compactions += 1
    target.sources = old
    await _remove(shelf, target, limiter)


async def _remove(shelf: Shelf, target: Segment, limiter: trio.CapacityLimiter) -> None:
    """Step 3. When it fails the target becomes suspect, and its own move takes the old files along."""
    with shelf.descriptors.pinned(target.journal_path) as journal:
        try:
            await shelf.in_thread(limiter, _remove_blocking, shelf, journal, target.sources)
        except OSError as error:
            shelf.fail(error, "replacing a segment", target)
            raise
    target.sources = []
    target.pins -= 1
    shelf.thinned(target)


def _remove_blocking(shelf: Shelf, journal: int, old: Sequence[Segment]) -> None:
    files = shelf.files
    sync_file(files, journal)
    files.fsync_directory(shelf.directory)
    for segment in old:
        with suppress(FileNotFoundError):
            files.unlink(segment.path)
    files.fsync_directory(shelf.directory)
    for segment in old:
        with suppress(FileNotFoundError):
            files.unlink(segment.journal_path)


# -- step 1, in a thread ---------------------------------------------------------------------------


def _copy_blocking(
    shelf: Shelf,
    sources: Sequence[Segment],
    descriptors: Sequence[int],
    target: Segment,
    temporary: str,
    prove: bool,
) -> _Copy:
    files = shelf.files
    numbers = [source.number for source in sources]
    numbers += [older.number for source in sources for older in source.sources]
    if len(numbers) > MAX_SOURCES:
        raise OSError(errno.EIO, "too many segments could not be removed")
    for source in sources:
        shelf.rescue_blocking(source)
    header = segment_header(target.number, target.nonce, target.created, numbers)
    fd = journal = -1
    try:
        journal = files.open(target.journal_path, CREATE)
        fd = files.open(temporary, CREATE)
        copy = _Copy(fd, journal, [], [])
        write_at(files, fd, header, 0)
        end, slot = DATA_START, JOURNAL_START
        notes = bytearray()
        for source, source_fd in zip(sources, descriptors, strict=True):
            end, slot = _copy_segment(shelf, source, source_fd, target, copy, end, slot, notes)
        write_at(files, journal, journal_header(target.number, target.nonce), 0)
        write_at(files, journal, bytes(notes), JOURNAL_START)
        target.reserved = max(slot, JOURNAL_STEP)
        files.allocate(journal, 0, target.reserved)
        target.end, target.slots_end = end, slot
        shelf.mark_blocking(target, journal, end, True)
        sync_file(files, fd)
        sync_file(files, journal)
        # The journal's name, before the other file gets the name that counts: a power cut that kept that one
        # alone would leave mail without notes, and all that was finished would be sent again.
        files.fsync_directory(shelf.directory)
        if prove:
            files.forget_cache(fd)
            _check_blocking(shelf, target, copy)
    except BaseException:
        for opened in (fd, journal):
            if opened >= 0:
                files.close(opened)
        shelf.discard_blocking(temporary, target.journal_path)
        raise
    return copy


def _copy_segment(
    shelf: Shelf,
    source: Segment,
    source_fd: int,
    target: Segment,
    copy: _Copy,
    end: int,
    slot: int,
    notes: bytearray,
) -> tuple[int, int]:
    """Copy the records of `source` that have unfinished messages, and note the state of all."""
    for offset, length in source.live_records():
        first = bisect_left(source.offsets, offset)
        data = read_at(shelf.files, source_fd, length, offset, source.path)
        why = _fault_in(data, source, offset, length)
        header = parse_record_header(data, 0, source.nonce, offset)
        if why or header is None:
            count = bisect_left(source.offsets, offset + 1) - first
            shelf.quarantine.save(source_fd, source.path, offset, length, why)
            copy.lost.append((source, first, count))
            continue
        head, tail = relocate(header, target.nonce, end, slot)
        write_parts(shelf.files, copy.fd, [head, memoryview(data)[RECORD_HEADER:-TRAILER], tail], end)
        copy.moves.append(_Move(source, first, header.messages, end, length, slot))
        for ordinal in range(first, first + header.messages):
            size = source.wide.get(ordinal, _NARROW)
            cells = bytearray(2 * size)
            handle = source.handles[ordinal]
            # The loop may change the handle meanwhile; then the ordinal is in `touched`.
            seq, attempts, due, left = (
                (1, 0, 0.0, 0) if handle is None else (handle.seq, handle.attempts, handle.due, handle.left)
            )
            if seq:
                at, cell = pack_cell(target.seed, slot, size, seq, attempts, due, left)
                cells[at - slot : at - slot + size] = cell
            notes += cells
            slot += 2 * size
        end += length
    return end, slot


def _fault_in(data: bytes, segment: Segment, offset: int, length: int) -> str:
    """What is wrong with a whole record; empty when nothing is."""
    header = parse_record_header(data, 0, segment.nonce, offset)
    if header is None or header.length != length or len(data) != length:
        return "no valid record"
    tables = parse_tables(data, 0, header)
    if tables is None:
        return "checksum of the envelopes"
    at = tables.bodies_at
    view = memoryview(data)
    for size, crc in tables.bodies:
        if crc32(view[at : at + size]) != crc:
            return "checksum of the body"
        at += size
    return "" if data[at:] == trailer(header) else "no end"


def _check_blocking(shelf: Shelf, target: Segment, copy: _Copy) -> None:
    for move in copy.moves:
        data = read_at(shelf.files, copy.fd, move.length, move.offset, target.path)
        if _fault_in(data, target, move.offset, move.length):
            raise OSError(5, "what was written does not read back")


# -- step 2, on the loop ---------------------------------------------------------------------------


def _switch(shelf: Shelf, copy: _Copy, target: Segment, temporary: str) -> None:
    """Make the copy the truth. Raises: OSError before anything has changed."""
    files = shelf.files
    for move in copy.moves:
        source, slot = move.source, move.slot
        touched = source.touched or ()
        for ordinal in range(move.first, move.first + move.count):
            size = source.wide.get(ordinal, _NARROW)
            if size != _NARROW:
                target.wide[len(target.handles)] = size
            handle = source.handles[ordinal]
            if ordinal in touched:
                if handle is None:
                    cell = pack_cell(target.seed, slot, size, _FINISHED_SEQ, 0, 0.0, 0)
                else:
                    handle.seq += 1
                    cell = pack_cell(
                        target.seed, slot, size, handle.seq, handle.attempts, handle.due, handle.left
                    )
                write_at(files, copy.journal, cell[1], cell[0])
            target.handles.append(handle)
            target.offsets.append(move.offset)
            target.lengths.append(move.length)
            target.slots.append(slot)
            slot += 2 * size
    files.rename(temporary, target.path)
    target.sealed = True
    target.pins = 1
    for ordinal, handle in enumerate(target.handles):
        if handle is not None:
            handle.place = target
            handle.ordinal = ordinal
            target.live += 1
    target.watch = target.live // 4
    shelf.put_up(target, copy.fd, copy.journal)
    for source, first, count in copy.lost:
        for handle in source.handles[first : first + count]:
            if handle is not None:
                handle.left = 0
                shelf.counters.messages -= 1
                shelf.counters.quarantined += 1
    logger.info(
        "%d messages of %d segments moved to segment %d",
        target.live,
        len({move.source.number for move in copy.moves}),
        target.number,
    )
