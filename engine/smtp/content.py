"""Whether received content may become a message (reliability S2, S6, S21 to S23). Pure."""

from __future__ import annotations

from typing import Literal

from engine import _fast

from .reply import Reply

__all__ = ["TOO_BIG", "content_fault", "repaired_fault"]

HEADER_LIMIT = 512 * 1024
"""Octets of the header section (reliability S22)."""
HEADER_FIELDS = 1000

TOO_BIG = Reply(552, "5.3.4", "Message size exceeds the limit")
_BIG_HEADER = Reply(552, "5.3.4", "The header section exceeds the limit")


def content_fault(
    content: _fast.DataReader, line_limit: int, *, bare_lines: Literal["Deny", "Fix"]
) -> Reply | None:
    """The refusal that content which was read to its true end deserves, None when it is fine."""
    if content.over:
        return TOO_BIG
    if content.long_line:
        return Reply(550, "5.6.0", f"A line is longer than {line_limit} octets")
    if content.nul:
        return Reply(550, "5.6.0", "The message holds a NUL octet")
    if (content.bare_cr or content.bare_lf) and bare_lines == "Deny":
        which = "CR without LF" if content.bare_cr else "LF without CR"
        return Reply(550, "5.6.0", f"The message holds a {which}; lines end with CR LF only")
    end = content.header_end if content.header_end >= 0 else content.size
    return _BIG_HEADER if end > HEADER_LIMIT or content.header_fields > HEADER_FIELDS else None


def repaired_fault(data: bytes, header_end: int, size_limit: int) -> Reply | None:
    """The same limits for content whose line ends were repaired: it grew, and more lines begin in it."""
    if len(data) > size_limit:
        return TOO_BIG
    end = header_end if header_end >= 0 else len(data)
    if end > HEADER_LIMIT:
        return _BIG_HEADER
    lines = data[:end].split(b"\r\n")
    fields = sum(1 for line in lines if line and line[0] not in b" \t")
    return _BIG_HEADER if fields > HEADER_FIELDS else None
