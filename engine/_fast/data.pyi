"""Mail data on its way in: where it ends, what it is without the dots, what is odd about it."""

from typing import final

@final
class DataReader:
    """Reads one message's mail data from what follows the DATA command.

    limit: octets of content kept; a longer message is read to its true end and not kept.
    line_limit: octets a line may have without its CR LF; 0: any. Of a message with a longer line
    nothing is kept either: it can only be refused.

    Only CR LF . CR LF ends the data, the CR LF of the DATA command counting as the first; one dot
    is removed at the start of lines behind CR LF, nowhere else. The same rules hold while nothing
    is kept (reliability S1 to S4).

    What is found is about the content: dots removed, the final dot line left out. It is complete
    once `done`.

    Source: RFC 5321 sections 2.3.8, 4.1.1.4 and 4.5.2.
    """

    @property
    def done(self) -> bool:
        """The end of data has been read."""

    @property
    def size(self) -> int:
        """Octets of content, also of what was not kept."""

    @property
    def over(self) -> bool:
        """The content is longer than `limit`, or was abandoned."""

    @property
    def long_line(self) -> bool:
        """A line is longer than `line_limit`."""

    @property
    def bare_cr(self) -> bool:
        """A CR without LF behind it."""

    @property
    def bare_lf(self) -> bool:
        """An LF without CR before it."""

    @property
    def nul(self) -> bool:
        """A NUL octet."""

    @property
    def eight_bit(self) -> bool:
        """An octet above 127."""

    @property
    def longest_line(self) -> int:
        """Octets of the longest line, without its CR LF (so 998 is the most RFC 5321 allows)."""

    @property
    def header_end(self) -> int:
        """Offset just behind the first empty line, or -1 when there is none."""

    @property
    def header_fields(self) -> int:
        """Lines before that (or in all) that do not begin with SP or TAB: fields, nearly."""

    def __init__(self, limit: int, line_limit: int = 0) -> None: ...
    def feed(self, data: bytes, start: int = 0) -> int:
        """Read `data` from `start` on; returns how many octets of it were used.

        All of them until the end of data is found, none after it; what follows the end is the
        client's next command. Raises: ValueError when `start` is not an offset of `data`.
        """

    def abandon(self) -> None:
        """Keep nothing, neither what has come nor what comes: the message can only be refused."""

    def take(self) -> bytes:
        """The content, with the CR LF before the final dot; b"" when it was not kept or was taken.

        Copies nothing. Raises: ValueError before `done`.
        """
