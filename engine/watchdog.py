"""Names the hook in which the event loop hangs (reliability O7).

A hook that comes back is timed where it is called. One that does not can only be seen from another
thread: it looks four times a second at what `Hooks` notes, and never touches the loop. (A hook that
hangs in C code without giving up the interpreter's lock, such as a regular expression that runs
away, stops this thread too; it is named when it comes back.)
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.hooks import Hooks

__all__ = ["Watchdog", "open_watchdog"]

logger = logging.getLogger("posthorn.hooks")

_LOOK = 0.25
"""Seconds between two looks."""
_PATIENCE = 1.0
"""Seconds a hook may hold the loop before it is named while it still does."""
_AGAIN = 60.0
"""Seconds after which it is named once more."""


class Watchdog:
    """Looks at `hooks`, which are called in the thread `ident`."""

    def __init__(self, hooks: Hooks, ident: int) -> None:
        self._hooks = hooks
        self._ident = ident
        self._since = 0.0
        self._due = _PATIENCE

    def look(self) -> None:
        """Name the hook that has been holding the loop for too long, if there is one."""
        hook = self._hooks.running
        since = self._hooks.since  # read second: it may be too new then, never too old
        if hook is None:
            return
        if since != self._since:
            self._since, self._due = since, _PATIENCE
        held = time.perf_counter() - since
        if held >= self._due:
            self._due = held + _AGAIN
            logger.error(
                "%s: %s has been holding the event loop for %.1f s, now at %s; nothing else runs meanwhile",
                hook.where,
                hook.event,
                held,
                self._place(hook.where.rpartition(" in ")[0].rpartition(":")[0]),
            )

    def _place(self, file: str) -> str:
        """Where the thread is: the innermost line of the hook's own file, else the innermost of all."""
        innermost = frame = sys._current_frames().get(self._ident)
        while frame is not None and frame.f_code.co_filename != file:
            frame = frame.f_back
        frame = frame or innermost
        return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"


@contextmanager
def open_watchdog(hooks: Hooks) -> Iterator[None]:
    """Owner of the thread. It watches hooks that are called in the thread that enters the block."""
    watchdog = Watchdog(hooks, threading.get_ident())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            watchdog.look()

    thread = threading.Thread(target=watch, name="posthorn watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
