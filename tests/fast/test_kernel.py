"""Small calls to the kernel: the compiled twin and the plain one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fast.pieces import Compiled, reference

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])


@twins
def test_note(twin: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_bytes(b"." * 10)
    with file.open("r+b") as opened:
        assert twin.note_now(opened.fileno(), b"a\0b", 4) == 3
        assert twin.note_now(opened.fileno(), b"", 0) == 0
        assert twin.note_now(opened.fileno(), b"end", 1 << 33) == 3, "also behind 4 GiB"
    with file.open("rb") as opened:
        assert opened.read(10) == b"....a\0b..."
        opened.seek(1 << 33)
        assert opened.read() == b"end"
    file.unlink()  # whoever looks through a test's files should not meet one of 8 GiB


@twins
def test_note_that_fails(twin: Any, tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as told:
        twin.note_now(full.fileno(), b"x", 0)
    assert told.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as told:
        twin.note_now(-1, b"x", 0)
    assert told.value.errno == errno.EBADF
    with pytest.raises(TypeError):
        twin.note_now(0, None, 0)


@twins
def test_random(twin: Any) -> None:
    found = [twin.random_now(10) for _ in range(1000)]
    assert len(set(found)) == 1000
    assert {len(one) for one in found} == {10}
    # Of 80,000 bits about half are set: a place that is always the same would show too.
    for bit in range(80):
        ones = sum(int.from_bytes(one, "big") >> bit & 1 for one in found)
        assert 350 < ones < 650, bit
    assert len(twin.random_now(256)) == 256
    assert len(twin.random_now(1)) == 1


@twins
@pytest.mark.parametrize("size", [0, -1, 257])
def test_random_of_another_size(twin: Any, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        twin.random_now(size)


def test_ids_ask_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stock of random octets would be cloned with a running machine (reliability D16)."""
    asked: list[int] = []

    def watched(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    monkeypatch.setattr("engine.model.random_now", watched)
    from engine.model import new_message_id

    assert len({new_message_id() for _ in range(100)}) == 100
    assert asked == [10] * 100
