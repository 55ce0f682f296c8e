"""The server's side of the command stream: lines in, verbs and paths out."""

from typing import Final, final

LINE_TOO_LONG: Final = -1
"""The line with its CR LF was longer than the limit (reliability S20)."""
LINE_BARE: Final = -2
"""A CR or LF that is not part of CR LF was in the line (reliability S5)."""
LINE_CONTROL: Final = -3
"""NUL, DEL or another control character except TAB was in the line (reliability S5)."""

@final
class CommandReader:
    """Splits what a client sends into command lines.

    limit: octets a line may have, its CR LF included (2,048; 12,288 for AUTH). May be changed at
    any time and applies to the lines not yet given out.

    Memory: what was fed and not yet given out, at most; of a line past the limit nothing is kept.
    An empty reader holds no buffer worth mentioning.

    Source: RFC 5321 sections 2.3.8 and 4.5.3.1.4; RFC 4954 section 4.
    """

    limit: int

    def __init__(self, limit: int = 2048) -> None: ...
    def feed(self, data: bytes) -> None:
        """Add octets from the wire. Drain `next_line` before feeding again."""

    def next_line(self) -> bytes | int | None:
        """The next line without its CR LF, or None when it has not arrived yet.

        A line that must not be obeyed is consumed whole, up to its true CR LF, and given as one of
        LINE_TOO_LONG, LINE_BARE, LINE_CONTROL (the first that applies, in this order): once per
        line, when its CR LF arrives. Octets above 127 are allowed.
        """

    def pending(self) -> int:
        """Octets fed and not yet given out (what a client sent ahead)."""

    def take(self) -> bytes:
        """All those octets; the reader is as new afterwards. For what was pipelined behind DATA."""

def parse_command(line: bytes) -> tuple[bytes, bytes]:
    """(verb in upper case, the rest behind its spaces). Trailing spaces and tabs are dropped.

    Only ASCII letters change case; only the space separates.
    Source: RFC 5321 sections 2.4 and 4.1.1.
    """

def parse_path(arg: bytes) -> tuple[str, bytes] | None:
    """The common form of what follows ``MAIL FROM:`` and ``RCPT TO:``, or None.

    ``<local@domain>`` with a dot-string of at most 64 octets and a domain of letters, digits and
    hyphens of at most 255 (256 for the whole path with its brackets) gives ``"local@domain"``;
    ``<>`` gives ``""``. The second item is what follows the spaces behind ``>``.

    None means "not this form", never "wrong": ask the full grammar.
    Source: RFC 5321 sections 4.1.2 and 4.5.3.1.1 to 3.
    """
