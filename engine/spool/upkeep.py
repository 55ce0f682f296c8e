"""Keeping house: syncing notes, removing and compacting segments, and getting well after a fault.

Two tasks. `sync_journals` syncs what `finish` and `postpone` wrote, within 100 ms of the first
note (reliability D32), several times a second at most however many notes there are. `run` does
everything that may take longer.

A fault is healed in this order, tried every second: a fresh active segment is written, synced and
read back from the disk; what the condemned segments hold is moved likewise. Only then is mail
accepted again (D21). Nobody has to restart anything (D17).
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack, suppress

import trio

from policy.units import Floor

from .commit import Committer
from .compact import compact
from .directory import PROBE
from .files import CREATE, as_spool_error, is_shortage, sync_file
from .segment import Segment
from .shelf import SPARSE, Shelf

__all__ = ["Upkeep"]

logger = logging.getLogger("posthorn.spool")

SYNC_DELAY = 0.05
"""Seconds between the first unsynced note and its sync; half of what D32 allows."""
_RETRY = 1.0
"""Seconds between attempts to get well, and between looks at a disk that is short of space."""
_LOOK = 5.0
"""Seconds between looks at the free space when nobody asks (a transaction may begin long before its
final dot), and at segments that are thin but young or could not be removed. A guess."""
_MANY = 8
"""So many small segments are merged even if that frees little. A guess."""
_MOST = 200
"""Segments merged into one; their numbers must fit its header."""
_CHUNK = 32
_PROBE = 1 << 20


class Upkeep:
    """Everything that is not urgent. `free_bytes` and `free_inodes` are what was last seen; -1 unknown."""

    def __init__(
        self, shelf: Shelf, committer: Committer, min_space: Floor, min_inodes: Floor, compact_age: float
    ) -> None:
        self._shelf = shelf
        self._committer = committer
        self._min_space = min_space
        self._min_inodes = min_inodes
        self._compact_age = compact_age
        self._sync_limiter = trio.CapacityLimiter(1)
        self._limiter = trio.CapacityLimiter(1)
        self._sync_bed = trio.lowlevel.ParkingLot()
        self._poke = trio.Event()
        self._closing = trio.Event()
        self._look_at = 0.0
        self._obstacle = ""
        self._stuck = False
        """Whether finished segments could not be removed the last time."""
        self.short: str | None = None
        """Why new mail is refused although the disk works: the watermark."""
        self.free_bytes = -1
        self.free_inodes = -1
        shelf.wake_sync = self._sync_bed.unpark
        shelf.wake_upkeep = self.poke

    def poke(self) -> None:
        """There is something to do."""
        self._poke.set()

    def look(self) -> None:
        """Somebody asks how the disk is: look at it again, once a second at most."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + 1.0
            self._poke.set()

    def close(self) -> None:
        """End both tasks; what is dirty is synced first."""
        self._closing.set()
        self._poke.set()
        self._sync_bed.unpark()

    # -- notes -----------------------------------------------------------------------------------

    async def sync_journals(self) -> None:
        """The task that syncs journals."""
        while True:
            if self._shelf.dirty:
                if not self._closing.is_set():
                    with trio.move_on_after(SYNC_DELAY):
                        await self._closing.wait()
                await self._sync_once()
            elif self._closing.is_set():
                return
            else:
                await self._sync_bed.park()

    async def _sync_once(self) -> None:
        shelf = self._shelf
        soiled, shelf.dirty = shelf.dirty, []
        for segment in soiled:
            # Now, not after the sync: a note that comes during it needs the next one.
            segment.dirty = False
        # A condemned file is never synced again and believed (D20).
        soiled = [segment for segment in soiled if not segment.suspect]
        for first in range(0, len(soiled), _CHUNK):
            with ExitStack() as stack:
                work = []
                for segment in soiled[first : first + _CHUNK]:
                    if segment.number in shelf.segments and not segment.leaving:
                        try:
                            fd = stack.enter_context(shelf.descriptors.pinned(segment.journal_path))
                        except OSError as error:
                            shelf.fail(error, "syncing results", segment)
                        else:
                            work.append((segment, fd))
                for segment, failure in await shelf.in_thread(self._sync_limiter, self._sync_blocking, work):
                    shelf.fail(failure, "syncing results", segment)

    def _sync_blocking(self, work: list[tuple[Segment, int]]) -> list[tuple[Segment, OSError]]:
        failed = []
        for segment, fd in work:
            try:
                sync_file(self._shelf.files, fd)
            except OSError as error:
                failed.append((segment, error))
        return failed

    # -- the other task --------------------------------------------------------------------------

    async def run(self) -> None:
        """The task that does the rest, when poked and at intervals while something is not right."""
        shelf = self._shelf
        while not self._closing.is_set():
            wait = _LOOK if shelf.fault is None and self.short is None else _RETRY
            with trio.move_on_after(wait):
                await self._poke.wait()
            if self._closing.is_set():
                break
            self._poke = trio.Event()
            if shelf.fault is not None:
                await self._heal()
                if shelf.fault is not None:
                    self._poke = trio.Event()  # our own failures are no reason to hurry
            await self.look_now()
            await self.remove_finished()
            if shelf.litter and shelf.fault is None:
                with suppress(OSError):
                    await shelf.in_thread(self._limiter, shelf.sweep_blocking)
            if shelf.sparse and shelf.fault is None:
                await self._compact()
        if shelf.fault is not None:
            await self._heal()  # for the results that are in memory only

    async def look_now(self) -> None:
        """See how much space is free."""
        self._look_at = time.monotonic() + 1.0
        shelf = self._shelf
        try:
            free, total, inodes, all_inodes = await shelf.in_thread(
                self._limiter, shelf.files.free, shelf.path
            )
        except OSError as error:
            if self.free_bytes >= 0:
                logger.warning("spool %s: free space is not known: %s", shelf.path, error.strerror)
            self.free_bytes = self.free_inodes = -1
            return
        self.free_bytes, self.free_inodes = free, inodes
        short = None
        if free < self._min_space.of(total):
            short = f"no space: {free >> 20} MiB free, {self._min_space} must stay free"
        # Some file systems have no fixed number of inodes and say 0 of 0.
        elif all_inodes and inodes < self._min_inodes.of(all_inodes):
            short = f"no space: {inodes} inodes free, {self._min_inodes} must stay free"
        if (short is None) != (self.short is None):
            logger.warning("spool %s: %s", shelf.path, short or "there is space again")
        self.short = short
        if short is not None:
            await self._drop_spares()

    async def _drop_spares(self) -> None:
        spares, self._shelf.spares = self._shelf.spares, []
        if spares:
            await self._shelf.in_thread(self._limiter, self._unlink_blocking, spares)

    def _unlink_blocking(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(OSError):
                self._shelf.files.unlink(path)

    # -- removing --------------------------------------------------------------------------------

    async def remove_finished(self) -> None:
        """Remove the segments in which nothing is left, or keep their files for reuse. What cannot be
        removed stays known and is tried again: its notes may be all that keeps finished mail finished."""
        shelf = self._shelf
        candidates, shelf.finished = dict.fromkeys(shelf.finished), []
        gone = [segment for segment in candidates if segment.finished and segment.number in shelf.segments]
        if not gone:
            self._stuck = False
            return
        work: list[tuple[Segment, str | None]] = []
        wanted = shelf.spare_limit - len(shelf.spares) if self.short is None else 0
        for segment in gone:
            spare = None
            if wanted > 0 and not segment.suspect and segment.end >= shelf.segment_size // 2:
                spare = segment.path[:-3] + "spare"
                wanted -= 1
            work.append((segment, spare))
            shelf.clean(segment)
            segment.leaving = True
        spares, left, error = await shelf.in_thread(self._limiter, self._remove_blocking, work)
        shelf.spares.extend(spares)
        for segment in gone:
            segment.leaving = False
            if segment in left:
                shelf.soil(segment)
                shelf.finished.append(segment)
            else:
                shelf.forget(segment)
        if error is not None and not self._stuck:
            logger.warning(
                "spool %s: %s", shelf.path, as_spool_error(error, "finished mail cannot be removed")
            )
        self._stuck = error is not None

    def _remove_blocking(
        self, work: list[tuple[Segment, str | None]]
    ) -> tuple[list[str], list[Segment], OSError | None]:
        """Spares that were won, segments that could not be removed, and why.

        The mail first, its notes after a directory sync: never notes gone and mail still there (D37).
        May be repeated after a failure: what is gone already is no error.
        """
        shelf, files = self._shelf, self._shelf.files
        trouble: OSError | None = None
        gone: list[Segment] = []
        spares: list[str] = []
        for segment, spare in work:
            try:
                shelf.rescue_blocking(segment)
                if spare is None:
                    with suppress(FileNotFoundError):
                        files.unlink(segment.path)
                else:
                    with suppress(FileNotFoundError):
                        files.rename(segment.path, spare)
                    if os.path.lexists(spare):
                        spares.append(spare)
                gone.append(segment)
            except OSError as error:
                trouble = error
        try:
            files.fsync_directory(shelf.directory)
        except OSError as error:
            return [], [segment for segment, _ in work], error
        left = [segment for segment, _ in work if segment not in gone]
        for segment in gone:
            try:
                files.unlink(segment.journal_path)
            except FileNotFoundError:
                pass
            except OSError as error:
                # Notes without mail mean nothing.
                shelf.litter.append(segment.journal_path)
                trouble = trouble or error
        return spares, left, trouble

    # -- compacting ------------------------------------------------------------------------------

    async def _compact(self) -> None:
        """Merge thin segments when that frees a quarter of a segment, or many small ones."""
        shelf = self._shelf
        group: list[Segment] = []
        later: list[Segment] = []
        weight = freed = 0
        candidates, shelf.sparse = shelf.sparse, []
        quarter = shelf.segment_size // SPARSE
        for segment in candidates:
            if not segment.live or segment.number not in shelf.segments or segment.suspect:
                continue
            if time.time() - segment.created < self._compact_age:
                later.append(segment)
                continue
            left = await shelf.in_thread(self._limiter, _weight_blocking, segment)
            if left > quarter:
                segment.watch = segment.live // 2
            elif weight + left <= shelf.segment_size and len(group) < _MOST:
                group.append(segment)
                weight += left
                freed += segment.end - left
            else:
                later.append(segment)
        shelf.sparse.extend(later)
        if not group:
            return
        if freed < quarter and len(group) < _MANY:
            shelf.sparse.extend(group)
            return
        try:
            await compact(shelf, group, self._limiter)
        except OSError as error:
            logger.warning("spool %s: %s", shelf.path, as_spool_error(error, "compaction failed"))
            there = [segment for segment in group if segment.number in shelf.segments]
            for segment in there:
                if error.filename == segment.path:
                    segment.watch = segment.live // 2
                    shelf.fail_reading(error, segment)
                else:
                    shelf.sparse.append(segment)
            if not is_shortage(error) and all(error.filename != segment.path for segment in there):
                shelf.fail(error, "moving mail")

    # -- getting well ----------------------------------------------------------------------------

    async def _heal(self) -> None:
        """While the fault is set nothing is committed, so the active segment is ours to replace."""
        shelf = self._shelf
        fault = shelf.fault
        assert fault is not None
        try:
            # First, or each failed try would leave files behind.
            await shelf.in_thread(self._limiter, shelf.sweep_blocking)
            if fault.full:
                await shelf.in_thread(self._limiter, self._probe_blocking)
            fresh = fault.full
            while True:
                if not fresh or (shelf.active is not None and shelf.active.suspect):
                    await self._committer.rotate()
                    fresh = True
                suspects = [segment for segment in shelf.segments.values() if segment.suspect]
                waiting = [segment for segment in suspects if segment.live or segment.sources]
                if not waiting:
                    break
                if not waiting[0].scanned:
                    return  # the start is not through; again in a second
                await compact(shelf, waiting[:1], self._limiter, prove=True)
        except OSError as error:
            shelf.fail(error, "trying whether the disk works again")
            obstacle = str(as_spool_error(error, "does not work yet"))
            if obstacle != self._obstacle:
                self._obstacle = obstacle
                logger.error("spool %s: %s", shelf.path, obstacle)
            return
        for segment in suspects:
            shelf.thinned(segment)
        await self.remove_finished()
        if any(segment.suspect for segment in shelf.segments.values()):
            # Finished mail whose notes are in memory only: a start would take it for mail to be sent.
            return
        shelf.get_well()
        self._obstacle = ""
        logger.warning("spool %s: works again", shelf.path)

    def _probe_blocking(self) -> None:
        """Whether a mebibyte can be written and synced."""
        files = self._shelf.files
        path = f"{self._shelf.directory}/{PROBE}"
        with suppress(FileNotFoundError):
            files.unlink(path)
        fd = files.open(path, CREATE)
        try:
            files.allocate(fd, 0, _PROBE)
            sync_file(files, fd)
        finally:
            files.close(fd)
            with suppress(OSError):
                files.unlink(path)


def _weight_blocking(segment: Segment) -> int:
    return sum(length for _, length in segment.live_records())
