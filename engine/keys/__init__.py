"""Keys: secrets and certificates by reference, from wherever they live.

A policy holds references (`policy.keysource`); the engine asks the ring when it needs the bytes::

    async with open_keys(hooks) as ring:
        credential = await ring.fetch(path.smtp_auth_plain_password)

Passwords, certificates, private keys and CA bundles all come this way.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from engine.tripwire import Tripwire
from policy.keysource import (
    AwsKey,
    AzureKey,
    CallbackKey,
    CommandKey,
    CredentialKey,
    EnvKey,
    FileKey,
    GoogleKey,
    KeyRef,
    LiteralKey,
    OAuth2Key,
    VaultKey,
)

from .aws import AwsSource
from .azure import AzureSource
from .callback import CallbackSource, KeyHooks
from .cloud import CloudSource
from .command import CommandSource
from .google import GoogleSource
from .local import CredentialSource, EnvSource, FileSource, LiteralSource
from .oauth2 import OAuth2Source
from .ring import STALE_FOR, TTL, WAIT, KeyRing, KeyStatistics
from .source import Credential, Dated, Fetch, KeySource, SourceFailure, Tells, Told, Watch, unwatched
from .vault import VaultSource

__all__ = [
    "Credential",
    "Dated",
    "KeyHooks",
    "KeyRing",
    "KeySource",
    "KeyStatistics",
    "SourceFailure",
    "Tells",
    "Told",
    "key_sources",
    "missing_sdk",
    "open_keys",
]

_CLOUDS: dict[type, type[CloudSource]] = {AwsKey: AwsSource, GoogleKey: GoogleSource, AzureKey: AzureSource}


def missing_sdk(ref: KeyRef) -> str:
    """That a library which reads `ref` is not installed, and what to do; else an empty text."""
    kind = _CLOUDS.get(type(ref))
    return "" if kind is None else kind.absent()


def key_sources(
    hooks: KeyHooks | None = None, fetch: Fetch | None = None, watch: Watch = unwatched
) -> dict[type, KeySource]:
    """Every kind of reference and what reads it. `fetch`: reads a reference that another one names.
    `watch`: is told of the secrets that sources use themselves."""
    files = FileSource()
    return {
        LiteralKey: LiteralSource(),
        FileKey: files,
        EnvKey: EnvSource(),
        CredentialKey: CredentialSource(files),
        CommandKey: CommandSource(),
        VaultKey: VaultSource(fetch, watch=watch),
        **{kind: source(watch=watch) for kind, source in _CLOUDS.items()},
        CallbackKey: CallbackSource(hooks),
        OAuth2Key: OAuth2Source(fetch, watch=watch),
    }


@asynccontextmanager
async def open_keys(
    hooks: KeyHooks | None = None,
    *,
    sources: Mapping[type, KeySource] | None = None,
    instead: Mapping[type, KeySource] | None = None,
    ttl: float = TTL,
    stale_for: float = STALE_FOR,
    wait: float = WAIT,
    rng: random.Random | None = None,
    tripwire: Tripwire | None = None,
    fingerprint: bytes | None = None,
) -> AsyncIterator[KeyRing]:
    """A ring, and the owner of the tasks that read and renew; leaving the block cancels them.

    `hooks`: those of the policy, for callback sources. `sources`: all there are; `instead`: takes the place
    of some of the usual ones. Times in seconds, for references that say nothing
    else: `ttl` until a value is refreshed, `stale_for` how long after that an old one serves while its
    source is out; and `wait`, how long anybody waits for a read. `tripwire`: is told of every secret.
    `fingerprint`: the key by which versions of secrets are named, None: one for this process alone.
    """
    async with trio.open_nursery() as nursery:

        async def fetch(ref: KeyRef, *, fresh: bool = False) -> Credential:
            return await ring.fetch(ref, fresh=fresh)

        tripwire = tripwire if tripwire is not None else Tripwire()
        usual = key_sources(hooks, fetch, tripwire.watch)
        kinds = sources if sources is not None else {**usual, **(instead or {})}
        ring = KeyRing(
            nursery,
            kinds,
            ttl=ttl,
            stale_for=stale_for,
            wait=wait,
            rng=rng,
            tripwire=tripwire,
            fingerprint=fingerprint,
        )
        for source in kinds.values():
            if isinstance(source, VaultSource):
                nursery.start_soon(source.keep_tokens)
        yield ring
        nursery.cancel_scope.cancel()
