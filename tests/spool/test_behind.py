"""Groups written behind the back of `Files`, by the operating system alone: what a failure does.

What is the same either way is in ``test_commit.py``.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from engine._fast import GroupWriter
from engine.errors import SpoolError, SpoolFull
from engine.spool import DurableSpool, open_spool
from tests.contract.spool import found, message
from tests.spool.helpers import until


async def refused_by_all(spool: DurableSpool, sessions: int) -> list[type[SpoolError]]:
    """What each of some sessions is told, whose transactions share a group."""
    told: list[type[SpoolError]] = []

    async def session() -> None:
        try:
            await spool.commit([b"bad" * 1000], [message()])
        except SpoolError as error:
            told.append(type(error))

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(session)
    return told


async def test_the_kernel_takes_only_half_a_group(tmp_path: Path) -> None:
    """The operating system's own refusal, behind the back of `Files`: as above."""
    kept = [message(), message()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_spool(tmp_path) as spool:
        (handle,) = await spool.commit([b"good"], kept[:1])
        end = handle.place.end
        resource.setrlimit(resource.RLIMIT_FSIZE, (end + 5000, before[1]))
        try:
            assert await refused_by_all(spool, 3) == [SpoolFull] * 3
            assert os.path.getsize(handle.place.path) == end, "nothing of it is left"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        spool.statistics()
        await until(lambda: spool.trouble is None)
        await spool.commit([b"good"], kept[1:])
    async with open_spool(tmp_path) as spool:
        assert set(await found(spool)) == {each.id for each in kept}


@pytest.fixture
def bad_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BadSync]]:
    """The sync of the next group fails, when told so."""
    monkeypatch.setattr("engine.spool.commit.GroupWriter", BadSync)
    with open(os.devnull, "wb") as null:  # it takes everything and knows no sync
        BadSync.null = null.fileno()
        BadSync.left = 0
        BadSync.go.set()
        yield BadSync


class BadSync(GroupWriter):
    null = -1
    left = 0
    go = threading.Event()

    def start(self, fd: int, nonce: bytes, offset: int, slot: int) -> None:
        if BadSync.left:
            BadSync.left -= 1
            os.pwrite(fd, b"bad" * 1000, offset)
            fd = self.null
        super().start(fd, nonce, offset, slot)

    def run(self) -> tuple[int, int] | None:
        errors = super().run()
        self.go.wait(10)
        return errors


async def test_a_sync_fails_behind_the_back_of_files(tmp_path: Path, bad_syncs: type[BadSync]) -> None:
    """Nothing in that file is believed any more (D20)."""
    kept = [message(), message()]
    async with open_spool(tmp_path) as spool:
        (handle,) = await spool.commit([b"good"], kept[:1])
        bad = handle.place.path
        bad_syncs.left = 1
        assert await refused_by_all(spool, 3) == [SpoolError] * 3
        await until(lambda: spool.trouble is None)
        assert handle.place.path != bad, "its message has moved to a fresh file"
        await spool.commit([b"good"], kept[1:])
        assert not Path(bad).exists()
    async with open_spool(tmp_path) as spool:
        assert set(await found(spool)) == {each.id for each in kept}


async def test_what_fails_after_nobody_waits_any_more_is_cut_back_all_the_same(
    tmp_path: Path, bad_syncs: type[BadSync]
) -> None:
    """Its callers were told that it was not taken; the next start must not find it."""
    kept = [message()]
    async with open_spool(tmp_path, close_timeout=0.1) as spool:
        (handle,) = await spool.commit([b"good"], kept)
        path, end = handle.place.path, handle.place.end
        bad_syncs.left = 1
        bad_syncs.go.clear()
        with trio.move_on_after(0.05):
            await spool.commit([b"bad"], [message()])
    assert os.path.getsize(path) > end
    bad_syncs.go.set()
    await until(lambda: os.path.getsize(path) == end)


async def test_a_fault_of_ours_ends_the_spool_and_strands_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for the group to be written cannot tell anybody: it may be Trio."""

    class Broken(GroupWriter):
        def add(self, *_: object) -> None:
            raise LookupError("mine")

    monkeypatch.setattr("engine.spool.commit.GroupWriter", Broken)
    told: list[str] = []
    with trio.fail_after(5), pytest.RaisesGroup(LookupError, flatten_subgroups=True):
        async with open_spool(tmp_path) as spool:
            await spool.commit([b"first: makes the segment"], [message()])
            try:
                await spool.commit([b"x"], [message()])
            except SpoolError as error:
                told.append(str(error))
    assert told == ["the spool is closed"]
