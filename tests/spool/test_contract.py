"""Both stores keep the contract of `tests/contract/spool.py`."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.spool import MemorySpool, MemoryStore, Spool, open_spool
from tests.contract.spool import CHECKS, Check, check_halting
from tests.spool.helpers import BadDisk, failing

every = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])


@every
async def test_durable(check: Check, tmp_path: Path) -> None:
    await check(lambda: open_spool(tmp_path / "spool"))


@every
async def test_durable_with_tiny_segments(check: Check, tmp_path: Path) -> None:
    """Each transaction in a segment of its own; old ones merged at once."""
    await check(lambda: open_spool(tmp_path / "spool", segment_size=5000, compact_age=0.0))


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
async def test_durable_halts(tmp_path: Path, number: int) -> None:
    """Also when the room for results, reserved as it is, cannot be used."""
    disk = BadDisk()

    def hurt() -> None:
        disk.plan = failing(number, "pwrite", "open")

    def heal() -> None:
        disk.plan = lambda call, path: None

    await check_halting(lambda: open_spool(tmp_path / "spool", files=disk), hurt, heal)


async def test_memory_halts() -> None:
    store = MemoryStore()
    spools: list[MemorySpool] = []

    @asynccontextmanager
    async def reopen() -> AsyncIterator[Spool]:
        spools.append(MemorySpool(store))
        yield spools[-1]
        spools[-1].close()

    def hurt() -> None:
        spools[-1].broken = "the disk is on fire"

    def heal() -> None:
        spools[-1].broken = None

    await check_halting(reopen, hurt, heal)


@every
async def test_memory(check: Check) -> None:
    store = MemoryStore()

    @asynccontextmanager
    async def reopen() -> AsyncIterator[Spool]:
        spool = MemorySpool(store)
        try:
            yield spool
        finally:
            spool.close()

    await check(reopen)
