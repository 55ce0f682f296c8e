"""Y9: no quadratic work. Counted in octets looked at or moved by a counting build, so no clock matters."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.compiled import Counted, build_counted

Make = Callable[[int], bytes]

NASTY: dict[str, Make] = {
    "text": lambda n: (b"x" * 76 + b"\r\n") * (n // 78),
    "one line": lambda n: b"x" * n,
    "dots": lambda n: b"." * n,
    "dot lines": lambda n: b"..\r\n" * (n // 4),
    "CR": lambda n: b"\r" * n,
    "LF": lambda n: b"\n" * n,
    "CR LF": lambda n: b"\r\n" * (n // 2),
    "LF CR": lambda n: b"\n\r" * (n // 2),
    "CR CR LF": lambda n: b"\r\r\n" * (n // 3),
    "false ends": lambda n: b"\r\n.\n" * (n // 4),
    "NUL": lambda n: b"\0" * n,
    "folds": lambda n: b"A: b\r\n" + b" \r\n" * (n // 3),
    "fields": lambda n: b"a:\r\n" * (n // 4),
    "colons": lambda n: b":" * n,
    "replies": lambda n: b"250-a\n" * (n // 6),
    "atoms": lambda n: b"<" + b"a." * (n // 2),
    "spaces": lambda n: b"<a@b>" + b" " * n,
}


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counted]:
    """Built once, also for several processes of pytest-xdist: theirs are folders of one run's."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "counted.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_counted(folder / "counted")


def drain_lines(module: Any, chunks: list[bytes]) -> None:
    reader = module.CommandReader(2048)
    for chunk in chunks:
        reader.feed(chunk)
        while reader.next_line() is not None:
            pass


def drain_replies(module: Any, chunks: list[bytes]) -> None:
    reader = module.ReplyReader(2048, 1 << 40, 1 << 40)
    try:
        for chunk in chunks:
            reader.feed(chunk)
            while reader.next_reply() is not None:
                pass
    except ValueError:
        pass


def read_data(module: Any, chunks: list[bytes]) -> None:
    reader = module.DataReader(1 << 40)
    for chunk in chunks:
        reader.feed(chunk)


STREAMS: list[tuple[str, Callable[[Any, list[bytes]], None]]] = [
    ("commands", drain_lines),
    ("replies", drain_replies),
    ("data", read_data),
]
WHOLE: list[tuple[str, str]] = [
    ("commands", "parse_command"),
    ("commands", "parse_path"),
    ("bodies", "stuff"),
    ("bodies", "clean_lines"),
    ("bodies", "scan"),
    ("headers", "header_end"),
    ("headers", "header_index"),
]

PER_OCTET = 12
"""Looks and moves one octet may cost, all in all. Linear work stays below for any size; quadratic work,
at the sizes used here, is hundreds of times above."""
SIZE = 60_000


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("chunk", [1, 7, 1000, SIZE])
@pytest.mark.parametrize(("name", "run"), STREAMS)
def test_streams(counted: dict[str, Counted], name: str, run: Any, chunk: int, nasty: str) -> None:
    octets = NASTY[nasty](SIZE)
    chunks = [octets[at : at + chunk] for at in range(0, len(octets), chunk)]
    work = counted[name].work(lambda: run(counted[name].module, chunks))
    assert 0 < work <= PER_OCTET * len(octets)


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize(("name", "function"), WHOLE)
def test_whole_bodies(counted: dict[str, Counted], name: str, function: str, nasty: str) -> None:
    octets = NASTY[nasty](SIZE)
    call = getattr(counted[name].module, function)
    args = (octets, len(octets)) if function == "header_index" else (octets,)
    assert counted[name].work(lambda: call(*args)) <= PER_OCTET * len(octets)


PATTERNS = sorted({b"x" * 76, b"250-a\n250-b", b"password", b"secret/+", *(b"%06d" % n for n in range(500))})


@pytest.mark.parametrize("nasty", NASTY)
def test_many_patterns(counted: dict[str, Counted], nasty: str) -> None:
    patterns = counted["patterns"].module.PatternSet(PATTERNS, bytes(len(PATTERNS)))
    octets = NASTY[nasty](SIZE)
    work = counted["patterns"].work(lambda: patterns.search(octets))
    # Worst is a text that repeats a pattern that repeats itself: its length, twice, for each octet.
    assert len(octets) <= work <= (2 * 76 + PER_OCTET) * len(octets)
    if nasty not in ("text", "one line", "replies"):
        assert work <= 2 * len(octets)


def test_the_counter_counts(counted: dict[str, Counted]) -> None:
    """A test of the tests: work that is repeated is seen."""
    stuff, text = counted["bodies"].module.stuff, NASTY["text"](SIZE)
    once = counted["bodies"].work(lambda: stuff(text))
    assert once >= len(text) - 100
    assert counted["bodies"].work(lambda: [stuff(text) for _ in range(20)]) == 20 * once
