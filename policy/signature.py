"""Fitting a hook's parameters to its event's arguments.

The engine always calls with all arguments, by position. A hook may take them just so, or leave some
out: then its parameters must bear the arguments' names, and each gets the argument of its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Adapt", "fit"]

Adapt: TypeAlias = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""From the event's arguments to the function's."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def fit(
    function: Callable[..., Any],
    arguments: tuple[tuple[str, ...], ...],
    short: dict[int, tuple[int, ...]],
) -> tuple[Adapt | None, tuple[int, ...]]:
    """How to call `function`: an adaptor, and which arguments it gets.

    The adaptor is None when the function takes all arguments as they come.

    `arguments`: the names each may go by. `short`: for a function of that many required parameters
    with other names, the arguments it gets.
    Raises: ValueError saying which parameters would be right.
    """
    right = "(" + ", ".join(names[0] for names in arguments) + ")"
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ValueError("is a generator; a hook returns its answer")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None, tuple(range(len(arguments)))  # a builtin: nothing is known before the call
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty:
            raise ValueError(f'has a keyword-only parameter "{parameter.name}"; the arguments are {right}')
    takes_any = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    required = sum(parameter.default is inspect.Parameter.empty for parameter in positional)
    index_of = {name: index for index, names in enumerate(arguments) for name in names}
    named = [index_of.get(parameter.name) for parameter in positional]

    count = len(arguments)
    # By position, unless a name says that this would hand over the wrong thing.
    fits = required <= count and (takes_any or len(positional) >= count)
    if fits and all(index in (None, at) for at, index in enumerate(named[:count])):
        return None, tuple(range(count))
    taken = _by_name(named, required)
    if taken is None and required == len(positional) and not takes_any:
        taken = short.get(required)
        if taken and any(index not in (None, got) for index, got in zip(named, taken, strict=True)):
            taken = None
    if taken is None:
        raise ValueError(
            f"takes ({', '.join(map(str, parameters))}); right would be {right}"
            + (", or some of them under these names" if count > 1 else "")
        )
    return _picker(taken), taken


def _by_name(named: list[int | None], required: int) -> tuple[int, ...] | None:
    """The arguments for parameters that bear their names; None unless all required ones do."""
    taken: list[int] = []
    for at, index in enumerate(named):
        if index is None:
            if at < required or any(later is not None for later in named[at:]):
                return None
            break
        if index in taken:
            return None
        taken.append(index)
    return tuple(taken)


def _picker(taken: tuple[int, ...]) -> Adapt:
    if len(taken) == 1:
        (only,) = taken
        return lambda arguments: (arguments[only],)
    return lambda arguments: tuple([arguments[index] for index in taken])
