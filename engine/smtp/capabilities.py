"""What an EHLO reply offers (RFC 5321 4.1.1.1, RFC 1869)."""

from __future__ import annotations

import msgspec

__all__ = ["NONE", "Capabilities", "capabilities_from"]


class Capabilities(msgspec.Struct, frozen=True, gc=False):
    """What the peer's latest EHLO reply offers. `size` None: SIZE not offered; 0: no stated limit."""

    pipelining: bool = False
    size: int | None = None
    eight_bit_mime: bool = False
    smtputf8: bool = False
    starttls: bool = False
    enhanced: bool = False
    auth: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


NONE = Capabilities()


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
    return Capabilities(
        pipelining="PIPELINING" in names,
        size=size,
        eight_bit_mime="8BITMIME" in names,
        smtputf8="SMTPUTF8" in names,
        starttls="STARTTLS" in names,
        enhanced="ENHANCEDSTATUSCODES" in names,
        auth=frozenset(auth),
        names=frozenset(names),
    )
