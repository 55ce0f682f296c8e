"""Secrets in the environment of the process: read once, and then taken out of it (reliability K6).

Programs that the process starts inherit its environment, a library may print it, and Linux shows what a
process was started with in ``/proc/PID/environ``. So a variable that a key source has read is removed, and
its octets there are overwritten. What it said is remembered here, for all key sources: the environment is one
for the whole process, too. A variable that is set again later counts again, and is removed again.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from policy.secret import Secret

__all__ = ["put_back", "said", "take"]

_taken: dict[str, Secret] = {}


def take(name: str) -> Secret | None:
    """What the variable says, or said before it was taken out; None: it was never set. A value that is empty
    is no secret and stays."""
    key = os.fsencode(name)
    value = os.environb.get(key)
    if value is None:
        return _taken.get(name)
    secret = Secret(value)
    if value:
        _taken[name] = secret
        _overwrite(key, len(value))
        os.environb.pop(key, None)
    return secret


def said(name: str) -> str | None:
    """What a variable that was taken out said, for a program that is to have it; None: there was none."""
    secret = _taken.get(name)
    return None if secret is None else os.fsdecode(secret.reveal())


@contextmanager
def put_back() -> Iterator[None]:
    """At the end of the block the environment is as it was, but for what was set meanwhile: for an engine in
    a program that has a use of its own for these variables, such as a suite of tests."""
    before = dict(_taken)
    try:
        yield
    finally:
        for name in [name for name, secret in _taken.items() if before.get(name) is not secret]:
            os.environb.setdefault(os.fsencode(name), _taken.pop(name).reveal())
        _taken.update(before)


def _overwrite(key: bytes, size: int) -> None:
    """The octets of a value where the C library has them: for a variable that was there at the start of the
    process, what ``/proc/PID/environ`` shows."""
    getenv = ctypes.CDLL(None).getenv
    getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
    place = getenv(key)
    if place:
        ctypes.memset(place, ord("*"), min(size, len(ctypes.string_at(place))))
