"""How the commands say that something is wrong: a line or two on standard error, no traceback."""

from __future__ import annotations

import sys

__all__ = ["fail", "policy_errors"]


def policy_errors() -> type[Exception]:
    """The class of errors in policy files (imported late: start-up stays quick)."""
    from policy import PolicyLoadError

    return PolicyLoadError


def fail(group: BaseExceptionGroup[BaseException]) -> int:
    """Print each error of a group once; the exit status (2)."""
    for error in leaves(group):
        print(f"posthorn: {error}", file=sys.stderr)
    return 2


def leaves(error: BaseException) -> list[BaseException]:
    """The plain exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
