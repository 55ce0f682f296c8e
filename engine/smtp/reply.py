"""Replies: what a server answers (RFC 5321 4.2, RFC 2034, RFC 3463)."""

from __future__ import annotations

import re

import msgspec

__all__ = ["Reply"]

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LINE = 480
"""Octets of text per line we send; RFC 5321 4.5.3.1.5 allows 512 for the whole line."""


class Reply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reply. `enhanced`: ``"2.1.0"``, or ``""`` when there is none that fits the code.

    `text`: the lines joined by LF, without codes. A peer's text is as it came; it is cleaned where
    it is sent or shown.
    """

    code: int
    enhanced: str = ""
    text: str = ""

    @property
    def is_positive(self) -> bool:
        """2yz: done."""
        return 200 <= self.code <= 299

    @property
    def is_intermediate(self) -> bool:
        """3yz: go on."""
        return 300 <= self.code <= 399

    @property
    def is_transient(self) -> bool:
        """4yz: not now."""
        return 400 <= self.code <= 499

    @property
    def is_permanent(self) -> bool:
        """5yz: no."""
        return 500 <= self.code <= 599

    @property
    def line(self) -> str:
        """The reply on one line, for people: line ends become spaces, controls are dropped."""
        text = _CONTROLS.sub("", self.text.replace("\n", " "))
        return " ".join(part for part in (str(self.code), self.enhanced, text) if part)

    def encode(self) -> bytes:
        """The reply as it is sent: every line with both codes, CR LF, no control characters.

        A text too long for one line goes on in the next, broken at a space where there is one.
        """
        code = self.code
        lead = f"{self.enhanced} " if self.enhanced else ""
        text = self.text
        if len(text) <= _LINE and text.isascii() and text.isprintable():
            return f"{code} {lead}{text}\r\n".encode()
        lines: list[str] = []
        for line in text.split("\n"):
            lines += _folded(_CONTROLS.sub("", line))
        last = len(lines) - 1
        return "".join(
            f"{code}{' ' if i == last else '-'}{lead}{line}\r\n" for i, line in enumerate(lines)
        ).encode()


def _folded(line: str) -> list[str]:
    pieces: list[str] = []
    while len(octets := line.encode()) > _LINE:
        most = octets[:_LINE].decode(errors="ignore")  # not half a character
        cut = most.rfind(" ", 1)
        if cut < 0:
            cut = len(most)
        pieces.append(line[:cut])
        line = line[cut:].lstrip(" ")
    pieces.append(line)
    return pieces
