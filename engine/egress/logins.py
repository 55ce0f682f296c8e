"""Who may try a credential now: one at a time, and nobody while a refusal is fresh (reliability C42).

Peers count failed logins and lock accounts. So for each (host, port, user, version of the secret)
one login is under way at most, whatever ready queue, source or session wants it, and after one that
was not accepted nobody repeats it before its interval is over. A rotated secret is another version
and may be tried at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from engine.errors import LoginRefused

__all__ = ["LoginKey", "Logins"]

LoginKey = tuple[str, int, str, str]
"""(host, port, user, version of the secret)."""

_KEPT = 10_000


class _State:
    __slots__ = ("cause", "lock", "text", "until")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.until = float("-inf")
        self.text = ""
        self.cause = ""


class Logins:
    """See the module. One for the engine."""

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: dict[LoginKey, _State] = {}

    def check(self, key: LoginKey) -> None:
        """Raises: LoginRefused when this login was refused lately. Ask before connecting."""
        state = self._states.get(key)
        if state is not None:
            self._check(state)

    @asynccontextmanager
    async def turn(self, key: LoginKey, interval: float) -> AsyncIterator[bool]:
        """Wait for the turn to try; gives whether others had it first. A LoginRefused that leaves the
        block is remembered for `interval` seconds and raised for everybody else meanwhile, who then
        say nothing to the peer."""
        state = self._states.get(key)
        if state is None:
            self._tidy()
            state = self._states[key] = _State()
        waited = state.lock.locked()
        async with state.lock:
            self._check(state)
            try:
                yield waited
            except LoginRefused as error:
                state.until = trio.current_time() + interval
                state.text = error.reason
                state.cause = error.cause
                raise

    def _check(self, state: _State) -> None:
        left = state.until - trio.current_time()
        if left > 0.0:
            error = LoginRefused(state.text, f"not repeated for another {left:.0f} s")
            error.cause = state.cause
            raise error

    def _tidy(self) -> None:
        if len(self._states) >= _KEPT:
            now = trio.current_time()
            self._states = {
                key: state
                for key, state in self._states.items()
                if state.until > now or state.lock.statistics().locked
            }
