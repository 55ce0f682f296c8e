"""Those who wait for a commit and cannot be cancelled: each is answered, whatever becomes of the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from engine.errors import SpoolError
from engine.spool import open_spool
from tests.contract.spool import found, message
from tests.spool.helpers import BadDisk, SlowDisk, failing, until


async def test_who_asked_not_to_be_cancelled_waits_for_a_hanging_disk_until_its_deadline(
    tmp_path: Path,
) -> None:
    disk = SlowDisk()
    first = message()
    ends: dict[str, float] = {}
    async with open_spool(tmp_path, files=disk) as spool:
        await spool.commit([b"x"], [first])
        disk.hold = True
        begun = trio.current_time()

        async def session(name: str, patience: float) -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(SpoolError, match="did not answer in time"):
                    await spool.commit([b"x"], [message()], trio.current_time() + patience)
                ends[name] = trio.current_time() - begun

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session, "written", 0.3)
                await until(lambda: spool.statistics().waiting == 1 and disk.written)
                nursery.start_soon(session, "in the line", 0.6)
                nursery.start_soon(session, "in the line, soon", 0.1)
            await trio.sleep(0.05)  # nobody waits now; who comes later is woken all the same
            await session("last", 0.1)
        assert list(ends) == ["in the line, soon", "written", "in the line", "last"]
        assert ends["in the line"] >= 0.6
        disk.go.set()
        await until(lambda: spool.statistics().waiting == 0)
        assert spool.statistics().messages == 1
        assert spool.statistics().abandoned == 1
        await spool.commit([b"x"], [message()], trio.current_time() + 60)
    async with open_spool(tmp_path) as spool:
        assert first.id in await found(spool)
        assert len(await found(spool)) == 0, "asked once"
        assert spool.statistics().messages == 2, "nothing is left of those who were told no"


async def test_who_cannot_be_cancelled_is_woken_when_the_spool_closes_on_a_hanging_disk(
    tmp_path: Path,
) -> None:
    disk = SlowDisk()
    refused: list[str] = []

    async def session() -> None:
        with pytest.raises(SpoolError, match="closed"):
            await spool.commit([b"x"], [message()], trio.current_time() + 60)
        refused.append("")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            async with open_spool(tmp_path, files=disk, close_timeout=0.1) as spool:
                await spool.commit([b"x"], [message()])
                disk.hold = True
                nursery.start_soon(session)
                await until(lambda: spool.statistics().waiting == 1 and disk.written)
                nursery.start_soon(session)
                await until(lambda: spool.statistics().waiting == 2)
        assert len(refused) == 2
    disk.go.set()


async def test_a_fault_of_our_own_leaves_nobody_waiting(tmp_path: Path) -> None:
    """The engine ends, although a caller cannot be cancelled."""

    class Faulty(SlowDisk):
        def fdatasync(self, fd: int) -> None:
            super().fdatasync(fd)
            if self.hold:
                raise ZeroDivisionError

    disk = Faulty()
    disk.go.set()
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        with trio.fail_after(5):
            async with open_spool(tmp_path, files=disk) as spool:
                await spool.commit([b"x"], [message()])
                disk.hold = True
                with pytest.raises(SpoolError, match="closed"):
                    await spool.commit([b"x"], [message()], trio.current_time() + 60)
                await trio.sleep_forever()


async def test_a_group_that_is_not_handed_over_keeps_no_file(tmp_path: Path) -> None:
    """Descriptors that nobody gives back are missed most when there are none left."""
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([b"x"], [message()])
        descriptors = spool._shelf.descriptors
        descriptors.close_all()
        disk.plan = failing(errno.EMFILE, "open", suffix=".jnl")
        with pytest.raises(SpoolError, match="Too many open files"):
            await spool.commit([b"x"], [message()])
        assert descriptors.get(handle.place.path).pins == 0
        disk.plan = lambda call, path: None
        await until(lambda: spool.trouble is None)


async def test_who_hands_its_group_over_and_is_refused_may_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is there before the caller has come to rest."""
    monkeypatch.setattr("engine.spool.commit._ENOUGH", 2)
    disk = BadDisk()
    refused: list[str] = []
    async with open_spool(tmp_path, files=disk) as spool:
        await spool.commit([b"x"], [message()])

        async def session() -> None:
            with pytest.raises(SpoolError, match="Too many open files"):
                await spool.commit([b"x"], [message()])
            refused.append("")

        spool._shelf.descriptors.close_all()
        disk.plan = failing(errno.EMFILE, "open")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            with trio.CancelScope() as scope:
                scope.cancel()
                await session()
        assert len(refused) == 2
        disk.plan = lambda call, path: None
        await until(lambda: spool.trouble is None)
