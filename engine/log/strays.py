"""What Python itself writes to standard error, behind everybody's back: warnings, exceptions of threads, and
those that nobody can catch (in ``__del__``, in a coroutine that is collected). They may name a value that
must not be shown, so they become lines of the log, which are searched for secrets.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["strays_logged"]

logger = logging.getLogger("posthorn.python")


@contextmanager
def strays_logged() -> Iterator[None]:
    """While the block runs. Main thread only, as they are one for the process."""
    before = sys.unraisablehook, threading.excepthook, warnings.showwarning
    sys.unraisablehook, threading.excepthook, warnings.showwarning = _unraisable, _of_thread, _warning
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook, warnings.showwarning = before


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if file is not None:
        file.write(text)
    else:
        logger.warning("%s", text.rstrip())


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    # The object is named by its type alone: its repr may be anything, and may fail.
    kind = type(what.object)
    where = f"{kind.__module__}.{kind.__qualname__}" if what.object is not None else "nothing"
    _log(what.err_msg or "Exception ignored in", where, what.exc_value, what.exc_type)


def _of_thread(what: threading.ExceptHookArgs) -> None:
    if what.exc_type is SystemExit:
        return
    name = what.thread.name if what.thread is not None else "that is gone"
    _log("exception in thread", name, what.exc_value, what.exc_type)


def _log(what: str, where: str, error: BaseException | None, kind: type[BaseException]) -> None:
    told = (kind, error, error.__traceback__) if error is not None else None
    logger.error("%s %s: %s", what, where, kind.__name__, exc_info=told)
