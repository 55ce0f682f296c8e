"""Looking for secrets where none may be: raw, in base64 at any offset, as SASL blobs, URL-encoded."""

from __future__ import annotations

import base64
import os
import sys
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["content", "forms", "leaks", "logged", "output_files"]


def forms(secret: bytes) -> dict[str, bytes]:
    """Each way in which `secret` might be written down, by name."""
    found = {"raw": secret, "hexadecimal": secret.hex().encode()}
    quoted = urllib.parse.quote_from_bytes(secret, safe="").encode()
    if quoted != secret:
        found["URL-encoded"] = quoted
    for offset in range(3):
        # The octets around it are not known: the digits that depend on them are left out. This finds
        # the secret inside any larger blob, such as NUL user NUL password.
        coded = base64.b64encode(b"\0" * offset + secret).rstrip(b"=")
        first = (offset * 8 + 5) // 6
        last = (offset + len(secret)) * 8 // 6
        found[f"base64, offset {offset}"] = coded[first:last]
    return found


def leaks(secrets: Iterable[str], files: Iterable[Path]) -> list[str]:
    """A line for each form of each secret that is found in a file, or in what it holds compressed."""
    sought = [(number, name, form) for number, secret in enumerate(secrets) for name, form in
              forms(secret.encode()).items()]  # fmt: skip
    found: list[str] = []
    for path in files:
        try:
            octets = content(path)
        except FileNotFoundError:
            continue  # a segment that was removed meanwhile
        found += [f"secret {number} ({name}) is in {path}" for number, name, form in sought if form in octets]
    return found


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the test has logged, for a fixture that looks afterwards: by then `caplog.text` is empty."""
    return "\n".join(caplog.handler.format(record) for record in caplog.get_records("call"))


def output_files(directory: Path) -> list[Path]:
    """Every file below `directory`."""
    return [Path(parent) / name for parent, _, names in os.walk(directory) for name in names]


def content(path: Path) -> bytes:
    """What a file holds, and what that is when it is expanded. Raises: OSError."""
    octets = path.read_bytes()
    if octets[:4] != b"\x28\xb5\x2f\xfd":
        return octets
    decompressor = zstd.ZstdDecompressor()
    try:
        return octets + decompressor.decompress(octets)
    except zstd.ZstdError:
        return octets
