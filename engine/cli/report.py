"""How the commands say that something is wrong: a line or two on standard error, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["guarded"]


def guarded(call: Callable[[], object], *, command: str) -> int:
    """Run a command; the exit status.

    0 when it returned; 2 when everything it raised is a mistake in a policy, the configuration or
    the surroundings, each told in one line. Anything else is a defect and keeps its traceback.
    """
    from engine.errors import ConfigError, HookError, SpoolError
    from policy import PolicyError, Reject

    expected = (ConfigError, HookError, OSError, PolicyError, Reject, SpoolError)
    try:
        call()
    except BaseException as error:
        found = _leaves(error)
        if not all(isinstance(leaf, expected) for leaf in found):
            raise
        for leaf in found:
            print(f"posthorn {command}: {leaf}", file=sys.stderr)
        return 2
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    """The plain exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
