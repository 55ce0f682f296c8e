"""The durable spool: opening it, closing it, and the methods of the `Spool` contract."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar, TypeVarTuple, Unpack

import trio

from engine.errors import SpoolError
from engine.model import Message, bits_up_to
from policy.units import Floor

from .commit import Committer
from .directory import Survey, lock_directory, survey
from .files import Files, as_spool_error, sync_file
from .protocol import Handle, Recovered, SpoolStatistics
from .read import Reader
from .scan import Found, Scanner
from .segment import Segment
from .shelf import Shelf
from .upkeep import Upkeep

__all__ = ["Claim", "DurableSpool", "claim_spool", "open_spool"]

logger = logging.getLogger("posthorn.spool")

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

MIN_FREE_SPACE = Floor(10.0, 1 << 30)
MIN_FREE_INODES = Floor(10.0, 100_000)
"""The smaller of a share and an amount (octets, inodes) must stay free, else no new mail (D18)."""

CLOSE_TIMEOUT = 10.0
"""Seconds for all that is left to do at the end. What does not fit was promised to nobody, or is
found by the next start; a guess that leaves the log time to close before the process is ended."""

_TRIES = 3
_PAUSE = 1.0
"""How often, and after how many seconds, the start asks a disk again that did not answer. Guesses."""
_CLOCK_SLACK = 60.0
"""Seconds the clock may be behind the last note without being called set back. A guess."""

_BATCH = 500
"""Messages per batch of `recover`: about a millisecond of the loop."""


class DurableSpool:
    """Append-only segments on disk. Made by `open_spool`."""

    def __init__(self, shelf: Shelf, committer: Committer, upkeep: Upkeep, found: Survey) -> None:
        self._shelf = shelf
        self._committer = committer
        self._upkeep = upkeep
        self._unread = found.segments
        behind = found.newest - time.time()
        # Due times are wall clock times. If that clock was set back while nobody ran, mail would wait for
        # as long as it was set back (reliability O5).
        self._behind = behind if behind > _CLOCK_SLACK else 0.0
        if self._behind:
            logger.warning(
                "the clock was set back by about %.0f s; attempts that are due move with it", behind
            )
        self._reader = Reader(shelf)

    def commit(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float | None = None
    ) -> Coroutine[Any, Any, list[Handle]]:
        """See `Spool.commit`."""
        return self._committer.commit(bodies, messages, deadline)

    def finish(self, handle: Handle, recipients: int) -> None:
        """See `Spool.finish`."""
        self._shelf.finish(handle, recipients)

    def postpone(self, handle: Handle, attempts: int, due: float) -> None:
        """See `Spool.postpone`."""
        if self._shelf.closed:
            raise SpoolError("the spool is closed")
        if handle.left:
            handle.attempts = attempts
            handle.due = due
            self._shelf.note(handle.place, handle)

    def read(self, handle: Handle) -> Coroutine[Any, Any, tuple[Message, bytes]]:
        """See `Spool.read`."""
        return self._reader.read(handle)

    # -- the start -------------------------------------------------------------------------------

    async def recover(self) -> AsyncIterator[list[Recovered]]:
        """See `Spool.recover`."""
        shelf = self._shelf
        seen: set[bytes] = set()
        while self._unread:
            segment = self._unread.pop(0)
            scanner = Scanner(shelf.files, shelf.quarantine, segment, seen)
            try:
                await _insist(scanner.open)
                while not scanner.done:
                    found = await _insist(scanner.read, _BATCH)
                    batch = self._take_in(segment, found)
                    if batch:
                        yield batch
            except OSError as error:
                raise as_spool_error(error, f"reading segment {segment.number}") from None
            finally:
                scanner.close()
            shelf.counters.quarantined += scanner.quarantined
            shelf.counters.torn += scanner.torn
            segment.scanned = True
            segment.watch = segment.live // 4
            if not segment.live:
                shelf.thinned(segment)
            elif scanner.weight * 4 < segment.end or segment.end < shelf.segment_size // 4:
                segment.watch = -1
                shelf.sparse.append(segment)
                self._upkeep.poke()

    def _take_in(self, segment: Segment, found: list[Found]) -> list[Recovered]:
        batch = []
        counters = self._shelf.counters
        for each in found:
            state = each.state
            handle = segment.restore(each.offset, each.length, each.slot, each.recipients, state)
            if handle is None or each.message is None:
                continue
            counters.messages += 1
            if each.duplicate:
                counters.duplicates += 1
                logger.warning("message %s is in the spool twice; one copy is dropped", each.message.id.hex())
                self._shelf.finish(handle, handle.left)
                continue
            counters.recovered += 1
            due = each.message.first_attempt if state is None else handle.due - self._behind
            done = bits_up_to(each.recipients) & ~handle.left
            batch.append(Recovered(each.message, handle, handle.attempts, due, done))
        return batch

    # -- how it is -------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """See `Spool.trouble`."""
        return self._trouble()

    def _trouble(self) -> str | None:
        shelf, upkeep = self._shelf, self._upkeep
        if shelf.fault is not None:
            return shelf.fault.text
        if shelf.closed:
            return "the spool is closed"
        upkeep.look()
        return upkeep.short

    @property
    def halted(self) -> str | None:
        """See `Spool.halted`."""
        return self._shelf.halted

    async def wait_well(self) -> None:
        """See `Spool.wait_well`."""
        shelf = self._shelf
        while shelf.halted is not None:
            if shelf.closed:
                raise SpoolError("the spool is closed")
            await shelf.convalescents.park()
        await trio.lowlevel.checkpoint()

    def room_for(self, size: int) -> bool:
        """See `Spool.room_for`."""
        free = self._upkeep.free_bytes
        return self._trouble() is None and (free < 0 or free * 2 >= size * 3)

    def statistics(self) -> SpoolStatistics:
        """See `Spool.statistics`."""
        shelf, counters = self._shelf, self._shelf.counters
        return SpoolStatistics(
            messages=counters.messages,
            segments=len(shelf.segments),
            spares=len(shelf.spares),
            bytes_on_disk=sum(segment.end + segment.reserved for segment in shelf.segments.values()),
            waiting=self._committer.waiting,
            committed=counters.committed,
            batches=counters.batches,
            recovered=counters.recovered,
            quarantined=counters.quarantined,
            torn=counters.torn,
            duplicates=counters.duplicates,
            abandoned=counters.abandoned,
            compactions=counters.compactions,
            failures=counters.failures,
            free_bytes=self._upkeep.free_bytes,
            free_inodes=self._upkeep.free_inodes,
        )


async def _insist(function: Callable[[Unpack[_Args]], _T], *args: *_Args) -> _T:
    """Let a thread read at the start. What it does can be begun again; the spool is not opened without
    it, because mail that could not be read is not mail that is gone. Raises: OSError."""
    for _ in range(_TRIES - 1):
        try:
            return await trio.to_thread.run_sync(function, *args)
        except OSError as error:
            logger.warning("%s; trying again", as_spool_error(error, "the spool cannot be read"))
            await trio.sleep(_PAUSE)
    return await trio.to_thread.run_sync(function, *args)


class Claim:
    """A spool directory that is ours, and the descriptor of its kernel lock."""

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self.lock = lock
        self.forever = False
        """A thread still uses the files: the lock lasts until the process ends."""


@asynccontextmanager
async def claim_spool(path: str | os.PathLike[str]) -> AsyncIterator[Claim]:
    """Own the spool in directory `path` (made when missing) while the block lasts, without reading it.

    For whoever has to know that this process is the only one before it touches anything else.

    Raises: as `open_spool`.
    """
    name = os.fspath(path)
    try:
        claim = Claim(name, await trio.to_thread.run_sync(lock_directory, name))
    except OSError as error:
        raise as_spool_error(error, f"spool {name}") from error
    try:
        yield claim
    finally:
        if not claim.forever:
            os.close(claim.lock)


@asynccontextmanager
async def open_spool(
    path: str | os.PathLike[str] | Claim,
    *,
    segment_size: int = 64 << 20,
    min_free_space: Floor = MIN_FREE_SPACE,
    min_free_inodes: Floor = MIN_FREE_INODES,
    spare_segments: int = 2,
    compact_age: float = 60.0,
    close_timeout: float = CLOSE_TIMEOUT,
    files: Files | None = None,
) -> AsyncIterator[DurableSpool]:
    """Own the spool in directory `path` (made when missing) while the block lasts; or use the one
    that was claimed before.

    Ask `recover` once, at the start. Leaving the block syncs everything and marks the segments as
    complete; commits that still wait then fail.

    Units:  `segment_size` octets (a larger transaction gets a segment of its own); ages and
            timeouts seconds. Below `min_free_space` or `min_free_inodes`, `trouble` says so;
            commits that come all the same are tried, so that a bounce can replace its message.
            `spare_segments` emptied files are kept and overwritten: a sync is then a third
            faster, because no metadata changes (bench/results). A segment of which less than a
            quarter is left is compacted when it is older than `compact_age`.
    Raises: SpoolLocked when another process owns it; SpoolError for a newer format or a directory
            that others may change, or when the disk fails.
    """
    async with nullcontext(path) if isinstance(path, Claim) else claim_spool(path) as claim:
        name = claim.path
        files = files if files is not None else Files()
        shelf = Shelf(name, files, segment_size, spare_segments)
        try:
            try:
                found = await _insist(survey, files, name)
            except OSError as error:
                raise as_spool_error(error, f"spool {name}") from error
            shelf.next_number = found.next_number
            shelf.spares = found.spares
            shelf.segments = {segment.number: segment for segment in found.segments}
            shelf.counters.quarantined = found.quarantined
            committer = Committer(shelf)
            upkeep = Upkeep(shelf, committer, min_free_space, min_free_inodes, compact_age)
            await upkeep.look_now()
            trouble: BaseException | None = None
            async with trio.open_nursery() as nursery:
                # Whatever happens outside, commits and results are written to the end (reliability Y2).
                shields = []
                for task in (committer.run, upkeep.sync_journals, upkeep.run):
                    shield = trio.CancelScope(shield=True)
                    shields.append(shield)
                    nursery.start_soon(_shielded, shield, task)
                try:
                    yield DurableSpool(shelf, committer, upkeep, found)
                except BaseException as error:
                    # Raised again below: outside the nursery it stays the one exception it is.
                    trouble = error
                committer.close()
                upkeep.close()
                deadline = trio.current_time() + close_timeout
                for shield in shields:
                    shield.deadline = deadline
            with trio.CancelScope(deadline=deadline, shield=True):
                await _close(shelf, upkeep)
            if trouble is not None:
                raise trouble
        finally:
            if shelf.abandoned:
                # A thread still waits for the disk and uses our files; all live until the process ends.
                claim.forever = True
                logger.error("spool %s: the disk does not answer; closed without waiting for it", name)
            else:
                shelf.descriptors.close_all()
            for segment in shelf.segments.values():
                segment.handles = []  # cuts the cycle that the collector cannot see


async def _shielded(shield: trio.CancelScope, task: Callable[[], Awaitable[None]]) -> None:
    with shield:
        await task()


async def _close(shelf: Shelf, upkeep: Upkeep) -> None:
    """Sync what is not synced, and say in the journal that nothing follows."""
    limiter = trio.CapacityLimiter(1)
    active = shelf.active
    if active is not None:
        shelf.seal(active)
    shelf.close()
    await upkeep.remove_finished()
    try:
        with ExitStack() as stack:
            work = []
            for segment in shelf.dirty:
                if not segment.suspect:
                    work.append(stack.enter_context(shelf.descriptors.pinned(segment.journal_path)))
            if active is not None and not active.suspect and active.number in shelf.segments:
                fd = stack.enter_context(shelf.descriptors.pinned(active.path))
                journal = stack.enter_context(shelf.descriptors.pinned(active.journal_path))
                await shelf.in_thread(limiter, _seal_blocking, shelf, active, fd, journal)
            await shelf.in_thread(limiter, _sync_blocking, shelf, work)
    except OSError as error:
        logger.error("spool %s: not everything could be synced at the end: %s", shelf.path, error.strerror)


def _seal_blocking(shelf: Shelf, segment: Segment, fd: int, journal: int) -> None:
    shelf.files.truncate(fd, segment.end)
    sync_file(shelf.files, fd)
    shelf.mark_blocking(segment, journal, segment.end, True)
    sync_file(shelf.files, journal)


def _sync_blocking(shelf: Shelf, journals: list[int]) -> None:
    for fd in journals:
        sync_file(shelf.files, fd)
