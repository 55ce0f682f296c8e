"""The client's side: what a server answers, one reply at a time."""

from typing import final

@final
class ReplyReader:
    """Splits what a server sends into replies.

    line_limit: octets kept of a line, without its end; the rest is skipped.
    lines_limit: lines a reply may have.
    total_limit: octets a reply may have, line ends and skipped octets included.

    Lines end with LF or CR LF; a lone CR is text. Memory stays within total_limit plus one feed.
    Source: RFC 5321 section 4.2; limits from reliability C3.
    """

    def __init__(self, line_limit: int = 2048, lines_limit: int = 128, total_limit: int = 65536) -> None: ...
    def feed(self, data: bytes) -> None:
        """Add octets from the wire. Drain `next_reply` before feeding again."""

    def next_reply(self, before: tuple[int, int, bytes] | None = None) -> tuple[int, int, bytes] | None:
        """The next whole reply as (code, enhanced, text), or None when it has not arrived yet.

        code: 200 to 599.
        enhanced: class * 1_000_000 + subject * 1000 + detail of the first enhanced status code
        whose class fits the reply code, else 0 (RFC 2034, RFC 3463).
        text: the lines joined by LF, without reply codes and without that enhanced code where it
        is repeated. It is the peer's: not cleaned, any octet but LF.
        before: an earlier reply; when this one says the same, that very object is returned.

        Raises: ValueError with the reason for a line that is no reply (reliability C1), a code
        that changes within a reply (C2), or too much (C3). The stream cannot be trusted
        afterwards: every later call raises the same. The reason holds nothing the peer said but
        numbers.
        """

    def pending(self) -> int:
        """Octets fed that no reply given out has used. More than 0 where none is due: out of step."""
