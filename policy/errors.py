"""What is wrong with a policy, and where in the policy file it is.

Texts name file, line, the function that was called, the option, the value, and what would be
right. They never show the value of an option that may hold a secret.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence

__all__ = ["PolicyError", "PolicyErrors", "PolicyLoadError", "Wrong", "a_type", "caller", "did_you_mean"]

_OWN = __name__.partition(".")[0]


class PolicyError(Exception):
    """A policy says something that cannot be. The text is made for its author.

    `problem`: what is wrong and what would be right. `where`: ``file:line``, or ``""``.
    """

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.problem = problem
        self.where = where


class PolicyErrors(PolicyError):
    """Files that a policy names have mistakes. `problems`: all of them, each with its place. `where`: the
    line of the policy that names the files. The text is the first one's."""

    def __init__(self, problems: Sequence[PolicyError], where: str = "") -> None:
        count = len(problems) - 1
        more = (
            f" (and {count} more mistake{'' if count == 1 else 's'}; posthorn check names all)"
            if count
            else ""
        )
        super().__init__(f"{problems[0]}{more}", where)
        self.problems = tuple(problems)


class PolicyLoadError(PolicyError):
    """The policy cannot be used: it does not compile, or import or its `init` hook failed.

    `hook`: the function that was running, e.g. ``init()``; ``""`` while the file was imported.
    """

    def __init__(self, problem: str, where: str = "", hook: str = "") -> None:
        super().__init__(f"in {hook}: {problem}" if hook else problem, where)
        self.hook = hook


class Wrong(ValueError):
    """A value does not fit. Inside this package it travels to the constructor, which adds the place.

    `complete`: the text says what would be right, so nobody needs to add it.
    """

    def __init__(self, text: str, *, complete: bool = False) -> None:
        super().__init__(text)
        self.complete = complete


def caller() -> str:
    """``file:line`` of the innermost frame outside this package: the line of the policy file."""
    frame = sys._getframe(1)
    while True:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] != _OWN or frame.f_back is None:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back


def a_type(value: object) -> str:
    """The kind of a value with its article: ``"an int"``; ``"None"`` for None. Never the value."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name.strip('_')[0] in 'AEIOaeiou' else 'a'} {name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?`` for the closest known word, or ``""`` when none is close."""
    names = list(known)
    folded = word.casefold()
    close = [name for name in names if name.casefold() == folded]
    close = close or difflib.get_close_matches(word, names, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
