"""What the parts of the durable spool share: the segments, the open files, the state of the disk.

The committer adds messages, the upkeep moves and removes segments, and the owners of handles
report results; all of them meet here, in the loop's thread.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from engine.errors import SpoolError, SpoolFull

from .files import (
    CREATE,
    READ_WRITE,
    Descriptors,
    Files,
    as_spool_error,
    is_full,
    is_shortage,
    sync_file,
    write_at,
)
from .format import JOURNAL_START, Mark, journal_header, pack_mark, segment_header
from .protocol import Handle
from .quarantine import Quarantine
from .segment import Segment

__all__ = ["JOURNAL_STEP", "SPARSE", "Counters", "Fault", "Shelf"]

logger = logging.getLogger("posthorn.spool")

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

JOURNAL_STEP = 128 << 10
"""Octets by which a journal grows: room for 2,700 messages (a guess)."""
SPARSE = 4
"""A sealed segment with fewer than one in so many messages left may be compacted (a guess)."""
_EXCUSE = 600.0
"""Seconds in which a segment that cannot be read makes the spool unhealthy once. A guess."""


class Fault:
    """Why nothing can be committed: the disk failed (`full` False) or has no room. `halts`: results
    cannot be recorded either."""

    __slots__ = ("full", "halts", "text")

    def __init__(self, text: str, full: bool, halts: bool) -> None:
        self.text = text
        self.full = full
        self.halts = halts

    def as_error(self) -> SpoolError:
        return SpoolFull(self.text) if self.full else SpoolError(self.text)


class Counters:
    """See `SpoolStatistics`."""

    def __init__(self) -> None:
        self.messages = 0
        self.committed = 0
        self.batches = 0
        self.recovered = 0
        self.quarantined = 0
        self.torn = 0
        self.duplicates = 0
        self.abandoned = 0
        self.compactions = 0
        self.failures = 0


class Shelf:
    """The segments of one spool directory. Methods named `..._blocking` are for threads."""

    def __init__(self, path: str, files: Files, segment_size: int, spare_limit: int) -> None:
        self.path = path
        self.directory = f"{path}/segments"
        self.files = files
        self.segment_size = segment_size
        self.spare_limit = spare_limit
        self.descriptors = Descriptors(files)
        self.quarantine = Quarantine(files, f"{path}/quarantine")
        self.segments: dict[int, Segment] = {}
        self.spares: list[str] = []
        self.next_number = 1
        self.active: Segment | None = None
        self.fault: Fault | None = None
        self.convalescents = trio.lowlevel.ParkingLot()
        """Who waits for the end of `halted`."""
        self.closed = False
        self.abandoned = False
        self.counters = Counters()
        self.dirty: list[Segment] = []
        """Segments whose journal has notes that are not synced."""
        self.finished: list[Segment] = []
        """Sealed segments of which nothing is left."""
        self.sparse: list[Segment] = []
        """Sealed segments of which little is left."""
        self.litter: list[str] = []
        """Files of segments that were never finished and could not be removed."""
        self._sweeping = threading.Lock()
        self.wake_sync: Callable[[], object] = _nobody
        self.wake_upkeep: Callable[[], None] = _nobody

    async def in_thread(
        self, limiter: trio.CapacityLimiter, function: Callable[[Unpack[_Args]], _T], *args: *_Args
    ) -> _T:
        """Let a thread wait for the disk. The tasks of the spool are shielded, so a thread is left
        behind only when closing takes too long; `abandoned` then keeps its files open."""
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            self.abandoned = True
            raise

    # -- results ---------------------------------------------------------------------------------

    def finish(self, handle: Handle, recipients: int) -> None:
        before = handle.left
        left = before & ~recipients
        if left == before:
            return
        if self.closed:
            raise SpoolError("the spool is closed")
        handle.left = left
        segment: Segment = handle.place
        self.note(segment, handle)
        if not left:
            segment.drop(handle)
            self.counters.messages -= 1
            if segment.sealed:
                self.thinned(segment)

    def note(self, segment: Segment, handle: Handle) -> None:
        """Give the state of a message to the kernel. A failure condemns the segment, see `fail`."""
        position, cell = segment.note(handle)
        try:
            fd = self.descriptors.get(segment.journal_path).fd
            try:
                count = self.files.pwrite(fd, cell, position)
            except (InterruptedError, BlockingIOError):
                count = 0
            if count != len(cell):
                write_at(self.files, fd, cell, position)
        except OSError as error:
            self.fail(error, "writing a result", segment, halts=True)
        if segment.touched is not None:
            segment.touched.add(handle.ordinal)
        self.soil(segment)

    def soil(self, segment: Segment) -> None:
        """The journal needs a sync."""
        if not segment.dirty:
            segment.dirty = True
            self.dirty.append(segment)
            if len(self.dirty) == 1:
                self.wake_sync()

    def clean(self, segment: Segment) -> None:
        """The journal needs no sync any more."""
        if segment.dirty:
            self.dirty.remove(segment)
            segment.dirty = False

    def thinned(self, segment: Segment) -> None:
        """A sealed segment has lost messages: is it time to remove or to compact it?"""
        if not segment.live:
            if segment.finished:
                self.finished.append(segment)
                self.wake_upkeep()
        elif segment.live <= segment.watch:
            segment.watch = -1
            self.sparse.append(segment)
            self.wake_upkeep()

    # -- trouble ---------------------------------------------------------------------------------

    def fail(self, error: OSError, what: str, segment: Segment | None = None, halts: bool = False) -> None:
        """A write or sync went wrong. From now on nothing is committed until the upkeep has proved
        a fresh segment and moved what the condemned one holds (reliability D20, D21). Space or
        descriptors that ran out do not halt deliveries, unless it was a result that could not be
        written."""
        self.counters.failures += 1
        if segment is not None:
            segment.suspect = True
        full = is_full(error)
        halts = halts or not is_shortage(error)
        fault = self.fault
        if fault is None or (halts and not fault.halts) or (fault.full and not full):
            kind = "no space" if full else "out of resources" if is_shortage(error) else "I/O error"
            text = f"{kind}: {as_spool_error(error, what)}"
            self.fault = Fault(text, full, halts or (fault is not None and fault.halts))
            logger.error("spool %s: %s; no mail is accepted until it works again", self.path, text)
        self.wake_upkeep()

    def get_well(self) -> None:
        """The disk was proved to work; nothing is left that cannot be recorded."""
        self.fault = None
        self.convalescents.unpark_all()

    def close(self) -> None:
        """Nothing is taken any more."""
        self.closed = True
        self.convalescents.unpark_all()

    @property
    def halted(self) -> str | None:
        """See `Spool.halted`."""
        if self.closed:
            return "the spool is closed"
        fault = self.fault
        return fault.text if fault is not None and fault.halts else None

    def fail_reading(self, error: OSError, segment: Segment) -> None:
        """The disk does not give what lies in this segment, which stays as it is. The spool is not
        well until a fresh file was written and read back; after that a bad place does not
        condemn a good disk again and again."""
        now = time.monotonic()
        if is_shortage(error) or now < segment.excused:
            self.counters.failures += 1
            return
        segment.excused = now + _EXCUSE
        self.fail(error, "reading mail")

    def rescue_blocking(self, segment: Segment) -> None:
        """Copy to the quarantine what the start could not copy; before the files go. Raises: OSError."""
        if segment.unsaved:
            fd = self.files.open(segment.path, READ_WRITE)
            try:
                while segment.unsaved:
                    offset, length, why = segment.unsaved[-1]
                    self.quarantine.save(fd, segment.path, offset, length, why)
                    segment.unsaved.pop()
            finally:
                self.files.close(fd)

    # -- segments --------------------------------------------------------------------------------

    def seal(self, segment: Segment) -> None:
        """Nothing more is written to it."""
        segment.sealed = True
        segment.watch = len(segment.handles) // SPARSE
        if self.active is segment:
            self.active = None
        self.thinned(segment)

    def put_up(self, segment: Segment, fd: int, journal: int) -> None:
        """Take a segment in that a thread has made."""
        self.segments[segment.number] = segment
        self.descriptors.put(segment.path, fd)
        self.descriptors.put(segment.journal_path, journal)

    def forget(self, segment: Segment) -> None:
        """Its files are gone or about to go."""
        self.segments.pop(segment.number, None)
        self.clean(segment)
        self.descriptors.forget(segment.path)
        self.descriptors.forget(segment.journal_path)
        segment.handles = []

    def new_segment(self) -> Segment:
        """A number and a nonce that were never used; no files yet."""
        number = self.next_number
        self.next_number += 1
        return Segment(self.directory, number, os.urandom(8), time.time())

    def create_blocking(self, segment: Segment, spare: str | None, prove: bool = False) -> tuple[int, int]:
        """Make the files of an empty segment; its two descriptors. Raises: OSError, nothing is left then.

        The journal comes first: at no moment is there a segment whose notes could be missed. A
        spare's old records carry another nonce and mean nothing here.
        """
        files = self.files
        header = segment_header(segment.number, segment.nonce, segment.created)
        journal = files.open(segment.journal_path, CREATE)
        made = [segment.journal_path, *([spare] if spare else [])]
        fd = -1
        try:
            write_at(files, journal, journal_header(segment.number, segment.nonce), 0)
            self.reserve_blocking(segment, journal, JOURNAL_STEP)
            if spare is not None:
                with suppress(FileNotFoundError):
                    fd = files.open(spare, READ_WRITE)
            if fd < 0:
                fd = files.open(segment.path, CREATE)
                made.append(segment.path)
                write_at(files, fd, header, 0)
                sync_file(files, fd)
            else:
                write_at(files, fd, header, 0)
                sync_file(files, fd)
                if os.path.lexists(segment.path):  # somebody put it there; a rename would not ask
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), segment.path)
                files.rename(spare or "", segment.path)
                made.append(segment.path)
            sync_file(files, journal)
            files.fsync_directory(self.directory)
            if prove:
                self._prove_blocking(fd, header)
        except BaseException:
            if fd >= 0:
                files.close(fd)
            files.close(journal)
            self.discard_blocking(*made)
            raise
        return fd, journal

    def discard_blocking(self, *paths: str) -> None:
        """Remove files that mean nothing; later, when it cannot be done now."""
        with self._sweeping:
            self.litter.extend(paths)
        with suppress(OSError):
            self.sweep_blocking()

    def sweep_blocking(self) -> None:
        """Remove what could not be removed when it was discarded. Raises: OSError."""
        with self._sweeping:
            while self.litter:
                with suppress(FileNotFoundError):
                    self.files.unlink(self.litter[0])
                self.litter.pop(0)

    def _prove_blocking(self, fd: int, header: bytes) -> None:
        """Read back from the disk, not from memory, what was written."""
        self.files.forget_cache(fd)
        if self.files.pread(fd, len(header), 0) != header:
            raise OSError(5, "what was written does not read back")

    def reserve_blocking(self, segment: Segment, journal: int, needed: int) -> None:
        """Room in the journal for notes up to offset `needed`."""
        if needed > segment.reserved:
            size = (needed + JOURNAL_STEP - 1) // JOURNAL_STEP * JOURNAL_STEP
            self.files.allocate(journal, 0, max(size, JOURNAL_START))
            segment.reserved = size

    def mark_blocking(self, segment: Segment, journal: int, end: int, sealed: bool) -> None:
        """Note up to where the segment is acknowledged."""
        mark = Mark(segment.mark.seq + 1, end, sealed)
        position, cell = pack_mark(segment.seed, mark)
        write_at(self.files, journal, cell, position)
        segment.mark = mark


def _nobody() -> None:
    """Nobody to wake yet."""
