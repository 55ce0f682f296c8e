"""The hooks of a policy for the commands that ask them, and which of them answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.hooks import Hooks
from policy.hooks import Hook, HookTable
from policy.load import LoadedPolicy

__all__ = ["AskedHooks"]


class AskedHooks(Hooks):
    """The same hooks as the engine's. `asked`: by event, the one that was called last."""

    def __init__(self, loaded: LoadedPolicy) -> None:
        self.asked: dict[str, Hook] = {}
        self._policy = str(loaded.path)
        table = HookTable()
        for hook in loaded.hooks.hooks:
            table.add(msgspec.structs.replace(hook, function=self._watching(hook)), "chain")
        super().__init__(table)

    def _watching(self, hook: Hook) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.asked[hook.event] = hook
            return hook.function(*arguments)

        return call  # what an async hook returns is awaited by whoever called

    def where(self, event: str) -> str:
        """File, line and function of the hook that answered last."""
        hook = self.asked.get(event)
        return self._policy if hook is None else hook.where
