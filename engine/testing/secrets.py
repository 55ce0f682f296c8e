"""Secrets from a table, in place of Vault, files, the environment, commands and token endpoints.

A test says what a source answers, when it is out, and sees how often it was read. What the engine does about
it, caching, waiting, holding mail, is the engine's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from engine.keys import KeySource, SourceFailure, key_sources
from policy.keysource import CallbackKey, LiteralKey
from policy.secret import Secret

__all__ = ["Secrets"]


class _Outage(msgspec.Struct, frozen=True):
    prefix: str
    reason: str
    denied: bool
    silent: bool


class Secrets:
    """Values by the name of the reference, as records and errors show it: ``vault:secret/smtp-auth/local``
    (``#FIELD`` may be left out where it is ``#key``), ``file:/etc/posthorn/relay.password``,
    ``env:PASSWORD``, ``credential:relay``, ``exec:/usr/bin/pass show relay``, ``oauth2:CLIENT@HOST``.

    `values` may be changed at any time. `reads`: how often each was read, whatever came of it.
    """

    def __init__(self, values: Mapping[str, str | bytes] | None = None) -> None:
        self.values: dict[str, str | bytes] = dict(values or {})
        self.reads: Counter[str] = Counter()
        self._outages: list[_Outage] = []

    def fail(
        self,
        names: str = "",
        reason: str = "Vault is sealed",
        *,
        denied: bool = False,
        silent: bool = False,
    ) -> None:
        """From now on what begins with `names` (``"vault:"``; ``""`` is everything) cannot be read: a text
        for the reason. `denied`: the source says that we may not have it. `silent`: it never answers."""
        self._outages.append(_Outage(names, reason, denied, silent))

    def heal(self) -> None:
        """All outages are over."""
        self._outages.clear()

    def sources(self) -> dict[type, KeySource]:
        """What reads each kind of reference but literals and the policy's own hooks; values are as old as in
        life when they are read again."""
        return {
            kind: _Source(self, source.fresh_for)
            for kind, source in key_sources().items()
            if kind not in (LiteralKey, CallbackKey)
        }

    async def read(self, name: str) -> Secret:
        """What a source answers now. Raises: SourceFailure."""
        await trio.lowlevel.checkpoint()
        short = name.removesuffix("#key")
        self.reads[short] += 1
        for outage in self._outages:
            if name.startswith(outage.prefix):
                if outage.silent:
                    await trio.sleep_forever()
                raise SourceFailure(outage.reason, denied=outage.denied)
        for known in (name, short):
            if known in self.values:
                return Secret(self.values[known])
        raise SourceFailure("the test gives it no value: secrets={...} of open_relay", definite=True)


class _Source:
    """The seam of one kind of reference."""

    def __init__(self, secrets: Secrets, fresh_for: float | None) -> None:
        self._secrets = secrets
        self.fresh_for = fresh_for

    async def read(self, ref: Any) -> Secret:
        return await self._secrets.read(ref.name)
