"""From the event loop to the sinks: bounded, never blocking, never losing silently.

`Log.write` puts a record into a list per logger; that is all the per-message path pays. A writer
task per logger takes the whole list every 20 ms or so and hands it to one thread call, which
encodes, compresses and writes. A sink that fails or stands still does not stop mail (reliability
O11): records wait up to the logger's `back_pressure`; what comes beyond is dropped, counted, said
in the diagnostics once per interval, and marked by a ``Gap`` record when writing works again.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from engine.errors import ConfigError
from engine.tripwire import Tripwire

from .capture import Capture
from .records import OURS, LineEncoder, Record
from .segments import SegmentSink, Sink, StandardOutput

if TYPE_CHECKING:
    from policy.runtime import LogDeclaration
    from policy.shaping.rules import Bounces

__all__ = ["DRAIN_LIMIT", "Log", "LogStatistics", "node_id", "open_log"]

T = TypeVar("T")

logger = logging.getLogger("posthorn.log")

_LINGER = 0.02
"""Seconds a record waits for others, so that one thread call (90 us) serves many."""

_PIECE = 256
"""Records encoded and written at once: about a millisecond of the interpreter's time."""

_CALL = 4096
"""Records per thread call at most: how often a writer that is behind shows progress."""

_RETRY = 1.0
"""Seconds between tries to write while the sink fails."""

_REPORT = 10.0
"""Seconds between diagnostic lines about dropped records."""

_PATIENCE = 1.0
"""Seconds `wait_room` waits for a sink that makes no progress; then mail goes on without it."""

_NAMESPACE = uuid.UUID("6f2b54a0-7c0e-5d0e-9a55-706f7374686e")

DRAIN_LIMIT = 10.0
"""Seconds for writing what is left when the log is closed."""


class LogStatistics(msgspec.Struct, frozen=True):
    """Of one logger. `trouble`: why it cannot write now, None when it can."""

    name: str
    waiting: int
    written: int
    dropped: int
    trouble: str | None


class Log:
    """Where records go. Made by `open_log`; ``Log()`` has no logger and keeps nothing."""

    def __init__(self, channels: Sequence[_Channel] = (), capture: Capture | None = None) -> None:
        self._channels = tuple(channels)
        self.capture = capture or Capture()
        """What the loggers together want copied out of messages."""

    def write(self, record: Record) -> None:
        """Take a record. Never waits; the record must not be changed afterwards."""
        for channel in self._channels:
            waiting = channel.waiting
            if len(waiting) >= channel.room:
                channel.drop()
                continue
            waiting.append(record)
            if channel.idle:
                channel.wake()

    @property
    def full(self) -> bool:
        """Whether `wait_room` would wait: a writer is behind, so whoever makes records should pause."""
        for channel in self._channels:  # noqa: SIM110 (asked four times a message: no generator)
            if channel.behind:
                return True
        return False

    async def wait_room(self) -> None:
        """Wait until the writers have caught up. Not a checkpoint when they have.

        A sink that fails or stands still is not waited for: its records are dropped and counted
        instead, and mail goes on (reliability O11).
        """
        for channel in self._channels:
            if channel.behind:
                await channel.wait_room()

    def statistics(self) -> list[LogStatistics]:
        """One entry per logger."""
        return [channel.statistics() for channel in self._channels]


class _Channel:
    """Records on their way to one sink, and the task that takes them there."""

    def __init__(self, name: str, sink: Sink, encoder: LineEncoder, bound: int, tripwire: Tripwire) -> None:
        self.name = name
        self.waiting: list[Record] = []
        self.room = bound
        """Records `waiting` may hold now: the bound less those the writer has in hand."""
        self.idle = False
        self._sink = sink
        self._encoder = encoder
        self._tripwire = tripwire
        self._place = f"log {name}"
        self._bound = bound
        self._high_water = max(1, bound * 3 // 4)
        self._in_hand: list[Record] = []
        self._limiter = trio.CapacityLimiter(1)
        self._scope = trio.CancelScope(shield=True)
        self._wake = trio.Event()
        self._stop = trio.Event()
        self._progress = trio.Event()
        self._stalled = False
        self._trouble: str | None = None
        self._trouble_since = 0.0
        self._written = 0
        self._dropped = 0
        self._told = 0
        self._told_at = -_REPORT
        self._gap = 0
        self._gap_since = 0.0

    def wake(self) -> None:
        """Rouse the sleeping writer."""
        self.idle = False
        self._wake.set()

    def drop(self) -> None:
        """Count a record that found no room; tell at most once per interval."""
        self._count_lost(1)
        now = time.monotonic()
        if now - self._told_at >= _REPORT:
            self._told_at = now
            self._tell_drops()

    @property
    def behind(self) -> bool:
        load = self._bound - self.room + len(self.waiting)
        return load >= self._high_water and not self._stalled and self._trouble is None

    async def wait_room(self) -> None:
        """Wait until the writer has caught up, but not for ever on one that stands still."""
        written = self._written
        with trio.move_on_after(_PATIENCE):
            while self.behind:
                await self._progress.wait()
        if self.behind and self._written == written:
            self._stalled = True

    def statistics(self) -> LogStatistics:
        waiting = len(self.waiting) + len(self._in_hand)
        return LogStatistics(self.name, waiting, self._written, self._dropped, self._trouble)

    # -- the writer ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until stopped, then write what is left.

        Shielded: a log that is cancelled with everything else would lose the records that say what
        was delivered. `stop` gives the shield its deadline.
        """
        with self._scope:
            try:
                await self._run()
            finally:
                self._account_for_rest()

    def stop(self, limit: float) -> None:
        """Let the writer finish; after `limit` seconds what is left is given up (and counted)."""
        self._scope.deadline = trio.current_time() + limit
        self._stop.set()
        self.wake()

    async def _run(self) -> None:
        while True:
            if not self.waiting:
                if self._stop.is_set():
                    await self._in_thread(self._sink.close)
                    return
                self.idle = True
                with trio.move_on_at(self._sink.deadline):
                    await self._wake.wait()
                self.idle = False
                self._wake = trio.Event()
                if trio.current_time() >= self._sink.deadline:
                    await self._in_thread(functools.partial(self._sink.tick, trio.current_time()))
            with trio.move_on_after(_LINGER):
                await self._stop.wait()
            if self.waiting:
                await self._write_waiting()

    async def _write_waiting(self) -> None:
        batch, self.waiting = self.waiting, []
        self._in_hand = batch
        while batch:
            self.room = max(0, self._bound - len(batch))
            done, error = await self._in_thread(functools.partial(self._store, batch, trio.current_time()))
            self._written += done
            del batch[:done]
            if error is None:
                self._works()
            else:
                self._fails(error)
            self._progress.set()
            self._progress = trio.Event()
            if error is not None:
                with trio.move_on_after(_RETRY):
                    await self._stop.wait()
                if self._stop.is_set():
                    await trio.sleep(_RETRY / 10)
        self.room = self._bound

    def _store(self, batch: list[Record], now: float) -> tuple[int, OSError | None]:
        """In the thread: encode and write; how many records are safely with the kernel."""
        done = 0
        while done < min(len(batch), _CALL):
            piece = batch[done : done + _PIECE]
            # Here, where hundreds of records are one text already and the event loop does not wait.
            lines = self._tripwire.json_lines(self._encoder.encode(piece), self._place, OURS)
            try:
                self._sink.write(lines, now)
            except OSError as error:
                return done, error
            done += len(piece)
        return done, None

    async def _in_thread(self, function: Callable[[], T]) -> T:
        # Abandoned when the time for closing is over: a reader that never reads must not keep the
        # process. Nothing touches the sink afterwards.
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=True)

    # -- when it does not work -------------------------------------------------------------------

    def _fails(self, error: OSError) -> None:
        text = os.strerror(error.errno).lower() if error.errno else str(error)
        if self._trouble is None:
            self._trouble_since = time.monotonic()
            logger.error(
                "log %s: cannot write: %s; mail goes on, up to %d records wait", self.name, text, self._bound
            )
        self._trouble = text

    def _works(self) -> None:
        self._stalled = False
        if self._gap:
            # Into the log itself, behind the records that were still taken.
            self.waiting.append(self._gap_record())
            self._tell_drops()
        if self._trouble is not None:
            self._trouble = None
            logger.info(
                "log %s: writing again after %.0f s", self.name, time.monotonic() - self._trouble_since
            )

    def _count_lost(self, number: int) -> None:
        self._dropped += number
        if not self._gap:
            self._gap_since = time.time()
        self._gap += number

    def _tell_drops(self) -> None:
        number = self._dropped - self._told
        if number:
            self._told = self._dropped
            why = self._trouble or "the writer is too slow"
            logger.warning("log %s: %d records dropped: %s; mail goes on", self.name, number, why)

    def _gap_record(self) -> Record:
        number, self._gap = self._gap, 0
        now = time.time()
        text = f"{number} records were lost in the {now - self._gap_since:.1f} s before this one"
        return Record(type="Gap", timestamp=now, content=text, dropped=number)

    def _account_for_rest(self) -> None:
        left = len(self._in_hand) + len(self.waiting)
        if left:
            self._in_hand, self.waiting = [], []
            self._count_lost(left)
            self._tell_drops()


@asynccontextmanager
async def open_log(
    declarations: Sequence[LogDeclaration],
    *,
    nodeid: str | None = None,
    drain_limit: float = DRAIN_LIMIT,
    bounces: Bounces | None = None,
    tripwire: Tripwire | None = None,
) -> AsyncIterator[Log]:
    """A running log with one logger per declaration. Leaving the block writes what is left.

    `bounces`: gives refusals their class. `nodeid`: of this node, in each line; by default `node_id`.
    `drain_limit`: seconds for the rest at the end, even when everything around is cancelled.
    `tripwire`: knows the secrets that no line may show.

    Raises: ConfigError when a log directory cannot be used.
    """
    node = node_id() if nodeid is None else nodeid
    tripwire = Tripwire() if tripwire is None else tripwire
    channels = []
    together = Capture(
        [name for declaration in declarations for name in declaration.meta],
        [name for declaration in declarations for name in declaration.headers],
    )
    for declaration in declarations:
        channels.append(await _channel(declaration, node, bounces, tripwire, alone=len(declarations) == 1))
    async with trio.open_nursery() as nursery:
        for channel in channels:
            nursery.start_soon(channel.run)
        try:
            yield Log(channels, together)
        finally:
            for channel in channels:
                channel.stop(drain_limit)


async def _channel(
    declaration: LogDeclaration, node: str, bounces: Bounces | None, tripwire: Tripwire, *, alone: bool
) -> _Channel:
    sink: Sink
    if declaration.log_dir == "-":
        name = "standard output"
        sink = StandardOutput()
    else:
        name = declaration.log_dir
        sink = SegmentSink(
            Path(declaration.log_dir),
            max_file_size=declaration.max_file_size,
            max_segment_duration=declaration.max_segment_duration,
            level=declaration.compression_level,
        )
    try:
        await trio.to_thread.run_sync(sink.open)
    except FileExistsError:  # what mkdir says of a file in its place
        raise ConfigError(f"log_dir {name}: is not a directory") from None
    except OSError as error:
        raise ConfigError(f"log_dir {name}: {os.strerror(error.errno or 0).lower()}") from None
    if alone:
        encoder = LineEncoder(node, bounces=bounces)
    else:
        # Records carry what all loggers together want; each writes what it was asked for.
        own = Capture(declaration.meta, declaration.headers)
        encoder = LineEncoder(
            node, narrow_meta=own.pick_meta, narrow_headers=own.pick_headers, bounces=bounces
        )
    return _Channel(name, sink, encoder, declaration.back_pressure, tripwire)


def node_id() -> str:
    """A UUID for this node: ``POSTHORN_NODE_ID`` if set, else made from the machine's id or name."""
    given = os.environ.get("POSTHORN_NODE_ID")
    if given:
        return given
    try:
        # Hashed with our own name space: machine-id(5) asks not to publish it as it is.
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return str(uuid.uuid5(_NAMESPACE, machine or os.uname().nodename))
