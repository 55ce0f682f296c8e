"""Looking for many strings at once: live secrets in what is about to be shown."""

from typing import final

@final
class PatternSet:
    """A fixed set of patterns.

    patterns: in ascending order, none twice, each of 6 to 1024 octets.
    words: one octet for each pattern; not zero: the pattern counts only where it stands alone, with
    no letter, digit, hyphen or underline of ASCII on either side. An escape before it (``\\n``,
    ``%3D``, ``\\x1b``, ``\\u2028``) is no such neighbour.

    Raises: ValueError for patterns that are not so.
    """

    def __init__(self, patterns: list[bytes], words: bytes) -> None: ...
    def search(self, data: bytes) -> list[tuple[int, int, int]] | None:
        """Every octet of `data` that is part of a pattern, as spans (begin, end, number) in order, or
        None when there is none. Patterns that overlap are one span; `number` is that of the longest
        pattern that begins where the span begins.

        Time is linear in `data`; only a pattern that repeats itself, in a text that does too, takes
        the length of the pattern for each octet.
        """
