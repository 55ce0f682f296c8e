"""A disk that does not give what is on it: nothing is taken for damaged, nothing is removed (D20-D23)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from engine.errors import MessageUnreadable, SpoolError
from engine.spool import Files, directory, durable, open_spool, upkeep
from tests.contract.spool import found, message
from tests.spool.helpers import BadDisk, Plan, failing
from tests.spool.test_restart import everything, killed, only

BIG = b"Subject: big\r\n\r\n" + b"precious\r\n" * 20_000


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


def well(call: str, path: str) -> None:
    return None


def nth(number: int, last: int, *calls: str) -> Plan:
    """These calls fail with EIO from the nth to the last-th time."""
    count = 0

    def plan(call: str, path: str) -> OSError | None:
        nonlocal count
        count += call in calls
        if call in calls and number <= count <= last:
            return OSError(errno.EIO, os.strerror(errno.EIO))
        return None

    return plan


def quarantined(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "quarantine"))


@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "large"])
@pytest.mark.parametrize("last", [1, 2, 3])
async def test_a_message_that_the_disk_does_not_give_now_stays(
    tmp_path: Path, body: bytes, last: int
) -> None:
    """One EIO, at whichever piece of the message."""
    disk = BadDisk()
    one = message()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([body], [one])
        disk.plan = nth(last, 1 << 30, "pread")
        try:
            assert await spool.read(handle) == (one, body)
        except MessageUnreadable:
            raise
        except SpoolError as error:
            assert "00000001.seg" in str(error)
            assert spool.halted is not None and spool.trouble is not None
        disk.plan = well
        await until(lambda: spool.trouble is None)
        assert spool.halted is None
        assert await spool.read(handle) == (one, body)
        assert quarantined(tmp_path) == []
        assert spool.statistics().messages == 1
    assert await everything(tmp_path) == ({one.id: (one, body)}, 0)


async def test_a_bad_place_does_not_condemn_a_good_disk_again_and_again(tmp_path: Path) -> None:
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([b"x"], [message()])
        bad = handle.place.path
        disk.plan = failing(errno.EIO, "pread", suffix=bad)
        with pytest.raises(SpoolError):
            await spool.read(handle)
        await until(lambda: spool.trouble is None)  # a fresh file was read back
        with pytest.raises(SpoolError):
            await spool.read(handle)
        assert spool.trouble is None
        assert spool.statistics().failures == 2
        await spool.commit([b"x"], [message()])


async def test_running_out_of_descriptors_is_not_the_disk(tmp_path: Path) -> None:
    disk = BadDisk()
    async with open_spool(tmp_path, files=disk) as spool:
        (handle,) = await spool.commit([b"x"], [message()])
        disk.plan = failing(errno.ENFILE, "pread")
        with pytest.raises(SpoolError):
            await spool.read(handle)
        assert spool.trouble is None


async def test_one_error_while_the_start_reads_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any read: asked again, it gives everything."""
    monkeypatch.setattr(durable, "_PAUSE", 0.0)
    copy, kept = await killed(tmp_path, 8)
    disk = BadDisk()
    async with open_spool(copy, files=disk) as spool:
        await found(spool)
        reads = [call for call, _ in disk.calls].count("pread")
    assert reads >= 4
    for number in range(1, reads + 1):
        async with open_spool(copy, files=BadDisk(nth(number, number, "pread"))) as spool:
            assert set(await found(spool)) == set(kept), number
        assert quarantined(copy) == []
    assert await everything(copy) == (kept, 0)


@pytest.mark.parametrize("suffix", [".seg", ".jnl"])
async def test_a_start_that_cannot_read_is_refused_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """From any read on: the error names the file, and a later start finds everything."""
    monkeypatch.setattr(durable, "_PAUSE", 0.0)
    copy, kept = await killed(tmp_path, 8)
    for number in range(1, 5):
        refused = False
        try:
            disk = BadDisk(nth(number, 1 << 30, "pread"))
            async with open_spool(copy, files=disk) as spool:
                await found(spool)
        except SpoolError as error:
            refused = True
            assert "Input/output error" in str(error)
            assert "00000001.seg" in str(error) or "00000001.jnl" in str(error)
        assert refused == (number <= [call for call, _ in disk.calls].count("pread"))
        assert quarantined(copy) == []
    with pytest.raises(SpoolError, match=only(copy, suffix[1:]).name):
        async with open_spool(copy, files=BadDisk(failing(errno.EIO, "pread", suffix=suffix))) as spool:
            await found(spool)
    assert await everything(copy) == (kept, 0)


async def test_a_format_that_cannot_be_read_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, kept = await killed(tmp_path)

    class Broken(Files):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "Files", Broken)
        with pytest.raises(SpoolError, match=r"broken .*/format"):
            async with open_spool(copy):
                pass
    assert await everything(copy) == (kept, 0)


async def test_compaction_moves_nothing_that_it_cannot_read(tmp_path: Path) -> None:
    disk = BadDisk()
    kept = {}
    async with open_spool(tmp_path, files=disk, segment_size=5000, compact_age=0.0) as spool:
        finished = []
        for number in range(12):
            messages = [message() for _ in range(4)]
            handles = await spool.commit([b"%d" % number], messages)
            kept[handles[3]] = (messages[3], b"%d" % number)
            finished += handles[:3]
        disk.plan = failing(errno.EIO, "pread", suffix=".seg")
        for handle in finished:
            spool.finish(handle, 1)
        await until(lambda: spool.statistics().failures)
        assert spool.halted is not None
        disk.plan = well
        await until(lambda: spool.trouble is None)
        for handle, what in kept.items():
            assert await spool.read(handle) == what
        assert quarantined(tmp_path) == []
    assert await everything(tmp_path) == ({one.id: (one, body) for one, body in kept.values()}, 0)


# -- the quarantine --------------------------------------------------------------------------------


async def hurt(tmp_path: Path) -> Path:
    """A spool with one message whose body has changed."""
    copy, _ = await killed(tmp_path, 1)
    path = only(copy, "seg")
    path.write_bytes(path.read_bytes().replace(b"body 1", b"bodY 1"))
    return copy


class Forgetful(BadDisk):
    """What is written to the quarantine does not stay there."""

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if self.paths[fd].endswith(".record.part"):
            data = b"\0" * len(data)
        return super().pwrite(fd, data, offset)


async def test_a_segment_stays_until_the_copy_reads_back(tmp_path: Path) -> None:
    copy = await hurt(tmp_path)
    async with open_spool(copy, files=Forgetful()) as spool:
        (recovered,) = (await found(spool)).values()
        with pytest.raises(SpoolError, match="does not read back") as caught:
            await spool.read(recovered.handle)
        assert type(caught.value) is SpoolError
        assert spool.statistics().messages == 1
    assert b"bodY 1" in only(copy, "seg").read_bytes()
    assert (await everything(copy)) == ({}, 1)
    (record,) = (copy / "quarantine").glob("*.record")
    assert b"bodY 1" in record.read_bytes()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "rename", "fsync_directory", "pread"])
async def test_a_segment_stays_when_the_copy_fails(tmp_path: Path, call: str) -> None:
    copy = await hurt(tmp_path)
    disk = BadDisk()
    async with open_spool(copy, files=disk) as spool:
        (recovered,) = (await found(spool)).values()
        broken = "quarantine"

        def plan(asked: str, path: str) -> OSError | None:
            return OSError(errno.EIO, "broken") if asked == call and broken in path else None

        disk.plan = plan
        with pytest.raises(SpoolError) as caught:
            await spool.read(recovered.handle)
        assert type(caught.value) is SpoolError
        assert spool.statistics().messages == 1
        disk.plan = well
        await until(lambda: spool.trouble is None)
        with pytest.raises(MessageUnreadable):
            await spool.read(recovered.handle)
        assert spool.statistics().messages == 0
    records = list((copy / "quarantine").glob("*.record"))
    assert any(b"bodY 1" in record.read_bytes() for record in records)


async def test_what_lies_in_the_quarantine_is_never_mistaken_for_something_else(tmp_path: Path) -> None:
    """Another message of a segment with the same number, damaged in the same place."""
    (tmp_path / "first").mkdir()
    copy = await hurt(tmp_path / "first")
    assert (await everything(copy)) == ({}, 1)
    assert not list((copy / "segments").glob("*.seg"))
    async with open_spool(copy) as spool:
        (handle,) = await spool.commit([b"y"], [message()])
        assert handle.place.number == 2, "the number of what was quarantined is not used again"
        spool.finish(handle, 1)
    (record,) = (copy / "quarantine").glob("*.record")
    record.write_bytes(b"of an older segment 1")
    (tmp_path / "second").mkdir()
    other = await hurt(tmp_path / "second")
    for path in (other / "segments").iterdir():
        path.rename(copy / "segments" / path.name)
    assert (await everything(copy)) == ({}, 1)
    contents = [path.read_bytes() for path in sorted((copy / "quarantine").glob("*.record"))]
    assert b"of an older segment 1" in contents
    assert sum(b"bodY 1" in content for content in contents) == 1


@pytest.mark.parametrize("road", ["removed", "compacted"])
async def test_damage_the_start_could_not_copy_keeps_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, road: str
) -> None:
    monkeypatch.setattr(upkeep, "_LOOK", 0.01)
    copy, kept = await killed(tmp_path, 5)
    path = only(copy, "seg")
    data = bytearray(path.read_bytes())
    data[4096] ^= 1  # the magic of the first record
    path.write_bytes(data)
    disk = BadDisk()
    disk.plan = failing(errno.ENOSPC, "pwrite", suffix=".part")
    async with open_spool(copy, files=disk, compact_age=0.0, segment_size=10_000) as spool:
        again = await found(spool)
        assert len(again) == len(kept) - 1
        last = list(again)[-1]
        for name, recovered in again.items():
            if road == "removed" or name != last:
                spool.finish(recovered.handle, recovered.handle.left)
        tries = len(disk.calls)
        await until(lambda: [call for call in disk.calls[tries:] if call[1].endswith(".part")])
        await trio.testing.wait_all_tasks_blocked()
        # Pieces, which are tried again and again, may lie there for a moment.
        assert path.exists() and all(name.endswith(".part") for name in quarantined(copy))
        disk.plan = well
        await until(lambda: not path.exists())
        (record,) = (copy / "quarantine").glob("*.record")
        assert b"body 1" in record.read_bytes()
    good, damaged = await everything(copy)
    assert (set(good), damaged) == ({last} if road == "compacted" else set(), 0)
