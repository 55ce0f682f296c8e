"""The way from the event loop to the sinks: bounded, never blocking, never losing silently."""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.errors import ConfigError
from engine.log import Log, Record, channel, node_id, open_log, read_segment, segments
from policy.runtime import LogDeclaration


@pytest.fixture
def clock() -> MockClock:
    # Jumps only when nothing happened for a while: worker threads are invisible to the clock.
    return MockClock(autojump_threshold=0.05)


def record(number: int, **more: Any) -> Record:
    return Record(type="Delivery", timestamp=1_700_000_000.0 + number, num_attempts=number, **more)


def stored(directory: Path) -> list[dict[str, Any]]:
    return [line for path in sorted(directory.iterdir()) for line in read_segment(path)]


async def settled(log: Log) -> None:
    while any(one.waiting for one in log.statistics()):
        await trio.sleep(0.05)


async def test_everything_is_written_in_order_by_the_end(tmp_path: Path, clock: MockClock) -> None:
    async with open_log([LogDeclaration(log_dir=str(tmp_path))], nodeid="n1", drain_limit=math.inf) as log:
        for number in range(5000):
            log.write(record(number))
            if number % 1000 == 0:
                await trio.sleep(0.5)
    lines = stored(tmp_path)
    assert [line["num_attempts"] for line in lines] == list(range(5000))
    assert lines[0]["nodeid"] == "n1"
    (statistics,) = log.statistics()
    assert (statistics.written, statistics.dropped, statistics.waiting) == (5000, 0, 0)


async def test_a_reader_sees_a_record_soon_although_the_segment_is_open(tmp_path: Path) -> None:
    async with open_log([LogDeclaration(log_dir=str(tmp_path))]) as log:
        begun = trio.current_time()
        log.write(record(1))
        while not (tmp_path.exists() and stored(tmp_path)):
            await trio.sleep(0.01)
        assert trio.current_time() - begun < 1.0
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & stat.S_IWUSR
    assert not path.stat().st_mode & stat.S_IWUSR


async def test_a_segment_is_closed_by_time_even_when_idle(tmp_path: Path, clock: MockClock) -> None:
    declaration = LogDeclaration(log_dir=str(tmp_path), max_segment_duration=30.0)
    async with open_log([declaration], drain_limit=math.inf) as log:
        log.write(record(1))
        await settled(log)
        (path,) = tmp_path.iterdir()
        await trio.sleep(29)
        assert path.stat().st_mode & stat.S_IWUSR
        await trio.sleep(2)
        assert not path.stat().st_mode & stat.S_IWUSR
        log.write(record(2))
        await settled(log)
        assert len(list(tmp_path.iterdir())) == 2


async def test_several_loggers_each_with_its_own_captures(tmp_path: Path) -> None:
    declarations = [
        LogDeclaration(log_dir=str(tmp_path / "a"), meta=("tenant",)),
        LogDeclaration(log_dir=str(tmp_path / "b"), meta=("campaign",), headers=("Subject",)),
    ]
    async with open_log(declarations, drain_limit=math.inf) as log:
        one = record(1)
        assert log.capture.wanted
        log.capture.fill(one, {"tenant": "t", "campaign": "c", "rest": "r"}, b"Subject: s\r\n", None)
        log.write(one)
    (a,) = stored(tmp_path / "a")
    (b,) = stored(tmp_path / "b")
    assert (a["meta"], a["headers"]) == ({"tenant": "t"}, {})
    assert (b["meta"], b["headers"]) == ({"campaign": "c"}, {"Subject": "s"})


@pytest.mark.parametrize(("asked", "level"), [({}, None), ({"compression_level": 19}, 19)])
async def test_the_level_of_compression_is_the_one_that_was_asked_for(
    asked: dict[str, int], level: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often a segment is flushed has more to do with its size, so the size would say little."""
    levels: list[int | None] = []
    real = segments._compressor
    monkeypatch.setattr(segments, "_compressor", lambda level: (levels.append(level), real(level))[1])
    async with open_log([LogDeclaration(log_dir=str(tmp_path), **asked)], drain_limit=1e6) as log:
        log.write(record(1))
    assert len(stored(tmp_path)) == 1 and levels == [level]


async def test_without_loggers_writing_is_nothing() -> None:
    async with open_log([]) as log:
        log.write(record(1))
        await log.wait_room()
        assert not log.capture.wanted and log.statistics() == []


async def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    async with open_log([LogDeclaration(log_dir="-")], drain_limit=math.inf) as log:
        log.write(record(7))
    assert b'"num_attempts":7' in capfdbinary.readouterr().out


async def test_a_directory_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"log_dir .*/file: is not a directory"):
        async with open_log([LogDeclaration(log_dir=str(tmp_path / "file"))]):
            pass


async def test_the_end_waits_for_what_is_left_even_when_everything_is_cancelled(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_log([LogDeclaration(log_dir=str(tmp_path))], drain_limit=math.inf) as log:
            for number in range(1000):
                log.write(record(number))
            scope.cancel()
            await trio.sleep_forever()
    assert len(stored(tmp_path)) == 1000


class Disk:
    """Faults on demand under the segments."""

    def __init__(self) -> None:
        self.fault: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self._real = segments._write_all

    def write_all(self, fd: int, data: bytes) -> None:
        self.gate.wait()
        if self.fault is not None and len(data) > 7:  # the end of a frame fits where its block was cut
            self._real(fd, data[: len(data) // 2])
            raise OSError(self.fault, os.strerror(self.fault))
        self._real(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(segments, "_write_all", made.write_all)
    yield made
    made.gate.set()


async def test_a_full_disk_holds_records_then_drops_and_counts_and_marks_the_gap(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "posthorn.log")
    declaration = LogDeclaration(log_dir=str(tmp_path), back_pressure=100)
    async with open_log([declaration], drain_limit=math.inf) as log:
        log.write(record(0))
        await settled(log)
        disk.fault = errno.ENOSPC
        for number in range(1, 151):
            log.write(record(number))
            await log.wait_room()
            if number == 20:
                await trio.sleep(5)
        (statistics,) = log.statistics()
        assert statistics.waiting == 100
        assert statistics.dropped == 50
        assert statistics.trouble == "no space left on device"
        # A writer that cannot write is not waited for.
        assert not log.full
        await trio.sleep(20)
        disk.fault = None
        await settled(log)
        for number in range(200, 203):
            log.write(record(number))
    lines = stored(tmp_path)
    assert [line["num_attempts"] for line in lines if line["type"] == "Delivery"] == [
        *range(101),
        200,
        201,
        202,
    ]
    gaps = [at for at, line in enumerate(lines) if line["type"] == "Gap"]
    assert gaps == [101]
    assert lines[101]["dropped"] == 50
    assert log.statistics()[0].trouble is None
    # Each segment is a whole frame, the broken-off ones too.
    for path in tmp_path.iterdir():
        segments.zstd.decompress(path.read_bytes())
    said = [line.getMessage() for line in caplog.records]
    assert len([text for text in said if "cannot write: no space left on device" in text]) == 1
    assert len([text for text in said if "records dropped" in text]) <= 2
    assert not [text for text in said if "too slow" in text]
    assert sum(int(text.split(": ")[1].split()[0]) for text in said if "records dropped" in text) == 50
    assert len([text for text in said if "writing again" in text]) == 1


async def test_drops_are_told_once_per_interval(
    tmp_path: Path,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    clock: MockClock,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: now[0])
    declaration = LogDeclaration(log_dir=str(tmp_path), back_pressure=10)
    async with open_log([declaration], drain_limit=math.inf) as log:
        disk.fault = errno.EIO
        log.write(record(0))
        await trio.sleep(3)
        for number in range(300):
            now[0] += 0.1
            log.write(record(number))
        told = [line.getMessage() for line in caplog.records if "records dropped" in line.getMessage()]
        assert len(told) == 3
        assert "input/output error" in told[0]
        disk.fault = None


async def test_a_writer_that_is_behind_slows_down_who_logs(tmp_path: Path, disk: Disk) -> None:
    declaration = LogDeclaration(log_dir=str(tmp_path), back_pressure=100)
    async with open_log([declaration], drain_limit=math.inf) as log:
        disk.gate.clear()
        for number in range(75):
            log.write(record(number))
        assert log.full
        waited = trio.Event()
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await log.wait_room()
                waited.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not waited.is_set()
            disk.gate.set()
            await waited.wait()
        assert not log.full
    assert len(stored(tmp_path)) == 75


async def test_a_sink_that_stands_still_is_waited_for_only_once(
    tmp_path: Path, disk: Disk, clock: MockClock
) -> None:
    declaration = LogDeclaration(log_dir=str(tmp_path), back_pressure=100)
    async with open_log([declaration], drain_limit=math.inf) as log:
        disk.gate.clear()
        for number in range(75):
            log.write(record(number))
        begun = trio.current_time()
        await log.wait_room()
        assert 1.0 <= trio.current_time() - begun < 1.5
        for number in range(100):
            await log.wait_room()
            log.write(record(number))
        assert trio.current_time() - begun < 1.5
        assert log.statistics()[0].dropped == 75
        disk.gate.set()
    assert [line["dropped"] for line in stored(tmp_path) if line["type"] == "Gap"] == [75]


async def test_a_sink_that_hangs_does_not_keep_the_process(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    disk.gate.clear()
    async with open_log([LogDeclaration(log_dir=str(tmp_path))], drain_limit=5.0) as log:
        for number in range(30):
            log.write(record(number))
        await trio.sleep(1)
        for number in range(12):
            log.write(record(number))
        begun = trio.current_time()
    assert trio.current_time() - begun == pytest.approx(5.0, abs=0.5)
    assert log.statistics()[0].dropped == 42
    assert "42 records dropped" in caplog.text


def test_the_node_id_is_stable_and_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTHORN_NODE_ID", raising=False)
    assert node_id() == node_id()
    assert len(node_id()) == 36
    monkeypatch.setenv("POSTHORN_NODE_ID", "mine")
    assert node_id() == "mine"
