"""What is measured: a function, a named input, and one call of it as the engine makes it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from engine._fast import _reference, bodies, commands, data, headers, patterns, replies, sockets

__all__ = ["CASES", "TWINS", "Case"]

Twin = dict[str, Any]

TWINS: dict[str, Twin] = {
    "compiled": {
        name: getattr(module, name)
        for module in (bodies, commands, data, headers, patterns, replies, sockets)
        for name in _reference.__all__
        if hasattr(module, name)
    },
    "reference": {name: getattr(_reference, name) for name in _reference.__all__},
}


class Case(NamedTuple):
    """`make` takes a twin and gives the call to measure; `octets` is what one call works on."""

    function: str
    input: str
    octets: int
    make: Callable[[Twin], Callable[[], object]]


TEXT_LINE = b"The quick brown fox jumps over the lazy dog, and the dog goes on sleeping.\r\n"
HEADER = b"".join(
    [
        b"Received: from client.example (client.example [192.0.2.1])\r\n\tby relay.example; now\r\n",
        *(b"X-Field-%d: some value that is about as long as values are\r\n" % n for n in range(16)),
        b"Subject: a benchmark\r\nFrom: <a@b.example>\r\nTo: <c@d.example>\r\n\r\n",
    ]
)


def text(size: int) -> bytes:
    """A message of about `size` octets: header and lines of text."""
    return HEADER + TEXT_LINE * ((size - len(HEADER)) // len(TEXT_LINE))


def lines(name: str, octets: bytes) -> Case:
    def make(twin: Twin) -> Callable[[], object]:
        reader = twin["CommandReader"]()

        def call() -> None:
            reader.feed(octets)
            while reader.next_line() is not None:
                pass

        return call

    return Case("CommandReader", name, len(octets), make)


def answers(name: str, octets: bytes) -> Case:
    def make(twin: Twin) -> Callable[[], object]:
        reader = twin["ReplyReader"]()

        def call() -> None:
            reader.feed(octets)
            while reader.next_reply() is not None:
                pass

        return call

    return Case("ReplyReader", name, len(octets), make)


def mail(name: str, content: bytes, chunk: int) -> Case:
    octets = bodies.stuff(content) + b".\r\n"
    chunks = [octets[at : at + chunk] for at in range(0, len(octets), chunk)]

    def make(twin: Twin) -> Callable[[], object]:
        kind = twin["DataReader"]

        def call() -> object:
            reader = kind(1 << 30)
            for piece in chunks:
                reader.feed(piece)
            return reader.take()

        return call

    return Case("DataReader", name, len(octets), make)


def plain(function: str, name: str, *args: Any) -> Case:
    def make(twin: Twin) -> Callable[[], object]:
        called = twin[function]
        return lambda: called(*args)

    return Case(function, name, len(args[0]), make)


SMALL, LARGE = text(4096), text(100_000)

PATTERNS = sorted({b"%s%06d" % (word, n) for n in range(1000) for word in (b"password-", b"token-")})


def search(name: str, octets: bytes) -> Case:
    def make(twin: Twin) -> Callable[[], object]:
        patterns = twin["PatternSet"](PATTERNS, bytes(len(PATTERNS)))
        return lambda: patterns.search(octets)

    return Case("PatternSet", name, len(octets), make)


def through(name: str, parts: list[bytes]) -> Case:
    """Into one end of a socket pair and out of the other, until nothing is there."""

    def make(twin: Twin) -> Callable[[], object]:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        send, receive = twin["send_parts_now"], twin["receive_now"]

        def call() -> None:
            send(ours.fileno(), parts, 0, 0)
            while receive(theirs.fileno(), 65536) is not None:
                pass

        return call

    return Case("send_parts_now, receive_now", name, sum(map(len, parts)), make)


CASES = [
    lines("MAIL, RCPT, DATA in one feed", b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"),
    lines("one short command", b"QUIT\r\n"),
    lines("1,000 pipelined RSET", b"RSET\r\n" * 1000),
    plain("parse_command", "MAIL", b"MAIL FROM:<someone@client.example> SIZE=4096 BODY=8BITMIME"),
    plain("parse_path", "a mailbox and two parameters", b"<someone@client.example> SIZE=4096 BODY=8BITMIME"),
    plain("parse_path", "null reverse-path", b"<>"),
    answers("one reply", b"250 2.1.0 ok\r\n"),
    answers("four pipelined replies", b"250 2.0.0 queued\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n"),
    answers("EHLO, 12 lines", b"".join(b"250-EXTENSION-%d\r\n" % n for n in range(11)) + b"250 SMTPUTF8\r\n"),
    mail("4 KiB in one feed", SMALL, 1 << 16),
    mail("4 KiB in feeds of 100 octets", SMALL, 100),
    mail("100 KB in feeds of 64 KiB", LARGE, 1 << 16),
    mail("100 KB of lines with one dot", b".\r\n" * 33_000, 1 << 16),
    plain("stuff", "4 KiB, nothing to do", SMALL),
    plain("stuff", "4 KiB, a dot every tenth line", (TEXT_LINE * 9 + b"." + TEXT_LINE) * 5),
    plain("stuff", "100 KB, nothing to do", LARGE),
    plain("clean_lines", "4 KiB, clean", SMALL),
    plain("clean_lines", "4 KiB with LF only", SMALL.replace(b"\r\n", b"\n")),
    plain("scan", "4 KiB", SMALL),
    plain("scan", "100 KB", LARGE),
    plain("header_end", "4 KiB", SMALL),
    plain("header_index", "20 fields", SMALL, len(HEADER)),
    search("2,000 patterns in 100 KB", LARGE),
    through("250 OK", [b"250 2.0.0 OK\r\n"]),
    through(
        "4 KiB, a dot and three commands", [SMALL, b".\r\n", b"MAIL FROM:<a@b.example>\r\n", b"DATA\r\n"]
    ),
]
