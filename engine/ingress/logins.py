"""Who may log in at a listener: what is offered, and what the policy's hooks know of a user.

Two hooks can answer. `smtp_server_auth_plain` is given a password and judges it. `smtp_server_auth` says
what is stored of a user, and the mechanism judges; so it serves SCRAM, where no password arrives, and
PLAIN and LOGIN as well. Tokens and certificates it judges itself.

An unknown user is led to the same end as a wrong password (reliability S53): SCRAM goes on with a salt
that belongs to the name and never changes (`strangers`), and the refusal comes when all refusals come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from engine.errors import ConfigError, HookError
from engine.smtp import MECHANISMS, Auth, AuthLookup, Known, ServerSession, password_fits
from engine.tripwire import keep_private
from policy.scramkeys import ScramKeys
from policy.secret import Secret

if TYPE_CHECKING:
    from policy.ingress import ListenerDeclaration
    from policy.scramkeys import ScramHash

    from .service import Ask
    from .strangers import Strangers

__all__ = ["Users", "offered"]

_WITH_PASSWORD = ("PLAIN", "LOGIN")
_WITH_STORE = ("SCRAM-SHA-256", "SCRAM-SHA-1", *_WITH_PASSWORD)
_HASHING = 2
"""Threads that may be busy with iterations of a hash at once; a crowd of logins waits for them."""


def offered(declaration: ListenerDeclaration, *, plain: bool, store: bool) -> tuple[str, ...]:
    """The mechanisms of a listener. `plain`, `store`: whether a hook answers `smtp_server_auth_plain`,
    `smtp_server_auth`. Raises: ConfigError when `auth_mechanisms` names one that no hook serves."""
    wanted = declaration.auth_mechanisms
    if wanted is None:
        return _WITH_STORE if store else _WITH_PASSWORD if plain else ()
    for name in wanted:
        if not store and not (plain and name in _WITH_PASSWORD):
            needed = "smtp_server_auth" + (" or smtp_server_auth_plain" if name in _WITH_PASSWORD else "")
            where = f"start_esmtp_listener {declaration.listen}"
            raise ConfigError(f'{where}: auth_mechanisms names "{name}", but no hook answers {needed}')
    return wanted


class Users:
    """What the hooks know. One for each listener. `strangers`: shown where they know nothing."""

    def __init__(self, plain: Ask, store: Ask, strangers: Strangers) -> None:
        self._plain = plain
        self._store = store
        self._strangers = strangers
        self._limiter = trio.CapacityLimiter(_HASHING)

    async def look_up(self, session: ServerSession, event: AuthLookup, meta: object) -> None:
        """Answer the session's AuthLookup. Raises: Reject, HookError."""
        answer = await self._store.wait(event.authcid, event.mechanism, None, meta)
        if answer is True:
            raise _wrong(event.mechanism, "True", "the user's password or policy.scram_keys(...)")
        known: Known = answer if isinstance(answer, Secret | ScramKeys) else None
        if isinstance(known, ScramKeys):
            await self._strangers.saw(known.iterations)
        elif isinstance(known, Secret):
            keep_private(known)
        hash_: ScramHash = "SHA-1" if "SHA-1" in event.mechanism else "SHA-256"
        unknown = self._strangers.keys(event.authcid, hash_)
        # Iterations of a hash, stored ones or made up: not in the event loop.
        await trio.to_thread.run_sync(session.known, known, unknown, limiter=self._limiter)

    async def judge(self, event: Auth, meta: object) -> bool:
        """Whether these credentials are right. Raises: Reject, HookError."""
        if event.proven is not None:
            return event.proven
        if event.password is not None:
            return await self._password(event, event.password, meta)
        user = event.authcid if MECHANISMS[event.mechanism].needs == "token" else event.authzid
        answer = await self._store.wait(user, event.mechanism, event.token, meta)
        if answer is not None and not isinstance(answer, bool):
            raise _wrong(event.mechanism, "something else", "True or False")
        return answer is True

    async def _password(self, event: Auth, password: Secret, meta: object) -> bool:
        authz = event.authzid or event.authcid
        if self._plain:
            answer: Any = await self._plain.wait(authz, event.authcid, password, meta)
            if answer is not None or not self._store:
                return answer is True
        answer = await self._store.wait(event.authcid, event.mechanism, None, meta)
        if answer is True:
            raise _wrong(event.mechanism, "True", "the user's password or policy.scram_keys(...)")
        if isinstance(answer, Secret):
            keep_private(answer)
        if isinstance(answer, ScramKeys):
            right = await trio.to_thread.run_sync(password_fits, password, answer, limiter=self._limiter)
        else:
            right = isinstance(answer, Secret) and bool(answer.reveal()) and answer == password
        # What is stored says who somebody is, not for whom he may act.
        return right and authz == event.authcid


def _wrong(mechanism: str, answer: str, right: str) -> HookError:
    return HookError(f"smtp_server_auth answered {answer} about {mechanism}; right would be {right}")
