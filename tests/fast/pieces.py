"""Nasty pieces, ways to cut them up, and the two twins side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from engine._fast import _reference as reference
from engine._fast import bodies, commands, data, groups, headers, patterns, replies, sockets

__all__ = ["MANY", "PIECES", "Compiled", "cut", "cuts", "outcome", "reference", "two_way", "wire"]


MANY = settings(max_examples=max(500, settings().max_examples))
"""These functions take microseconds: try more than the profile says, unless it says even more."""


class Compiled:
    """The compiled twin, whatever the environment chose."""

    CommandReader = commands.CommandReader
    parse_command = staticmethod(commands.parse_command)
    parse_path = staticmethod(commands.parse_path)
    ReplyReader = replies.ReplyReader
    DataReader = data.DataReader
    GroupWriter = groups.GroupWriter
    PatternSet = patterns.PatternSet
    stuff = staticmethod(bodies.stuff)
    events_now = staticmethod(sockets.events_now)
    receive_now = staticmethod(sockets.receive_now)
    send_now = staticmethod(sockets.send_now)
    send_parts_now = staticmethod(sockets.send_parts_now)
    clean_lines = staticmethod(bodies.clean_lines)
    scan = staticmethod(bodies.scan)
    header_end = staticmethod(headers.header_end)
    header_index = staticmethod(headers.header_index)


PIECES = [
    b"\r\n", b"\r", b"\n", b"\0", b"\r\n.\r\n", b"\r\n.", b"\n.\r\n", b"\r.\r\n", b"\r\n..", b".", b".\r",
    b"\r\n\r\n", b"\r\r\n", b"\n\n", b" ", b"\t", b":", b"Subject: x\r\n", b" folded\r\n", b"\x7f", b"\x0b",
    b"\x85", b"\xff", b"\xc3\xa4", b"a", b"line\r\n", b"x" * 40,
    b"MAIL FROM:<a@b.example>\r\n", b"noop", b"DATA\r\n", b"<", b">", b"@", b"<a.b@c-d.example>", b" SIZE=1",
    b"250", b"250 ", b"250-", b"250 ok\r\n", b"250-2.1.0 a\n", b"550 5.1.1 no\r\n", b"354", b"199 x\n",
    b"2.1.0 ", b"5.7.1", b"4.1", b"6", b"-",
]  # fmt: skip
"""What the two twins are most likely to disagree about."""


def wire(max_pieces: int = 24) -> st.SearchStrategy[bytes]:
    """Octets made of `PIECES`, with a few of any kind between them."""
    piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=3))
    return st.lists(piece, max_size=max_pieces).map(b"".join)


def cuts(max_cuts: int = 8) -> st.SearchStrategy[list[float]]:
    """Where to cut, as fractions of the length."""
    return st.lists(st.floats(0, 1), max_size=max_cuts)


def cut(octets: bytes, places: list[float]) -> list[bytes]:
    """`octets` in pieces, some of them perhaps empty."""
    ends = [*sorted(round(place * len(octets)) for place in places), len(octets)]
    starts = [0, *ends[:-1]]
    return [octets[start:end] for start, end in zip(starts, ends, strict=True)]


def two_way(octets: bytes) -> Iterator[list[bytes]]:
    """Every split in two, and byte by byte."""
    for place in range(len(octets) + 1):
        yield [octets[:place], octets[place:]]
    yield [octets[place : place + 1] for place in range(len(octets))]


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What the call gives, or the text of its ValueError."""
    try:
        return call(*args)
    except ValueError as error:
        return "ValueError", str(error)
