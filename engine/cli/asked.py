"""The hooks of a policy for the commands that ask them, and which of them answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.egress.site import BadName, parse_endpoint
from engine.errors import ConfigError
from engine.hooks import Hooks
from engine.smtp.address import AddressError, parse_path_full, route_domain
from policy.hooks import Hook, HookTable
from policy.load import LoadedPolicy

__all__ = ["AskedHooks", "destination", "routing_domain"]


def destination(text: str, name: str) -> str:
    """The domain of an address, or a domain alone, in the form in which hooks are asked about it. `name`:
    what the command line calls it.

    Raises: ConfigError."""
    try:
        path = f"<{text}>" if "@" in text else f"<x@{text}>"
        address, rest = parse_path_full(path.encode(), allow_null=False, smtputf8=True)
        if not rest:
            return route_domain(address.domain)
        why = "syntax error in the address"
    except AddressError as error:
        why = error.reply.text
    raise ConfigError(f'{name} "{text}": {why}; right would be user@example.com, or example.com')


def routing_domain(text: str) -> str:
    """A routing domain as it was given. Raises: ConfigError when no mail can be routed by it."""
    try:
        parse_endpoint(text)
    except BadName as error:
        raise ConfigError(
            f'--routing-domain "{text}": {error}; right would be example.com, 10.0.0.1 or [10.0.0.1]:2525'
        ) from None
    return text


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
