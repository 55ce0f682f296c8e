"""Key source of the policy: a hook answers with the secret."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from engine.errors import HookError
from policy.errors import PolicyError
from policy.hooks import Hook
from policy.keysource import CallbackKey
from policy.secret import Secret

from .source import SourceFailure

__all__ = ["CallbackSource", "KeyHooks"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class KeyHooks(Protocol):
    """The policy's hooks, as far as they answer key sources."""

    def keysource(self, name: str) -> Hook | None:
        """The hook registered under that name with ``keysource=True``."""
        ...

    async def call(self, event: str, *args: Any) -> Any:
        """Its answer, of whatever type, awaited. May raise anything; HookError around what the hook raised,
        and with words of its own for one that was too slow or has not run."""
        ...


class CallbackSource:
    """`CallbackKey`: what the policy's hook returns, as `str` (UTF-8), `bytes` or `Secret`.

    Reasons say where in the policy the hook is and what it did, for its author; of an exception the kind and
    the line only, because what a hook puts into its text may be the secret itself.
    """

    fresh_for: float | None = None

    def __init__(self, hooks: KeyHooks | None) -> None:
        self._hooks = hooks

    async def read(self, ref: CallbackKey) -> Secret:
        if self._hooks is None:
            raise SourceFailure("there is no policy to ask")
        name = ref.event_name
        hook = self._hooks.keysource(name)
        if hook is None:
            raise SourceFailure(f'no hook "{name}"; register one with @policy.on("{name}", keysource=True)')
        misfit = _misfit(hook.function, len(ref.event_args))
        if misfit:
            raise SourceFailure(f"{hook.where}: {misfit}")
        try:
            found = _judge(hook, await self._hooks.call(name, *ref.event_args))
        except (Exception, SystemExit) as error:
            found = SourceFailure(_raised(hook, error))
        if isinstance(found, SourceFailure):
            raise found
        return found


def _judge(hook: Hook, answer: Any) -> Secret | SourceFailure:
    if answer is None:
        return SourceFailure(f"{hook.where}: returned None", definite=True)
    if not isinstance(answer, str | bytes | Secret):
        kind = type(answer).__name__
        return SourceFailure(f"{hook.where}: returned a {kind}, not text or bytes", definite=True)
    try:
        secret = answer if isinstance(answer, Secret) else Secret(answer)
    except ValueError:
        return SourceFailure(f"{hook.where}: returned text that UTF-8 cannot hold", definite=True)
    if not secret.reveal():
        return SourceFailure(f"{hook.where}: returned an empty value", definite=True)
    return secret


def _misfit(function: Callable[..., Any], given: int) -> str:
    """What is wrong with handing over so many arguments, or an empty text."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ""  # a builtin: nothing is known before the call
    kinds = [parameter.kind for parameter in parameters]
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    least = sum(parameter.default is inspect.Parameter.empty for parameter in positional)
    many = inspect.Parameter.VAR_POSITIONAL in kinds
    if given < least or (given > len(positional) and not many):
        takes = str(least) if least == len(positional) else f"{least} to {len(positional)}"
        takes = f"at least {least}" if many else takes
        return f"takes {takes} argument{'' if takes.split()[-1] == '1' else 's'}, given {given}"
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty:
            return f'takes a keyword argument "{parameter.name}", which key sources cannot give'
    return ""


def _raised(hook: Hook, error: BaseException) -> str:
    if isinstance(error, HookError):
        if error.__cause__ is None:
            return str(error)
        error = error.__cause__
    definition, _, name = hook.where.rpartition(" in ")
    file = definition.rpartition(":")[0]
    place = definition
    trace = error.__traceback__
    while trace is not None:  # the innermost line of the hook's own file, not one of a library it called
        if trace.tb_frame.f_code.co_filename == file:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    text = f": {error.problem}" if isinstance(error, PolicyError) else ""  # which never holds a value
    return f"{place} in {name}: raised {type(error).__name__}{text}"
