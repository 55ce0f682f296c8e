"""Where in a file a table or a key stands: line numbers, which the parsers of TOML and JSON do not give.

Both scanners take text that its parser has accepted already, so they need not judge it; on other text they
may name a wrong line or raise ValueError, but they end. What stands in arrays is numbered: ``("a", "0")``.
Into inline tables of TOML nobody looks: `line_of` then gives the line of the nearest key around.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Lines", "json_lines", "line_of", "toml_lines"]

Lines: TypeAlias = dict[tuple[str, ...], int]
"""The path of a table or key, and the line on which it stands first."""

_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_LONG = re.compile(r'"{3}(?:[^\\]|\\[\s\S])*?"{3,5}|' + r"'{3}[\s\S]*?'{3,5}")
_SHORT = re.compile(r"""[ \t]*(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\n"'\[\]{}#]*)""")
_PIECE = re.compile(r"""[^"'\[\]{}#\n,]+""")
_PLAIN_STRING = re.compile(r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")


def line_of(lines: Lines, path: tuple[str, ...]) -> int:
    """The line of a path, or of the nearest one around it; 1 when nothing is known."""
    while path:
        found = lines.get(path)
        if found is not None:
            return found
        path = path[:-1]
    return 1


class _Counter:
    """Line numbers of growing offsets."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def line(self, offset: int) -> int:
        self._line += self._text.count("\n", self._at, offset)
        self._at = offset
        return self._line


def toml_lines(text: str) -> Lines:
    """Tables, keys and members of arrays of a TOML document."""
    lines: Lines = {}
    arrays: dict[tuple[str, ...], int] = {}
    counter = _Counter(text)
    table: tuple[str, ...] = ()
    at, end = 0, len(text)
    while True:
        at = _skip(_SPACE, text, at)
        if at >= end:
            return lines
        line = counter.line(at)
        if text[at] == "[":
            array = text.startswith("[[", at)
            table, at = _path(text, at + 1 + array)
            at = _end_of_line(text, at)
            if array:
                number = arrays.get(table, -1) + 1
                arrays[table] = number
                lines.setdefault(table, line)
                table = (*table, str(number))
        else:
            key, at = _path(text, at)
            _note(lines, table, key, line)
            at = _skip(_BLANK, text, at + 1)  # behind the "="
            if text.startswith("[", at):
                for number, member in enumerate(_members(text, at + 1)):
                    lines.setdefault((*table, *key, str(number)), counter.line(member))
            at = _value(text, at)
            continue
        _note(lines, (), table, line)


def _note(lines: Lines, table: tuple[str, ...], path: tuple[str, ...], line: int) -> None:
    for depth in range(1, len(path) + 1):
        lines.setdefault((*table, *path[:depth]), line)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found is not None else at


def _end_of_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _path(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """A dotted key and the offset behind it."""
    parts: list[str] = []
    while (found := _KEY.match(text, at)) is not None:
        parts.append(_unquoted(found[1]))
        at = found.end()
        if not found[2]:
            break
    return tuple(parts), at


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] == '"':
        if "\\" not in key:
            return key[1:-1]
        return str(tomllib.loads(f"k = {key}")["k"])
    return key


def _members(text: str, at: int) -> Iterator[int]:
    """Where the members of an array begin."""
    while (at := _skip(_SPACE, text, at)) < len(text) and text[at] != "]":
        yield at
        at = _value(text, at, ",]")
        if text.startswith(",", at):
            at += 1


def _value(text: str, at: int, behind: str = "\n") -> int:
    """The offset behind a value: at the end of its last line, or in an array at what stands `behind` it."""
    depth, end = 0, len(text)
    if behind == "\n" and not text.startswith(('"""', "'''"), _skip(_BLANK, text, at)):
        # Nearly every value: one string, number or word, and then the end of the line.
        plain = _skip(_SHORT, text, at)
        if plain >= end or text[plain] == "\n":
            return plain
    while at < end:
        sign = text[at]
        if depth <= 0 and sign in behind:
            return at
        if sign in "\"'":
            found = _LONG.match(text, at) if text.startswith(sign * 3, at) else _PLAIN_STRING.match(text, at)
            at = found.end() if found is not None else at + 1
        elif sign in "[{":
            depth, at = depth + 1, at + 1
        elif sign in "]}":
            depth, at = depth - 1, at + 1
        elif sign == "#":
            at = _end_of_line(text, at)
        elif sign in "\n,":
            at += 1
        else:
            at = _skip(_PIECE, text, at)
    return at


_TOKEN = re.compile(r'[ \t\r\n,:]*("(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s,:"{}\[\]]+)')


def json_lines(text: str) -> Lines:
    """Objects and keys of a JSON document. What stands in arrays is numbered: ``("a", "0")``."""
    lines: Lines = {}
    counter = _Counter(text)
    stack: list[tuple[tuple[str, ...], int]] = []  # the path of what is open; -1 for an object, else a number
    path: tuple[str, ...] = ()
    key: str | None = None
    at = 0
    while (found := _TOKEN.match(text, at)) is not None:
        token, at = found[1], found.end()
        if token in "}]":
            if stack:
                stack.pop()
            key = None
            continue
        if stack and stack[-1][1] < 0 and key is None:
            key = str(json.loads(token))
            path = (*stack[-1][0], key)
            lines.setdefault(path, counter.line(found.start(1)))
            continue
        if stack and stack[-1][1] >= 0:
            around, number = stack[-1]
            stack[-1] = (around, number + 1)
            path = (*around, str(number))
            lines.setdefault(path, counter.line(found.start(1)))
        elif not stack:
            path = ()
        key = None
        if token == "{":
            stack.append((path, -1))
        elif token == "[":
            stack.append((path, 0))
    return lines
