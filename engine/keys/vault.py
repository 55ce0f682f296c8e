"""Key source HashiCorp Vault, or OpenBao: one field of a secret in a KV engine, version 1 or 2.

hvac is synchronous and untyped; `vaultserver` is the typed wrapper, used in threads under a limiter of the
server's own, so a server that hangs holds up nobody else's secrets. `vaultlogin` has the token. What a
reference leaves out is read from the environment at each fetch: VAULT_ADDR, VAULT_TOKEN (which is taken
out of it), VAULT_NAMESPACE and VAULT_CACERT or VAULT_CAPATH. Other variables, proxies, ``~/.vault-token`` and
``.netrc`` are not looked at.

A refusal may be the token's fault or the policy's; Vault does not say. So after a 403 a new token is fetched,
once, and the read repeated; `vaultlogin` sees to it that this does not spin (reliability V4).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import msgspec
import trio

from policy.keysource import EnvKey, LiteralKey, TokenLogin, VaultKey
from policy.secret import Secret

from .environment import take
from .source import Fetch, SourceFailure, Told, Watch, unwatched
from .vaultlogin import Session, Sessions, Token
from .vaultserver import Place, Refused, Server, check, check_address, decode, parse

__all__ = ["VaultSource"]

_SECONDS = 4.5
"""For one read, detection of the KV version included; just under what a delivery waits."""
_THREADS_PER_SERVER = 4
_MOUNTS_KEPT = 1000
_TOLD_KEPT = 10_000

_Version = Literal[1, 2]
_Read: TypeAlias = "tuple[Secret, _Version, Told]"


class _V1(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None


class _V2Data(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    metadata: dict[str, msgspec.Raw] | None = None


class _V2(msgspec.Struct):
    data: _V2Data | None = None


class _Mount(msgspec.Struct):
    options: dict[str, Any] | None = None


class _MountAnswer(msgspec.Struct):
    data: _Mount | None = None


_text = msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(int)
_v1 = msgspec.json.Decoder(_V1)
_v2 = msgspec.json.Decoder(_V2)
_mount = msgspec.json.Decoder(_MountAnswer)


class VaultSource:
    """Reads `VaultKey` references. `fetch`: reads what a login needs, unless it is text."""

    fresh_for: float | None = None

    def __init__(
        self, fetch: Fetch | None = None, *, seconds: float = _SECONDS, watch: Watch = unwatched
    ) -> None:
        self._seconds = seconds
        self._watch = watch
        self._sessions = Sessions(fetch, seconds)
        self._limiters: dict[str, trio.CapacityLimiter] = {}
        self._versions: OrderedDict[tuple[str, str | None, str], _Version] = OrderedDict()
        self._told: OrderedDict[VaultKey, Told] = OrderedDict()

    def told(self, ref: VaultKey) -> Told | None:
        """The number of the version and when it was written, of KV version 2."""
        return self._told.get(ref)

    async def keep_tokens(self) -> None:
        """Renew tokens before they expire, or log in again, until cancelled."""
        await self._sessions.keep()

    async def read(self, ref: VaultKey) -> Secret:
        place = _place(ref)
        limiter = self._limiters.get(place.address)
        if limiter is None:
            limiter = self._limiters[place.address] = trio.CapacityLimiter(_THREADS_PER_SERVER)
        login = ref.auth or TokenLogin(_token(ref))
        for what, part in msgspec.structs.asdict(login).items():
            # Others come by way of the ring, which tells of them itself. Roles are no secret.
            if isinstance(part, LiteralKey) and what != "role_id":
                self._watch(part, f"the login at {place.address}", part.data)
        session = self._sessions.get(place, login, limiter)
        answer = await self._read(ref, session, limiter)
        if isinstance(answer, SourceFailure):
            raise answer
        return answer

    async def _read(
        self, ref: VaultKey, session: Session, limiter: trio.CapacityLimiter
    ) -> Secret | SourceFailure:
        token = await session.token()
        if isinstance(token, SourceFailure):
            return token
        answer = await self._ask(ref, session.place, token, limiter)
        if isinstance(answer, SourceFailure) and answer.denied:
            other = await session.again(token)
            if isinstance(other, SourceFailure):
                return other
            if other is None:
                return answer
            token = other
            answer = await self._ask(ref, session.place, token, limiter)
        if isinstance(answer, Secret):
            session.worked(token)
        return answer

    async def _ask(
        self, ref: VaultKey, place: Place, token: Token, limiter: trio.CapacityLimiter
    ) -> Secret | SourceFailure:
        mount = (place.address, place.namespace, ref.mount)
        version: int | None = ref.kv_version or self._versions.get(mount)
        self._watch((place, ref.auth, ref.token), f"a token for {place.address}", token.secret)
        server = Server(place, token.secret, self._seconds)
        answer = await trio.to_thread.run_sync(
            _attempt, ref, server, version, abandon_on_cancel=True, limiter=limiter
        )
        if isinstance(answer, SourceFailure):
            if answer.definite:
                self._versions.pop(mount, None)  # a mount can be replaced by one of the other version
            return answer
        secret, found, told = answer
        self._told[ref] = told
        self._told.move_to_end(ref)
        if len(self._told) > _TOLD_KEPT:
            self._told.popitem(last=False)
        self._versions[mount] = found
        self._versions.move_to_end(mount)
        if len(self._versions) > _MOUNTS_KEPT:
            self._versions.popitem(last=False)
        return secret


def _place(ref: VaultKey) -> Place:
    address = ref.address or os.environ.get("VAULT_ADDR", "")
    if not address:
        raise SourceFailure("no server: neither vault_address nor the environment's VAULT_ADDR is set")
    check_address(address)
    namespace = ref.namespace or os.environ.get("VAULT_NAMESPACE") or None
    if namespace is not None and not (namespace.isascii() and namespace.isprintable()):
        raise SourceFailure("the namespace holds characters that no namespace has")
    for part in (ref.mount, ref.path):
        if any(segment in ("", ".", "..") for segment in part.split("/")) or not part.isprintable():
            raise SourceFailure("mount or path is not a plain path")
    ca = ref.ca or os.environ.get("VAULT_CACERT") or os.environ.get("VAULT_CAPATH") or None
    return Place(address.rstrip("/"), namespace, ca)


def _token(ref: VaultKey) -> LiteralKey | EnvKey:
    if ref.token is not None:
        return LiteralKey(ref.token)
    token = take("VAULT_TOKEN")
    if token is None or not token.reveal():
        raise SourceFailure(
            "no token: neither vault_token, vault_auth nor the environment's VAULT_TOKEN is set"
        )
    return EnvKey("VAULT_TOKEN")


def _attempt(ref: VaultKey, server: Server, version: int | None) -> _Read | SourceFailure:
    """One read, in a thread. Gives the value, the KV version that was right and what is said of the value, or
    why there is none."""
    try:
        return _read(ref, server, version)
    except SourceFailure as failure:
        return failure.bare()


def _read(ref: VaultKey, server: Server, version: int | None) -> _Read:
    try:
        if version is None:
            version = _detect(server, ref.mount)
        if version == 1:
            if ref.version is not None:
                raise SourceFailure("the mount is KV version 1, which keeps no older versions", definite=True)
            return _read_v1(server, ref), 1, Told()
        if version == 2 or ref.version is not None:
            return _read_v2(server, ref)
        # The token may not look at its mount: the secret itself tells. Of two refusals, version 2's is shown.
        try:
            return _read_v2(server, ref)
        except Refused as failure:
            try:
                return _read_v1(server, ref), 1, Told()
            except Refused:
                raise failure from None
    finally:
        server.close()


def _detect(server: Server, mount: str) -> _Version | None:
    path = f"/v1/sys/internal/ui/mounts/{quote(mount)}"
    reply = server.get(path)
    if reply.status in (401, 403, 404):
        return None
    check(server, reply, path)
    answer = decode(_mount, reply.body, "mount information")
    options = answer.data.options if answer.data is not None else None
    return 2 if options is not None and options.get("version") == "2" else 1


def _read_v2(server: Server, ref: VaultKey) -> _Read:
    path = f"/v1/{quote(ref.mount)}/data/{quote(ref.path)}"
    reply = server.get(path) if ref.version is None else server.get(path, version=ref.version)
    if reply.status == 404:
        which = "the newest version" if ref.version is None else f"version {ref.version}"
        found = parse(_v2, reply.body.reveal())
        if found is not None and found.data is not None and found.data.metadata is not None:
            raise SourceFailure(f"{which} is deleted (404 at {path})", definite=True)
    check(server, reply, path)
    answer = decode(_v2, reply.body, "KV version 2")
    secret = _field(answer.data.data if answer.data is not None else None, ref, path)
    return secret, 2, _told(answer.data.metadata if answer.data is not None else None)


def _told(metadata: dict[str, msgspec.Raw] | None) -> Told:
    """What stands beside a value of KV version 2, as far as it is what it should be."""
    found = metadata or {}
    number = parse(_number, found["version"]) if "version" in found else None
    written = parse(_text, found["created_time"]) if "created_time" in found else None
    since: float | None = None
    with suppress(ValueError, OverflowError):
        since = datetime.fromisoformat(written).timestamp() if written else None
    return Told(str(number) if number is not None else "", since)


def _read_v1(server: Server, ref: VaultKey) -> Secret:
    path = f"/v1/{quote(ref.mount)}/{quote(ref.path)}"
    reply = server.get(path)
    check(server, reply, path)
    return _field(decode(_v1, reply.body, "KV version 1").data, ref, path)


def _field(fields: dict[str, msgspec.Raw] | None, ref: VaultKey, path: str) -> Secret:
    if not fields or ref.key not in fields:
        raise SourceFailure(f'the secret has no field "{ref.key}" (200 at {path})', definite=True)
    value = parse(_text, fields[ref.key])
    if value is None:
        raise SourceFailure(f'the field "{ref.key}" is not text (200 at {path})', definite=True)
    if not value:
        raise SourceFailure(f'the field "{ref.key}" is empty (200 at {path})', definite=True)
    return Secret(value)
