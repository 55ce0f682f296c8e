"""What a session answers to each command: hooks, relay rules, limits, the spool's state.

Each method takes one event of `engine.smtp.ServerSession` and answers it, at once where it can;
otherwise it returns what must be awaited for that. A hook that refuses is obeyed; one that fails
never means yes (reliability O7).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import trio

from engine.errors import HookError
from engine.smtp import Address, Auth, AuthLookup, BodyReceived, Hello, Mail, Rcpt, Reply, ServerSession
from engine.tripwire import keep_private, private
from policy.hooks import Reject

from .connection import Connection
from .guesses import TurnDenied
from .message import EnvelopeAddress
from .relay import RelayRules

if TYPE_CHECKING:
    from .service import Ask, Service

__all__ = ["DEFECT", "FAILED_LOGINS", "Answers"]

logger = logging.getLogger("posthorn.ingress")

FAILED_LOGINS = 3
"""Refused logins that end a session (reliability S54)."""

DEFECT = Reply(421, "4.3.0", "Local error: closing connection")
HOOK_FAILED = Reply(451, "4.3.0", "Local error in processing; try again later")
FOLLOWING = Reply(421, "4.3.0", "Closing connection")
NO_STORAGE = Reply(452, "4.3.1", "Insufficient system storage; try again later")
NOT_NOW = Reply(421, "4.3.0", "Mail cannot be stored at the moment; try again later")
LOGIN_FAILED = Reply(535, "5.7.8", "Authentication failed")
LOGINS_FAILED = Reply(421, "4.7.0", "Too many failed logins")
ENOUGH = Reply(421, "4.7.0", "Too many messages in one session; please connect again")


class Answers:
    """The answers of one session. `stop_clock` is called before waiting for a hook: hooks have
    limits of their own, and the client's time does not run meanwhile."""

    __slots__ = (
        "_connection",
        "_failed_logins",
        "_messages",
        "_relay",
        "_service",
        "_session",
        "_stop_clock",
    )

    def __init__(
        self,
        service: Service,
        session: ServerSession,
        connection: Connection,
        stop_clock: Callable[[], None],
    ) -> None:
        declaration = service.declaration
        self._service = service
        self._session = session
        self._connection = connection
        self._stop_clock = stop_clock
        self._relay = RelayRules(
            connection.peer, declaration.relay_hosts, relay_authenticated=declaration.relay_authenticated
        )
        self._messages = 0
        self._failed_logins = 0

    async def greet(self) -> None:
        service = self._service
        session = self._session
        if service.spool.trouble is not None or service.memory.full:
            service.counters.denied += 1
            session.greet(NOT_NOW)
            return
        if service.on_connect:
            try:
                await self._ask(service.on_connect, self._connection.meta)
            except Reject as reject:
                reply, _ = self._reply_of(reject)
                session.greet(reply)
                return
            except HookError as error:
                session.greet(DEFECT, cause=self._blame(error))
                return
        self._connection.meta.keep()
        session.greet()

    def hello(self, event: Hello) -> Coroutine[Any, Any, None] | None:
        if self._service.on_ehlo:
            return self._hello_asking(event)
        self._connection.greeted(event.domain, esmtp=event.esmtp)
        self._session.accept()
        return None

    async def _hello_asking(self, event: Hello) -> None:
        session = self._session
        meta = self._connection.meta
        offered = list(session.extensions) if event.esmtp else None
        try:
            answer = await self._ask(self._service.on_ehlo, event.domain, meta, offered)
        except (Reject, HookError) as error:
            self._refuse(error)
            return
        self._connection.greeted(event.domain, esmtp=event.esmtp)
        if answer is None or not event.esmtp:
            session.accept()
        else:
            session.accept(None, [str(extension) for extension in answer])

    def mail(self, event: Mail) -> Coroutine[Any, Any, None] | None:
        service = self._service
        if self._messages >= service.declaration.max_messages_per_connection:
            self._session.refuse(ENOUGH, close=True)
            return None
        size = event.size
        if (
            service.spool.trouble is not None
            or not service.spool.room_for(size)
            or not service.memory.has_room(size)
        ):
            self._session.refuse(NO_STORAGE)
            return None
        ask = service.on_mail
        if ask.now is not None:
            try:
                ask.now(EnvelopeAddress(event.address), self._connection.meta)
            except (Reject, HookError) as error:
                self._refuse(error)
                return None
        elif ask.waits:
            return self._mail_asking(event)
        self._session.accept()
        return None

    async def _mail_asking(self, event: Mail) -> None:
        try:
            await self._ask(self._service.on_mail, EnvelopeAddress(event.address), self._connection.meta)
        except (Reject, HookError) as error:
            self._refuse(error)
        else:
            self._session.accept()

    def rcpt(self, event: Rcpt) -> Coroutine[Any, Any, None] | None:
        service = self._service
        ask = service.on_rcpt
        if not self._relay.anywhere or ask.waits:
            return self._rcpt_asking(event)
        if ask.now is not None:
            try:
                ask.now(EnvelopeAddress(event.address), self._connection.meta)
            except (Reject, HookError) as error:
                self._refuse(error)
                return None
        self._session.accept()
        return None

    async def _rcpt_asking(self, event: Rcpt) -> None:
        service = self._service
        try:
            if not await self._may_relay(event.address):
                peer = self._connection.peer
                self._session.refuse(Reply(550, "5.7.1", f"Relaying denied for {peer}"))
                return
            await self._ask(service.on_rcpt, EnvelopeAddress(event.address), self._connection.meta)
        except (Reject, HookError) as error:
            self._refuse(error)
        else:
            self._session.accept()

    async def _may_relay(self, recipient: Address) -> bool:
        service = self._service
        relay = self._relay
        sender = self._session.reverse_path
        # A bare <Postmaster> is the postmaster of this host.
        to_domain = recipient.route_domain or service.hostname.lower()
        from_domain = sender.route_domain if sender is not None else ""
        if not relay.anywhere and service.on_domain:
            for domain in relay.unknown(from_domain, to_domain):
                rules = await self._ask(service.on_domain, domain, service.address, self._connection.meta)
                relay.learn(domain, rules)
        return relay.allows(from_domain, to_domain)

    async def body(self, event: BodyReceived, still_there: Callable[[], bool]) -> None:
        """The final dot: accept the message for all its recipients, or for none."""
        session = self._session
        service = self._service
        sender = session.reverse_path
        assert sender is not None
        if service.acceptor.hooks_wait:
            self._stop_clock()
        try:
            reply = await service.acceptor.accept(
                self._connection,
                sender,
                session.forward_paths,
                event.content,
                event.header_end,
                event.eight_bit,
                session.smtputf8,
                still_there,
            )
        except (Reject, HookError) as error:
            self._refuse(error)
            return
        if reply.is_positive:
            self._messages += 1
            service.counters.transactions += 1
            session.accept(reply)
        else:
            session.refuse(reply)

    async def auth(self, event: Auth) -> None:
        session = self._session
        connection = self._connection
        guesses = self._service.guesses
        authz = event.authzid or event.authcid
        peer, account = connection.peer, event.authcid or authz
        for said in (event.password, event.token):
            if said is not None:
                keep_private(said)  # before any hook sees it
        self._stop_clock()
        rejected: Reject | None = None
        try:
            async with guesses.turn(peer, account):
                begun = trio.current_time()
                try:
                    granted = await self._service.users.judge(event, connection.meta)
                except Reject as reject:
                    if reject.code != LOGIN_FAILED.code:
                        raise
                    granted, rejected = False, reject
                due = 0.0 if granted else guesses.refused(peer, account, begun)
        except TurnDenied:
            session.refuse(LOGINS_FAILED, close=True, cause="too many failed logins before this one")
            return
        except (Reject, HookError) as error:
            self._refuse(error, traceback=False)
            return
        if granted:
            guesses.granted(peer, account)
            connection.logged_in(authz, account, event.mechanism)
            self._relay.login()
            session.authenticated(authz)
            session.accept()
            return
        self._failed_logins += 1
        await trio.sleep_until(due)
        if self._failed_logins >= FAILED_LOGINS:
            session.refuse(LOGINS_FAILED, close=True)
        elif rejected is not None:
            self._refuse(rejected)
        else:
            session.refuse(LOGIN_FAILED)

    async def auth_lookup(self, event: AuthLookup) -> None:
        """SCRAM asks what is stored of a user."""
        self._stop_clock()
        try:
            await self._service.users.look_up(self._session, event, self._connection.meta)
        except (Reject, HookError) as error:
            self._refuse(error, traceback=False)

    def forget(self) -> None:
        """TLS began: what the client learned or gained before does not count any more (S9)."""
        self._relay.reset()

    # Hooks and refusals

    async def _ask(self, ask: Ask, *args: object) -> Any:
        if ask.waits:
            self._stop_clock()
        return await ask.wait(*args)

    def _refuse(self, error: Reject | HookError, *, traceback: bool = True) -> None:
        """Answer the event at hand for a hook that refused, or failed (never accept then: O7)."""
        session = self._session
        if isinstance(error, HookError):
            session.refuse(HOOK_FAILED, cause=self._blame(error, traceback=traceback))
            return
        reply, close = self._reply_of(error)
        if error.mode == "FollowWith421" and reply.code != 421:
            session.refuse(reply)
            session.close_with(Reply(421, "4.3.0", "Closing connection"))
        else:
            session.refuse(reply, close=close)

    def _reply_of(self, reject: Reject) -> tuple[Reply, bool]:
        enhanced = reject.enhanced or f"{reject.code // 100}.0.0"
        close = reject.code == 421 or reject.mode == "ForceDisconnect"
        return Reply(reject.code, enhanced, private(reject.text)), close

    def _blame(self, error: HookError, *, traceback: bool = True) -> str:
        """Tell the operator which hook failed where; the client is told nothing of it. Returns the
        cause for the refusal's record."""
        logger.error("%s", error, exc_info=error.__cause__ if traceback else None)
        return private(f"hook-error: {error}")

    def report(self) -> bool:
        """Write a Rejection record for each command refused since the last time; whether there was one."""
        refusals = self._session.take_refusals()
        if not refusals:
            return False
        service = self._service
        for refusal in refusals:
            record = self._connection.record("Rejection")
            record.sender = refusal.sender
            record.recipient = refusal.recipient
            record.code = refusal.reply.code
            record.enhanced_code = refusal.reply.enhanced
            record.content = refusal.reply.text
            record.command = private(refusal.command)
            record.cause = refusal.cause
            service.log.write(record)
        service.counters.rejections += len(refusals)
        return True
