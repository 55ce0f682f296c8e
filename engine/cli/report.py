"""How the commands say that something is wrong: a line or two on standard error, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

__all__ = ["INTERRUPTED", "guarded"]

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the signal's number, as shells have it."""

_BROKEN_PIPE = 141
"""The same for a reader that went away (``posthorn check x.py | head -1``)."""


def guarded(call: Callable[[], object], *, command: str) -> int:
    """Run a command; the exit status.

    0 when it returned; 2 when everything it raised is a mistake in a policy, the configuration or
    the surroundings, each told in one line; 130 after Ctrl-C. Nobody reads any more: quietly 141.
    Anything else is a defect and keeps its traceback.
    """
    from engine.errors import ConfigError, HookError, SpoolError
    from policy import PolicyError, Reject

    expected = (ConfigError, HookError, OSError, PolicyError, Reject, SpoolError)
    try:
        call()
        sys.stdout.flush()
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
            raise
        _tell(command, found)
        return 2
    return 0


def _tell(command: str, what: Iterable[object]) -> None:
    # In one write: what other processes say on the same terminal or file comes before it or behind it.
    sys.stderr.write("".join(f"posthorn {command}: {one}\n" for one in what))


def _forget_output() -> None:
    """What is still buffered has no reader: without this Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leaves(error: BaseException) -> list[BaseException]:
    """The plain exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
