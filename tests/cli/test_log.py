"""``posthorn log``: what it prints of whole, unfinished and damaged segments."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli.log import log
from engine.log.segments import SegmentSink
from tests.support.posthorn import command, environment


def lines(*records: tuple[str, int]) -> bytes:
    return b"".join(json.dumps({"type": kind, "n": number}).encode() + b"\n" for kind, number in records)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A finished segment, and one that is still being written."""
    where = tmp_path / "log"
    first, second = SegmentSink(where), SegmentSink(where)
    first.open()
    first.write(lines(("Reception", 1), ("Delivery", 2)), 0.0)
    first.close()
    second.write(lines(("Reception", 3)), 0.0)
    second.write(lines(("Bounce", 4)), 0.0)
    (where / "notes.txt").write_text("not a segment")
    yield where
    second.close()


def printed(capfd: pytest.CaptureFixture[str]) -> list[int]:
    return [json.loads(line)["n"] for line in capfd.readouterr().out.splitlines()]


def test_all_records_in_order(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert log(directory) == 0
    assert printed(capfd) == [1, 2, 3, 4]
    newest = max(path for path in directory.iterdir() if path.suffix != ".txt")
    assert log(newest) == 0
    assert printed(capfd) == [3, 4]


def test_records_of_a_type(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert log(directory, type=["Bounce"]) == 0
    assert printed(capfd) == [4]
    assert log(directory, type=["Delivery", "Reception"]) == 0
    assert printed(capfd) == [1, 2, 3]
    assert log(directory, type=["Expiration"]) == 0
    assert printed(capfd) == []
    assert log(directory, type=["bounce"]) == 2
    assert 'posthorn log: --type bounce: no such type; did you mean "Bounce"?' in capfd.readouterr().err


def test_terminal_controls_stay_escaped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sink = SegmentSink(tmp_path)
    sink.open()
    raw = b'{"type":"Bounce","text":"\\u009b31m \\u007f"}\n'
    sink.write(raw, 0.0)
    assert log(tmp_path) == 0
    assert capfd.readouterr().out.encode() == raw
    sink.close()


def test_a_damaged_segment_is_named_and_the_others_are_printed(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = min(directory.iterdir())
    sink = SegmentSink(directory)
    many = [("Delivery", number) for number in range(10, 5000)]
    sink.write(lines(*many[:2500]), 0.0)
    sink.write(lines(*many[2500:]), 0.0)
    sink.close()
    big = max(path for path in directory.iterdir() if path.suffix != ".txt")
    os.chmod(big, 0o600)
    content = bytearray(big.read_bytes())
    content[-400:-300] = bytes(100)
    big.write_bytes(content)
    os.chmod(first, 0o600)
    first.write_bytes(b"no zstd")
    assert log(directory) == 2
    out, err = capfd.readouterr()
    numbers = [json.loads(line)["n"] for line in out.splitlines()]
    assert numbers[:3] == [3, 4, 10]
    assert [line.split(": ")[:3] for line in err.splitlines()] == [
        ["posthorn log", str(first), "damaged, the rest of it is left out"],
        ["posthorn log", str(big), "damaged, some of its records may be wrong"],
        ["posthorn log", str(big), err.splitlines()[2].split(": ")[2]],
    ]
    assert re.search(r"damaged, [0-9]+ lines that are no record left out$", err)
    assert 4999 in numbers, "what the damage did not touch"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone", "No such file or directory"),
        (".", "there are no log segments in it; right would be a log_dir"),
    ],
)
def test_a_wrong_directory(tmp_path: Path, name: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    assert log(tmp_path / name) == 2
    assert capfd.readouterr().err == f"posthorn log: {tmp_path / name}: {says}\n"


def test_a_file_that_is_no_segment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text("# Readme\n")
    assert log(file) == 2
    says = "is no log segment; right would be a log_dir, or a file in one"
    assert capfd.readouterr().err == f"posthorn log: {file}: {says}\n"


@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_standard_output_that_takes_nothing_is_not_the_segment_s_fault(
    directory: Path, buffered: dict[str, str]
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command(), "log", str(directory)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(buffered),
        )
    assert done.returncode == 2
    assert done.stderr == b"posthorn log: standard output: No space left on device\n"


def test_no_records_yet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert log(tmp_path) == 0
    assert capfd.readouterr() == ("", "")


def test_as_a_command(directory: Path) -> None:
    done = subprocess.run(
        [*command(), "log", str(directory), "--type", "Bounce"],
        capture_output=True,
        env=environment(),
        check=True,
    )
    assert done.stdout == lines(("Bounce", 4))
