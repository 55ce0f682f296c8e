"""Header sections: RFC 5322 section 2."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import MANY, Compiled, reference, wire

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])


@twins
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\r\n", 2),
        (b"\r\nbody", 2),
        (b"A: b\r\n\r\n", 8),
        (b"A: b\r\n\r\nbody\r\n\r\n", 8),
        (b"A: b\r\n", 6),
        (b"A: b", -1),
        (b"A: b\r\nB: c", -1),
        (b"A: b\n\nbody", -1),
        (b"A: b\n\r\n\r\n", 9),
        (b"A: b\r\r\n", 7),
    ],
)
def test_header_end(twin: Any, data: bytes, expected: int) -> None:
    assert twin.header_end(data) == expected


def fields(twin: Any, data: bytes, end: int | None = None) -> list[tuple[bytes, bytes]]:
    found = twin.header_index(data, len(data) if end is None else end)
    return [(data[start:colon], data[colon + 1 : behind]) for start, colon, behind in found]


@twins
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"A:b\r\n\r\n", [(b"A", b"b\r\n")]),
        (
            b"A:b\r\nB: c\r\n d\r\n\te\r\nC:\r\n\r\nD: e\r\n",
            [(b"A", b"b\r\n"), (b"B", b" c\r\n d\r\n\te\r\n"), (b"C", b"\r\n")],
        ),
        (b"A:b\r\nB:c", [(b"A", b"b\r\n"), (b"B", b"c")]),
        (b"A:b\r\n c", [(b"A", b"b\r\n c")]),
        (b"A:b:c\r\n", [(b"A", b"b:c\r\n")]),
        (b"A :b\r\n", [(b"A ", b"b\r\n")]),
        (b"X Y: z\r\n", [(b"X Y", b" z\r\n")]),
        # what is no field ends the section
        (b"From a@b Mon\r\nA: b\r\n", []),
        (b" A: b\r\nB: c\r\n", []),
        (b":b\r\nB: c\r\n", []),
        (b"A: b\r\nno colon\r\nB: c\r\n", [(b"A", b" b\r\n")]),
        (b"A\r\n : b\r\n", []),
        # only CR LF ends a line
        (b"A: b\nB: c\r\n", [(b"A", b" b\nB: c\r\n")]),
        (b"A: b\rB: c\r\n", [(b"A", b" b\rB: c\r\n")]),
    ],
)
def test_header_index(twin: Any, data: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert fields(twin, data) == expected


@twins
def test_nothing_behind_the_end_is_looked_at(twin: Any) -> None:
    data = b"A: b\r\n c\r\nB: d\r\n"
    assert fields(twin, data, 6) == [(b"A", b" b\r\n")]
    assert fields(twin, data, 7) == [(b"A", b" b\r\n ")]
    assert fields(twin, data, 1) == []
    assert fields(twin, data, 2) == [(b"A", b"")]
    for end in (-1, len(data) + 1):
        with pytest.raises(ValueError, match="outside of data"):
            twin.header_index(data, end)


@MANY
@given(wire(), st.floats(0, 1))
def test_twins_agree(data: bytes, place: float) -> None:
    assert Compiled.header_end(data) == reference.header_end(data)
    end = round(place * len(data))
    found = Compiled.header_index(data, end)
    assert found == reference.header_index(data, end)
    # Without gaps, in order, and never outside.
    at = 0
    for start, colon, behind in found:
        assert start == at < colon < behind <= end
        at = behind
