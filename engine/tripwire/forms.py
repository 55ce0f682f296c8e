"""In how many ways a secret may be written down. Pure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html import escape
from unicodedata import normalize
from urllib.parse import quote, quote_plus

__all__ = ["SHORTEST", "forms"]

SHORTEST = 6
"""Octets a secret must have to be searched for as it is. A shorter one is in ordinary text all the time."""

_WORD = 12
"""Octets below which a secret of letters, digits, ``-`` and ``_`` counts only where it stands alone."""
_ENCODED = 8
"""Characters a form in base64 or hexadecimal must have."""

_WHOLE = 128
"""Octets up to which a secret is searched for in one piece."""
_MOST = 16384
"""Octets of one secret that are searched for, PEM files aside; what is larger is no password and no token."""
_PIECE = 96
_OVERLAP = 6  # so that no digit of base64 between two pieces is left over
_LONGEST = 1024
"""Octets of a form: eight for each one of the piece, and some are escaped with more."""
_ESCAPED = 16
"""Pieces of one secret that are searched for where they are escaped: a dozen milliseconds."""
_LINE = 16
"""Octets a line of a longer secret must have: what is shorter may be a brace or a word."""

_PLAIN_WORD = re.compile(rb"[0-9A-Za-z_-]+")
_PRIVATE = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----(.*?)-----END \1-----", re.DOTALL)


def forms(secret: bytes) -> dict[bytes, bool]:
    """What to look for, and whether it counts only where it stands alone (`PatternSet`).

    As it is; in hexadecimal; in base64 of both alphabets, wherever in a larger blob it begins and ends
    (NUL user NUL password of AUTH PLAIN is one), also percent-encoded before, as OAuth 2 has it;
    percent-encoded as one or another library does; escaped for JSON, twice too, by Python, and for HTML; in
    the other normal forms of Unicode. One of several lines is searched for in each of them, too, a long one
    in pieces, of which only the first ones are searched for where they are escaped. Of a PEM file only
    private keys are secret.
    """
    found: dict[bytes, bool] = {}
    for number, piece in enumerate(_pieces(secret)):
        if len(piece) >= SHORTEST:
            found.setdefault(piece, len(piece) < _WORD and _PLAIN_WORD.fullmatch(piece) is not None)
        for form in _escaped(piece) if number < _ESCAPED else ():
            if len(form) >= SHORTEST:
                found.setdefault(form[:_LONGEST], False)
        for form in _encoded(piece):
            if len(form) >= _ENCODED:
                found.setdefault(form, False)
        coded = quote_plus(piece).encode()
        if coded != piece and number < _ESCAPED:
            for form in _within(coded):
                found.setdefault(form, False)
    return found


def _pieces(secret: bytes) -> Iterator[bytes]:
    secret = secret[:_MOST] if b"-----BEGIN " not in secret else secret
    if b"-----BEGIN " in secret:
        lines = [line for _, body in _PRIVATE.findall(secret) for line in body.splitlines()]
    elif len(secret) <= _WHOLE:
        yield secret
        shown = secret.strip()  # whoever cuts off what cannot be seen
        lines = [line.strip() for line in secret.splitlines() if len(line.strip()) >= _WORD]
        for part in dict.fromkeys((shown, *lines)):
            if part != secret and len(part) >= SHORTEST:
                yield part
        return
    else:
        lines = secret.splitlines()
    for line in lines:
        line = line.strip()
        while len(line) > _WHOLE:
            yield line[:_PIECE]
            line = line[_PIECE - _OVERLAP :]
        if len(line) >= _LINE:
            yield line


_SAFE = ("", "/", "!'()*", "!#$&'()*+,/:;=?@", "!#$%&'()*+,/:;=?@[]")
"""What is left: by `quote`, in a path, by encodeURIComponent and encodeURI of JavaScript, by requests."""


def _escaped(piece: bytes) -> Iterator[bytes]:
    """Forms that differ from the piece where it holds more than letters and digits."""
    for coded in (*(quote(piece, safe=safe) for safe in _SAFE), quote_plus(piece)):
        yield coded.encode()
        yield _lower_hex(coded).encode()
    texts = {piece.decode("utf-8", "backslashreplace")}
    lossy = piece.decode("utf-8", "replace")
    if lossy.count("\ufffd") * 2 < len(lossy):
        texts.add(lossy)
        if not lossy.isascii():
            texts.add(piece.decode("latin-1"))
            texts |= {normalize(form, lossy) for form in ("NFC", "NFD", "NFKC")}
    shown = {repr(piece)[2:-1], *texts}
    for text in texts:
        shown.add(repr(text)[1:-1])
        shown |= {escape(text), escape(text, quote=False)}
    # Within a longer text both quotation marks may occur, and then Python escapes this one.
    shown |= {text.replace("'", "\\'") for text in tuple(shown)}
    for _ in range(2):  # JSON inside of JSON, and Python's escapes there
        shown |= {json.dumps(text, ensure_ascii=plain)[1:-1] for text in shown for plain in (True, False)}
    for text in texts:
        shown |= _web(text)
    for form in shown:
        yield form.encode("utf-8", "replace")


_MARKUP = re.compile("[<>&]")
_MARKS = re.compile("[<>&'\"`+]")
_NUMBER = re.compile(r"\\u[0-9a-f]{4}")


def _web(text: str) -> set[str]:
    """JSON as other languages write it: Go escapes ``<>&`` by number, as HTML wants it, .NET quotation marks,
    too, and in capitals; PHP escapes a slash."""
    found = set()
    for ascii_only in (True, False):
        plain = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        bare = plain.replace('\\"', '"')
        for form in (
            plain,
            plain.replace('\\"', "\\u0022"),
            _MARKUP.sub(_by_number, plain),
            _MARKS.sub(_by_number, bare),
            plain.replace("/", "\\/"),
        ):
            found |= {form, _NUMBER.sub(lambda seen: f"\\u{seen[0][2:].upper()}", form)}
    return found


def _by_number(seen: re.Match[str]) -> str:
    return f"\\u{ord(seen[0]):04x}"


def _lower_hex(coded: str) -> str:
    return re.sub("%..", lambda found: found[0].lower(), coded)


def _within(piece: bytes) -> Iterator[bytes]:
    """In base64 after something, but for a digit at its end."""
    for before in range(3):
        yield base64.b64encode(bytes(before) + piece)[(before * 8 + 5) // 6 : (before + len(piece)) * 8 // 6]


def _encoded(piece: bytes) -> Iterator[bytes]:
    yield piece.hex().encode()
    yield piece.hex().upper().encode()
    # In a blob, what stands before and behind is unknown, is a NUL, or is nothing.
    for before in range(3):
        for led in (b"", b"\0"):
            value = led + piece
            padded = base64.b64encode(bytes(before) + value)
            first = (before * 8 + 5) // 6  # the digits that depend on the octets before are left out
            sure = (before + len(value)) * 8 // 6
            last = -(-(before + len(value)) * 8 // 6)
            for end in {sure, last, len(padded)}:
                form = padded[first:end]
                yield form
                yield form.replace(b"+", b"-").replace(b"/", b"_")
