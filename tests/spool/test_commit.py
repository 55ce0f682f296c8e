"""Group commit: what shares a sync, what a failure does, what becomes of a caller who leaves."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engine.errors import SpoolError, SpoolFull
from engine.model import Message
from engine.signals import LAST_RESORT
from engine.spool import DurableSpool, durable, open_spool, upkeep
from engine.spool.durable import CLOSE_TIMEOUT
from tests.contract.spool import found, message
from tests.spool.helpers import BadDisk, SlowDisk, failing, until


async def test_the_next_group_gathers_while_a_sync_runs(tmp_path: Path) -> None:
    disk = SlowDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        await spool.commit([b"first"], [message()])
        before = spool.statistics().batches
        disk.hold = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spool.commit, [b"a"], [message()])
            await until(lambda: spool.statistics().waiting == 1 and disk.written)
            for _ in range(10):
                nursery.start_soon(spool.commit, [b"b"], [message()])
            await until(lambda: spool.statistics().waiting == 11)
            disk.go.set()
        assert spool.statistics().batches - before == 2


async def test_nobody_is_released_before_the_sync_that_covers_it(tmp_path: Path) -> None:
    disk = SlowDisk()
    async with open_spool(tmp_path, files=disk) as spool:

        async def session() -> None:
            for _ in range(10):
                (handle,) = await spool.commit([os.urandom(500)], [message()])
                segment = handle.place
                end = segment.offsets[handle.ordinal] + segment.lengths[handle.ordinal]
                assert any(covered >= end for covered in disk.synced)

        async with trio.open_nursery() as nursery:
            for _ in range(15):
                nursery.start_soon(session)


async def test_a_group_is_closed_although_the_loop_never_rests(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool:
        done = trio.Event()

        async def busy() -> None:
            while not done.is_set():
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            with trio.fail_after(5):
                for _ in range(5):
                    await spool.commit([b"x"], [message()])
            done.set()


async def test_a_hanging_disk_hurts_nobody_else(tmp_path: Path) -> None:
    """Other tasks go on, nobody gets an early answer, who waits may leave (D22)."""
    disk = SlowDisk()
    one, two, three = message(), message(), message()
    async with open_spool(tmp_path, files=disk) as spool:
        await spool.commit([b"x"], [one])
        disk.hold = True
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05) as scope:
                await spool.commit([b"x"], [two])
            assert scope.cancelled_caught
            nursery.start_soon(spool.commit, [b"x"], [three])
            await until(lambda: spool.statistics().waiting == 2)
            assert spool.trouble is None
            disk.go.set()
        assert spool.statistics().abandoned == 1
        assert spool.statistics().messages == 2
    async with open_spool(tmp_path) as spool:
        assert set(await found(spool)) == {one.id, three.id}, "the one whose caller left is gone"


async def test_cancelling_at_any_moment(tmp_path: Path) -> None:
    """Whoever gets handles has a message; whoever is cancelled has left none behind."""
    kept: set[bytes] = set()
    async with open_spool(tmp_path) as spool:

        async def session(patience: float) -> None:
            one = message()
            with trio.move_on_after(patience):
                await spool.commit([b"x" * 2000], [one])
                kept.add(one.id)

        for turn in range(20):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(session, number * turn * 0.00001)
        await until(lambda: spool.statistics().waiting == 0)
        assert spool.statistics().messages == len(kept)
    async with open_spool(tmp_path) as spool:
        assert set(await found(spool)) == kept


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, SpoolFull),
        (errno.EDQUOT, SpoolFull),
        (errno.EFBIG, SpoolFull),
        (errno.EIO, SpoolError),
        (errno.EROFS, SpoolError),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
async def test_a_failure_fails_the_whole_group_and_is_repaired(
    tmp_path: Path, number: int, kind: type[SpoolError], call: str
) -> None:
    disk = BadDisk()
    kept: list[Message] = []
    async with open_spool(tmp_path, files=disk) as spool:
        kept.append(message())
        (handle,) = await spool.commit([b"good"], kept[-1:])
        disk.plan = failing(number, call, "create", suffix=".seg")
        refused: list[type[BaseException]] = []

        async def session() -> None:
            try:
                await spool.commit([b"bad"], [message()])
            except SpoolError as error:
                refused.append(type(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(session)
        assert refused == [kind] * 5
        assert spool.trouble is not None
        assert ("no space" in spool.trouble) == (kind is SpoolFull)
        assert (spool.halted is None) == (kind is SpoolFull), "a full disk does not stop deliveries"
        with pytest.raises(kind):
            await spool.commit([b"bad"], [message()])
        assert await spool.read(handle) == (kept[0], b"good")
        spool.postpone(handle, 2, 3.0)
        disk.plan = lambda call, path: None
        spool.statistics()
        await until(lambda: spool.trouble is None)
        assert spool.halted is None
        kept.append(message())
        await spool.commit([b"good"], kept[-1:])
        assert await spool.read(handle) == (kept[0], b"good")
    async with open_spool(tmp_path) as spool:
        again = await found(spool)
        assert set(again) == {each.id for each in kept}, "and nothing of what was refused"
        assert again[kept[0].id].attempts == 2


async def test_a_body_that_is_none_hurts_nobody_else(tmp_path: Path) -> None:
    class Octets(bytes):
        pass

    async with open_spool(tmp_path) as spool:
        strange: Any
        for strange in (bytearray(b"x"), Octets(b"x"), None):
            with pytest.raises(SpoolError, match=f"bytes, not {type(strange).__name__}"):
                await spool.commit([strange], [message()])
        await spool.commit([b"good"], [message()])


async def test_running_out_of_descriptors_halts_no_delivery(tmp_path: Path) -> None:
    """Deliveries that end give theirs back (O4)."""
    disk = BadDisk(failing(errno.EMFILE, "open"))
    async with open_spool(tmp_path, files=disk) as spool:
        with pytest.raises(SpoolError, match="Too many open files"):
            await spool.commit([b"x"], [message()])
        assert spool.trouble is not None and "out of resources" in spool.trouble
        assert spool.halted is None
        disk.plan = lambda call, path: None
        await until(lambda: spool.trouble is None)
        await spool.commit([b"x"], [message()])


async def test_a_file_whose_sync_failed_is_never_synced_again(tmp_path: Path) -> None:
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([b"good"], [message()])
        bad = handle.place.path
        failures: list[str] = []

        def once(call: str, path: str) -> OSError | None:
            if call == "fdatasync" and path == bad:
                failures.append(path)
                if len(failures) == 1:
                    return OSError(errno.EIO, "")
            return None

        disk.plan = once
        with pytest.raises(SpoolError):
            await spool.commit([b"bad"], [message()])
        await until(lambda: spool.trouble is None)
        assert handle.place.path != bad, "its message has moved to a fresh file"
        await spool.commit([b"good"], [message()])
        assert not Path(bad).exists()
        # The one after the failure only follows the cut; nothing is believed because of it.
        assert len(failures) <= 2
    async with open_spool(tmp_path) as spool:
        assert len(await found(spool)) == 2


async def test_the_segment_that_heals_is_read_back(tmp_path: Path) -> None:
    """A disk that swallows what it is given is not believed (D21)."""

    class Liar(BadDisk):
        lying = False

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            data = super().pread(fd, size, offset)
            return b"\0" * len(data) if self.lying else data

    disk = Liar()
    async with open_spool(tmp_path, files=disk) as spool:
        await spool.commit([b"good"], [message()])
        disk.lying = True
        disk.plan = failing(errno.EIO, "fdatasync", suffix=".seg")
        with pytest.raises(SpoolError):
            await spool.commit([b"bad"], [message()])
        disk.plan = lambda call, path: None
        await until(lambda: spool.statistics().failures >= 2)
        assert spool.trouble is not None
        disk.lying = False
        await until(lambda: spool.trouble is None)


@pytest.mark.parametrize("call", ["unlink", "fsync_directory"])
async def test_results_that_were_never_written_keep_the_spool_unhealthy_until_their_segment_is_gone(
    tmp_path: Path, call: str
) -> None:
    """Otherwise the next start would send finished mail again (D31)."""
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        handles = [(await spool.commit([b"x"], [message()]))[0] for _ in range(5)]
        bad = handles[0].place.path

        def plan(asked: str, path: str) -> OSError | None:
            notes = asked == "pwrite" and path == handles[0].place.journal_path
            broken = notes or (asked == call and path in (bad, os.path.dirname(bad)))
            return OSError(errno.EIO, "broken") if broken else None

        disk.plan = plan
        for handle in handles:
            spool.finish(handle, 1)
        assert spool.halted is not None
        await until(lambda: disk.calls.count((call, bad if call == "unlink" else os.path.dirname(bad))) >= 3)
        assert spool.halted is not None
        disk.plan = lambda call, path: None
        await until(lambda: spool.trouble is None)
        assert not Path(bad).exists()
    async with open_spool(tmp_path) as spool:
        assert await found(spool) == {}


async def test_trying_to_get_well_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be synced or removed: one half-made segment stays behind, not one per try."""
    monkeypatch.setattr(upkeep, "_RETRY", 0.005)
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([b"x"], [message()])
        disk.plan = failing(errno.EIO, "fdatasync", "unlink")
        spool.postpone(handle, 1, 2.0)
        await until(lambda: spool.statistics().failures >= 8)
        assert len(os.listdir(tmp_path / "segments")) <= 4
        disk.plan = lambda call, path: None
        await until(lambda: spool.trouble is None)
        assert len(os.listdir(tmp_path / "segments")) == 4, "the new active one, and the mail's"
        assert (await spool.read(handle))[1] == b"x"
    async with open_spool(tmp_path) as spool:
        ((_, recovered),) = (await found(spool)).items()
        assert recovered.attempts == 1


@pytest.mark.parametrize("finished", [3, 5])
async def test_results_in_memory_are_written_on_the_way_out(tmp_path: Path, finished: int) -> None:
    """The disk works again, and the end comes before anybody has tried."""
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        handles = [(await spool.commit([b"x"], [message()]))[0] for _ in range(5)]
        disk.plan = failing(errno.EIO, "pwrite", "open")
        for handle in handles[:finished]:
            spool.finish(handle, 1)
        await until(lambda: spool.statistics().failures > finished)  # a try to get well
        disk.plan = lambda call, path: None
    async with open_spool(tmp_path) as spool:
        assert len(await found(spool)) == 5 - finished


async def test_the_end_comes_in_the_middle_of_a_try_to_get_well(tmp_path: Path) -> None:
    """It fails, and there is one more."""
    disk = BadDisk()
    trying, go = threading.Event(), threading.Event()
    leaving = trio.Event()

    def plan(call: str, path: str) -> OSError | None:
        if call == "open" and not trying.is_set():
            trying.set()
            go.wait(10)
            return OSError(errno.EIO, "broken")
        notes = call == "pwrite" and path == handle.place.journal_path
        return OSError(errno.EIO, "broken") if notes else None

    async def release() -> None:
        await leaving.wait()
        go.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        async with open_spool(tmp_path, files=disk) as spool:
            (handle,) = await spool.commit([b"x"], [message(2)])
            disk.plan = plan
            spool.finish(handle, 1)
            await until(trying.is_set)
            leaving.set()  # the other task runs when this one has told the spool to close
    async with open_spool(tmp_path) as spool:
        ((_, recovered),) = (await found(spool)).items()
        assert recovered.done == 1


async def test_finished_mail_that_cannot_be_removed_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_LOOK", 0.01)
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk, segment_size=5000, spare_segments=0) as spool:
        (handle,) = await spool.commit([b"x" * 2000], [message()])
        bad = handle.place.path
        await spool.commit([b"x" * 2000], [message()])
        disk.plan = failing(errno.EPERM, "unlink", suffix=".seg")
        spool.finish(handle, 1)
        await until(lambda: disk.calls.count(("unlink", bad)) >= 2)
        assert spool.trouble is None
        assert spool.statistics().segments == 2
        disk.plan = lambda call, path: None
        await until(lambda: spool.statistics().segments == 1)
        assert not Path(bad).exists()
        assert not Path(bad).with_suffix(".jnl").exists()


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
async def test_short_writes_are_completed(tmp_path: Path, limit: int) -> None:
    disk = BadDisk(lambda call, path: limit if call == "pwrite" and not path.endswith("format") else None)
    async with open_spool(tmp_path, files=disk) as spool:
        one = message(40)
        (handle,) = await spool.commit([b"x" * 3000, b"y" * 10], [one])
        spool.finish(handle, 3)
        assert await spool.read(handle) == (one, b"x" * 3000)
    async with open_spool(tmp_path) as spool:
        assert (await found(spool))[one.id].done == 3


async def test_interrupted_calls_are_repeated(tmp_path: Path) -> None:
    turn = 0

    def now_and_then(call: str, path: str) -> OSError | None:
        nonlocal turn
        turn += 1
        if call in ("pwrite", "fdatasync") and turn % 3:
            return InterruptedError(errno.EINTR, "") if turn % 2 else BlockingIOError(errno.EAGAIN, "")
        return None

    disk = BadDisk(
        lambda call, path: None if call == "fdatasync" and turn % 3 == 2 else now_and_then(call, path)
    )
    async with open_spool(tmp_path, files=BadDisk()) as spool:
        pass
    disk.plan = lambda call, path: (
        InterruptedError(errno.EINTR, "")
        if call in ("pwrite", "fdatasync") and disk.calls.count((call, path)) % 2
        else None
    )
    async with open_spool(tmp_path, files=disk) as spool:
        one = message()
        (handle,) = await spool.commit([b"x"], [one])
        spool.postpone(handle, 1, 2.0)
        assert spool.trouble is None
    async with open_spool(tmp_path) as spool:
        assert (await found(spool))[one.id].attempts == 1


async def test_a_transaction_larger_than_a_segment(tmp_path: Path) -> None:
    async with open_spool(tmp_path, segment_size=10_000) as spool:
        messages = [message() for _ in range(6)]
        for size, each in zip((10, 50_000, 10, 20_000, 20_000, 10), messages, strict=True):
            await spool.commit([b"x" * size], [each])
    async with open_spool(tmp_path) as spool:
        again = await found(spool)
        assert list(again) == [each.id for each in messages]
        assert len((await spool.read(again[messages[1].id].handle))[1]) == 50_000


async def test_many_parts_in_one_group(tmp_path: Path) -> None:
    """More buffers than one pwritev takes."""
    async with open_spool(tmp_path) as spool:
        bodies = [b"%d" % number for number in range(3000)]
        messages = [message(body_index=number) for number in range(3000)]
        handles = await spool.commit(bodies, messages)
        assert (await spool.read(handles[2999]))[1] == b"2999"


async def test_leaving_ends_what_waits(tmp_path: Path) -> None:
    """Nothing is lost on the way out; who comes too late is told so. Whether the second is too late is a
    matter of milliseconds; it must be told the truth."""
    disk = SlowDisk()
    first, one, two = message(), message(), message()
    outcomes: dict[bytes, str] = {}
    async with trio.open_nursery() as nursery:
        async with open_spool(tmp_path, files=disk) as spool:
            await spool.commit([b"x"], [first])
            disk.hold = True

            async def session(each: Message) -> None:
                try:
                    await spool.commit([b"x"], [each])
                    outcomes[each.id] = "kept"
                except SpoolError:
                    outcomes[each.id] = "refused"

            nursery.start_soon(session, one)
            await until(lambda: spool.statistics().waiting == 1)
            await until(lambda: spool._committer._group is not None)
            nursery.start_soon(session, two)
            await until(lambda: spool.statistics().waiting == 2)
            disk.go.set()
            disk.hold = False
    assert outcomes.keys() == {one.id, two.id}
    assert outcomes[one.id] == "kept"
    async with open_spool(tmp_path) as spool:
        kept = {id for id, outcome in outcomes.items() if outcome == "kept"}
        assert set(await found(spool)) == {first.id} | kept


async def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_spool(tmp_path) as spool:
            await spool.commit([b"x"], [message()])
            raise KeyError("mine")
    async with open_spool(tmp_path) as spool:
        assert isinstance(spool, DurableSpool)
        assert len(await found(spool)) == 1


async def test_closing_gives_up_on_a_dead_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process must be able to end (O9)."""
    disk = SlowDisk()
    with trio.fail_after(5):
        async with open_spool(tmp_path, files=disk, close_timeout=0.1) as spool:
            await spool.commit([b"x"], [message()])
            disk.hold = True
            with trio.move_on_after(0.05):
                await spool.commit([b"x"], [message()])
    assert "does not answer" in caplog.text
    synced = len(disk.synced)
    disk.go.set()
    await until(lambda: not spool._shelf.spares and len(disk.synced) > synced)


async def test_the_time_for_closing_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hangs: the log behind us needs its share before the process is ended (O9)."""
    assert CLOSE_TIMEOUT + 5 <= LAST_RESORT
    left: list[float] = []

    async def close(*_: object) -> None:
        left.append(trio.current_effective_deadline() - trio.current_time())

    monkeypatch.setattr(durable, "_close", close)
    disk = SlowDisk()
    async with open_spool(tmp_path, files=disk, close_timeout=0.1) as spool:
        (handle,) = await spool.commit([b"x"], [message()])
        disk.hold = True
        spool.postpone(handle, 1, 2.0)
    assert len(left) == 1 and left[0] <= 0.0, "the tasks have used it up"
    disk.go.set()
