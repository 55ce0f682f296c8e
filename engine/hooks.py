"""Calling the policy's hooks: deadlines, error mapping, and a word when one is slow.

A hook is somebody else's code. It may raise anything, never return, or block the loop; the
session that asked suffers, nobody else (reliability O6, O7). What comes out of here is a value,
`policy.Reject`, or `HookError`; and `trio.Cancelled` of course, which is nobody's error.

Each stretch in which a hook's code holds the event loop is noted in `running` and `since`: the
whole call of a plain hook, and of an async one each step from one wait to the next. Whoever reads
the two from a thread knows what the loop hangs in (`engine.watchdog`).
"""

from __future__ import annotations

import inspect
import logging
import time
import types
from collections.abc import Callable, Generator
from typing import Any

import trio

from policy.errors import PolicyError
from policy.hooks import EVENTS, STOP, Hook, HookTable, Reject

from .errors import HookError

__all__ = ["Hooks"]

logger = logging.getLogger("posthorn.hooks")

_SLOW = 0.1
"""Seconds a hook may hold the loop before it is named in the log (O7)."""
_STUBBORN = 100
"""Cancellations that an async hook may swallow before it is named."""
_NOT_ENDING = "%s: %s goes on although it is cancelled; it must let trio.Cancelled pass"
_COUNTS = 0.001
"""Seconds from which a call counts in `Hooks.held`."""
_HOLD = 0.01
"""Seconds that hooks may hold the loop one after the other, each far from slow (reliability Y2)."""


class Hooks:
    """The loaded policy's hooks, ready to call. One object for the engine's life.

    `sync_limit`, `async_limit`: seconds; a plain hook that took longer than the first, or an
    async hook not done after the second, is an error (defaults 1 s and 30 s, reliability O7).
    """

    def __init__(self, table: HookTable, *, sync_limit: float = 1.0, async_limit: float = 30.0) -> None:
        self._table = table
        self._sync_limit = sync_limit
        self._async_limit = async_limit
        self.running: Hook | None = None
        """The hook whose code holds the event loop now."""
        self.since = 0.0
        """Since when, on the clock of `time.perf_counter`; set before `running` is."""
        self.held = 0.0
        """Seconds that hooks held the loop since somebody let others run because of it."""

    @property
    def others_wait(self) -> bool:
        """Whether who calls hooks in a loop should call `let_others_run` now."""
        return self.held > _HOLD

    async def let_others_run(self) -> None:
        """A checkpoint on every call; never cancelled."""
        self.held = 0.0
        await trio.lowlevel.cancel_shielded_checkpoint()

    def has(self, event: str) -> bool:
        """Whether any hook is registered for `event`."""
        return bool(self._table.get(event))

    def keysource(self, name: str) -> Hook | None:
        """The hook that answers key sources of that name; None when there is none."""
        hooks = self._table.get(name)
        return hooks[0] if hooks and name not in EVENTS else None

    async def call(self, event: str, *args: Any) -> Any:
        """Ask the hooks of `event` in order; the first answer that is not None wins.

        Returns: the answer, or None when nobody has an opinion (or one returned `policy.STOP`).
        Raises: policy.Reject as the hook raised it, if the event can be refused; HookError for
        everything else.
        """
        for hook in self._table.get(event):
            answer = await self._call_async(hook, args) if hook.is_async else self._call_sync(hook, args)
            if answer is STOP:
                return None
            if answer is not None:
                return answer
        return None

    def fast(self, event: str) -> Callable[..., Any] | None:
        """For the per-message path: one synchronous callable, if every hook of `event` is plain.

        None when there is no hook or one of them is async; then use `has` and `call`.
        """
        hooks = self._table.get(event)
        if not hooks or any(hook.is_async for hook in hooks):
            return None
        call = self._call_sync
        if len(hooks) == 1:
            only = hooks[0]

            def one(*args: Any) -> Any:
                answer = call(only, args)
                return None if answer is STOP else answer

            return one

        def several(*args: Any) -> Any:
            for hook in hooks:
                answer = call(hook, args)
                if answer is STOP:
                    return None
                if answer is not None:
                    return answer
            return None

        return several

    def _call_sync(self, hook: Hook, args: tuple[Any, ...]) -> Any:
        self.since = begun = time.perf_counter()
        self.running = hook
        try:
            answer = hook.function(*(hook.adapt(args) if hook.adapt is not None else args))
            complaint = hook.complaint(answer)
        except BaseException as error:
            found = _translated(hook, error)
            if found is None:
                raise
            raise found from error
        finally:
            self.running = None
            took = time.perf_counter() - begun
            if took > _COUNTS:
                self._count(hook, took)
        if complaint is not None:
            raise HookError(complaint)
        if took > self._sync_limit:
            raise HookError(f"{hook.where}: {hook.event} took {took:.1f} s, limit {self._sync_limit:g} s")
        return answer

    async def _call_async(self, hook: Hook, args: tuple[Any, ...]) -> Any:
        with trio.move_on_after(self._async_limit) as scope:
            try:
                answer = await self._steps(hook, args)
                complaint = hook.complaint(answer)
            except BaseException as error:
                found = _translated(hook, error)
                if found is None:
                    raise
                raise found from error
        if scope.cancelled_caught:
            raise HookError(f"{hook.where}: {hook.event} was not done after {self._async_limit:g} s")
        if complaint is not None:
            raise HookError(complaint)
        return answer

    @types.coroutine
    def _steps(self, hook: Hook, args: tuple[Any, ...]) -> Generator[Any, Any, Any]:
        """Run the hook as ``await`` would, noting each stretch in which it holds the loop."""
        begun = self._begin(hook)
        try:
            answer = hook.function(*(hook.adapt(args) if hook.adapt is not None else args))
            if not inspect.isawaitable(answer):
                return answer  # a decorator ran it, or decided without it
            steps: Any = answer.__await__()
        finally:
            self._end(hook, begun)
        step, value = steps.send, None
        cancelled = 0
        while True:
            begun = self._begin(hook)
            try:
                trap = step(value)
            except StopIteration as done:
                return done.value
            finally:
                self._end(hook, begun)
            try:
                step, value = steps.send, (yield trap)
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                step, value = steps.throw, error
            else:
                # Trio hands over what came of a wait as an object with a value or an error.
                if isinstance(getattr(value, "error", None), trio.Cancelled):
                    cancelled += 1
                    if cancelled == _STUBBORN:
                        logger.error(_NOT_ENDING, hook.where, hook.event)

    def _begin(self, hook: Hook) -> float:
        self.since = begun = time.perf_counter()
        self.running = hook
        return begun

    def _end(self, hook: Hook, begun: float) -> None:
        self.running = None
        took = time.perf_counter() - begun
        if took > _COUNTS:
            self._count(hook, took)

    def _count(self, hook: Hook, took: float) -> None:
        self.held += took
        if took > _SLOW:
            logger.warning("%s: %s held the event loop for %.0f ms", hook.where, hook.event, took * 1000)


def _translated(hook: Hook, error: BaseException) -> HookError | Reject | None:
    """What `error`, raised by `hook`, is for the engine. None: it passes as it is, as `Reject` and
    `trio.Cancelled` do. Ctrl-C's exception does not: it is the hook that raised it. A nursery of the
    hook wraps a `Reject` in a group; one that is alone there means what it says."""
    kind = type(error)
    if issubclass(kind, Reject):
        return None if _may_refuse(hook.event) else _hook_error(hook, error)
    cancelled: BaseException | None = None
    rest: BaseException | None = error
    if isinstance(error, BaseExceptionGroup):
        cancelled, rest = error.split(trio.Cancelled)
    if rest is None or issubclass(kind, trio.Cancelled):
        # One that a hook kept from another time would take down more than it should.
        return None if trio.current_effective_deadline() == float("-inf") else _hook_error(hook, error)
    alone: BaseException = rest
    while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
        alone = alone.exceptions[0]
    if isinstance(alone, Reject) and cancelled is None and _may_refuse(hook.event):
        return alone
    return _hook_error(hook, rest)


def _may_refuse(event: str) -> bool:
    """Whether a client waits for the answer, so that there is somebody to refuse."""
    return event.startswith("smtp_server_") or event == "get_listener_domain"


def _hook_error(hook: Hook, error: BaseException) -> HookError:
    """Names hook, file and line of the innermost frame; the exception's own text may hold mail or
    secrets, so only its type is repeated (a PolicyError's never does). The chained traceback goes to
    the diagnostics."""
    line = ""
    trace = error.__traceback__
    while trace is not None:
        line = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    text = ""
    if isinstance(error, PolicyError):
        line, text = error.where or line, f": {error.problem}"
    elif isinstance(error, Reject):
        text = ", but there is no client to refuse"
    return HookError(f"{hook.where}: {hook.event} raised {type(error).__name__} at {line}{text}")
