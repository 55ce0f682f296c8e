"""From a plan to a session that is ready for mail: TCP, greeting, EHLO, TLS, EHLO, AUTH.

Candidates are tried in order until one is ready. What stops a candidate is either a *network*
trouble (the next one is tried) or a *hold*: the path asks for something this peer does not give
(verified TLS, AUTH). After all candidates the hold wins, because it is what an operator must know.
Two things end the dialing at once: a refused login, because repeating a wrong password at every
MX host locks accounts (reliability C42), and a secret that cannot be had, which is looked for
before any connection is made.

The credential is sent only inside verified TLS unless the path says otherwise, with one option by
name for each of the two relaxations, and mail never goes out unauthenticated on a path that
declares AUTH (egress specification 4, reliability C40).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import (
    ConnectError,
    HeldError,
    LoginRefused,
    MailLoop,
    NetworkError,
    PeerTimeout,
    RemoteProtocolError,
    SecretUnavailable,
    TlsError,
    TlsRequired,
    TurnLost,
)
from engine.keys import KeyRing
from engine.net import Connect, Stream, connect
from engine.smtp import ClientSession, Greeting, HelloDone, StartTlsReply
from policy.keysource import OAuth2Key

from .connection import Connection
from .login import LOGIN_UNANSWERED, Identity, log_in
from .logins import Logins
from .tls import TlsContexts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.smtp import Reply
    from policy.egress import EgressPath

    from .resolve import Candidate

__all__ = ["Dialer", "NoHostReached"]

logger = logging.getLogger("posthorn.egress")

_NEW_TOKEN = 60.0
"""Seconds in which a token is not fetched anew because of a refusal: it is the account that is refused."""

_FINAL_CAUSES = frozenset((LoginRefused.cause, LOGIN_UNANSWERED, SecretUnavailable.cause))
"""What ends the dialing at once: the next host would count it as another failed login."""

_BROKEN_TLS_DEFAULT = 900.0
"""Seconds a failed handshake is remembered when only the reconnect option is set (egress 3.2)."""


_TlsKey = tuple[str, int, str, object, str | None]


def _tls_key(candidate: Candidate, path: EgressPath) -> _TlsKey:
    """What a failed handshake says something about: this host under these demands, no others."""
    return (candidate.address, candidate.port, path.enable_tls, path.tls_ca, path.tls_server_name)


class NoHostReached(NetworkError):
    """No candidate could be made ready; the text lists each with its reason."""


class _Asked(msgspec.Struct, frozen=True):
    """What a session is to be like; the same for every candidate."""

    path: EgressPath
    source_address: str | None
    ehlo_domain: str
    identity: Identity | None
    ca_pem: bytes | None
    route: bool
    pace: Callable[[], float] | None


class Dialer:
    """Makes sessions. One for the engine; holds the TLS contexts and the memory of broken TLS.

    `is_own`: tells whether a name is this host's own; a peer found by public MX that greets with
    one is ourselves, a mail loop (reliability N8). `connect`: makes the TCP connections.
    """

    def __init__(self, keys: KeyRing, is_own: Callable[[str], bool], connect: Connect = connect) -> None:
        self._keys = keys
        self._connect = connect
        self._contexts = TlsContexts()
        self._broken_tls: dict[_TlsKey, float] = {}
        self._is_own = is_own
        self._logins = Logins()

    async def identity(self, path: EgressPath, *, fresh: bool = False) -> Identity | None:
        """Who we are to the peer, with the secret that `smtp_auth_plain_password` or `smtp_auth` names;
        None when the path declares no AUTH. Raises: SecretUnavailable."""
        login = path.login
        if login is None:
            return None
        reference = login.reference
        if reference is None:
            return Identity(login, None)
        return Identity(login, await self._keys.fetch(reference, fresh=fresh))

    async def open(
        self,
        candidates: Sequence[Candidate],
        path: EgressPath,
        source_address: str | None,
        ehlo_domain: str,
        *,
        route: bool,
        pace: Callable[[], float] | None = None,
    ) -> Connection:
        """A session that is ready for MAIL. `route`: an operator named these hosts (a smart host
        on this machine may well greet with this machine's name). `pace` is asked before each further
        connection: 0 when it may be made, else the seconds to wait.

        Raises: HeldError (TlsRequired, AuthNotOffered, LoginRefused, SecretUnavailable) when the
        path's demands cannot be met; NoHostReached when the road is bad; MailLoop when the best
        host is this one.
        """
        identity = await self.identity(path)
        ca_pem: bytes | None = None
        if path.tls_ca is not None and path.enable_tls in ("Required", "Opportunistic"):
            ca_pem = (await self._keys.fetch(path.tls_ca)).secret.reveal()
        asked = _Asked(path, source_address, ehlo_domain, identity, ca_pem, route, pace)
        troubles: list[str] = []
        held: HeldError | None = None
        for number, candidate in enumerate(candidates):
            if number and not await _may_connect(pace, path.idle_timeout):
                troubles.append(f"{len(candidates) - number} more not tried because of max_connection_rate")
                break
            where = f"{candidate.name}[{candidate.address}]:{candidate.port}"
            try:
                return await self._with_retry(candidate, asked)
            except TurnLost:
                raise
            except HeldError as error:
                # "Not now" is about this host; a refusal, or silence, is about the password.
                if error.cause in _FINAL_CAUSES:
                    raise error.at(where) from None
                held = held or error.at(where)
                troubles.append(f"{where}: {error}")
            except MailLoop as error:
                # Hosts of worse preference would only bring it back to us (RFC 5321 5.1).
                if not troubles:
                    raise MailLoop(f"{where}: {error}") from None
                troubles.append(f"{where}: {error}")
                break
            except (NetworkError, RemoteProtocolError) as error:
                stage = getattr(error, "stage", "")
                troubles.append(f"{where}: {error}" + (f" ({stage})" if stage else ""))
            logger.debug("candidate failed: %s", troubles[-1])
        if held is not None:
            raise held
        raise NoHostReached("; ".join(troubles) or "no candidate address", stage="connect")

    async def _with_retry(self, candidate: Candidate, asked: _Asked) -> Connection:
        """One candidate; again once where a second, different try is due: in clear after a failed
        opportunistic handshake, or with a secret that was rotated meanwhile."""
        path, identity = asked.path, asked.identity
        try:
            return await self._one(candidate, asked)
        except TlsError as error:
            opportunistic = path.enable_tls in ("Opportunistic", "OpportunisticInsecure")
            again = opportunistic and identity is None and self._remember_broken(candidate, path)
            if again and await _may_connect(asked.pace, path.idle_timeout):
                logger.info(
                    "%s[%s]: %s; trying again in clear text, as the path allows",
                    candidate.name,
                    candidate.address,
                    error,
                )
                return await self._one(candidate, asked)
            if opportunistic and identity is None:
                raise
            raise TlsRequired(str(error)) from None
        except LoginRefused:
            # Perhaps the secret was rotated since it was cached: look once more, try a *new* one once.
            before = identity.credential if identity is not None else None
            if identity is None or before is None:
                raise
            token = isinstance(identity.login.reference, OAuth2Key)
            if token and trio.current_time() - before.fetched < _NEW_TOKEN:
                raise
            newer = await self.identity(path, fresh=True)
            if newer is None or newer.credential is None or newer.credential.version == before.version:
                raise
            if not await _may_connect(asked.pace, path.idle_timeout):
                raise  # the new one is for the next session
            return await self._one(candidate, msgspec.structs.replace(asked, identity=newer))

    def _remember_broken(self, candidate: Candidate, path: EgressPath) -> bool:
        """Note a failed handshake if the path wants that; True when a clear-text retry is allowed."""
        seconds = path.remember_broken_tls
        retry = path.opportunistic_tls_reconnect_on_failed_handshake
        if seconds is None and retry:
            seconds = _BROKEN_TLS_DEFAULT
        if seconds is not None:
            now = trio.current_time()
            if len(self._broken_tls) > 10_000:
                self._broken_tls = {k: t for k, t in self._broken_tls.items() if t > now}
            self._broken_tls[_tls_key(candidate, path)] = now + seconds
        return retry

    async def _one(self, candidate: Candidate, asked: _Asked) -> Connection:
        path = asked.path
        identity = asked.identity
        if identity is not None:
            self._logins.check(identity.key(candidate))
        stream: Stream | None = None
        with trio.move_on_after(path.connect_timeout):
            stream = await self._connect(
                candidate.address, candidate.port, source_address=asked.source_address
            )
        if stream is None:
            raise ConnectError(f"no connection within {path.connect_timeout:g} s", stage="connect")
        try:
            client = ClientSession(asked.ehlo_domain, pipelining=path.enable_pipelining)
            connection = Connection(stream, client, candidate.name, candidate.address)
            await self._greet(connection, path, asked.route)
            await self._secure(connection, candidate, asked)
            if identity is not None:
                await log_in(connection, candidate, path, identity, self._logins)
        except BaseException:
            stream.close()
            raise
        return connection

    async def _greet(self, connection: Connection, path: EgressPath, route: bool) -> None:
        event = await connection.event("greeting", path.banner_timeout)
        if not isinstance(event, Greeting):
            raise RemoteProtocolError(f"expected a greeting, got {event!r}")
        if event.reply.code != 220:
            raise NetworkError(f"greeted with {event.reply.line}", stage="greeting")
        self._not_ourselves(event.reply, route, "greeting")
        connection.client.hello()
        await self._hello(connection, path, route)

    def _not_ourselves(self, reply: Reply, route: bool, stage: str) -> None:
        words = reply.text.split(None, 1)
        name = words[0].lower().rstrip(".") if words else ""
        # A name without a dot is nobody's: many hosts call themselves "localhost".
        if "." in name and not route and self._is_own(name):
            raise MailLoop(f"the peer calls itself {name}, which is our own name: mail loop", stage=stage)

    async def _hello(self, connection: Connection, path: EgressPath, route: bool) -> None:
        event = await connection.event("EHLO", path.ehlo_timeout)
        if not isinstance(event, HelloDone):
            raise RemoteProtocolError(f"expected a reply to EHLO, got {event!r}")
        if not event.ok:
            raise NetworkError(f"EHLO refused: {event.reply.line}", stage="EHLO")
        self._not_ourselves(event.reply, route, "EHLO")

    async def _secure(self, connection: Connection, candidate: Candidate, asked: _Asked) -> None:
        path = asked.path
        mode = path.enable_tls
        if mode == "Disabled":
            connection.tls_why = "disabled by the path"
            return
        required = mode in ("Required", "RequiredInsecure")
        verify = mode in ("Required", "Opportunistic")
        client = connection.client
        if not required and asked.identity is None and self._is_broken(candidate, path):
            connection.tls_why = "a handshake with this host failed lately; the path allows clear text"
            return
        if not client.capabilities.starttls:
            if required:
                raise TlsRequired(f"enable_tls is {mode} and the peer does not offer STARTTLS")
            connection.tls_why = "not offered by the peer"
            return
        client.starttls()
        event = await connection.event("STARTTLS", path.starttls_timeout)
        if not isinstance(event, StartTlsReply):
            raise RemoteProtocolError(f"expected a reply to STARTTLS, got {event!r}")
        if event.reply.code == 421:
            raise NetworkError(f"the peer ended the session: {event.reply.line}", stage="STARTTLS")
        if event.reply.code != 220:
            if required:
                raise TlsRequired(f"enable_tls is {mode} and STARTTLS was refused: {event.reply.line}")
            # The session is intact: the peer said no before anything changed.
            connection.tls_why = f"STARTTLS refused: {event.reply.line}"
            return
        context = self._contexts.get(verify=verify, ca_pem=asked.ca_pem)
        name = path.tls_server_name or candidate.name
        with trio.move_on_after(path.starttls_timeout) as scope:
            await connection.stream.start_tls(context, server_hostname=name)
        if scope.cancelled_caught:
            raise PeerTimeout(f"TLS handshake not done within {path.starttls_timeout:g} s", stage="STARTTLS")
        if verify and connection.stream.tls is not None:
            connection.tls_why = connection.stream.tls.why
        else:
            connection.tls_why = f"enable_tls is {mode}: the certificate is not checked"
        client.tls_established()
        client.hello()
        await self._hello(connection, path, asked.route)

    def _is_broken(self, candidate: Candidate, path: EgressPath) -> bool:
        until = self._broken_tls.get(_tls_key(candidate, path))
        return until is not None and trio.current_time() < until


async def _may_connect(pace: Callable[[], float] | None, patience: float) -> bool:
    """Whether one more connection may be made, after a short wait if need be."""
    if pace is None:
        return True
    while (wait := pace()) > 0.0:
        if wait >= patience:
            return False
        await trio.sleep(wait)
    return True
