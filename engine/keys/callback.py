"""Key source of the policy: a hook answers with the secret."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from policy.keysource import CallbackKey
from policy.secret import Secret

from .source import SourceFailure

__all__ = ["CallbackSource", "HookCall"]

HookCall = Callable[..., Awaitable[Any]]
"""Runs the policy's handler: ``await call(event_name, *event_args)``."""


class CallbackSource:
    """`CallbackKey`: what the policy's hook returns, as `str` (UTF-8), `bytes` or `Secret`."""

    fresh_for: float | None = None

    def __init__(self, call: HookCall | None) -> None:
        self._call = call

    async def read(self, ref: CallbackKey) -> Secret:
        if self._call is None:
            raise SourceFailure("there is no policy to ask")
        try:
            value = await self._call(ref.event_name, *ref.event_args)
        except (Exception, SystemExit) as error:
            # Only the kind and the place: what a hook puts into an exception may be the secret itself.
            raise SourceFailure(f"the hook {ref.event_name} raised {_kind_and_place(error)}") from None
        if value is None:
            raise SourceFailure(f"the hook {ref.event_name} has no value", definite=True)
        if not isinstance(value, str | bytes | Secret):
            kind = type(value).__name__
            raise SourceFailure(f"the hook {ref.event_name} gave a {kind}, not text or bytes", definite=True)
        secret = value if isinstance(value, Secret) else Secret(value)
        if not secret.reveal():
            raise SourceFailure(f"the hook {ref.event_name} gave an empty value", definite=True)
        return secret


def _kind_and_place(error: BaseException) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    trace = cause.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else ""
    return type(cause).__name__ + place
