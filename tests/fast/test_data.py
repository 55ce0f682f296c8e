"""Mail data: S1 to S4, S6, S21 to S23, Y8."""

from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import MANY, Compiled, cut, cuts, reference, two_way, wire

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])

END = b"\r\n.\r\n"
FINDINGS = [
    "done", "size", "over", "long_line", "bare_cr", "bare_lf", "nul", "eight_bit", "longest_line",
    "header_end", "header_fields",
]  # fmt: skip


def read(reader: Any, chunks: list[bytes]) -> bytes | None:
    """Feed until the end of data; what is behind it, or None when it did not come."""
    for number, chunk in enumerate(chunks):
        used = reader.feed(chunk)
        if reader.done:
            return chunk[used:] + b"".join(chunks[number + 1 :])
        assert used == len(chunk)
    return None


def findings(reader: Any) -> dict[str, Any]:
    return {name: getattr(reader, name) for name in FINDINGS}


# S1. The first line end before the dot, the second behind it.
LINE_ENDS = {
    "LF": b"\n", "CR": b"\r", "CRLF": b"\r\n", "CRCRLF": b"\r\r\n", "LFLF": b"\n\n", "LFCR": b"\n\r",
    "LFCRLF": b"\n\r\n", "nothing": b"", "space": b" ",
}  # fmt: skip
NULS = {
    "": (b"", b""), "NUL before the line end": (b"\0", b""), "NUL behind it": (b"", b"\0"),
}  # fmt: skip
SIDES = {
    f"{end} {nul}".strip(): NULS[nul][0] + LINE_ENDS[end] + NULS[nul][1]
    for end, nul in product(LINE_ENDS, NULS)
}


@twins
@pytest.mark.parametrize("before", SIDES)
def test_nothing_but_crlf_dot_crlf_ends_the_data(twin: Any, before: str) -> None:
    for behind in SIDES:
        false_end = SIDES[before] + b"." + SIDES[behind]
        first = b"Subject: one\r\n\r\nfirst" + false_end
        smuggled = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nsecond"
        octets = first + smuggled + END + b"QUIT\r\n"
        true_end = (SIDES[before] + b".").endswith(b"\r\n.") and SIDES[behind].startswith(b"\r\n")
        for chunks in two_way(octets):
            reader = twin.DataReader(10_000)
            rest = read(reader, chunks)
            if true_end:
                # CR CR LF . CR LF has the true end in it, and a bare CR that gets it refused.
                assert rest is not None and rest.endswith(smuggled + END + b"QUIT\r\n"), (before, behind)
            else:
                assert rest == b"QUIT\r\n", (before, behind, chunks)
                content = reader.take()
                assert content.startswith(b"Subject: one\r\n\r\nfirst")
                assert content.endswith(b"second\r\n")
            found = reader.bare_cr, reader.bare_lf, reader.nul
            seen = first if true_end else first + smuggled
            if true_end:
                seen = octets[: len(octets) - len(rest or b"")]
            pairs = seen.count(b"\r\n")
            assert found == (
                seen.count(b"\r") > pairs,
                seen.count(b"\n") > pairs,
                b"\0" in seen,
            ), (before, behind, chunks)


@twins
@pytest.mark.parametrize(
    ("octets", "content"),
    [
        # RFC 5321 section 4.5.2 (S4)
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"...\r\n.\r\n", b"..\r\n"),
        (b".x\r\n.\r\n", b"x\r\n"),
        (b"a\r\n.b\r\nc\r\n.\r\n", b"a\r\nb\r\nc\r\n"),
        (b"a\r\n..\r\n..\r\n.\r\n", b"a\r\n.\r\n.\r\n"),
        (b"a.\r\nb..c\r\n.\r\n", b"a.\r\nb..c\r\n"),
        # after a bare LF or CR no dot is removed
        (b"a\n.b\r\n.\r\n", b"a\n.b\r\n"),
        (b"a\r.b\r\n.\r\n", b"a\r.b\r\n"),
        (b"a\r\r\n..b\r\n.\r\n", b"a\r\r\n.b\r\n"),
        # what only begins like the end
        (b".\rx\r\n.\r\n", b"\rx\r\n"),
        (b".\r\r\n.\r\n", b"\r\r\n"),
        (b".\n\r\n.\r\n", b"\n\r\n"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n"),
        (b".\0\r\n.\r\n", b"\0\r\n"),
    ],
)
def test_content_for_every_split(twin: Any, octets: bytes, content: bytes) -> None:
    for chunks in two_way(octets + b"RSET\r\n"):
        reader = twin.DataReader(1000)
        assert read(reader, chunks) == b"RSET\r\n"
        assert reader.size == len(content)
        assert reader.take() == content
        assert reader.take() == b""
        assert reader.feed(b"more") == 0


@twins
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {"size": 0, "longest_line": 0, "header_end": -1, "header_fields": 0}),
        (b"\r\n", {"header_end": 2, "header_fields": 0}),
        (b"A: 1\r\nB: 2\r\n 2\r\n\t2\r\nC: 3\r\n\r\nbody\r\n", {"header_end": 28, "header_fields": 3}),
        (b"A: 1\r\nB: 2\r\n", {"header_end": -1, "header_fields": 2}),
        (b".A: 1\r\n. x\r\n\r\n", {"header_end": 14, "header_fields": 2, "size": 14}),
        (b"A: 1\r\n\n\r\nB: 2\r\n\r\n", {"header_end": 17, "header_fields": 3, "bare_lf": True}),
        (b"abc\r\nde\r\n", {"longest_line": 3}),
        (b"abc\r\ndefgh\r\n", {"longest_line": 5}),
        (b"ab\r\r\n", {"longest_line": 3, "bare_cr": True, "bare_lf": False}),
        (b"ab\nc\r\n", {"longest_line": 4, "bare_lf": True, "bare_cr": False}),
        (b"a\rb\r\n", {"bare_cr": True}),
        (b"\n\r\n", {"bare_lf": True, "header_fields": 1}),
        (b"a\0\r\n", {"nul": True, "eight_bit": False}),
        (b"a\x80\r\n", {"nul": False, "eight_bit": True}),
        (b"a\x7f\r\n", {"eight_bit": False, "bare_cr": False, "bare_lf": False}),
    ],
)
def test_findings_for_every_split(twin: Any, content: bytes, expected: dict[str, Any]) -> None:
    for chunks in two_way(Compiled.stuff(content) + b".\r\n"):
        reader = twin.DataReader(1000)
        assert read(reader, chunks) == b""
        found = findings(reader)
        assert {name: found[name] for name in expected} == expected
        assert reader.take() == content


@twins
@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 1000])
def test_limit_and_its_true_end(twin: Any, excess: int) -> None:
    limit = 64
    content = b"x" * (limit - 2 + excess) + b"\r\n"
    octets = content + b".\r\nQUIT\r\n"
    for chunks in two_way(octets) if excess < 10 else [[octets]]:
        reader = twin.DataReader(limit)
        assert read(reader, chunks) == b"QUIT\r\n"
        assert reader.size == len(content)
        assert reader.over == (excess > 0)
        assert reader.take() == (b"" if excess > 0 else content)


@twins
def test_the_end_is_the_same_while_a_message_is_thrown_away(twin: Any) -> None:
    false_ends = b"x".join(
        before + b"." + behind
        for before, behind in product(SIDES.values(), SIDES.values())
        if not (before.endswith(b"\r\n") and behind.startswith(b"\r\n"))
    )
    octets = false_ends + END + b"QUIT\r\n"
    assert octets.count(END) == 1
    for chunks in two_way(octets):
        reader = twin.DataReader(10)
        assert read(reader, chunks) == b"QUIT\r\n"
        assert reader.over
        assert reader.take() == b""


@twins
@pytest.mark.parametrize("excess", [-1, 0, 1, 50])
def test_line_limit(twin: Any, excess: int) -> None:
    line = b"x" * (20 + excess)
    content = b"a\r\n." + line[1:] + b"\r\nb\r\n"
    for chunks in two_way(Compiled.stuff(content) + b".\r\n"):
        reader = twin.DataReader(1000, 20)
        assert read(reader, chunks) == b""
        assert reader.longest_line == len(line)
        assert reader.long_line == (excess > 0)
        assert not reader.over
        assert reader.take() == (b"" if excess > 0 else content)


@twins
def test_start_of_the_data_in_what_was_read_with_the_command(twin: Any) -> None:
    data = b"DATA\r\nx\r\n.\r\nMAIL"
    reader = twin.DataReader(100)
    assert reader.feed(data, 6) == 6
    assert reader.done
    assert reader.take() == b"x\r\n"
    reader = twin.DataReader(100)
    assert reader.feed(data, len(data)) == 0
    for start in (-1, len(data) + 1, 2**62):
        with pytest.raises(ValueError, match="outside of data"):
            reader.feed(data, start)


@twins
def test_take_before_the_end(twin: Any) -> None:
    reader = twin.DataReader(100)
    reader.feed(b"x\r\n")
    with pytest.raises(ValueError, match="has not arrived"):
        reader.take()


@MANY
@given(
    wire(),
    cuts(),
    st.sampled_from([0, 3, 30, 200, 1_000_000]),
    st.sampled_from([0, 1, 10, 60]),
    st.booleans(),
)
def test_twins_agree(octets: bytes, places: list[float], limit: int, line_limit: int, ends: bool) -> None:
    if ends:
        octets += END
    compiled, plain, whole = (t.DataReader(limit, line_limit) for t in (Compiled, reference, reference))
    whole.feed(octets)
    for chunk in cut(octets, places):
        assert compiled.feed(chunk) == plain.feed(chunk)
        assert findings(compiled) == findings(plain)
    assert findings(plain) == findings(whole)
    if plain.done:
        content = compiled.take()
        assert content == plain.take()
        assert content == whole.take()


@MANY
@given(wire(), cuts(), st.integers(0, 10))
def test_twins_agree_on_what_is_abandoned(octets: bytes, places: list[float], when: int) -> None:
    octets += END
    readers = [Compiled.DataReader(1000), reference.DataReader(1000)]
    kept = reference.DataReader(1000)
    for number, chunk in enumerate(cut(octets, places)):
        if number == when:
            for reader in readers:
                reader.abandon()
        assert len({reader.feed(chunk) for reader in (*readers, kept)}) == 1, "the end is where it was"
        assert findings(readers[0]) == findings(readers[1])
    assert kept.done
    contents = [reader.take() for reader in readers]
    assert contents[0] == contents[1] == (b"" if readers[0].over else kept.take())


@MANY
@given(wire(), cuts())
def test_round_trip(content: bytes, places: list[float]) -> None:
    """What `stuff` made comes back octet for octet, and is found to be what `scan` says."""
    content += b"\r\n"
    stuffed = Compiled.stuff(content)
    assert END not in b"\r\n" + stuffed
    reader = Compiled.DataReader(len(content))
    assert read(reader, cut(stuffed + b".\r\nQUIT", places)) is not None
    assert reader.size == len(content)
    flags, longest, header_end, _ = Compiled.scan(content)
    assert (reader.longest_line, reader.header_end) == (longest, header_end)
    assert flags & 15 == reader.bare_cr + 2 * reader.bare_lf + 4 * reader.nul + 8 * reader.eight_bit
    assert reader.take() == content


def test_memory_stays_flat_over_the_limit() -> None:
    """S23. The store grows to the limit at most, and goes when the message is too long."""
    limit = 1 << 20
    chunk = b"x" * 65534 + b"\r\n"
    tracemalloc.start()
    try:
        reader = Compiled.DataReader(limit)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(16):
            reader.feed(chunk)
        assert not reader.over
        # While the store grows, the old and the new one may both be there.
        assert tracemalloc.get_traced_memory()[1] - before < 2 * limit + 100_000
        reader.feed(chunk)
        assert reader.over
        tracemalloc.reset_peak()
        for _ in range(500):
            reader.feed(chunk)
        assert tracemalloc.get_traced_memory()[1] - before < 10_000
    finally:
        tracemalloc.stop()
    assert reader.size == 517 << 16


def test_the_store_is_handed_over_not_copied() -> None:
    """Taking a message must not need room for it twice."""
    reader = Compiled.DataReader(1 << 24)
    chunk = b"x" * 65534 + b"\r\n"
    for _ in range(100):
        reader.feed(chunk)
    reader.feed(b".\r\n")
    tracemalloc.start()
    try:
        content = reader.take()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(content) == 100 << 16
    assert peak < len(content) + 100_000
