"""Group commit: many transactions share one sync (reliability D8).

Callers put their transaction into a line and park. A group is closed, a thread writes it and
syncs, and the callers are woken; while the disk works the next group gathers. A caller is released
only by a sync that began after all its octets were with the kernel, because a group is closed
before its write begins.

When is a group closed? Each costs a sync and two wake-ups, however many share it, so on a busy loop
a group of one would be dear and on an idle one waiting for company would be slow. Hence: when the
loop is about to go to sleep, because then nobody who could join is running; at the latest `_GATHER`
after its first member came. Trio tells us when it is about to sleep (`Instrument.before_io_wait`).

The thread is one for the life of the spool and reports through an eventfd: half the cost of a
`to_thread` call per group (bench/results). An ordinary group is written without the interpreter's
lock (`GroupWriter`), because a thread that wants the lock makes each system call of the loop dear; a
group that needs more than a write and a sync, or failed at them, is called for in Python, and so is
all that a test's `Files` should see. A caller costs one parked task and no event: it is rescheduled
directly.

When a write or a sync fails the whole group fails, and the segment is cut back and written no
more: after a failed sync the kernel may have dropped the pages and report success next time
(D20). `upkeep` repairs.
"""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn, cast

import msgspec
import outcome
import trio

from engine._fast import GroupWriter
from engine.errors import SpoolError
from engine.model import Message

from .files import Files, OpenFile, as_spool_error, is_full, sync_file, write_parts
from .format import DATA_START, MAX_RECORD, pack_record, record_length, slot_size
from .protocol import Handle
from .segment import Segment
from .shelf import Shelf

__all__ = ["Committer"]

_GATHER = 0.002
"""Seconds a group may wait for company while the loop is busy. Measured, see bench/results."""
_ENOUGH = 64
"""So many transactions share a sync well enough; no need to wait for more."""
_GROUP = 16 << 20
"""Octets in one group; beyond it the next one takes over, so no caller waits for a huge sync. A guess."""

_encode = msgspec.msgpack.Encoder().encode


class _Waiting:
    """A transaction in the line, and the task that waits for it."""

    __slots__ = (
        "abandoned",
        "bodies",
        "committer",
        "deadline",
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
        deadline: float | None,
    ) -> None:
        self.committer = committer
        self.deadline = deadline
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
        """Nobody waits for it any more: the caller left, or was answered."""
        self.task = trio.lowlevel.current_task()

    def abort(self, _: Any) -> trio.lowlevel.Abort:
        """The caller is cancelled. It never has to wait for a disk that hangs, unless it asked to."""
        if self.deadline is not None or self.abandoned:  # it was answered before it came to rest
            return trio.lowlevel.Abort.FAILED
        self.abandoned = True
        if not self.taken:
            self.committer.leave(self)
        return trio.lowlevel.Abort.SUCCEEDED


class _Group:
    """Work for the thread, and what became of it."""

    __slots__ = (
        "condemn",
        "crash",
        "end",
        "error",
        "fd",
        "files",
        "journal",
        "members",
        "new",
        "segment",
        "shelf",
        "slots_end",
        "spare",
    )

    def __init__(self, shelf: Shelf, members: list[_Waiting], segment: Segment, spare: str | None) -> None:
        self.shelf = shelf
        self.members = members
        self.segment = segment
        self.spare = spare
        self.new = False
        self.files: list[OpenFile] = []
        self.fd = self.journal = -1
        end, slots_end = segment.end, segment.slots_end
        for waiting in members:
            waiting.offset = end
            waiting.slot = slots_end
            end += waiting.length
            slots_end += waiting.room
        self.end = end
        self.slots_end = slots_end
        """Where the segment and its slots end once this is written."""
        self.error: OSError | None = None
        self.condemn = False
        """The segment was written to and its content is uncertain from its old end on."""
        self.crash: BaseException | None = None
        """Not the disk: our own fault."""

    def hand_over(self, writer: GroupWriter) -> bool:
        """Let the writer do it all, if a write and a sync are all. Raises: OSError when memory is short."""
        segment = self.segment
        if self.new or self.slots_end > segment.reserved:
            return False
        try:
            for waiting in self.members:
                writer.add(
                    waiting.envelopes, waiting.recipients, waiting.bodies, waiting.length, waiting.room
                )
            writer.start(self.fd, segment.nonce, segment.end, segment.slots_end)
        except MemoryError:
            raise OSError(errno.ENOMEM, "out of memory") from None
        return True

    def run_blocking(self, unwritten: int, unsynced: int) -> None:
        """Write and sync, or see to what the writer failed at (the kernel's errno). In the thread. Raises
        nothing."""
        try:
            if unwritten:
                self._give_up_writing(OSError(unwritten, os.strerror(unwritten)))
            if unsynced:
                self._give_up_syncing(OSError(unsynced, os.strerror(unsynced)))
            if self.crash is not None:
                return
            if self.new:
                self.fd, self.journal = self.shelf.create_blocking(self.segment, self.spare)
            self._write()
        except OSError as error:
            self.error = error
        except MemoryError:
            self.error = OSError(errno.ENOMEM, "out of memory")
        except BaseException as error:
            self.crash = error

    def _write(self) -> None:
        shelf, segment, fd = self.shelf, self.segment, self.fd
        parts: list[bytes | memoryview] = []
        for waiting in self.members:
            head, tail = pack_record(
                segment.nonce,
                waiting.offset,
                waiting.slot,
                waiting.envelopes,
                waiting.recipients,
                waiting.bodies,
                waiting.length,
            )
            parts.append(head)
            parts.extend(waiting.bodies)
            parts.append(tail)
        if self.slots_end > segment.reserved:
            shelf.reserve_blocking(segment, self.journal, self.slots_end)
        try:
            write_parts(shelf.files, fd, parts, segment.end)
        except OSError as error:
            self._give_up_writing(error)
        try:
            sync_file(shelf.files, fd)
        except OSError as error:
            self._give_up_syncing(error)

    def _give_up_writing(self, error: OSError) -> NoReturn:
        # Nothing was synced, so cutting the file leaves it as it was: if the disk only was full.
        self.condemn = not is_full(error) or not self._cut_back()
        raise error

    def _give_up_syncing(self, error: OSError) -> NoReturn:
        self.condemn = True
        self._cut_back()
        raise error

    def _cut_back(self) -> bool:
        try:
            self.shelf.files.truncate(self.fd, self.segment.end)
            sync_file(self.shelf.files, self.fd)
        except OSError:
            return False
        return True


class Committer:
    """Owns the active segment. `run` is its task. To Trio it is an `Instrument`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._line: deque[_Waiting] = deque()
        self._since = 0.0
        """When the first in the line came."""
        self._group: _Group | None = None
        """What the thread is working on."""
        self._writer = GroupWriter()
        self._direct = type(shelf.files) is Files
        """Whether the writer may go past `Files`, which then is nothing but the operating system."""
        self._limiter = trio.CapacityLimiter(1)
        self._create_limiter = trio.CapacityLimiter(1)
        self._settled = trio.lowlevel.ParkingLot()
        self._alarm = trio.CancelScope()
        self._closing = False
        # Identifiers seen lately. Only a fault of the caller can repeat one; nothing is keyed by
        # them, so an older repetition would do no harm: both messages would be kept.
        self._recent: set[bytes] = set()
        self._before: set[bytes] = set()

    @property
    def waiting(self) -> int:
        """Transactions in the line or being written."""
        return len(self._line) + (len(self._group.members) if self._group is not None else 0)

    async def commit(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float | None = None
    ) -> list[Handle]:
        """See `Spool.commit`."""
        if self._closing:
            raise SpoolError("the spool is closed")
        if self._shelf.fault is not None:
            raise self._shelf.fault.as_error()
        line = self._line
        now = trio.current_time()
        if deadline is not None and deadline <= now:
            raise SpoolError("the disk did not answer in time")
        waiting = self._prepare(bodies, messages, deadline)
        line.append(waiting)
        if len(line) == 1:
            self._since = now
        if self._group is not None:
            if deadline is not None and deadline < self._alarm.deadline:
                self._alarm.deadline = deadline
        elif len(line) == 1:
            # If the loop does not come to rest and nobody follows, the alarm closes the group.
            self._alarm.deadline = now + 2 * _GATHER
        elif now - self._since > _GATHER or len(line) >= _ENOUGH:
            self._launch()
        handles: list[Handle] = await trio.lowlevel.wait_task_rescheduled(waiting.abort)
        return handles

    def _prepare(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float | None
    ) -> _Waiting:
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
                envelope = _encode(message)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                # The text of the error may quote the value; only its kind is told (K7).
                raise SpoolError(f"a message cannot be written down ({type(error).__name__})") from None
            envelopes.append(envelope)
            recipients.append(count)
            size += len(envelope)
            room += slot_size(count)
            ids.append(message.id)
        total = 0
        bodies = tuple(bodies)
        for body in bodies:
            if type(body) is not bytes:
                raise SpoolError(f"a body must be bytes, not {type(body).__name__}")
            total += len(body)
        length = record_length(size, len(envelopes), len(bodies), total)
        if not envelopes or length > MAX_RECORD:
            raise SpoolError("a transaction has at least one message and at most 4 GiB")
        recent = self._recent
        for at, name in enumerate(ids):
            if name in recent or name in self._before:
                recent.difference_update(ids[:at])
                raise SpoolError(f"message {name.hex()} was committed already")
            recent.add(name)
        return _Waiting(self, bodies, envelopes, recipients, ids, length, room, deadline)

    def leave(self, waiting: _Waiting) -> None:
        """It is no longer wanted and nothing of it was written."""
        self._line.remove(waiting)
        self._unlearn(waiting)

    def _unlearn(self, waiting: _Waiting) -> None:
        self._recent.difference_update(waiting.ids)
        self._before.difference_update(waiting.ids)

    # -- closing a group -------------------------------------------------------------------------

    def before_io_wait(self, timeout: float) -> None:
        """Trio's loop has nothing to run now. Called by Trio on each turn, so quick to say no."""
        # Not once closing: the thread may have been told to end, and a group handed over behind that
        # would be written by nobody, its callers never woken.
        if timeout > 0.0 and self._line and self._group is None and not self._closing:
            self._launch()

    def _launch(self) -> None:
        """Close a group and hand it to the thread."""
        shelf, line = self._shelf, self._line
        if shelf.fault is not None:
            # Nobody waits for the repair, which may take long.
            self._refuse(shelf.fault.as_error())
            return
        segment = shelf.active
        first = line[0]
        rotate = segment is None or segment.suspect or segment.end + first.length > shelf.segment_size
        if rotate:
            segment = self._next_segment()
        assert segment is not None
        room = min(_GROUP, shelf.segment_size - (DATA_START if rotate else segment.end))
        members: list[_Waiting] = []
        while line and (not members or line[0].length <= room):
            member = line.popleft()
            member.taken = True
            room -= member.length
            members.append(member)
        group = _Group(shelf, members, segment, shelf.spares.pop() if rotate and shelf.spares else None)
        if rotate:
            group.new = True
        else:
            try:
                for path in (segment.path, segment.journal_path):
                    group.files.append(shelf.descriptors.pin(path))
            except OSError as error:
                self._let_go(group)
                self._failed(group, error)
                return
            group.fd, group.journal = (opened.fd for opened in group.files)
        self._group = group
        self._alarm.deadline = self._patience()
        try:
            if not self._direct or not group.hand_over(self._writer):
                self._writer.call()
        except OSError as error:
            self._group = None
            self._let_go(group)
            self._failed(group, error)
        except BaseException as error:
            # Who asked us to launch may be Trio's instruments, and cannot tell anybody. The task can.
            group.crash = error
            self._writer.call()

    def _next_segment(self) -> Segment:
        """Seal the active segment; the one that follows, not made yet."""
        shelf = self._shelf
        old = shelf.active
        if old is not None:
            shelf.seal(old)
            with suppress(OSError):
                shelf.mark_blocking(old, shelf.descriptors.get(old.journal_path).fd, old.end, True)
                shelf.soil(old)
        self._before, self._recent = self._recent, set()
        return shelf.new_segment()

    async def rotate(self) -> None:
        """Begin a new segment and prove it: read it back from the disk. For the repair, when nothing
        can be committed. Raises: OSError."""
        while self._group is not None:
            await self._settled.park()
        shelf = self._shelf
        segment = self._next_segment()
        fd, journal = await shelf.in_thread(self._create_limiter, shelf.create_blocking, segment, None, True)
        shelf.put_up(segment, fd, journal)
        shelf.active = segment

    # -- the task and the thread -----------------------------------------------------------------

    def close(self) -> None:
        """End the task when the group under way is written; whoever still waits fails."""
        self._closing = True
        self._alarm.deadline = -math.inf

    async def run(self) -> None:
        """Wake the callers of each group that is written, until closed."""
        instrument = cast(trio.abc.Instrument, self)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shelf.in_thread, self._limiter, self._thread_blocking)
                try:
                    while not self._closing or self._group is not None:
                        await self._turn()
                finally:
                    self._writer.end()
        finally:
            trio.lowlevel.remove_instrument(instrument)
            self._closing = True
            error = SpoolError("the spool is closed")
            # Whatever ended the task, nobody else would wake those who cannot be cancelled.
            if self._group is not None:
                for waiting in self._group.members:
                    self._fail(waiting, error)
            self._refuse(error)
            if not self._shelf.abandoned:
                self._group = None  # no thread works on it
                self._settled.unpark_all()
                self._writer.close()

    def _patience(self) -> float:
        """When the first that waits in the group or behind it has waited long enough."""
        assert self._group is not None
        until = math.inf
        for waiting in chain(self._group.members, self._line):
            if waiting.deadline is not None and waiting.deadline < until and not waiting.abandoned:
                until = waiting.deadline
        return until

    def _expire(self) -> None:
        """The disk hangs: whoever has waited long enough is told so."""
        assert self._group is not None
        now = trio.current_time()
        for waiting in [*self._group.members, *self._line]:
            if waiting.deadline is not None and waiting.deadline <= now and not waiting.abandoned:
                if not waiting.taken:
                    self.leave(waiting)
                self._wake(waiting, outcome.Error(SpoolError("the disk did not answer in time")))

    async def _turn(self) -> None:
        if self._group is not None:
            until = self._patience()
        else:
            until = self._since + 2 * _GATHER if self._line else math.inf
        with trio.CancelScope(deadline=until) as self._alarm:
            await trio.lowlevel.wait_readable(self._writer.fileno())
            self._finished()
            return
        if self._group is not None:
            self._expire()
        elif self._line and not self._closing:
            self._launch()

    def _thread_blocking(self) -> None:
        while (errors := self._writer.run()) is not None:
            # What failed is seen to here: the loop may have given up waiting for this thread.
            assert self._group is not None
            self._group.run_blocking(*errors)
            self._writer.report()

    def _finished(self) -> None:
        """The thread says that it is done."""
        if self._writer.result():
            assert self._group is not None
            self._land(self._group)

    def _land(self, group: _Group) -> None:
        shelf, segment = self._shelf, group.segment
        self._let_go(group)
        if group.new and group.fd >= 0:
            shelf.put_up(segment, group.fd, group.journal)
            shelf.active = segment
        if group.crash is not None:
            raise group.crash
        if group.error is not None:
            self._failed(group, group.error)
        else:
            self._landed(group, segment)
        self._group = None  # not before: a fault of our own on the way leaves its members to the end of `run`
        if self._settled:
            self._settled.unpark_all()
        if self._line and not self._closing:
            waited = trio.current_time() - self._since
            if waited >= _GATHER or len(self._line) >= _ENOUGH or shelf.fault is not None:
                self._launch()

    def _let_go(self, group: _Group) -> None:
        for opened in group.files:
            self._shelf.descriptors.unpin(opened)
        group.files.clear()

    def _landed(self, group: _Group, segment: Segment) -> None:
        shelf = self._shelf
        counters = shelf.counters
        segment.end = group.end
        segment.slots_end = group.slots_end
        counters.batches += 1
        for waiting in group.members:
            handles = segment.add(waiting.offset, waiting.length, waiting.slot, waiting.recipients)
            counters.messages += len(handles)
            counters.committed += len(handles)
            if waiting.abandoned:
                counters.abandoned += 1
                for handle in handles:
                    shelf.finish(handle, handle.left)
            else:
                self._wake(waiting, outcome.Value(handles))
        try:
            # Only a hint for the next start, so it needs no sync and may come after.
            shelf.mark_blocking(segment, shelf.descriptors.get(segment.journal_path).fd, group.end, False)
        except OSError as error:
            shelf.fail(error, "marking a segment", segment)

    def _failed(self, group: _Group, error: OSError) -> None:
        shelf = self._shelf
        shelf.fail(error, "writing mail", group.segment if group.condemn else None)
        if shelf.active is not None:
            shelf.seal(shelf.active)
        for waiting in group.members:
            self._fail(waiting, as_spool_error(error, "writing mail"))

    def _refuse(self, error: SpoolError) -> None:
        while self._line:
            self._fail(self._line.popleft(), error)

    def _fail(self, waiting: _Waiting, error: SpoolError) -> None:
        self._unlearn(waiting)
        if not waiting.abandoned:
            self._wake(waiting, outcome.Error(type(error)(*error.args)))

    def _wake(self, waiting: _Waiting, answer: outcome.Outcome[list[Handle]]) -> None:
        waiting.abandoned = True
        trio.lowlevel.reschedule(waiting.task, answer)
