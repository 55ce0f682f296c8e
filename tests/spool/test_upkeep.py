"""The watermark: whether there is room, and how fresh that knowledge is (D17, D18)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from engine.spool import Files, open_spool, upkeep
from policy.units import Floor
from tests.contract.spool import message


class SmallDisk(Files):
    """1,000 MiB; `left` of it are free."""

    left = 500 << 20
    looks = 0

    def free(self, path: str) -> tuple[int, int, int, int]:
        self.looks += 1
        return self.left, 1000 << 20, 1000, 1000


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


async def test_half_again_as_much_as_the_message_must_be_free(tmp_path: Path) -> None:
    disk = SmallDisk()
    disk.left = 300 << 20
    async with open_spool(tmp_path, files=disk, min_free_space=Floor(10.0, 1 << 40)) as spool:
        assert spool.room_for(200 << 20)
        assert not spool.room_for((200 << 20) + 1)
        assert spool.trouble is None


async def test_free_space_is_looked_at_although_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between MAIL and the final dot of the only client minutes may pass."""
    monkeypatch.setattr(upkeep, "_LOOK", 0.01)
    disk = SmallDisk()
    async with open_spool(tmp_path, files=disk, min_free_space=Floor(10.0, 1 << 40)) as spool:
        assert spool.room_for(1000)
        disk.left = 99 << 20
        looks = disk.looks
        await until(lambda: disk.looks >= looks + 2)
        assert not spool.room_for(1000), "the first answer is right already"
        assert spool.trouble is not None and "99 MiB" in spool.trouble
        assert spool.halted is None, "mail can leave"
        await spool.commit([b"a bounce"], [message()])
        disk.left = 500 << 20
        looks = disk.looks
        monkeypatch.setattr(upkeep, "_RETRY", 0.01)
        await until(lambda: spool.room_for(1000))


async def test_free_space_that_is_not_known_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "_LOOK", 0.01)
    disk = SmallDisk()
    async with open_spool(tmp_path, files=disk, min_free_space=Floor(10.0, 1 << 40)) as spool:
        looks = 0

        def broken(path: str) -> tuple[int, int, int, int]:
            nonlocal looks
            looks += 1
            raise OSError(5, "broken")

        monkeypatch.setattr(disk, "free", broken)
        await until(lambda: looks >= 3)
        assert spool.room_for(1 << 40)
        assert spool.statistics().free_bytes == -1
    assert caplog.text.count("free space is not known") == 1
