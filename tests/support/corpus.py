"""Real messages: the interpreter's own e-mail test corpus, and messages made to be difficult.

Python's is a few dozen files that each broke a parser once. Debian's python3 comes without its tests;
there they are in the package libpython3.11-testsuite.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from tests.support.programs import missing

__all__ = ["difficult", "email_corpus", "without_received"]

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")

_RECEIVED = re.compile(
    rb"Received: from [!-~]+ \(\[[!-~]+\]\)\r\n"
    rb"\tby [!-~]+ \(Posthorn\) with [A-Z0-9]+(?: \([!-~]+ [!-~]+\))?\r\n"
    rb"\tid [0-9a-f]{32}\r\n"
    rb"\tfor <[!-~]+>;\r\n"
    rb"\t[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000\r\n"
)


def email_corpus() -> list[tuple[str, bytes]]:
    """Name and content of each message, made fit for SMTP: CRLF line ends, no NUL."""
    found = [(path.name, _clean(path.read_bytes())) for path in sorted(_directory().glob("*.txt"))]
    assert len(found) > 30
    return found


def difficult() -> list[tuple[str, bytes]]:
    """Messages that are hard to pass on unchanged."""
    head = b"From: a@sender.example\r\nSubject: difficult\r\n\r\n"
    high = bytes(code for code in range(1, 256) if code not in b"\r\n")
    return [
        ("empty", b""),
        ("only-a-line-end", b"\r\n"),
        ("no-header", b"\r\njust a body\r\n"),
        ("no-body", b"Subject: a header and no more\r\n"),
        ("begins-like-a-folded-line", b" a space first\r\n\r\nbody\r\n"),
        ("dots-only", b".\r\n..\r\n...\r\n" + b"." * 500 + b"\r\n.\r\n"),
        ("dots-in-front", head + b".\r\n.a\r\n..\r\n..a\r\n.\r\n\r\n.\r\n"),
        ("dot-at-the-very-end", head + b"text\r\n."),
        ("no-final-line-end", head + b"the last line is not ended"),
        ("line-of-998", head + b"x" * 998 + b"\r\n"),
        ("line-of-60000", head + b"y" * 60_000 + b"\r\nshort\r\n"),
        ("latin-1", head + "Grüße aus Köln\r\n".encode("latin-1")),
        ("utf-8", head + "Grüße aus Köln \N{POSTAL HORN}\r\n".encode()),
        ("every-octet", head + b"\r\n".join(high[at : at + 16] for at in range(0, len(high), 16)) + b"\r\n"),
        ("white-space-at-line-ends", head + b"a \t\r\n \r\n\t\r\n\r\n\r\n"),
        ("many-short-lines", head + b"\r\n" * 50_000),
    ]


def without_received(content: bytes) -> bytes:
    """What arrived, without the Received field that the relay put on top (that one, exactly)."""
    found = _RECEIVED.match(content)
    assert found is not None, f"no Received field of ours on top: {content[:400]!r}"
    return content[found.end() :]


def _clean(content: bytes) -> bytes:
    return _BARE.sub(b"\r\n", content.replace(b"\0", b""))


def _directory() -> Path:
    spec = importlib.util.find_spec("test")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    places += sorted(Path("/usr/lib").glob("python3.*/test"))
    for place in places:
        if any((place / "test_email" / "data").glob("*.txt")):
            return place / "test_email" / "data"
    missing("needs Python's e-mail test corpus of the Debian package libpython3.11-testsuite")
