"""The meaning of this room, in plain Python.

Where the compiled modules and this file differ, the compiled ones are wrong. Docstrings are in the
``.pyi`` files beside the compiled modules; here are the rules (``_reference_kernel.py`` has those of what
asks the kernel). Everything is linear in the bytes
fed, whatever the split, so this file also serves as the fall-back (``POSTHORN_PURE=1``).
"""

from __future__ import annotations

import re
from typing import NoReturn

from ._reference_kernel import GroupWriter, events_now, receive_now, send_now, send_parts_now

__all__ = [
    "BARE_CR",
    "BARE_LF",
    "EIGHT_BIT",
    "ENDS_WITH_CRLF",
    "LINE_BARE",
    "LINE_CONTROL",
    "LINE_TOO_LONG",
    "NEEDS_STUFFING",
    "NUL",
    "CommandReader",
    "DataReader",
    "GroupWriter",
    "PatternSet",
    "ReplyReader",
    "clean_lines",
    "events_now",
    "header_end",
    "header_index",
    "parse_command",
    "parse_path",
    "receive_now",
    "scan",
    "send_now",
    "send_parts_now",
    "stuff",
]

LINE_TOO_LONG = -1
LINE_BARE = -2
LINE_CONTROL = -3

BARE_CR = 1
BARE_LF = 2
NUL = 4
EIGHT_BIT = 8
NEEDS_STUFFING = 16
ENDS_WITH_CRLF = 32

_CONTROLS = bytes(code for code in (*range(32), 127) if code != 9)

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PATH = re.compile(
    rb"<(?:(%(atom)s(?:\.%(atom)s)*)@(%(label)s(?:\.%(label)s)*))?>(?: +(.*))?"
    % {b"atom": _ATOM, b"label": _LABEL},
    re.DOTALL,
)
_ENHANCED = re.compile(rb"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?: |\Z)")
_CODE = re.compile(rb"([2-5][0-9][0-9])(?:[ -]|\Z)")
_LINE_END = re.compile(rb"\r\n|\r|\n")


# Command lines


class CommandReader:
    __slots__ = ("_buffer", "_searched", "_skipping", "limit")

    def __init__(self, limit: int = 2048) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._searched = 0  # no CRLF begins before this offset
        self._skipping = False  # the start of this line is gone already

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_line(self) -> bytes | int | None:
        buffer = self._buffer
        end = buffer.find(b"\r\n", self._searched)
        if end < 0:
            cr = buffer.endswith(b"\r")
            # The shortest this line can become: its end comes next.
            if self._skipping or len(buffer) + 2 - cr > self.limit:
                del buffer[: len(buffer) - cr]
                self._skipping = True
            self._searched = len(buffer) - cr
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        self._searched = 0
        if self._skipping or end + 2 > self.limit:
            self._skipping = False
            return LINE_TOO_LONG
        if b"\r" in line or b"\n" in line:
            return LINE_BARE
        if len(line.translate(None, _CONTROLS)) != len(line):
            return LINE_CONTROL
        return line

    def pending(self) -> int:
        return len(self._buffer)

    def take(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False
        return data


def parse_command(line: bytes) -> tuple[bytes, bytes]:
    verb, _, rest = line.rstrip(b" \t").partition(b" ")
    return verb.upper(), rest.lstrip(b" ")


def parse_path(arg: bytes) -> tuple[str, bytes] | None:
    match = _PATH.fullmatch(arg)
    if match is None:
        return None
    local, domain, params = match.groups()
    if local is None:
        return "", params or b""
    # RFC 5321 section 4.5.3.1: the path's limit counts its brackets.
    if len(local) > 64 or len(domain) > 255 or len(local) + len(domain) + 3 > 256:
        return None
    return (local + b"@" + domain).decode("ascii"), params or b""


# Replies


class ReplyReader:
    __slots__ = (
        "_broken",
        "_buffer",
        "_code",
        "_cut",
        "_enhanced",
        "_line_limit",
        "_lines_limit",
        "_octets",
        "_searched",
        "_text",
        "_total_limit",
    )

    def __init__(self, line_limit: int = 2048, lines_limit: int = 128, total_limit: int = 65536) -> None:
        if line_limit < 3 or lines_limit < 1 or total_limit < 1:
            raise ValueError("a reply has at least one line of three octets")
        self._line_limit = line_limit
        self._lines_limit = lines_limit
        self._total_limit = total_limit
        self._buffer = bytearray()  # the current line and what follows it
        self._searched = 0  # no LF before this offset
        self._cut = False  # octets of the current line behind line_limit were dropped
        self._octets = 0  # of the current reply, no longer in _buffer
        self._text: list[bytes] = []  # its lines
        self._code = 0
        self._enhanced = 0
        self._broken = ""

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_reply(self, before: tuple[int, int, bytes] | None = None) -> tuple[int, int, bytes] | None:
        if self._broken:
            raise ValueError(self._broken)
        buffer, limit = self._buffer, self._line_limit
        while True:
            end = buffer.find(b"\n", self._searched)
            if end < 0:
                # One octet more may be the CR of the line end.
                if self._cut or len(buffer) > limit + 1:
                    self._octets += len(buffer) - limit
                    del buffer[limit:]
                    self._cut = True
                self._searched = len(buffer)
                if self._octets + len(buffer) > self._total_limit:
                    self._fail(f"reply longer than {self._total_limit} octets")
                return None
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            self._octets += end + 1
            self._searched = 0
            if not self._cut:
                line = line.removesuffix(b"\r")
            self._cut = False
            if self._take_line(line[:limit]):
                reply = self._code, self._enhanced, b"\n".join(self._text)
                self._text = []
                self._octets = self._code = self._enhanced = 0
                return before if reply == before else reply

    def pending(self) -> int:
        return self._octets + len(self._buffer)

    def _take_line(self, line: bytes) -> bool:
        """Add one line to the reply; whether it was the last."""
        if self._octets > self._total_limit:
            self._fail(f"reply longer than {self._total_limit} octets")
        if len(self._text) >= self._lines_limit:
            self._fail(f"reply of more than {self._lines_limit} lines")
        match = _CODE.match(line)
        if match is None:
            self._fail("reply line does not begin with a code from 200 to 599 and a space or hyphen")
        code = int(match[1])
        if self._text and code != self._code:
            self._fail(f"reply code changed within one reply: {self._code}, then {code}")
        self._code = code
        text = line[4:]
        match = _ENHANCED.match(text)
        if match is not None:
            enhanced = int(match[1]) * 1_000_000 + int(match[2]) * 1000 + int(match[3])
            # A class that contradicts the code makes it mere text (reliability C4).
            if self._enhanced == 0 and int(match[1]) == code // 100:
                self._enhanced = enhanced
            if self._enhanced == enhanced:
                text = text[match.end() :]
        self._text.append(text)
        return line[3:4] != b"-"

    def _fail(self, reason: str) -> NoReturn:
        self._broken = reason
        raise ValueError(reason)


# Mail data


class DataReader:
    __slots__ = (
        "_content",
        "_folded",
        "_held",
        "_last",
        "_limit",
        "_line",
        "_line_limit",
        "bare_cr",
        "bare_lf",
        "done",
        "eight_bit",
        "header_end",
        "header_fields",
        "longest_line",
        "nul",
        "over",
        "size",
    )

    def __init__(self, limit: int, line_limit: int = 0) -> None:
        self._limit = limit
        self._line_limit = line_limit
        self._content = bytearray()
        # How the content so far ends, as far as it matters: CR LF, CR, or nothing. The CR LF of
        # the DATA command stands before the first octet.
        self._last = b"\r\n"
        self._held = b""  # "." or ".\r" behind CR LF: the end, perhaps
        self._line = 0  # octets of the unfinished line
        self._folded = False  # it begins with SP or TAB
        self.done = False
        self.size = 0
        self.over = False
        self.bare_cr = False
        self.bare_lf = False
        self.nul = False
        self.eight_bit = False
        self.longest_line = 0
        self.header_end = -1
        self.header_fields = 0

    @property
    def long_line(self) -> bool:
        return 0 < self._line_limit < self.longest_line

    def feed(self, data: bytes, start: int = 0) -> int:
        if not 0 <= start <= len(data):
            raise ValueError("start is outside of data")
        if self.done or start == len(data):
            return 0
        last = self._last
        wire = last + self._held + data[start:]
        end = wire.find(b"\r\n.\r\n")
        if end >= 0:
            self.done = True
            known = len(last) + len(self._held)
            self._held = b""
            self._add(wire[: end + 2].replace(b"\r\n.", b"\r\n")[len(last) :])
            return end + 5 - known
        held = b""
        for start_of_end in (b".\r", b"."):
            if wire.endswith(b"\r\n" + start_of_end):
                held = start_of_end
        self._held = held
        self._add(wire[: len(wire) - len(held)].replace(b"\r\n.", b"\r\n")[len(last) :])
        return len(data) - start

    def take(self) -> bytes:
        if not self.done:
            raise ValueError("the end of data has not arrived")
        content = bytes(self._content)
        self._content = bytearray()
        return content

    def abandon(self) -> None:
        self.over = True
        self._content = bytearray()

    def _add(self, piece: bytes) -> None:
        """Take more content, dots already removed."""
        text = self._last + piece
        pairs = text.count(b"\r\n")
        self.bare_cr = self.bare_cr or text.count(b"\r") - text.endswith(b"\r") > pairs
        self.bare_lf = self.bare_lf or text.count(b"\n") > pairs
        self.nul = self.nul or b"\0" in piece
        self.eight_bit = self.eight_bit or not piece.isascii()
        self._measure(piece)
        self._last = text[-2:] if text.endswith(b"\r\n") else text[-1:] if text.endswith(b"\r") else b""
        self.size += len(piece)
        self.over = self.over or self.size > self._limit
        if self.over or self.long_line:
            self._content = bytearray()
        else:
            self._content += piece

    def _measure(self, piece: bytes) -> None:
        offset = self.size
        if self._last == b"\r":
            # The CR may turn out to end its line: look at it again.
            piece = b"\r" + piece
            offset -= 1
            self._line -= 1
        *finished, rest = piece.split(b"\r\n")
        for line in finished:
            self._begin(line)
            length = self._line + len(line)
            offset += len(line) + 2
            self.longest_line = max(self.longest_line, length)
            if self.header_end < 0:
                if length == 0:
                    self.header_end = offset
                elif not self._folded:
                    self.header_fields += 1
            self._line = 0
        self._begin(rest)
        self._line += len(rest)
        self.longest_line = max(self.longest_line, self._line - rest.endswith(b"\r"))

    def _begin(self, line: bytes) -> None:
        if self._line == 0:
            self._folded = line[:1] in (b" ", b"\t")


# Whole bodies


def stuff(data: bytes) -> bytes:
    if data.startswith(b"."):
        return b"." + data.replace(b"\r\n.", b"\r\n..")
    if b"\r\n." in data:
        return data.replace(b"\r\n.", b"\r\n..")
    return data


def clean_lines(data: bytes) -> bytes:
    pairs = data.count(b"\r\n")
    if data.count(b"\r") == pairs == data.count(b"\n") and b"\0" not in data:
        return data
    return _LINE_END.sub(b"\r\n", data.replace(b"\0", b""))


def scan(data: bytes) -> tuple[int, int, int, bool]:
    pairs = data.count(b"\r\n")
    flags = 0
    if data.count(b"\r") > pairs:
        flags |= BARE_CR
    if data.count(b"\n") > pairs:
        flags |= BARE_LF
    if b"\0" in data:
        flags |= NUL
    if not data.isascii():
        flags |= EIGHT_BIT
    if data.startswith(b".") or b"\r\n." in data:
        flags |= NEEDS_STUFFING
    if data.endswith(b"\r\n"):
        flags |= ENDS_WITH_CRLF
    longest = max(map(len, data.split(b"\r\n")))
    return flags, longest, _blank_line(data), not data


# Headers


def _blank_line(data: bytes) -> int:
    """The offset just behind the first empty line, or -1."""
    if data.startswith(b"\r\n"):
        return 2
    found = data.find(b"\r\n\r\n")
    return -1 if found < 0 else found + 4


def header_end(data: bytes) -> int:
    end = _blank_line(data)
    if end < 0 and (not data or data.endswith(b"\r\n")):
        return len(data)
    return end


def header_index(data: bytes, end: int) -> list[tuple[int, int, int]]:
    if not 0 <= end <= len(data):
        raise ValueError("end is outside of data")
    fields = []
    start = 0
    while start < end:
        line_end = data.find(b"\r\n", start, end)
        line_end = end if line_end < 0 else line_end
        colon = data.find(b":", start, line_end)
        # A line that is no field ends the section: what follows is left to whoever reads on.
        if colon <= start or data[start] in b" \t":
            break
        next_start = min(line_end + 2, end)
        while next_start < end and data[next_start] in b" \t":
            line_end = data.find(b"\r\n", next_start, end)
            next_start = end if line_end < 0 else line_end + 2
        fields.append((start, colon, next_start))
        start = next_start
    return fields


# Patterns

_LEAST_PATTERN = 6
_MOST_PATTERN = 1024
_IN_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_")
_ESCAPE_END = re.compile(rb"(?s)\\.|%..|\\x..|\\u....")


class PatternSet:
    def __init__(self, patterns: list[bytes], words: bytes) -> None:
        if len(words) != len(patterns):
            raise ValueError("words has not one octet for each pattern")
        before = None
        for pattern in patterns:
            if not _LEAST_PATTERN <= len(pattern) <= _MOST_PATTERN:
                raise ValueError(
                    f"a pattern has {_LEAST_PATTERN} to {_MOST_PATTERN} octets, not {len(pattern)}"
                )
            if before is not None and not before < pattern:
                raise ValueError("the patterns are not in ascending order")
            before = pattern
        self._patterns = list(patterns)
        self._words = words

    def search(self, data: bytes) -> list[tuple[int, int, int]] | None:
        longest: dict[int, int] = {}
        for number, pattern in enumerate(self._patterns):  # a longer one sorts behind what it begins with
            start = data.find(pattern)
            while start >= 0:
                if not self._words[number] or _stands_alone(data, start, start + len(pattern)):
                    longest[start] = number
                start = data.find(pattern, start + 1)
        spans: list[tuple[int, int, int]] = []
        for start, number in sorted(longest.items()):
            end = start + len(self._patterns[number])
            if spans and start < spans[-1][1]:
                begin, before, first = spans[-1]
                spans[-1] = (begin, max(before, end), first)
            else:
                spans.append((start, end, number))
        return spans or None


def _stands_alone(data: bytes, start: int, end: int) -> bool:
    if end < len(data) and data[end] in _IN_WORD:
        return False
    if start == 0 or data[start - 1] not in _IN_WORD:
        return True
    return any(start >= size and _ESCAPE_END.fullmatch(data, start - size, start) for size in (2, 3, 4, 6))
