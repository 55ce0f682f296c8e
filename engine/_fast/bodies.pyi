"""Whole bodies: what is in them, and the forms they take on the way out."""

from typing import Final

BARE_CR: Final = 1
"""Flag of `scan`: a CR without LF behind it."""
BARE_LF: Final = 2
"""Flag of `scan`: an LF without CR before it."""
NUL: Final = 4
"""Flag of `scan`: a NUL octet."""
EIGHT_BIT: Final = 8
"""Flag of `scan`: an octet above 127."""
NEEDS_STUFFING: Final = 16
"""Flag of `scan`: a dot at the start or behind CR LF, so `stuff` would change it."""
ENDS_WITH_CRLF: Final = 32
"""Flag of `scan`: the last line is ended."""

def stuff(data: bytes) -> bytes:
    """`data` with one more dot before each dot at its start and behind each CR LF.

    The very same object when there is none. Lines are those behind CR LF: use `clean_lines` first
    on data that may hold bare CR or LF (reliability C31). Source: RFC 5321 section 4.5.2.
    """

def clean_lines(data: bytes) -> bytes:
    """`data` without NUL, and then with CR LF for each bare CR and each bare LF.

    The very same object when it is clean. CR CR LF is a bare CR and a line end, so two lines.
    """

def scan(data: bytes) -> tuple[int, int, int, bool]:
    """What one pass finds: (flags, longest line, header end, is empty).

    flags: BARE_CR, BARE_LF, NUL, EIGHT_BIT, NEEDS_STUFFING, ENDS_WITH_CRLF.
    longest line: octets without the CR LF. header end: offset just behind the first empty line,
    or -1.
    """
