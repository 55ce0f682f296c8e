"""What the sessions of one listener share: its settings, its hooks, its counters."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from engine.smtp import ServerConfig

from .accept import Acceptor, Enqueue
from .logins import Users
from .tls import ServerTls

if TYPE_CHECKING:
    from engine.hooks import Hooks
    from engine.keys import KeyRing
    from engine.log import Log
    from engine.memory import Memory
    from engine.spool import Spool
    from engine.tripwire import Tripwire
    from policy.ingress import ListenerDeclaration

    from .guesses import Guesses
    from .strangers import Strangers

__all__ = ["Ask", "Counters", "Service"]


class Counters(msgspec.Struct):
    """What a listener did since its start. `messages` counts queue entries, `sessions` is now."""

    sessions: int = 0
    accepted: int = 0
    """Connections ever taken."""
    denied: int = 0
    """Connections turned away because of a limit or the spool."""
    transactions: int = 0
    """Transactions that got their 250."""
    rejections: int = 0
    """Rejection records written."""
    failures: int = 0
    """Sessions ended by a defect of ours."""


class Ask:
    """The hooks of one event, looked up once.

    `now`: a plain function that asks them all, None when there are none or one is async. `waits`:
    they must be awaited. Neither: nobody is there to ask.
    """

    __slots__ = ("_call", "event", "now", "waits")

    def __init__(self, hooks: Hooks, event: str) -> None:
        self.event = event
        self.now: Callable[..., Any] | None = hooks.fast(event)
        self.waits = self.now is None and hooks.has(event)
        self._call = hooks.call

    def __bool__(self) -> bool:
        return self.now is not None or self.waits

    async def wait(self, *args: Any) -> Any:
        """The answer, whichever kind the hooks are. Raises: policy.Reject, HookError."""
        return self.now(*args) if self.now is not None else await self._call(self.event, *args)


def _nonce() -> str:
    return secrets.token_urlsafe(24)


class Service:
    """One listener's settings and services. `address`: what hooks are told as `listener`. `mechanisms`: of
    AUTH, see `logins.offered`. `guesses`, `memory`, `strangers`, `tripwire`: shared by all
    listeners."""

    def __init__(
        self,
        declaration: ListenerDeclaration,
        *,
        hostname: str,
        address: str,
        hooks: Hooks,
        spool: Spool,
        enqueue: Enqueue,
        log: Log,
        keys: KeyRing,
        mechanisms: tuple[str, ...] = (),
        guesses: Guesses,
        memory: Memory,
        strangers: Strangers,
        tripwire: Tripwire,
    ) -> None:
        self.declaration = declaration
        self.hostname = declaration.hostname or hostname
        self.address = address
        self.hooks = hooks
        self.spool = spool
        self.log = log
        self.tls = ServerTls(keys, self.hostname, declaration.tls_certificate, declaration.tls_private_key)
        self.counters = Counters()
        self.acceptor = Acceptor(
            spool=spool,
            enqueue=enqueue,
            log=log,
            hooks=hooks,
            hostname=self.hostname,
            batch_handling=declaration.batch_handling,
            received_header=declaration.trace_headers.received_header,
            limit=declaration.data_processing_timeout,
        )
        self.on_connect = Ask(hooks, "smtp_server_connection_accepted")
        self.on_ehlo = Ask(hooks, "smtp_server_ehlo")
        plain, store = Ask(hooks, "smtp_server_auth_plain"), Ask(hooks, "smtp_server_auth")
        self.users = Users(plain, store, strangers)
        self.guesses = guesses
        self.memory = memory
        self.tripwire = tripwire
        self.replies = f"replies of {address}"
        """How alarms call what sessions say."""
        self.on_mail = Ask(hooks, "smtp_server_mail_from")
        self.on_rcpt = Ask(hooks, "smtp_server_rcpt_to")
        self.on_domain = Ask(hooks, "get_listener_domain")
        self.config = ServerConfig(
            hostname=self.hostname,
            banner=declaration.banner,
            max_message_size=declaration.max_message_size,
            max_recipients=declaration.max_recipients_per_message,
            require_tls_for_auth=not declaration.allow_auth_without_tls,
            offer_starttls=True,
            offer_auth=mechanisms,
            nonce=_nonce,
            max_errors=declaration.max_errors,
            text_line_limit=declaration.line_length_hard_limit,
            bare_lines=declaration.invalid_line_endings,
        )
