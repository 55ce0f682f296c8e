"""Regular expressions that are searched for in what peers say, in time linear in its length.

A peer chooses the text, so an engine that goes back and forth (as the standard library's does) would let it
choose how long we are busy. RE2 reads each character once. What cannot be done that way, look-around and
back-references, it does not know, and neither do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import Wrong, a_type

__all__ = ["LONGEST", "Pattern", "Patterns"]

LONGEST = 2048
"""Octets of a reply's line that are looked at."""

_MEMORY = 1 << 20
"""Octets for one expression; beyond it RE2 gets slower, not wrong."""

_MEMORY_OF_MANY = 64 << 20
"""The same for many that are looked for at once."""

_ELSEWHERE = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<": "look-behind",
    "(?P=": "a back-reference",
    "(?>": "an atomic group",
    "(?(": "a condition",
}


class Pattern:
    """One expression in RE2's syntax, not anchored. Raises: Wrong."""

    __slots__ = ("_search", "text")

    def __init__(self, text: Any) -> None:
        # Only a policy with rules pays for loading the library.
        import re2  # type: ignore[import-untyped]

        if not isinstance(text, str) or not text:
            raise Wrong(f"is no regular expression but {a_type(text) if text != '' else 'empty'}")
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _MEMORY
        options.never_capture = True
        try:
            compiled = re2.compile(text.encode(), options)
        except (re2.error, UnicodeEncodeError) as error:
            raise Wrong(_reason(text, error), complete=True) from None
        if compiled.search(b"") is not None:
            raise Wrong(
                f'"{text}" fits every text, the empty one, too; right would be an expression that needs '
                "a word of the reply, or code and enhanced_code alone",
                complete=True,
            )
        self.text = text
        self._search = compiled.search

    def found(self, line: bytes) -> bool:
        """Whether it is in a reply's line (UTF-8)."""
        return self._search(line) is not None


class Patterns:
    """Many expressions, each good for `Pattern`, that are looked for at once. Raises: Wrong."""

    __slots__ = ("_match",)

    def __init__(self, texts: Sequence[str]) -> None:
        import re2

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = _MEMORY_OF_MANY
        made = re2.Set.SearchSet(options)
        for text in texts:
            made.Add(text.encode())
        try:
            made.Compile()
        except re2.error:
            raise Wrong(
                f"{len(texts)} expressions together are too large to be searched for at once "
                f"({_MEMORY_OF_MANY >> 20} MiB); right would be fewer, or none with repetitions like {{500}}",
                complete=True,
            ) from None
        self._match = made.Match

    def first(self, line: bytes) -> int | None:
        """The number of the first expression that is in a reply's line (UTF-8); None: of none."""
        return min(self._match(line) or (), default=None)


def _reason(text: str, error: Exception) -> str:
    said = error.args[0] if error.args else ""
    said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    for sign, what in _ELSEWHERE.items():
        # (?<name>...) is a group with a name, which RE2 knows.
        if sign in text and (sign != "(?<" or "(?<=" in text or "(?<!" in text):
            return (
                f'"{text}": {what} "{sign}" cannot be searched for in linear time; right would be an '
                "expression without it, or two rules"
            )
    if said.startswith("invalid escape sequence: \\") and said[-1:].isdigit():
        return (
            f'"{text}": a back-reference (\\{said[-1]}) cannot be searched for in linear time; '
            "right would be an expression without it"
        )
    return f'"{text}" is no regular expression: {said}; right would be the syntax of RE2'
