"""Segment files: names, rotation, the done mark, what a reader sees, what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import stat
from pathlib import Path

import pytest

from engine.log import ChecksumWrong, read_segment, segment_lines, segments
from engine.log.segments import SegmentSink, StandardOutput

OCTETS = bytes(octet for octet in range(256) if octet != 10)

LINES = b"".join(b'{"n":%d,"text":"some text that repeats itself"}\n' % n for n in range(100))


def is_done(path: Path) -> bool:
    return not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def numbers(path: Path) -> list[int]:
    return [record["n"] for record in read_segment(path)]


def test_a_segment_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    sink = SegmentSink(tmp_path / "deep" / "log")
    sink.open()
    assert list((tmp_path / "deep" / "log").iterdir()) == []
    sink.write(b'{"n":1}\n', 0.0)
    (path,) = (tmp_path / "deep" / "log").iterdir()
    assert re.fullmatch(r"[0-9]{8}-[0-9]{6}\.[0-9]{6}", path.name)
    assert numbers(path) == [1] and not is_done(path)
    sink.write(b'{"n":2}\n', 0.0)
    assert numbers(path) == [1, 2]
    sink.close()
    assert is_done(path)
    assert segments.zstd.decompress(path.read_bytes()) == b'{"n":1}\n{"n":2}\n'
    sink.close()


def test_rotation_by_uncompressed_size(tmp_path: Path) -> None:
    sink = SegmentSink(tmp_path, max_file_size=2 * len(LINES))
    sink.open()
    for _ in range(5):
        sink.write(LINES, 0.0)
    paths = sorted(tmp_path.iterdir())
    assert [len(numbers(path)) for path in paths] == [200, 200, 100]
    assert [is_done(path) for path in paths] == [True, True, False]
    sink.close()
    assert sum(path.stat().st_size for path in paths) < len(LINES)


def test_rotation_by_time(tmp_path: Path) -> None:
    sink = SegmentSink(tmp_path, max_segment_duration=10.0)
    sink.open()
    assert sink.deadline == float("inf")
    sink.write(LINES, 5.0)
    assert sink.deadline == 15.0
    sink.tick(14.9)
    (path,) = tmp_path.iterdir()
    assert not is_done(path)
    sink.tick(15.0)
    assert is_done(path) and sink.deadline == float("inf")
    sink.write(LINES, 99.0)
    assert len(list(tmp_path.iterdir())) == 2
    sink.close()


def test_what_an_earlier_run_left_is_marked_and_strangers_are_left_alone(tmp_path: Path) -> None:
    ours = tmp_path / "20260102-030405.678901"
    stranger = tmp_path / "notes.txt"
    hidden = tmp_path / ".20260102-030405.678901"
    for path in (ours, stranger, hidden):
        path.write_bytes(b"")
        path.chmod(0o644)
    (tmp_path / "20260102-030405.678902").symlink_to(stranger)
    SegmentSink(tmp_path).open()
    assert [is_done(path) for path in (ours, stranger, hidden)] == [True, False, False]


def test_a_segment_somebody_writes_is_not_marked_by_another(tmp_path: Path) -> None:
    """Two relays may share a log directory; each finishes its own segments only."""
    first, second = SegmentSink(tmp_path), SegmentSink(tmp_path)
    first.open()
    first.write(b'{"n":1}\n', 0.0)
    (live,) = tmp_path.iterdir()
    second.open()
    assert not is_done(live)
    second.write(b'{"n":9}\n', 0.0)
    first.write(b'{"n":2}\n', 0.0)
    first.close()
    assert is_done(live) and numbers(live) == [1, 2]
    (other,) = set(tmp_path.iterdir()) - {live}
    assert not is_done(other)
    second.close()


def test_a_segment_that_was_taken_for_an_old_one_stays_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts between the making of the file and its lock."""
    sink = SegmentSink(tmp_path)
    real = segments._owned
    late = [SegmentSink(tmp_path)]

    def owned(fd: int) -> bool:
        if late:
            late.pop().open()
        return real(fd)

    monkeypatch.setattr(segments, "_owned", owned)
    sink.write(b'{"n":1}\n', 0.0)
    empty, live = sorted(tmp_path.iterdir())
    assert is_done(empty) and numbers(empty) == []
    assert not is_done(live) and numbers(live) == [1]
    sink.close()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_leaves_whole_segments_and_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    sink = SegmentSink(tmp_path)
    sink.open()
    sink.write(b'{"n":1}\n', 0.0)
    real = segments._write_all
    room = [7]

    def full(fd: int, data: bytes) -> None:
        real(fd, data[: room[0]])
        if len(data) > room[0]:
            raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_write_all", full)
        for _ in range(3):
            with pytest.raises(OSError):
                sink.write(b'{"n":2}\n', 0.0)
        # The segment was cut back to its last whole block and ended; no empty files are left behind.
        (first,) = tmp_path.iterdir()
        assert is_done(first)
        whole = first.read_bytes()
        assert segments.zstd.decompress(whole) == b'{"n":1}\n'
        assert whole[4] & 0b100, "the flag that a checksum follows (RFC 8878 3.1.1.1.1)"
    sink.write(b'{"n":2}\n', 0.0)
    sink.close()
    paths = sorted(tmp_path.iterdir())
    assert [numbers(path) for path in paths] == [[1], [2]]


def test_a_failure_at_the_end_of_a_segment_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = SegmentSink(tmp_path, max_file_size=1)
    sink.open()
    real = segments._write_all

    def no_end(fd: int, data: bytes) -> None:
        if len(data) < 8:
            raise OSError(errno.ENOSPC, "full")
        real(fd, data)

    monkeypatch.setattr(segments, "_write_all", no_end)
    sink.write(b'{"n":1,"t":"long enough"}\n', 0.0)
    sink.write(b'{"n":2,"t":"long enough"}\n', 0.0)
    assert sorted(number for path in tmp_path.iterdir() for number in numbers(path)) == [1, 2]


def test_a_torn_segment_gives_what_is_before_the_tear(tmp_path: Path) -> None:
    sink = SegmentSink(tmp_path)
    sink.open()
    for block in range(50):
        sink.write(
            b"".join(b'{"n":%d,"x":"%s"}\n' % (n, os.urandom(20).hex().encode()) for n in range(20)), block
        )
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    found = numbers(path)
    assert 500 < len(found) < 1000
    path.write_bytes(b"not a segment at all, whatever it is called")
    assert numbers(path) == []


@pytest.mark.parametrize("blocks", [1, 50])
def test_a_segment_that_is_not_what_was_written_is_read_to_its_end_and_told(
    tmp_path: Path, blocks: int
) -> None:
    sink = SegmentSink(tmp_path)
    sink.open()
    for block in range(blocks):
        # Nothing in it can be compressed, so that an octet of the file is one of a line.
        sink.write(b'{"n":%d,"x":"' % block + bytes(random.choices(OCTETS, k=3000)) + b'"}\n', 0.0)
    sink.close()
    (path,) = tmp_path.iterdir()
    path.chmod(0o600)
    lines = list(segment_lines(path))
    assert len(lines) == blocks
    content = bytearray(path.read_bytes())
    at = content.rindex(b'"}') - 100
    content[at] = 32 if content[at] != 32 else 33
    path.write_bytes(content)
    found: list[bytes] = []
    with pytest.raises(ChecksumWrong, match="checksum"):
        for line in segment_lines(path):
            found.append(line)  # noqa: PERF402: what came before the exception counts
    assert len(found) == blocks and found[:-1] == lines[:-1] and found[-1] != lines[-1]


def test_all_before_a_damaged_place_is_kept(tmp_path: Path) -> None:
    sink = SegmentSink(tmp_path)
    sink.open()
    for number in range(20):
        sink.write(b'{"n":%d}\n' % number, 0.0)
    end = next(tmp_path.iterdir()).stat().st_size
    sink.write(b'{"n":20}\n', 0.0)
    sink.close()
    (path,) = tmp_path.iterdir()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[end] |= 0x06  # a kind of block that there is not
    path.write_bytes(content)
    assert numbers(path) == list(range(20))


def test_standard_output_is_plain_lines_and_repeats_after_a_tear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    sink = StandardOutput(fd)
    sink.open()
    sink.write(LINES, 0.0)
    assert path.read_bytes() == LINES
    assert len(read_segment(path)) == 100
    real = segments._write_all

    def torn(fd: int, data: bytes) -> None:
        real(fd, data[:4])
        raise OSError(errno.EPIPE, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_write_all", torn)
        with pytest.raises(OSError):
            sink.write(b'{"n":1}\n', 0.0)
    sink.write(b'{"n":1}\n', 0.0)
    sink.close()
    os.close(fd)
    assert json.loads(path.read_bytes().splitlines()[-1]) == {"n": 1}


def test_a_descriptor_somebody_made_non_blocking_is_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    size = 0
    try:
        import threading

        def reader() -> None:
            nonlocal size
            while size < 1_000_000:
                size += len(os.read(read, 65536))

        thread = threading.Thread(target=reader)
        thread.start()
        StandardOutput(write).write(b"x" * 1_000_000, 0.0)
        thread.join(10)
        assert size == 1_000_000
    finally:
        os.close(read)
        os.close(write)
