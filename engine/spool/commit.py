"""Group commit: many transactions share one sync (reliability D8).

Callers put their transaction into a line and park. One task, the committer, takes what waits,
has a thread write it and sync, and wakes the callers; while the disk works the next group
gathers. A caller is released only by a sync that began after all its octets were with the kernel,
because a group is closed before its write begins.

A caller costs one parked task and no event: the committer reschedules it directly.

When a write or a sync fails the whole group fails, and the segment is cut back and written no
more: after a failed sync the kernel may have dropped the pages and report success next time
(D20). `upkeep` repairs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
import outcome
import trio

from engine.errors import SpoolError
from engine.model import Message

from .files import as_spool_error, is_full, sync_file, write_parts
from .format import DATA_START, MAX_RECORD, pack_record, record_length, slot_size
from .protocol import Handle
from .segment import Segment
from .shelf import Shelf

__all__ = ["Committer"]

_GROUP = 16 << 20
"""Octets in one group; beyond it the next one takes over, so no caller waits for a huge sync. A guess."""

_encoder = msgspec.msgpack.Encoder()


class _Waiting:
    """A transaction in the line, and the task that waits for it."""

    __slots__ = (
        "abandoned",
        "bodies",
        "committer",
        "envelopes",
        "ids",
        "length",
        "offset",
        "recipients",
        "room",
        "slot",
        "taken",
        "task",
    )

    def __init__(
        self,
        committer: Committer,
        bodies: Sequence[bytes],
        envelopes: list[bytes],
        recipients: list[int],
        ids: list[bytes],
        length: int,
        room: int,
    ) -> None:
        self.committer = committer
        self.bodies = bodies
        self.envelopes = envelopes
        self.recipients = recipients
        self.ids = ids
        self.length = length
        self.room = room
        self.offset = 0
        self.slot = 0
        self.taken = False
        self.abandoned = False
        self.task = trio.lowlevel.current_task()

    def abort(self, _: Any) -> trio.lowlevel.Abort:
        """The caller is cancelled. It never has to wait for a disk that hangs."""
        self.abandoned = True
        if not self.taken:
            self.committer.leave(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Committer:
    """Owns the active segment. `run` is its task."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._line: deque[_Waiting] = deque()
        self._bed = trio.lowlevel.ParkingLot()
        self._limiter = trio.CapacityLimiter(1)
        self._closing = False
        # Identifiers seen lately. Only a fault of the caller can repeat one; nothing is keyed by
        # them, so an older repetition would do no harm: both messages would be kept.
        self._recent: set[bytes] = set()
        self._before: set[bytes] = set()

    @property
    def waiting(self) -> int:
        """Transactions in the line."""
        return len(self._line)

    async def commit(self, bodies: Sequence[bytes], messages: Sequence[Message]) -> list[Handle]:
        """See `Spool.commit`."""
        if self._closing:
            raise SpoolError("the spool is closed")
        if self._shelf.fault is not None:
            raise self._shelf.fault.as_error()
        waiting = self._prepare(bodies, messages)
        self._line.append(waiting)
        self._bed.unpark()
        handles: list[Handle] = await trio.lowlevel.wait_task_rescheduled(waiting.abort)
        return handles

    def _prepare(self, bodies: Sequence[bytes], messages: Sequence[Message]) -> _Waiting:
        """Encode and check here, so that a transaction that cannot be written fails alone."""
        envelopes = []
        recipients = []
        ids = []
        size = room = 0
        for message in messages:
            count = len(message.recipients)
            if not count or not 0 <= message.body_index < len(bodies):
                raise SpoolError("a message needs a recipient and a body")
            try:
                envelope = _encoder.encode(message)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                # The text of the error may quote the value; only its kind is told (K7).
                raise SpoolError(f"a message cannot be written down ({type(error).__name__})") from None
            envelopes.append(envelope)
            recipients.append(count)
            size += len(envelope)
            room += slot_size(count)
            ids.append(message.id)
        total = sum(map(len, bodies))
        length = record_length(size, len(envelopes), len(bodies), total)
        if not envelopes or length > MAX_RECORD:
            raise SpoolError("a transaction has at least one message and at most 4 GiB")
        recent = self._recent
        for at, name in enumerate(ids):
            if name in recent or name in self._before:
                recent.difference_update(ids[:at])
                raise SpoolError(f"message {name.hex()} was committed already")
            recent.add(name)
        return _Waiting(self, bodies, envelopes, recipients, ids, length, room)

    def leave(self, waiting: _Waiting) -> None:
        """It is no longer wanted and nothing of it was written."""
        self._line.remove(waiting)
        self._unlearn(waiting)

    def _unlearn(self, waiting: _Waiting) -> None:
        self._recent.difference_update(waiting.ids)
        self._before.difference_update(waiting.ids)

    # -- the task --------------------------------------------------------------------------------

    def close(self) -> None:
        """End the task when the group under way is written; whoever still waits fails."""
        self._closing = True
        self._bed.unpark()

    async def run(self) -> None:
        """Write groups until closed. A checkpoint per group, and all of its waiting in between."""
        shelf = self._shelf
        try:
            while True:
                if self._closing:
                    return
                if not self._line:
                    await self._bed.park()
                    continue
                if shelf.fault is not None:
                    # Nobody waits for the repair, which may take long.
                    self._refuse(shelf.fault.as_error())
                    continue
                async with shelf.turn:
                    if shelf.fault is None and self._line:
                        await self._group()
        finally:
            self._closing = True
            self._refuse(SpoolError("the spool is closed"))

    def _refuse(self, error: SpoolError) -> None:
        while self._line:
            self._fail(self._line.popleft(), error)

    def _fail(self, waiting: _Waiting, error: SpoolError) -> None:
        self._unlearn(waiting)
        if not waiting.abandoned:
            trio.lowlevel.reschedule(waiting.task, outcome.Error(type(error)(*error.args)))

    async def _group(self) -> None:
        shelf = self._shelf
        group = self._take()
        segment = shelf.active
        try:
            if segment is None or segment.suspect or segment.end + group[0].length > shelf.segment_size:
                segment = await self.rotate()
            with ExitStack() as stack:
                fd = stack.enter_context(shelf.descriptors.pinned(segment.path))
                journal = stack.enter_context(shelf.descriptors.pinned(segment.journal_path))
                end, slots = await shelf.in_thread(
                    self._limiter, self._write_blocking, segment, fd, journal, group
                )
        except _SyncFailed as failed:
            assert segment is not None
            self._group_failed(group, failed.error, segment, condemn=True)
        except OSError as error:
            self._group_failed(group, error, segment, condemn=False)
        except MemoryError:
            self._group_failed(group, OSError(errno.ENOMEM, "out of memory"), segment, condemn=True)
        else:
            self._landed(group, segment, end, slots)
            try:
                # Only a hint for the next start, so it needs no sync and may come after.
                shelf.mark_blocking(segment, shelf.descriptors.get(segment.journal_path).fd, end, False)
            except OSError as error:
                shelf.fail(error, "marking a segment", segment)

    def _take(self) -> list[_Waiting]:
        """The next group: from the head of the line, never more than fits one segment."""
        shelf, line = self._shelf, self._line
        active = shelf.active
        first = line.popleft()
        first.taken = True
        room = shelf.segment_size - (active.end if active is not None else DATA_START)
        if first.length > room:
            room = shelf.segment_size - DATA_START
        room = min(room, _GROUP) - first.length
        group = [first]
        while line and line[0].length <= room:
            following = line.popleft()
            following.taken = True
            room -= following.length
            group.append(following)
        return group

    def _landed(self, group: list[_Waiting], segment: Segment, end: int, slots: int) -> None:
        counters = self._shelf.counters
        segment.end = end
        segment.slots_end = slots
        counters.batches += 1
        for waiting in group:
            handles = segment.add(waiting.offset, waiting.length, waiting.slot, waiting.recipients)
            counters.messages += len(handles)
            counters.committed += len(handles)
            if waiting.abandoned:
                counters.abandoned += 1
                for handle in handles:
                    self._shelf.finish(handle, handle.left)
            else:
                trio.lowlevel.reschedule(waiting.task, outcome.Value(handles))

    def _group_failed(
        self, group: list[_Waiting], error: OSError, segment: Segment | None, condemn: bool
    ) -> None:
        shelf = self._shelf
        shelf.fail(error, "writing mail", segment if condemn else None)
        active = shelf.active
        if active is not None:
            shelf.seal(active)
        for waiting in group:
            self._fail(waiting, as_spool_error(error, "writing mail"))

    async def rotate(self, prove: bool = False) -> Segment:
        """Seal the active segment and begin a new one. Call it with `turn` held. Raises: OSError."""
        shelf = self._shelf
        old = shelf.active
        if old is not None:
            shelf.seal(old)
            with suppress(OSError):
                journal = shelf.descriptors.get(old.journal_path).fd
                shelf.mark_blocking(old, journal, old.end, True)
                shelf.soil(old)
        self._before, self._recent = self._recent, set()
        segment = shelf.new_segment()
        spare = shelf.spares.pop() if shelf.spares else None
        fd, journal = await shelf.in_thread(self._limiter, shelf.create_blocking, segment, spare, prove)
        shelf.put_up(segment, fd, journal)
        shelf.active = segment
        return segment

    # -- in the thread ---------------------------------------------------------------------------

    def _write_blocking(
        self, segment: Segment, fd: int, journal: int, group: list[_Waiting]
    ) -> tuple[int, int]:
        """Write and sync a group; where the next record and the next slot go.

        Raises: OSError when there was no room and the file is as before; _SyncFailed when the file
                must not be believed any more.
        """
        shelf = self._shelf
        nonce = segment.nonce
        begin = offset = segment.end
        slot = segment.slots_end
        parts: list[bytes] = []
        for waiting in group:
            head, tail = pack_record(
                nonce, offset, slot, waiting.envelopes, waiting.recipients, waiting.bodies
            )
            parts.append(head)
            parts.extend(waiting.bodies)
            parts.append(tail)
            waiting.offset = offset
            waiting.slot = slot
            offset += waiting.length
            slot += waiting.room
        if slot > segment.reserved:
            shelf.reserve_blocking(segment, journal, slot)
        try:
            write_parts(shelf.files, fd, parts, begin)
        except OSError as error:
            # Nothing was synced yet, so cutting the file leaves it as it was, if that works.
            try:
                shelf.files.truncate(fd, begin)
                sync_file(shelf.files, fd)
            except OSError:
                raise _SyncFailed(error) from None
            if not is_full(error):
                raise _SyncFailed(error) from None
            raise
        try:
            sync_file(shelf.files, fd)
        except OSError as error:
            with suppress(OSError):
                shelf.files.truncate(fd, begin)
            raise _SyncFailed(error) from None
        return offset, slot


class _SyncFailed(Exception):
    """The segment was written to and its content is uncertain from its old end on."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error
