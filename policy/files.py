"""Reading files that somebody named: regular ones, and nothing that could keep the reader waiting.

A FIFO without a writer, a terminal or a socket would hold whoever opens it, for ever perhaps.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

__all__ = ["must_be_regular", "open_regular"]

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: str | os.PathLike[str], flags: int = 0) -> BinaryIO:
    """The file, to be read. `flags`: more of `os.open`.

    Raises: OSError; of what is no regular file its `strerror` says what it is.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError as error:
        _refuse(error.errno, path)  # a socket cannot even be opened, which the system says oddly
        raise
    try:
        _regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def must_be_regular(path: str | os.PathLike[str], *, directory: bool = False) -> None:
    """For those who open files by themselves, such as OpenSSL. `directory`: one will do, too.

    Raises: OSError as `open_regular` does, also when there is none.
    """
    mode = os.stat(path).st_mode
    if not (directory and stat.S_ISDIR(mode)):
        _regular(mode, path)


def _refuse(number: int | None, path: str | os.PathLike[str]) -> None:
    if number == errno.ENXIO:
        _regular(os.stat(path).st_mode, path)


def _regular(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    raise OSError(errno.EINVAL, f"it is {kind}; right would be a regular file", os.fspath(path))
