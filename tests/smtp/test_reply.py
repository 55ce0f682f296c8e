"""engine/smtp/reply.py: what a server says, whatever text a hook or an error gave it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp import Reply

LONG = "The policy of this host says no " * 40


@pytest.mark.parametrize(
    ("reply", "octets"),
    [
        (Reply(250, "2.0.0", "OK"), b"250 2.0.0 OK\r\n"),
        (Reply(354, "", "go ahead"), b"354 go ahead\r\n"),
        (Reply(550, "5.7.1", "one\ntwo"), b"550-5.7.1 one\r\n550 5.7.1 two\r\n"),
        (Reply(550, "5.7.1", ""), b"550 5.7.1 \r\n"),
        (Reply(550, "", "a\r\n250 b"), b"550-a\r\n550 250 b\r\n"),
        (Reply(550, "", "a\rb\x00c\x7fd\x1b[2Je"), b"550 abcd[2Je\r\n"),
        (Reply(550, "", "x" * 481), b"550-" + b"x" * 480 + b"\r\n550 x\r\n"),
        (Reply(550, "", "ü" * 241), b"550-" + "ü".encode() * 240 + b"\r\n550 " + "ü".encode() + b"\r\n"),
    ],
)
def test_what_is_sent(reply: Reply, octets: bytes) -> None:
    assert reply.encode() == octets


def test_a_long_text_goes_on_in_the_next_line_at_a_space() -> None:
    lines = Reply(550, "5.7.1", LONG).encode().split(b"\r\n")[:-1]
    assert len(lines) == 3
    assert b" ".join(line[10:].strip() for line in lines) == LONG.strip().encode()


@given(
    text=st.text(st.characters(codec="utf-8"), max_size=1500)
    | st.text("a \r\n\x00-250ü\u2028", max_size=1500),
    enhanced=st.sampled_from(["", "5.7.1"]),
)
def test_whatever_the_text_it_is_one_reply_of_short_lines(text: str, enhanced: str) -> None:
    """RFC 5321 4.5.3.1.5: 512 octets with the code and CR LF. Nothing in the text ends a line or begins
    another reply (C8)."""
    *lines, end = Reply(550, enhanced, text).encode().split(b"\r\n")
    assert lines and end == b""
    for at, line in enumerate(lines):
        assert line[:4] == (b"550 " if at == len(lines) - 1 else b"550-")
        assert len(line) <= 510
        assert not any((octet < 32 and octet != 9) or octet == 127 for octet in line)


def test_on_one_line_for_people() -> None:
    assert Reply(550, "5.7.1", "one\ntwo\x1b[2J").line == "550 5.7.1 one two[2J"
    assert Reply(250).line == "250"
