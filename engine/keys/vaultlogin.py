"""Vault tokens: how one comes by them, and how they stay alive (reliability V4).

A token is renewed when two thirds of its life are over. Where it cannot be (batch tokens, or a renewal that
grants less than half of what was granted first: its maximum is near), the session logs in again instead; and
for each read where the number of uses is limited. A token that somebody else made can only be renewed: after
its first good read the server is asked how long it lives.

Logins are single flight for each server and login. A refused one is repeated after 1 s, 2 s ... 5 min, one
that found the server out after 30 s at most. A login that a 403 caused is no use where the policy forbids the
path, so those are spaced out like refused ones. All pauses have jitter.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict
from typing import Any
from urllib.parse import quote

import msgspec
import trio

from engine.errors import SecretUnavailable
from policy.keysource import AppRoleLogin, EnvKey, KeyRef, LiteralKey, TokenLogin, VaultLogin
from policy.secret import Secret

from .environment import take
from .source import Fetch, SourceFailure
from .vaultserver import Place, Server, check, decode

__all__ = ["Session", "Sessions", "Token"]

logger = logging.getLogger("posthorn.keys")

_KEPT = 100
_RENEW_AT = 2 / 3
_SOONEST = 1.0
"""Seconds between two renewals at least, however short a life the server grants."""
_SHORTENED = 0.5
"""A renewal that grants less than this part of the first life came to the token's maximum."""
_LONGEST_REFUSED = 300.0
_LONGEST_OUT = 30.0
_QUIET = 600.0
"""Seconds without a 403 after which the next one is a new affair."""


class Token(msgspec.Struct, frozen=True, eq=False):
    """A token and its times (`trio.current_time`). `life`: seconds it was granted; inf: it does not end,
    or nobody knows. `once`: its number of uses is limited, so it serves for one read."""

    secret: Secret
    life: float = math.inf
    expires: float = math.inf
    renew_at: float = math.inf
    renewable: bool = False
    once: bool = False


class _Grant(msgspec.Struct, frozen=True):
    """What the server said. `secret` None: of a renewal or a look at the token."""

    secret: Secret | None
    life: float
    renewable: bool
    limited: bool


class _Auth(msgspec.Struct):
    client_token: msgspec.Raw
    lease_duration: float = 0
    renewable: bool = False
    num_uses: int = 0


class _AuthAnswer(msgspec.Struct):
    auth: _Auth | None = None


class _Look(msgspec.Struct):
    ttl: float = 0
    renewable: bool = False
    num_uses: int = 0


class _LookAnswer(msgspec.Struct):
    data: _Look | None = None


_auth = msgspec.json.Decoder(_AuthAnswer)
_look = msgspec.json.Decoder(_LookAnswer)
_text = msgspec.json.Decoder(str)


class Session:
    """One way to log in at one server, and the token that came of it."""

    def __init__(
        self,
        place: Place,
        login: VaultLogin,
        fetch: Fetch | None,
        limiter: trio.CapacityLimiter,
        seconds: float,
    ) -> None:
        self.place = place
        self._login = login
        self._fetch = fetch
        self._limiter = limiter
        self._seconds = seconds
        self._lock = trio.Lock()
        self._token: Token | None = None
        self._looked = False
        self._news = trio.Event()
        self._failures = 0
        self._failure: SourceFailure | None = None
        self._next_login = -math.inf
        self._again_pause = 0.0
        self._next_again = -math.inf
        self._warned = ""
        self._scope = trio.CancelScope()

    async def token(self) -> Token | SourceFailure:
        """The one to use now; logs in when there is none."""
        if isinstance(self._login, TokenLogin):
            return await self._given(self._login.token, fresh=False)
        alive = self._alive()  # without the lock: a renewal that hangs holds up no reads
        if alive is not None:
            return alive
        async with self._lock:
            return self._alive() or await self._log_in()

    async def again(self, refused: Token) -> Token | SourceFailure | None:
        """Another token after a 403 for `refused`, or None when there is no other now."""
        async with self._lock:
            if self._token is not None and self._token.secret != refused.secret:
                return self._token  # somebody else was here first
            if isinstance(self._login, TokenLogin):
                other = await self._given(self._login.token, fresh=True)
                return other if isinstance(other, Token) and other.secret != refused.secret else None
            now = trio.current_time()
            if now < self._next_again:
                return None
            calm = now - self._next_again > _QUIET
            self._again_pause = 1.0 if calm else min(self._again_pause * 2, _LONGEST_REFUSED)
            self._next_again = now + self._again_pause * random.uniform(1.0, 1.25)
            return await self._log_in()

    def worked(self, token: Token) -> None:
        """The token read something, so it is worth a look how long it lives."""
        if isinstance(self._login, TokenLogin) and not self._looked and self._token is token:
            self._adopt(msgspec.structs.replace(token, renew_at=trio.current_time()))

    async def keep(self) -> None:
        """Renew in time, until cancelled or closed. To be called once."""
        with self._scope:
            while True:
                token, news = self._token, self._news
                if token is None or trio.current_time() < token.renew_at:
                    with trio.move_on_at(math.inf if token is None else token.renew_at):
                        await news.wait()
                else:
                    async with self._lock:
                        if self._token is token:
                            await self._prolong(token)

    def close(self) -> None:
        """Nobody needs its token any more."""
        self._scope.cancel()

    def _adopt(self, token: Token) -> Token:
        self._token = token
        self._news.set()
        self._news = trio.Event()
        return token

    def _alive(self) -> Token | None:
        token = self._token
        if token is None or token.once or trio.current_time() >= token.expires:
            return None
        return token

    async def _given(self, ref: KeyRef, *, fresh: bool) -> Token | SourceFailure:
        """The token that somebody else made."""
        found: Secret | SourceFailure
        if isinstance(ref, EnvKey) and ref.variable == "VAULT_TOKEN":
            found = take("VAULT_TOKEN") or Secret(b"")
        else:
            found = await self._nested("vault_token", ref, fresh=fresh)
        if isinstance(found, SourceFailure):
            return found
        if self._token is None or self._token.secret != found:
            if not found.reveal() or not all(0x21 <= octet <= 0x7E for octet in found.reveal()):
                return SourceFailure("the token holds characters that no token has (a line end?)")
            self._looked = False
            return self._adopt(Token(found))
        return self._token

    # -- with the lock held ----------------------------------------------------------------------

    async def _log_in(self) -> Token | SourceFailure:
        if self._failure is not None and trio.current_time() < self._next_login:
            return self._failure.bare()
        grant = await self._ask_for_token()
        now = trio.current_time()
        if isinstance(grant, SourceFailure):
            self._failures += 1
            longest = _LONGEST_REFUSED if grant.denied else _LONGEST_OUT
            pause = max(min(2.0 ** min(self._failures - 1, 16), longest), min(grant.retry_after, longest))
            self._next_login = now + pause * random.uniform(1.0, 1.25)
            self._failure = grant
            return grant.bare()
        self._failures = 0
        self._failure = None
        assert grant.secret is not None
        return self._adopt(_dated(grant.secret, grant))

    async def _ask_for_token(self) -> _Grant | SourceFailure:
        login = self._login
        fields: dict[str, str | Secret] = {}
        wanted: dict[str, KeyRef | None] = {}
        assert not isinstance(login, TokenLogin)
        if isinstance(login, AppRoleLogin):
            wanted = {"role_id": login.role_id, "secret_id": login.secret_id}
        else:
            wanted = {"jwt": login.jwt}
            if login.role is not None:
                fields["role"] = login.role
        for name, ref in wanted.items():
            if ref is not None:
                part = await self._nested(name, ref, fresh=self._failure is not None and self._failure.denied)
                if isinstance(part, SourceFailure):
                    return part
                fields[name] = part
        return await self._ask(f"/v1/auth/{quote(login.mount)}/login", fields, None)

    async def _nested(self, what: str, ref: KeyRef, *, fresh: bool) -> Secret | SourceFailure:
        if isinstance(ref, LiteralKey):
            return ref.data
        if self._fetch is None:
            return SourceFailure("there is no key ring to ask")
        try:
            found = (await self._fetch(ref, fresh=fresh)).secret
        except SecretUnavailable as error:
            return SourceFailure(f"{what}: {error}")
        try:
            found.reveal().decode()
        except UnicodeDecodeError:
            return SourceFailure(f"{what}: {ref.name}: the value is not text")
        return found

    async def _prolong(self, token: Token) -> None:
        """Renew, look, or log in anew; if nothing helps, later again."""
        given = isinstance(self._login, TokenLogin)
        looking = given and not self._looked
        answer: _Grant | SourceFailure | None = None
        if looking:
            answer = await self._ask("/v1/auth/token/lookup-self", None, token.secret)
        elif token.renewable:
            answer = await self._ask("/v1/auth/token/renew-self", {}, token.secret)
        if self._token is not token:
            return  # a file had another one meanwhile
        denied = isinstance(answer, SourceFailure) and answer.denied
        if looking and (denied or isinstance(answer, _Grant)):
            self._looked = True
            # One that may not look at itself says nothing about its life.
            unknown = msgspec.structs.replace(token, renew_at=math.inf)
            self._adopt(_dated(token.secret, answer) if isinstance(answer, _Grant) else unknown)
            return
        if isinstance(answer, _Grant) and answer.life >= token.life * _SHORTENED:
            self._warned = ""
            self._adopt(_dated(token.secret, answer))
            return
        failure = answer if isinstance(answer, SourceFailure) else None
        if not given and (failure is None or denied):
            again = await self._log_in()
            if isinstance(again, Token):
                self._warned = ""
                return
            failure = again
        self._not_renewed(token, failure, final=given and (failure is None or denied))

    def _not_renewed(self, token: Token, failure: SourceFailure | None, *, final: bool) -> None:
        """Say so, once for each reason. `final`: there is no use in trying again."""
        now = trio.current_time()
        left = token.expires - now
        reason = "it cannot be renewed any further" if failure is None else failure.reason
        if reason != self._warned:
            self._warned = reason
            end = "" if math.isinf(left) else f" and ends in {max(left, 0.0):.0f} s"
            logger.warning("the token for %s is not renewed%s: %s", self.place.address, end, reason)
        later = math.inf if final or left <= 0 else now + max(1.0, min(_LONGEST_OUT, left / 4))
        self._adopt(msgspec.structs.replace(token, renew_at=later))

    async def _ask(
        self, path: str, fields: dict[str, str | Secret] | None, token: Secret | None
    ) -> _Grant | SourceFailure:
        server = Server(self.place, token, self._seconds)
        return await trio.to_thread.run_sync(
            _attempt, server, path, fields, token is None, abandon_on_cancel=True, limiter=self._limiter
        )


class Sessions:
    """All logins, and the owner of what keeps their tokens alive."""

    def __init__(self, fetch: Fetch | None, seconds: float) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._sessions: OrderedDict[tuple[Place, VaultLogin], Session] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    def get(self, place: Place, login: VaultLogin, limiter: trio.CapacityLimiter) -> Session:
        """The session of that login, made when it is new."""
        session = self._sessions.get((place, login))
        if session is None:
            session = Session(place, login, self._fetch, limiter, self._seconds)
            self._sessions[place, login] = session
            if self._nursery is not None:
                self._nursery.start_soon(session.keep)
            if len(self._sessions) > _KEPT:
                self._sessions.popitem(last=False)[1].close()
        self._sessions.move_to_end((place, login))
        return session

    async def keep(self) -> None:
        """Keep the tokens of all sessions alive, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for session in self._sessions.values():
                nursery.start_soon(session.keep)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None


def _dated(secret: Secret, grant: _Grant) -> Token:
    now = trio.current_time()
    return Token(
        secret=secret,
        life=grant.life,
        expires=now + grant.life,
        renew_at=math.inf if grant.limited else now + max(_SOONEST, grant.life * _RENEW_AT),
        renewable=grant.renewable,
        once=grant.limited,
    )


def _attempt(
    server: Server, path: str, fields: dict[str, str | Secret] | None, login: bool
) -> _Grant | SourceFailure:
    """In a thread: a login, a renewal, or without fields a look at the token."""
    try:
        return _grant(server, path, fields, login)
    except SourceFailure as failure:
        return failure.bare()
    except Exception as error:
        # A fault met in a renewal must not end the task that renews, and with it the engine. No text: it
        # might hold the token.
        return SourceFailure(f"internal error ({type(error).__name__})")
    finally:
        server.close()


def _grant(server: Server, path: str, fields: dict[str, str | Secret] | None, login: bool) -> _Grant:
    reply = server.get(path) if fields is None else server.post(path, fields)
    if reply.status in (400, 401, 403, 404) and fields is not None:
        what = "login refused: wrong or expired credentials, role or mount" if login else "renewal refused"
        raise SourceFailure(f"{what} ({reply.status} at {path})", denied=True)
    check(server, reply, path)
    if fields is None:
        look: Any = decode(_look, reply.body, "a token")
        if look.data is None:
            raise SourceFailure("the answer is not what a token looks like")
        return _Grant(None, look.data.ttl or math.inf, look.data.renewable, look.data.num_uses > 0)
    auth: _Auth | None = decode(_auth, reply.body, "a login").auth
    if auth is None:
        raise SourceFailure("the answer is not what a login looks like")
    token = Secret(str(decode(_text, Secret(bytes(auth.client_token)), "a token"))) if login else None
    if token is not None and not (token.reveal() and all(0x21 <= octet <= 0x7E for octet in token.reveal())):
        raise SourceFailure("the answer is not what a login looks like")
    return _Grant(token, auth.lease_duration or math.inf, auth.renewable, auth.num_uses > 0)
