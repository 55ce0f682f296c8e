"""Whether received content may become a message (reliability S2, S6, S21 to S23). Pure."""

from __future__ import annotations

from typing import Literal

from engine import _fast

from .reply import Reply

__all__ = ["TOO_BIG", "content_fault"]

HEADER_LIMIT = 512 * 1024
"""Octets of the header section (reliability S22)."""
HEADER_FIELDS = 1000

TOO_BIG = Reply(552, "5.3.4", "Message size exceeds the limit")


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
    if end > HEADER_LIMIT or content.header_fields > HEADER_FIELDS:
        return Reply(552, "5.3.4", "The header section exceeds the limit")
    return None
