"""Whole bodies: C31, S4, Y4."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.fast.pieces import MANY, Compiled, reference, wire

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])


@twins
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b".", b".."),
        (b".\r\n", b"..\r\n"),
        (b"..\r\n", b"...\r\n"),
        (b"a\r\n.b\r\n", b"a\r\n..b\r\n"),
        (b"a\r\n.", b"a\r\n.."),
        (b"\r\n.\r\n.\r\n", b"\r\n..\r\n..\r\n"),
        (b"a\r\n\r\n.\r\n", b"a\r\n\r\n..\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n"),
        # lines are those behind CR LF
        (b"a\n.b\r.c", b"a\n.b\r.c"),
        (b"a\n\r\n.b", b"a\n\r\n..b"),
    ],
)
def test_stuff(twin: Any, data: bytes, expected: bytes) -> None:
    result = twin.stuff(data)
    assert result == expected
    assert (result is data) == (expected == data)


@twins
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a", b"a"),
        (b"\r", b"\r\n"),
        (b"\n", b"\r\n"),
        (b"a\nb\rc\r\n", b"a\r\nb\r\nc\r\n"),
        (b"\n\n", b"\r\n\r\n"),
        (b"\r\r", b"\r\n\r\n"),
        (b"\n\r", b"\r\n\r\n"),
        (b"\r\r\n", b"\r\n\r\n"),
        (b"\n\r\n\r", b"\r\n\r\n\r\n"),
        (b"a\0b", b"ab"),
        (b"\0", b""),
        (b"\r\0\n", b"\r\n"),
        (b"a\r\n\0\r\n", b"a\r\n\r\n"),
        # line ends of other worlds stay what they are
        (b"a\x0b\x0c\x1c\x1d\x1e\x85\xe2\x80\xa8b", b"a\x0b\x0c\x1c\x1d\x1e\x85\xe2\x80\xa8b"),
    ],
)
def test_clean_lines(twin: Any, data: bytes, expected: bytes) -> None:
    result = twin.clean_lines(data)
    assert result == expected
    assert (result is data) == (expected == data)


CR, LF, NUL, EIGHT, DOT, ENDED = 1, 2, 4, 8, 16, 32


@twins
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (0, 0, -1, True)),
        (b"a", (0, 1, -1, False)),
        (b"\r\n", (ENDED, 0, 2, False)),
        (b"abc\r\nde\r\n", (ENDED, 3, -1, False)),
        (b"ab\r\ncde", (0, 3, -1, False)),
        (b"a: b\r\n\r\nlonger line\r\n", (ENDED, 11, 8, False)),
        (b"a\r\n\r\n\r\n", (ENDED, 1, 5, False)),
        (b"a\r", (CR, 2, -1, False)),
        (b"\ra", (CR, 2, -1, False)),
        (b"a\r\r\n", (CR | ENDED, 2, -1, False)),
        (b"\n", (LF, 1, -1, False)),
        (b"a\nb\r\n", (LF | ENDED, 3, -1, False)),
        (b"\n\r", (CR | LF, 2, -1, False)),
        (b"\n\r\n", (LF | ENDED, 1, -1, False)),
        (b"\0", (NUL, 1, -1, False)),
        (b"\x7f\x80", (EIGHT, 2, -1, False)),
        (b".", (DOT, 1, -1, False)),
        (b"a\r\n.", (DOT, 1, -1, False)),
        (b"a\n.b", (LF, 4, -1, False)),
    ],
)
def test_scan(twin: Any, data: bytes, expected: tuple[int, int, int, bool]) -> None:
    assert twin.scan(data) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("odd", [b"\0", b"\r", b"\n", b"\x80"])
def test_no_octet_is_overlooked(size: int, odd: bytes) -> None:
    """Wherever the wide registers begin and end."""
    for place in range(size):
        data = b"x" * place + odd + b"x" * (size - 1 - place)
        assert Compiled.scan(data) == reference.scan(data)
        assert Compiled.clean_lines(data) == reference.clean_lines(data)


@MANY
@given(wire())
def test_twins_agree(data: bytes) -> None:
    assert Compiled.stuff(data) == reference.stuff(data)
    assert Compiled.clean_lines(data) == reference.clean_lines(data)
    assert Compiled.scan(data) == reference.scan(data)
    for twin in (Compiled, reference):
        assert (twin.stuff(data) is data) == (not twin.scan(data)[0] & DOT)
        assert (twin.clean_lines(data) is data) == (not twin.scan(data)[0] & (CR | LF | NUL))


@MANY
@given(wire())
def test_what_leaves_is_safe(data: bytes) -> None:
    """C31: after cleaning and stuffing nothing in it can end the data, whatever came in."""
    clean = Compiled.clean_lines(data)
    assert not Compiled.scan(clean)[0] & (CR | LF | NUL)
    assert Compiled.clean_lines(clean) is clean
    stuffed = Compiled.stuff(clean)
    on_the_wire = b"\r\n" + stuffed + b"\r\n"
    assert b"\r\n.\r\n" not in on_the_wire
    assert on_the_wire.count(b"\n") == on_the_wire.count(b"\r\n") == on_the_wire.count(b"\r")
