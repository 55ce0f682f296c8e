"""Command lines: S5, S20, Y8, Y9."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import MANY, Compiled, cut, cuts, reference, two_way, wire

BARE = reference.LINE_BARE
CONTROL = reference.LINE_CONTROL
TOO_LONG = reference.LINE_TOO_LONG

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])


def lines(reader: Any, chunks: list[bytes]) -> list[bytes | int]:
    """All that the reader gives when fed chunk by chunk, and what is left in it."""
    found: list[bytes | int] = []
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            found.append(line)
    return found


@twins
@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", []),
        (b"\r\n", [b""]),
        (b"NOOP\r\n", [b"NOOP"]),
        (b"NOOP", []),
        (b"NOOP\r", []),
        (b"NOOP\n", []),
        (b"MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDA", [b"MAIL FROM:<>", b"RCPT TO:<a@b>"]),
        # S5: not executed, and not in part
        (b"NOOP\nMAIL FROM:<>\r\nQUIT\r\n", [BARE, b"QUIT"]),
        (b"NOOP\rMAIL FROM:<>\r\nQUIT\r\n", [BARE, b"QUIT"]),
        (b"NOOP\r\r\n", [BARE]),
        (b"\nNOOP\r\n", [BARE]),
        (b"\n\r\r\n\n\r\n", [BARE, BARE]),
        (b"NO\0OP\r\n", [CONTROL]),
        (b"NO\x7fOP\r\n", [CONTROL]),
        (b"NO\x1bOP\r\n", [CONTROL]),
        (b"NO\0\nOP\r\n", [BARE]),
        (b"NOOP\t\x85\xa0\r\n", [b"NOOP\t\x85\xa0"]),
        (b"MAIL FROM:<\xc3\xa4@b>\r\n", [b"MAIL FROM:<\xc3\xa4@b>"]),
    ],
)
def test_lines_for_every_split(twin: Any, octets: bytes, expected: list[bytes | int]) -> None:
    for chunks in two_way(octets):
        assert lines(twin.CommandReader(), chunks) == expected


@twins
@pytest.mark.parametrize("limit", [8, 2048])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 500])
def test_limit_counts_the_line_end(twin: Any, limit: int, excess: int) -> None:
    line = b"x" * (limit - 2 + excess)
    expected: list[bytes | int] = [TOO_LONG if excess > 0 else line, b"QUIT"]
    octets = line + b"\r\nQUIT\r\n"
    whole = [octets]
    bytewise = [octets[place : place + 1] for place in range(len(octets))]
    at_the_end = [line, b"\r", b"\n", b"QUIT\r\n"]
    for chunks in (whole, bytewise, at_the_end):
        assert lines(twin.CommandReader(limit), chunks) == expected


@twins
def test_a_long_line_is_reported_once_and_never_continued_as_a_command(twin: Any) -> None:
    reader = twin.CommandReader(16)
    flood = b"x" * 5000 + b"\n" * 10 + b"\r" * 10 + b"QUIT\r \n"
    assert lines(reader, [flood, flood, b"\r", b"MAIL", b"\r", b"\nNOOP\r\n"]) == [TOO_LONG, b"NOOP"]


@twins
def test_limit_may_change_between_lines(twin: Any) -> None:
    reader = twin.CommandReader(10)
    long = b"x" * 50
    reader.feed(long + b"\r\n" + long + b"\r\n")
    assert reader.next_line() == TOO_LONG
    reader.limit = 100
    assert reader.limit == 100
    assert reader.next_line() == long


@twins
def test_take_gives_what_was_sent_ahead(twin: Any) -> None:
    reader = twin.CommandReader()
    reader.feed(b"DATA\r\nSubject: x\r\n\r\n")
    assert reader.next_line() == b"DATA"
    assert reader.pending() == 14
    assert reader.take() == b"Subject: x\r\n\r\n"
    assert reader.pending() == 0
    assert reader.take() == b""
    reader.feed(b"QUIT\r\n")
    assert reader.next_line() == b"QUIT"


@MANY
@given(wire(), cuts(), st.sampled_from([0, 1, 2, 5, 20, 60, 2048]))
def test_twins_agree(octets: bytes, places: list[float], limit: int) -> None:
    compiled, plain = Compiled.CommandReader(limit), reference.CommandReader(limit)
    whole = lines(reference.CommandReader(limit), [octets])
    found = []
    for chunk in cut(octets, places):
        compiled.feed(chunk)
        plain.feed(chunk)
        while True:
            line = compiled.next_line()
            assert line == plain.next_line()
            assert compiled.pending() == plain.pending()
            if line is None:
                break
            found.append(line)
    assert found == whole
    assert compiled.take() == plain.take()


def test_only_bytes_are_taken() -> None:
    with pytest.raises(TypeError):
        Compiled.CommandReader().feed("NOOP\r\n")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Compiled.CommandReader().feed(None)  # type: ignore[arg-type]


def test_memory_of_a_flood_and_of_an_idle_reader() -> None:
    tracemalloc.start()
    try:
        readers = [Compiled.CommandReader() for _ in range(500)]
        flood = b"x" * 65536
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for reader in readers[:20]:
            for _ in range(5):
                reader.feed(flood)
                assert reader.next_line() is None
        # One feed at a time is held, and given back: a flood does not pile up.
        assert tracemalloc.get_traced_memory()[1] - before < 200_000
        for reader in readers:
            reader.feed(b"\r\nEHLO client.example\r\n" + b"NOOP\r\n" * 100)
            while reader.next_line() is not None:
                pass
            reader.feed(b"NOOP\r\n")
            reader.next_line()
        held = (tracemalloc.get_traced_memory()[0] - before) / len(readers)
    finally:
        tracemalloc.stop()
    assert held < 400, "octets held by an idle reader"


# Parsing


@twins
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", (b"", b"")),
        (b"noop", (b"NOOP", b"")),
        (b"NoOp  \t ", (b"NOOP", b"")),
        (b"mail FROM:<a@B>", (b"MAIL", b"FROM:<a@B>")),
        (b"MAIL   FROM:<a@b>  ", (b"MAIL", b"FROM:<a@b>")),
        (b" NOOP", (b"", b"NOOP")),
        (b"NOOP\tx", (b"NOOP\tX", b"")),
        (b"   ", (b"", b"")),
        # No letters but ASCII: neither the Kelvin sign nor Latin-1 (reliability Y4)
        (b"\xe2\x84\xaa\xe4 x", (b"\xe2\x84\xaa\xe4", b"x")),
        (b"noop x\xa0", (b"NOOP", b"x\xa0")),
    ],
)
def test_parse_command(twin: Any, line: bytes, expected: tuple[bytes, bytes]) -> None:
    assert twin.parse_command(line) == expected


LABEL = b"d" * 63


@twins
@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (b"<>", ("", b"")),
        (b"<> SIZE=1", ("", b"SIZE=1")),
        (b"<a@b>", ("a@b", b"")),
        (b"<a@b>   BODY=8BITMIME SIZE=1", ("a@b", b"BODY=8BITMIME SIZE=1")),
        (b"<a@b> ", ("a@b", b"")),
        (b"<First.Last+tag=x@Sub-1.Example.COM>", ("First.Last+tag=x@Sub-1.Example.COM", b"")),
        (b"<!#$%&'*+-/=?^_`{|}~@x>", ("!#$%&'*+-/=?^_`{|}~@x", b"")),
        (b"<" + b"l" * 64 + b"@b>", ("l" * 64 + "@b", b"")),
        (b"<" + b"l" * 65 + b"@b>", None),
        (b"<a@" + LABEL + b">", ("a@" + "d" * 63, b"")),
        (b"<a@" + LABEL + b"d>", None),
        # 256 octets with the brackets
        (
            b"<aaaa@" + b".".join([LABEL] * 3) + b"." + b"e" * 57 + b">",
            ("aaaa@" + ("d" * 63 + ".") * 3 + "e" * 57, b""),
        ),
        (b"<aaaaa@" + b".".join([LABEL] * 3) + b"." + b"e" * 57 + b">", None),
        # not this form: for the full grammar
        (b"", None),
        (b"<", None),
        (b"a@b", None),
        (b" <a@b>", None),
        (b"<a@b", None),
        (b"<a@b>SIZE=1", None),
        (b"<a@b>\tSIZE=1", None),
        (b"<>x", None),
        (b"<a>", None),
        (b"<@b>", None),
        (b"<a@>", None),
        (b"<.a@b>", None),
        (b"<a.@b>", None),
        (b"<a..b@c>", None),
        (b"<a@b.>", None),
        (b"<a@.b>", None),
        (b"<a@b..c>", None),
        (b"<a@-b>", None),
        (b"<a@b-.c>", None),
        (b"<a@b_c>", None),
        (b"<a@[127.0.0.1]>", None),
        (b'<"a b"@c>', None),
        (b"<@r.example:a@b>", None),
        (b"<a@b@c>", None),
        (b"<\xc3\xa4@b>", None),
        (b"<a@\xc3\xa4>", None),
        (b"<a\0@b>", None),
        (b"<a@b\0>", None),
    ],
)
def test_parse_path(twin: Any, arg: bytes, expected: tuple[str, bytes] | None) -> None:
    assert twin.parse_path(arg) == expected


@MANY
@given(wire(6))
def test_parsers_agree(octets: bytes) -> None:
    assert Compiled.parse_command(octets) == reference.parse_command(octets)
    assert Compiled.parse_path(octets) == reference.parse_path(octets)


@MANY
@given(st.text("ab.-@<> 1_\0", max_size=40), st.sampled_from(["<{}>", "<{}> x", "{}", "<a@{}>", "<{}@b>"]))
def test_path_parsers_agree_on_nearly_paths(text: str, form: str) -> None:
    arg = form.format(text).encode()
    assert Compiled.parse_path(arg) == reference.parse_path(arg)
