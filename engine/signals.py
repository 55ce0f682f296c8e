"""SIGTERM, SIGINT and SIGHUP, from the first line of ``posthorn run`` to its last (reliability O9).

One handler, three times of life:

before the event loop  nothing is held yet: `Stopped` is raised, and the command ends with status 0
in the event loop      noted, and whoever waits in `Signals.wait` is told
between and after      noted; the loop looks when it begins, and after it there is nothing to stop

The loop may be unable to listen, because a hook never returns or a disk hangs. So each of the first
two stop signals also sets the kernel's alarm, which nobody catches. A loop that hears the signal
moves the alarm on, step by step of its drain, with `Signals.within`.

Imports nothing that takes time: what comes before it cannot be stopped politely.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

__all__ = ["LAST_RESORT", "Signals", "Stopped"]

LAST_RESORT = 25
"""Seconds that a step of the end may take beyond its own limits before the kernel ends the process."""

_STOP = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Raised by the handler where there is no event loop yet."""


class Signals:
    """Handles the signals while its ``with`` block lasts. Main thread only."""

    def __init__(self) -> None:
        self.stops = 0
        """How many times a stop was asked for."""
        self._noting = False
        self._arrived: deque[int] = deque()
        self._token: trio.lowlevel.TrioToken | None = None
        self._event: trio.Event | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (*_STOP, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note_only(self) -> bool:
        """From here on nothing is raised. True: a stop was asked for, so do not begin."""
        self._noting = True
        return self.stops > 0

    @contextmanager
    def in_loop(self) -> Iterator[None]:
        """While the block runs, this task's event loop is told: see `wait`."""
        import trio

        self._noting = True
        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if self._arrived:
            self._event.set()
        try:
            yield
        finally:
            self._token = None

    async def wait(self) -> int:
        """The next signal, the oldest first; one task at a time."""
        import trio

        while not self._arrived:
            assert self._event is not None, "wait belongs into in_loop"
            await self._event.wait()
            self._event = trio.Event()
        return self._arrived.popleft()

    def within(self, seconds: float) -> None:
        """What comes now may take `seconds`, and `LAST_RESORT` more; then the kernel ends the process."""
        signal.alarm(math.ceil(seconds) + LAST_RESORT)

    def _handle(self, number: int, frame: object) -> None:
        self._arrived.append(number)
        if number in _STOP:
            self.stops += 1
            if self.stops <= 2:  # no number of signals may put it off
                self.within(0)
            if not self._noting:
                raise Stopped
        if self._token is not None:
            self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        if self._event is not None:
            self._event.set()
