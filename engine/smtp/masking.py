"""Keeping secrets out of what a peer says (reliability K4). Pure.

Some servers repeat a password, or the command it came in, in their replies. A reply is masked
before it is stored, logged or shown.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote

from policy.secret import Secret

__all__ = ["Masker"]

_MASK = "********"
_RUN = 8
"""Characters of base64 in a row that give a secret away: six octets of it. A server may cut the
command it repeats, or fold it over two lines, so any run counts, not only the whole."""
_WORD = re.compile(r"[A-Za-z0-9+/=_-]{8,}")


class Masker:
    """Masks some secrets: raw, in hexadecimal and percent-encoded, and any part of their base64, also
    as AUTH PLAIN blobs of the given users. Call it with a text. Made once per session."""

    __slots__ = ("_runs", "_whole")

    def __init__(self, secrets: Iterable[Secret], users: Iterable[str] = ()) -> None:
        whole: set[str] = set()
        runs: set[str] = set()
        names = [user.encode() for user in users]
        for secret in secrets:
            value = secret.reveal()
            if not value:
                continue
            text = value.decode("utf-8", "replace")
            whole |= {text, quote(text, safe=""), quote(value), value.hex(), value.hex().upper()}
            coded = [base64.b64encode(b"\0" + name + b"\0" + value).decode().rstrip("=") for name in names]
            for core in [*_cores(value), *coded]:
                if len(core) < _RUN:
                    whole.add(core)
                runs.update(core[at : at + _RUN] for at in range(len(core) - _RUN + 1))
        self._whole = sorted((form for form in whole if form), key=len, reverse=True)
        self._runs = frozenset(runs)

    def add(self, said: bytes) -> None:
        """Masks a response of AUTH as well: what SCRAM and CRAM-MD5 say is no password, but whoever reads
        it can try passwords (reliability K3)."""
        text = said.decode("utf-8", "replace")
        if len(text) >= _RUN:
            self._whole = sorted({*self._whole, text}, key=len, reverse=True)
            coded = base64.b64encode(said).decode().rstrip("=")
            self._runs |= {coded[at : at + _RUN] for at in range(len(coded) - _RUN + 1)}

    def __call__(self, text: str) -> str:
        for form in self._whole:
            if form in text:
                text = text.replace(form, _MASK)
        return _WORD.sub(self._word, text)

    def _word(self, found: re.Match[str]) -> str:
        word = found[0]
        runs = self._runs
        for at in range(len(word) - _RUN + 1):
            if word[at : at + _RUN] in runs:
                return _MASK
        return word


def _cores(value: bytes) -> Iterable[str]:
    """The characters of base64 that depend only on `value`, for each alignment it may have."""
    for shift, skip in ((0, 0), (1, 2), (2, 3)):
        coded = base64.b64encode(b"\0" * shift + value + b"\0\0").decode()
        core = coded[skip : (shift + len(value)) * 8 // 6]
        if len(core) >= 4:
            yield core
