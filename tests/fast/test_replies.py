"""Replies: C1 to C5, Y3, Y8."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import MANY, Compiled, cut, cuts, outcome, reference, two_way, wire

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])

NO_CODE = "reply line does not begin with a code from 200 to 599 and a space or hyphen"


def replies(reader: Any, chunks: list[bytes]) -> list[Any]:
    """All replies, the last item perhaps the error."""
    found: list[Any] = []
    for chunk in chunks:
        reader.feed(chunk)
        while True:
            reply = outcome(reader.next_reply)
            if reply is None:
                break
            found.append(reply)
            if reply[0] == "ValueError":
                return found
    return found


@twins
@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", []),
        (b"250 ok\r\n", [(250, 0, b"ok")]),
        (b"250 ok\n", [(250, 0, b"ok")]),
        (b"250 ok\r", []),
        (b"250 ok", []),
        (b"250\r\n", [(250, 0, b"")]),
        (b"250 \r\n", [(250, 0, b"")]),
        (b"250  two\r\n", [(250, 0, b" two")]),
        (b"250-a\r\n250-\r\n250 c\r\n", [(250, 0, b"a\n\nc")]),
        (b"250-a\r\n250-b\r\n250\r\n", [(250, 0, b"a\nb\n")]),
        (b"250 a\r\n550 b\r\n354 c\r\n", [(250, 0, b"a"), (550, 0, b"b"), (354, 0, b"c")]),
        (b"599 x\n200 y\n", [(599, 0, b"x"), (200, 0, b"y")]),
        # a lone CR, NUL and 8-bit are text (C2)
        (b"250 a\rb\0\xff\r\r\n", [(250, 0, b"a\rb\0\xff\r")]),
        # enhanced status codes (C4)
        (b"250 2.1.0 ok\r\n", [(250, 2_001_000, b"ok")]),
        (b"250 2.1.0\r\n", [(250, 2_001_000, b"")]),
        (b"550 5.7.139 no\r\n", [(550, 5_007_139, b"no")]),
        (b"450 4.999.999 x\n", [(450, 4_999_999, b"x")]),
        (b"550-5.1.1 a\r\n550-5.1.1 b\r\n550 5.1.1 c\r\n", [(550, 5_001_001, b"a\nb\nc")]),
        (b"550-a\r\n550 5.1.1 b\r\n", [(550, 5_001_001, b"a\nb")]),
        (b"550-5.1.1 a\r\n550 5.1.2 b\r\n", [(550, 5_001_001, b"a\n5.1.2 b")]),
        (b"250 5.1.1 x\r\n", [(250, 0, b"5.1.1 x")]),
        (b"550 4.2.2 full\r\n", [(550, 0, b"4.2.2 full")]),
        (b"354 3.0.0 x\r\n", [(354, 0, b"3.0.0 x")]),
        (b"250 2.1 x\r\n", [(250, 0, b"2.1 x")]),
        (b"250 2.1.0x\r\n", [(250, 0, b"2.1.0x")]),
        (b"250 2.1.0.1 x\r\n", [(250, 0, b"2.1.0.1 x")]),
        (b"250 2.1234.0 x\r\n", [(250, 0, b"2.1234.0 x")]),
        (b"250 2..0 x\r\n", [(250, 0, b"2..0 x")]),
        (b"250 22.1.0 x\r\n", [(250, 0, b"22.1.0 x")]),
        # C1
        (b"\r\n", [("ValueError", NO_CODE)]),
        (b"25\r\n", [("ValueError", NO_CODE)]),
        (b"2500 ok\r\n", [("ValueError", NO_CODE)]),
        (b"250ok\r\n", [("ValueError", NO_CODE)]),
        (b"250\tok\r\n", [("ValueError", NO_CODE)]),
        (b"250\rok\r\n", [("ValueError", NO_CODE)]),
        (b" 250 ok\r\n", [("ValueError", NO_CODE)]),
        (b"199 ok\r\n", [("ValueError", NO_CODE)]),
        (b"600 ok\r\n", [("ValueError", NO_CODE)]),
        (b"+25 ok\r\n", [("ValueError", NO_CODE)]),
        (b"2_5 ok\r\n", [("ValueError", NO_CODE)]),
        (b"2\xc2\xb2 ok\r\n", [("ValueError", NO_CODE)]),
        (b"\xd9\xa2\xd9\xa5 ok\r\n", [("ValueError", NO_CODE)]),
        (b"220 hi\r\nHTTP/1.1\r\n", [(220, 0, b"hi"), ("ValueError", NO_CODE)]),
        # C2
        (b"250-a\r\n550 b\r\n", [("ValueError", "reply code changed within one reply: 250, then 550")]),
        (b"250-a\r\nb\r\n", [("ValueError", NO_CODE)]),
    ],
)
def test_replies_for_every_split(twin: Any, octets: bytes, expected: list[Any]) -> None:
    for chunks in two_way(octets):
        assert replies(twin.ReplyReader(), chunks) == expected


@twins
@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 3, 200])
def test_a_long_line_is_cut(twin: Any, excess: int) -> None:
    limit = 20
    text = b"x" * (limit - 4 + excess)
    for end in (b"\n", b"\r\n"):
        octets = b"250-" + text + end + b"250 " + text + end
        kept = text[: limit - 4]
        for chunks in two_way(octets):
            assert replies(twin.ReplyReader(limit), chunks) == [(250, 0, kept + b"\n" + kept)]


@twins
def test_lines_limit(twin: Any) -> None:
    too_many = [("ValueError", "reply of more than 3 lines")]
    fits = b"250-a\n250-b\n250 c\n"
    for chunks in two_way(fits + fits):
        assert replies(twin.ReplyReader(lines_limit=3), chunks) == [(250, 0, b"a\nb\nc")] * 2
    for chunks in two_way(b"250-x\n" + fits):
        assert replies(twin.ReplyReader(lines_limit=3), chunks) == too_many


@twins
@pytest.mark.parametrize("line_limit", [10, 2048])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_total_limit_counts_everything(twin: Any, line_limit: int, excess: int) -> None:
    octets = b"250-abc\r\n250 " + b"x" * (100 - 15 + excess) + b"\r\n"
    assert len(octets) == 100 + excess
    for chunks in two_way(octets):
        found = replies(twin.ReplyReader(line_limit, total_limit=100), chunks)
        if excess > 0:
            assert found == [("ValueError", "reply longer than 100 octets")]
        else:
            assert found == [(250, 0, b"abc\n" + b"x" * min(85 + excess, line_limit - 4))]


@twins
def test_what_is_broken_stays_broken(twin: Any) -> None:
    reader = twin.ReplyReader()
    reader.feed(b"what?\r\n250 ok\r\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="does not begin with a code"):
            reader.next_reply()
    reader.feed(b"250 ok\r\n")
    with pytest.raises(ValueError, match="does not begin with a code"):
        reader.next_reply()


@twins
def test_pending_counts_all_that_no_reply_has_used(twin: Any) -> None:
    reader = twin.ReplyReader(line_limit=10)
    for octets, pending in [(b"250-a\r\n", 7), (b"250", 10), (b"-" + b"x" * 50, 61), (b"\r\n250 ", 67)]:
        reader.feed(octets)
        assert reader.next_reply() is None
        assert reader.pending() == pending
    reader.feed(b"\n25")
    assert reader.next_reply() == (250, 0, b"a\nxxxxxx\n")
    assert reader.pending() == 2


@twins
@pytest.mark.parametrize("limits", [(2, 1, 1), (-1, 1, 1), (3, 0, 1), (3, 1, 0)])
def test_limits_that_make_no_sense(twin: Any, limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one line"):
        twin.ReplyReader(*limits)


@twins
@pytest.mark.parametrize("octets", [b"250 2.0.0 ok\r\n", b"250\r\n", b"550-a\r\n550 b\r\n"])
def test_a_reply_that_says_the_same_again_is_the_same_object(twin: Any, octets: bytes) -> None:
    reader = twin.ReplyReader()
    reader.feed(octets)
    first = reader.next_reply()
    reader.feed(octets + octets)
    assert reader.next_reply(first) is first
    assert reader.next_reply() == first
    for other in (
        b"250 2.0.0 no\r\n",
        b"250 2.0.1 ok\r\n",
        b"251 2.0.0 ok\r\n",
        b"250 2.0.0 ok \r\n",
        b"251\r\n",
    ):
        reader.feed(other + other)
        told = reader.next_reply(first)
        assert told == reader.next_reply() and told != first
    assert reader.pending() == 0


@MANY
@given(
    wire(),
    cuts(),
    st.sampled_from([3, 4, 10, 2048]),
    st.sampled_from([1, 3, 128]),
    st.sampled_from([1, 20, 100, 65536]),
)
def test_twins_agree(octets: bytes, places: list[float], line: int, lines: int, total: int) -> None:
    compiled, plain = (twin.ReplyReader(line, lines, total) for twin in (Compiled, reference))
    whole = replies(reference.ReplyReader(line, lines, total), [octets])
    found = []
    for chunk in cut(octets, places):
        compiled.feed(chunk)
        plain.feed(chunk)
        while True:
            reply = outcome(compiled.next_reply)
            assert reply == outcome(plain.next_reply)
            assert compiled.pending() == plain.pending()
            if reply is None or (found and found[-1][0] == "ValueError"):
                break
            found.append(reply)
    assert found == whole


def test_memory_of_a_babbling_and_of_an_idle_reader() -> None:
    tracemalloc.start()
    try:
        readers = [Compiled.ReplyReader() for _ in range(1000)]
        before = tracemalloc.get_traced_memory()[0]
        chunk = b"250-" + b"x" * 4000 + b"\r\n"
        for reader in readers:
            for _ in range(10):
                reader.feed(chunk)
                assert reader.next_reply() is None
            reader.feed(b"250 done\r\n")
            assert reader.next_reply()[0] == 250
            reader.feed(b"250 2.0.0 ok\r\n" * 3)
            while reader.next_reply() is not None:
                pass
        held = (tracemalloc.get_traced_memory()[0] - before) / len(readers)
        endless = readers[0]
        with pytest.raises(ValueError, match="longer than 65536"):
            for _ in range(1_000_000):
                endless.feed(chunk[:-2])
                endless.next_reply()
    finally:
        tracemalloc.stop()
    assert held < 600, "octets held by an idle reader"
