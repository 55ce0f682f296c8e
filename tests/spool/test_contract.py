"""Both stores keep the contract of `tests/contract/spool.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.spool import MemorySpool, MemoryStore, Spool, open_spool
from tests.contract.spool import CHECKS, Check

every = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])


@every
async def test_durable(check: Check, tmp_path: Path) -> None:
    await check(lambda: open_spool(tmp_path / "spool"))


@every
async def test_durable_with_tiny_segments(check: Check, tmp_path: Path) -> None:
    """Each transaction in a segment of its own; old ones merged at once."""
    await check(lambda: open_spool(tmp_path / "spool", segment_size=5000, compact_age=0.0))


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
