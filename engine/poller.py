"""Waiting for sockets: one edge-triggered epoll for all streams of a run (decision 0013).

A `Watch` is registered once, with its first wait, and holds what the kernel said since: `readable` and
`writable` are latched by the `Poller`, a system task of the Trio run, and cleared only when the kernel
answered a receive or a send with EAGAIN. Nothing of the run comes between that answer and the wait, and what
the kernel notices in that time is in the epoll when the poller next looks: no event is lost.

A flag that is set is a hint: whoever finds nothing there after all waits again. So an event for a descriptor
that was another's before is harmless.
"""

from __future__ import annotations

import contextlib
import select

import outcome
import trio
from trio.lowlevel import (
    Abort,
    RunVar,
    checkpoint,
    current_task,
    reschedule,
    wait_readable,
    wait_task_rescheduled,
)

from ._fast import events_now
from .errors import ConnectionLost

__all__ = ["Poller", "Watch", "current_poller"]

_HEARD = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_ROOM = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Watch:
    """What is known of one socket, and who waits for it: at most one task to read and one to send.

    `readable`, `writable`: False: the kernel said that there is nothing, or no room, and has not said
    otherwise since; who receives or sends clears them. `fd`: the socket's descriptor; -1 after `close`.
    """

    __slots__ = ("_poller", "_reader", "_writer", "fd", "readable", "writable")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.readable = True
        self.writable = True
        self._poller: Poller | None = None
        self._reader: trio.lowlevel.Task | None = None
        self._writer: trio.lowlevel.Task | None = None

    async def until_readable(self) -> None:
        """Wait until there is something to read, or the end. Returns at once, without a checkpoint, when the
        kernel knows of something.

        Raises: ConnectionLost when the socket is closed, `trio.BusyResourceError` when a task waits for the
        same already.
        """
        self._enter()
        if self._reader is not None:
            raise trio.BusyResourceError("another task waits already to read from this connection")
        if not self.readable:
            self._reader = current_task()
            await wait_task_rescheduled(self._leave_reader)

    async def until_writable(self) -> None:
        """Wait until there is room to send. Raises as `until_readable`."""
        self._enter()
        if self._writer is not None:
            raise trio.BusyResourceError("another task waits already to send by this connection")
        if not self.writable:
            self._writer = current_task()
            await wait_task_rescheduled(self._leave_writer)

    async def until_either(self) -> bool:
        """Wait until there is something to read or room to send; whether there is room. Raises as
        `until_readable`."""
        self._enter()
        if self._reader is not None or self._writer is not None:
            raise trio.BusyResourceError("another task waits already for this connection")
        if not self.readable and not self.writable:
            self._reader = self._writer = current_task()
            await wait_task_rescheduled(self._leave_both)
        return self.writable

    def look(self) -> None:
        """Ask the kernel instead of trusting what it said once. For who waits without having tried first."""
        if self.fd >= 0 and (self.readable or self.writable):
            poll = select.poll()
            poll.register(self.fd, _HEARD | _ROOM)
            found = poll.poll(0)
            mask = found[0][1] if found else 0
            self.readable = bool(mask & _HEARD)
            self.writable = bool(mask & _ROOM)

    def close(self) -> None:
        """Forget the socket, which is about to be closed: who waits gets ConnectionLost. Idempotent."""
        if self._poller is not None:
            self._poller.remove(self.fd)
            self._poller = None
        self.fd = -1
        self.fail("connection closed")

    def fail(self, why: str) -> None:
        """Who waits gets ConnectionLost."""
        reader, writer = self._reader, self._writer
        self._reader = self._writer = None
        for task in (reader, writer if writer is not reader else None):
            if task is not None:
                reschedule(task, outcome.Error(ConnectionLost(why)))

    def note(self, mask: int) -> None:
        """Take what the kernel says (EPOLLIN and the like), and wake who waits for it."""
        task = None
        if mask & _HEARD:
            self.readable = True
            task = self._reader
            if task is not None:
                self._reader = None
                if self._writer is task:
                    self._writer = None
                reschedule(task)
        if mask & _ROOM:
            self.writable = True
            task = self._writer
            if task is not None:
                self._writer = None
                if self._reader is task:
                    self._reader = None
                reschedule(task)

    def _enter(self) -> None:
        """See to it that a poller of this run watches the socket."""
        if self.fd < 0:
            raise ConnectionLost("connection closed")
        if self._poller is None or self._poller.closed:
            # The kernel says what is the case now as soon as it is asked to watch.
            self.readable = self.writable = False
            try:
                self._poller = current_poller()
                self._poller.add(self)
            except (OSError, ValueError) as error:
                self._poller = None
                raise ConnectionLost(f"cannot wait for the connection: {error}") from None

    # Trio's way to say that a waiting task is cancelled: nobody waits any more, and nothing else is undone.

    def _leave_reader(self, _: object) -> Abort:
        self._reader = None
        return Abort.SUCCEEDED

    def _leave_writer(self, _: object) -> Abort:
        self._writer = None
        return Abort.SUCCEEDED

    def _leave_both(self, _: object) -> Abort:
        self._reader = self._writer = None
        return Abort.SUCCEEDED


class Poller:
    """One epoll, the sockets it watches, and the task that hands out what it says."""

    __slots__ = ("_epoll", "_watches", "closed")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self.closed = False

    def add(self, watch: Watch) -> None:
        """Watch a socket, from now to `remove`. Raises: OSError, ValueError when this poller is closed."""
        self._epoll.register(watch.fd, _EDGES)
        self._watches[watch.fd] = watch

    def remove(self, fd: int) -> None:
        """Watch it no longer. Before the descriptor is closed: a child process that is just being started
        may still hold it, and the kernel would go on watching."""
        if self._watches.pop(fd, None) is not None and not self.closed:
            # It may be closed already, by what failed to make a TLS socket of it.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def drain(self) -> int:
        """Hand out what the kernel has now, a part of it when it is very much; how many events that was."""
        events = events_now(self._epoll)
        watches = self._watches
        for fd, mask in events:
            watch = watches.get(fd)
            if watch is not None:
                watch.note(mask)
        return len(events)

    async def run(self) -> None:
        """Watch until cancelled. While there is something each turn of the run, look again in the next one
        instead of asking Trio to say when: that would cost a system call or two a turn."""
        try:
            while True:
                if self.drain():
                    await checkpoint()
                else:
                    await wait_readable(self._epoll)
        finally:
            self.closed = True
            self._epoll.close()
            for watch in self._watches.values():
                watch.fail("the run is over")
            self._watches.clear()


_POLLER: RunVar[Poller] = RunVar("posthorn_poller")


def current_poller() -> Poller:
    """The poller of this Trio run; the first call starts it."""
    try:
        return _POLLER.get()
    except LookupError:
        poller = Poller()
        _POLLER.set(poller)
        trio.lowlevel.spawn_system_task(poller.run, name="engine.poller")
        return poller
