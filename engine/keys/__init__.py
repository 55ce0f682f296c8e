"""Keys: secrets and certificates by reference, from wherever they live.

A policy holds references (`policy.keysource`); the engine asks the ring when it needs the bytes::

    async with open_keys(hooks) as ring:
        credential = await ring.fetch(path.smtp_auth_plain_password)

Passwords, certificates, private keys and CA bundles all come this way.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager

import trio

from policy.keysource import CallbackKey, EnvKey, FileKey, KeyRef, LiteralKey, OAuth2Key, VaultKey

from .callback import CallbackSource, KeyHooks
from .local import EnvSource, FileSource, LiteralSource
from .oauth2 import Fetch, OAuth2Source
from .ring import MAX_STALE, TTL, WAIT, Credential, KeyRing, KeyStatistics
from .source import Dated, KeySource, SourceFailure
from .vault import VaultSource

__all__ = [
    "Credential",
    "Dated",
    "KeyHooks",
    "KeyRing",
    "KeySource",
    "KeyStatistics",
    "SourceFailure",
    "key_sources",
    "open_keys",
]


def key_sources(hooks: KeyHooks | None = None, fetch: Fetch | None = None) -> dict[type, KeySource]:
    """Every kind of reference and what reads it. `fetch`: reads a reference that another one names."""
    return {
        LiteralKey: LiteralSource(),
        FileKey: FileSource(),
        EnvKey: EnvSource(),
        VaultKey: VaultSource(),
        CallbackKey: CallbackSource(hooks),
        OAuth2Key: OAuth2Source(fetch),
    }


@asynccontextmanager
async def open_keys(
    hooks: KeyHooks | None = None,
    *,
    sources: Mapping[type, KeySource] | None = None,
    ttl: float = TTL,
    max_stale: float = MAX_STALE,
    wait: float = WAIT,
    rng: random.Random | None = None,
) -> AsyncIterator[KeyRing]:
    """A ring, and the owner of its reading tasks; leaving the block cancels them.

    `hooks`: those of the policy, for callback sources. Times in seconds: `ttl` until a value is refreshed,
    `max_stale` how long an old one serves while its source is out, `wait` how long anybody waits for a read.
    """
    async with trio.open_nursery() as nursery:

        def fetch(ref: KeyRef) -> Awaitable[Credential]:
            return ring.fetch(ref)

        kinds = sources if sources is not None else key_sources(hooks, fetch)
        ring = KeyRing(nursery, kinds, ttl=ttl, max_stale=max_stale, wait=wait, rng=rng)
        yield ring
        nursery.cancel_scope.cancel()
