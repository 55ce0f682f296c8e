"""The diagnostic log: what the program says about itself, on standard error.

Everything in the package logs with the standard library's ``logging`` below the name ``posthorn``.
Here the lines go through a bounded queue to one thread, so that a standard error nobody reads
never holds up mail: what finds the queue full is dropped and counted (reliability O11).

Text of peers ends up in these lines. Control characters are shown escaped, so that no reply can
forge a line or move a terminal's cursor (reliability C8).
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

import msgspec

from engine.errors import ConfigError
from engine.tripwire import Tripwire, private
from policy.errors import did_you_mean

from .strays import strays_logged

__all__ = ["LEVELS", "ROOMS", "STYLES", "diagnostics", "parse_levels"]

LEVELS: Final = ("debug", "info", "warning", "error")
ROOMS: Final = (
    "egress",
    "hooks",
    "ingress",
    "keys",
    "log",
    "memory",
    "python",
    "shaping",
    "spool",
    "tripwire",
)
"""What logs under a name of its own, below ``posthorn``."""
STYLES: Final = ("auto", "plain", "json")

_ROOT = "posthorn"
_BOUND = 10_000
"""Lines that wait for standard error: some megabytes."""

_PLACE = "diagnostics"
_OURS = frozenset(("time", "level", "logger"))

_LAST_WORDS = 2.0
"""Seconds for writing what is left at the end."""

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if code != 9}
_ESCAPES |= {0x0A: "\\n", 0x0D: "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029"}

_COLOURS = {logging.DEBUG: "\x1b[2m", logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


def parse_levels(text: str) -> dict[str, int]:
    """Logger name to level, from ``"info"`` or ``"info,egress=debug,spool=warning"``.

    Names are `ROOMS`; the level without a name is for all others.
    Raises: ConfigError saying what would be right.
    """
    levels: dict[str, int] = {}
    for part in text.split(","):
        name, equals, level = part.strip().rpartition("=")
        if level.lower() not in LEVELS or (equals and not name):
            known = ", ".join(LEVELS)
            raise ConfigError(
                f'--log-level "{part.strip()}": right would be one of {known}, or "ROOM=LEVEL" with ROOM one '
                f"of {', '.join(ROOMS)}"
            )
        if name and name != _ROOT:
            room = name.removeprefix(_ROOT + ".")
            if room not in ROOMS:
                hint = did_you_mean(room, ROOMS)
                raise ConfigError(
                    f'--log-level "{part.strip()}": there is no room "{room}"{hint}; known are '
                    + ", ".join(ROOMS)
                )
            name = f"{_ROOT}.{room}"
        levels[name or _ROOT] = logging.getLevelNamesMapping()[level.upper()]
    return levels


@contextmanager
def diagnostics(
    *,
    level: str = "info",
    style: str = "auto",
    stream: TextIO | None = None,
    tripwire: Tripwire | None = None,
) -> Iterator[None]:
    """Diagnostics to standard error while the block runs; its end writes what is left.

    `level`: see `parse_levels`. `style`: ``auto`` is for people (in colour on a terminal unless
    NO_COLOR is set), ``plain`` the same without colour, ``json`` one object per line. `tripwire`: knows the
    secrets that no line may show.

    Raises: ConfigError for an unknown level or style, before anything is changed.
    """
    levels = parse_levels(level)
    if style not in STYLES:
        raise ConfigError(f'--log-format "{style}": right would be one of {", ".join(STYLES)}')
    target = sys.stderr if stream is None else stream
    writer = _Writer(target, _formatter(style, target), tripwire or Tripwire(), json=style == "json")
    handler = _Handler(writer)
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in (*levels, _ROOT)}
    raised = logging.raiseExceptions
    for name, value in {_ROOT: logging.INFO, **levels}.items():
        logging.getLogger(name).setLevel(value)
    # On the root: a library that warns is heard too, through the same queue.
    root.addHandler(handler)
    # A line that cannot be formatted must not write to standard error behind the queue's back.
    logging.raiseExceptions = False
    writer.start()
    try:
        with strays_logged():
            yield
    finally:
        root.removeHandler(handler)
        for name, value in before.items():
            logging.getLogger(name).setLevel(value)
        logging.raiseExceptions = raised
        writer.stop()


class _Handler(logging.handlers.QueueHandler):
    """Makes the message's text on the caller's side, leaves the rest to the thread, never waits."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__(writer.queue)
        self._writer = writer

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._writer.dropped += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The arguments may change until the thread looks at them, so the text is made now. Traceback
        # text too: it must not keep frames, and what they refer to, alive.
        record.message = private(record.getMessage())
        record.msg, record.args = record.message, None
        if record.exc_info and not record.exc_text:
            record.exc_text = _TRACEBACK.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = private(record.exc_text)
        record.exc_info = None
        return record


class _Writer:
    """The thread that owns the stream."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, tripwire: Tripwire, *, json: bool
    ) -> None:
        self.queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_BOUND)
        self.dropped = 0
        self._told = 0
        self._stream = stream
        self._formatter = formatter
        self._tripwire = tripwire
        self._json = json
        # A daemon: a stream nobody reads must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        deadline = time.monotonic() + _LAST_WORDS
        try:
            self.queue.put(None, timeout=_LAST_WORDS)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            record = self.queue.get()
            lines = []
            while record is not None:
                lines.append(self._formatter.format(record))
                if len(lines) >= 100:
                    break
                try:
                    record = self.queue.get_nowait()
                except queue.Empty:
                    break
            dropped = self.dropped
            if dropped != self._told:
                lines.append(self._formatter.format(self._drops(dropped - self._told)))
                self._told = dropped
            if lines:
                try:
                    self._stream.write(self._harmless("\n".join(lines) + "\n"))
                    self._stream.flush()
                except (OSError, ValueError):
                    self.dropped += len(lines)
            if record is None:
                return

    def _harmless(self, lines: str) -> str:
        if not self._json:
            return self._tripwire.text(lines, _PLACE)
        octets = lines.encode("utf-8", "surrogatepass")
        return self._tripwire.json_lines(octets, _PLACE, _OURS).decode("utf-8", "replace")

    @staticmethod
    def _drops(number: int) -> logging.LogRecord:
        text = f"{number} diagnostic lines were dropped: standard error is too slow"
        return logging.LogRecord("posthorn.log", logging.WARNING, __file__, 0, text, None, None)


_TRACEBACK = logging.Formatter()


def _formatter(style: str, stream: TextIO) -> logging.Formatter:
    if style == "json":
        return _Json()
    terminal = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return _Human(colour=style == "auto" and terminal)


def _stamp(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


class _Human(logging.Formatter):
    """Time, level, message, and a traceback if there is one, each of its lines indented."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage().translate(_ESCAPES)
        name = record.name.removeprefix(_ROOT + ".")
        where = "" if name == _ROOT else f"{name}: "
        level = record.levelname.lower()
        if self._colour:
            colour = _COLOURS.get(min(record.levelno, logging.ERROR), _RESET)
            line = f"{_DIM}{_stamp(record)}{_RESET} {colour}{level:<7}{_RESET} {where}{text}"
        else:
            line = f"{_stamp(record)} {level:<7} {where}{text}"
        if record.exc_text:
            trace = [part.translate(_ESCAPES) for part in record.exc_text.split("\n")]
            line += "".join(f"\n    {part}" for part in trace)
        return line


class _Line(msgspec.Struct, omit_defaults=True):
    time: str
    level: str
    logger: str
    message: str
    traceback: str = ""


class _Json(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = _Line(
            time=_stamp(record),
            level=record.levelname.lower(),
            logger=record.name,
            message=_clean(record.getMessage()),
            traceback=_clean(record.exc_text or ""),
        )
        return msgspec.json.encode(line).decode().translate(_C1)


_C1 = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
