"""How the commands say that something is wrong: a line or two on standard error, no traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.tripwire import Tripwire

__all__ = ["INTERRUPTED", "flush_output", "guarded"]

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells have it."""

_PLACE = "standard error"

_BROKEN_PIPE = 141
"""The same for a reader that went away (``posthorn check x.py | head -1``)."""


def guarded(call: Callable[[], object], *, command: str, tripwire: Tripwire | None = None) -> int:
    """Run a command; the exit status.

    0 when it returned; 2 when everything it raised is a mistake in a policy, the configuration or
    the surroundings, each told in one line; 130 after Ctrl-C. Nobody reads any more: quietly 141.
    Anything else is a defect and keeps its traceback.

    `tripwire`: of a command that handles secrets. What it says of an error then shows none of them, nor does
    what libraries and Python itself have to say; the traceback of a defect is written here, and the status
    is 1.
    """
    with nullcontext() if tripwire is None else _searched(tripwire):
        return _guarded(call, command, tripwire)


def _guarded(call: Callable[[], object], command: str, tripwire: Tripwire | None) -> int:
    from engine.errors import ConfigError, HookError, SpoolError
    from policy import PolicyError, Reject

    expected = (ConfigError, HookError, OSError, PolicyError, Reject, SpoolError)
    try:
        call()
        flush_output()
    except BaseException as error:
        found = _leaves(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            # Whatever came with it came of it.
            _tell(command, ["interrupted"])
            return INTERRUPTED
        if all(isinstance(leaf, BrokenPipeError) for leaf in found):
            _forget_output()
            return _BROKEN_PIPE
        if not all(isinstance(leaf, expected) for leaf in found):
            if tripwire is None or not isinstance(error, (Exception, BaseExceptionGroup)):
                raise  # the second kind is no defect: somebody wants an end
            sys.stderr.write(tripwire.text(traceback.format_exc(), _PLACE))
            return 1
        _tell(command, found, tripwire)
        try:
            sys.stdout.flush()
        except OSError:
            _forget_output()
        return 2
    return 0


def flush_output() -> None:
    """Raises: ConfigError when standard output does not take what is said; BrokenPipeError."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from engine.errors import ConfigError

        raise ConfigError(f"standard output: {error.strerror or error}") from None


@contextmanager
def _searched(tripwire: Tripwire) -> Iterator[None]:
    """What is logged without diagnostics being open comes to standard error, but not unsearched."""
    from engine.log.strays import strays_logged

    class LastResort(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sys.stderr.write(tripwire.text(f"{self.format(record)}\n", _PLACE))

    before = logging.lastResort
    logging.lastResort = LastResort(logging.WARNING)
    try:
        with strays_logged():
            yield
    finally:
        logging.lastResort = before


def _tell(command: str, what: Iterable[object], tripwire: Tripwire | None = None) -> None:
    said = "".join(f"posthorn {command}: {one}\n" for one in what)
    # In one write: what other processes say on the same terminal or file comes before it or behind it.
    sys.stderr.write(said if tripwire is None else tripwire.text(said, _PLACE))


def _forget_output() -> None:
    """What is still buffered cannot go out: without this Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leaves(error: BaseException) -> list[BaseException]:
    """The plain exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
