"""What an EHLO reply offers (RFC 5321 4.1.1.1, RFC 1869)."""

from __future__ import annotations

__all__ = ["NONE", "Capabilities", "capabilities_from"]


class Capabilities:
    """What the peer's latest EHLO reply offers. `size` None: SIZE not offered; 0: no stated limit."""

    __slots__ = ("auth", "eight_bit_mime", "enhanced", "names", "pipelining", "size", "smtputf8", "starttls")

    def __init__(self, names: frozenset[str], auth: frozenset[str], size: int | None) -> None:
        self.names = names
        self.auth = auth
        self.size = size
        self.pipelining = "PIPELINING" in names
        self.eight_bit_mime = "8BITMIME" in names
        self.smtputf8 = "SMTPUTF8" in names
        self.starttls = "STARTTLS" in names
        self.enhanced = "ENHANCEDSTATUSCODES" in names


NONE = Capabilities(frozenset(), frozenset(), None)
"""Nothing, as before EHLO and after HELO."""


def capabilities_from(text: str) -> Capabilities:
    """From the text of a positive reply to EHLO. What cannot be understood is not offered."""
    names: set[str] = set()
    auth: set[str] = set()
    size: int | None = None
    for line in text.split("\n")[1:]:
        word, _, rest = line.strip().partition(" ")
        name, equals, legacy = word.upper().partition("=")
        if name == "AUTH":
            # "AUTH=LOGIN PLAIN" is the form of servers older than RFC 4954.
            auth.update(rest.upper().split())
            if equals and legacy:
                auth.add(legacy)
        elif name == "SIZE":
            digits = rest.strip()
            size = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else 0
        names.add(name)
    return Capabilities(frozenset(names), frozenset(auth), size)
