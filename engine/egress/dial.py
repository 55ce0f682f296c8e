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
    TlsBroken,
    TlsError,
    TlsRequired,
    TurnLost,
)
from engine.keys import KeyRing
from engine.net import Connect, Stream, connect
from engine.smtp import ClientSession, Greeting, HelloDone
from policy.egress import IMPLICIT_PORT

from .broker import CERTIFICATE, Broker, Identity
from .circuits import LOGIN_DEFERRED, LOGIN_UNANSWERED, Circuits, Endpoint
from .clientcert import ClientCertificate, ClientCertificates
from .connection import Connection
from .login import log_in, login_try
from .mta_sts import DEMAND
from .secure import Safety, Terms
from .tlsneed import TlsNeed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.smtp import Reply
    from policy.egress import EgressPath

    from .resolve import Candidate
    from .site import Sts
    from .tlsa import Dane

__all__ = ["Dialer", "NoHostReached"]

logger = logging.getLogger("posthorn.egress")

_GOODBYE = 5.0
"""Seconds to wait for the reply to the QUIT of a probe; nothing depends on it (C15)."""

_FINAL_CAUSES = frozenset((LoginRefused.cause, LOGIN_UNANSWERED, SecretUnavailable.cause))
"""What ends the dialing at once: the next host would count it as another failed login."""


class NoHostReached(NetworkError):
    """No candidate could be made ready; the text lists each with its reason."""


class _Asked(msgspec.Struct, frozen=True):
    """What a session is to be like; the same for every candidate."""

    path: EgressPath
    need: TlsNeed
    source_address: str | None
    ehlo_domain: str
    identity: Identity | None
    endpoint: Endpoint
    ca_pem: bytes | None
    certificate: ClientCertificate | None
    route: bool
    pace: Callable[[], float] | None
    ask_dane: Callable[[Candidate], Awaitable[Dane]] | None
    strange: tuple[str, ...] = ()
    """Hosts that a policy in force does not name."""
    dane: Dane | None = None

    @property
    def terms(self) -> Terms:
        identity = self.identity
        return Terms(
            self.path,
            self.need,
            self.source_address,
            self.ca_pem,
            self.certificate,
            identity.version if identity is not None else "",
            clear_allowed=identity is None,
        )


class Dialer:
    """Makes sessions. One for the engine; holds what is remembered between connections.

    `is_own`: tells whether a name is this host's own; a peer found by public MX that greets with
    one is ourselves, a mail loop (reliability N8). `connect`: makes the TCP connections.
    """

    def __init__(self, keys: KeyRing, is_own: Callable[[str], bool], connect: Connect = connect) -> None:
        self._keys = keys
        self._broker = Broker(keys)
        self._connect = connect
        self._safety = Safety()
        self.certificates = ClientCertificates(keys)
        self._is_own = is_own
        self.circuits = Circuits()

    async def open(
        self,
        candidates: Sequence[Candidate],
        path: EgressPath,
        source_address: str | None,
        ehlo_domain: str,
        *,
        route: bool,
        beside: Sequence[str] = (),
        sts: Sts | None = None,
        pace: Callable[[], float] | None = None,
        dane: Callable[[Candidate], Awaitable[Dane]] | None = None,
    ) -> Connection:
        """A session that is ready for MAIL. `sts`: what the domain's MTA-STS policy demands. `beside`:
        names of all hosts of the destination, those that are no candidates now included. `route`: an
        operator named these hosts (a smart host on this machine may well greet with this machine's name).
        `pace` is asked before each further connection: 0 when it may be made, else the seconds to wait.
        `dane` is asked what the TLSA records of each candidate demand; None: nothing.

        Raises: HeldError (TlsRequired, ReleaseRefused, AuthNotOffered, LoginRefused, SecretUnavailable)
        when the path's demands cannot be met; NoHostReached when the road is bad; MailLoop when the best
        host is this one.
        """
        certificate = await self.certificates.get(path)
        shown = " ".join(certificate.versions) if certificate is not None else CERTIFICATE
        # Hosts that nobody logs in to are not worth remembering.
        endpoint = self.circuits.endpoint(candidates, beside) if path.login is not None else Endpoint()
        identity = await self._broker.identity(path, endpoint, certificate=shown)
        ca_pem: bytes | None = None
        if path.tls_ca is not None:
            ca_pem = (await self._keys.fetch(path.tls_ca)).secret.reveal()
        need = TlsNeed.of(path)
        strange: tuple[str, ...] = ()
        if sts is not None and sts.mode == "enforce":
            need = need.tightened(DEMAND, verify=True)
            strange = sts.unnamed
        asked = _Asked(
            path,
            need,
            source_address,
            ehlo_domain,
            identity,
            endpoint,
            ca_pem,
            certificate,
            route,
            pace,
            dane,
            strange,
        )
        if identity is not None and identity.trial:
            connection = await self._try_out(identity, candidates, asked)
            if connection is not None:
                return connection
            if not await _may_connect(pace, path.idle_timeout):
                raise TurnLost("no further connection now (max_connection_rate)", stage="connect")
            identity = await self._broker.identity(path, endpoint, certificate=shown, may_try=False)
            asked = msgspec.structs.replace(asked, identity=identity)
        return await self._through(candidates, asked)

    async def _try_out(
        self, identity: Identity, candidates: Sequence[Candidate], asked: _Asked
    ) -> Connection | None:
        """A new version of a secret: a session that only logs in, and if that went well one that carries mail
        (`rotation`). None: it did not go well, which is said and noted."""
        try:
            probe = await self._through(candidates, asked)
            try:
                await _part(probe)
            finally:
                probe.stream.close()
            if await _may_connect(asked.pace, asked.path.idle_timeout):
                connection = await self._through(candidates, asked)
                return connection
        except LoginRefused as error:
            if error.cause != LOGIN_DEFERRED:
                wanted = login_try(identity, candidates[0], asked.path)
                identity.refused(error, self.circuits.closed_until(asked.endpoint, wanted))
        except (HeldError, NetworkError, RemoteProtocolError) as error:
            logger.debug("version %s of a secret could not be tried: %s", identity.version, error)
        except BaseException:
            identity.left()
            raise
        identity.left()
        return None

    async def _through(self, candidates: Sequence[Candidate], asked: _Asked) -> Connection:
        """The first of the candidates that can be made ready."""
        path, pace = asked.path, asked.pace
        troubles: list[str] = []
        held: HeldError | None = None
        for number, candidate in enumerate(candidates):
            if number and not await _may_connect(pace, path.idle_timeout):
                troubles.append(f"{len(candidates) - number} more not tried because of max_connection_rate")
                break
            where = f"{candidate.name}[{candidate.address}]:{candidate.port}"
            try:
                return await self._with_retry(candidate, await _tightened(asked, candidate))
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
        except (TlsError, TlsBroken) as error:
            opportunistic = not asked.need.required
            again = (
                opportunistic and identity is None and self._safety.remember_broken(candidate, asked.terms)
            )
            if again and await _may_connect(asked.pace, path.idle_timeout):
                logger.info(
                    "%s[%s]: %s; trying again in clear text, as the path allows",
                    candidate.name,
                    candidate.address,
                    error,
                )
                return await self._one(candidate, asked)
            if isinstance(error, TlsBroken) or (opportunistic and identity is None):
                raise
            raise TlsRequired(f"{error} ({DEMAND})" if asked.need.demand == DEMAND else str(error)) from None
        except LoginRefused as error:
            # Perhaps the secret was rotated since it was cached: look once more, try a *new* one once.
            newer = await self._broker.newer(identity, asked.endpoint) if identity is not None else None
            if newer is None:
                raise
            if not error.remark:
                # The version that was good is so no more, just now: the new one's time has come.
                self.circuits.hurry(asked.endpoint, login_try(newer, candidate, path))
            if not await _may_connect(asked.pace, path.idle_timeout):
                raise  # the new one is for the next session
            connection = await self._one(candidate, msgspec.structs.replace(asked, identity=newer))
            connection.identity = self._broker.replaced(newer, asked.endpoint)
            return connection

    async def _one(self, candidate: Candidate, asked: _Asked) -> Connection:
        path = asked.path
        identity = asked.identity
        if identity is not None:
            self.circuits.check(asked.endpoint, login_try(identity, candidate, path))
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
            connection.dane = asked.dane
            terms = asked.terms
            if terms.need.implicit:
                await self._safety.secure(connection, candidate, terms)
                await self._greet(connection, path, asked.route)
            else:
                await self._greet(connection, path, asked.route)
                if await self._safety.secure(connection, candidate, terms):
                    await self._hello_inside(connection, path, asked.route)
            if identity is not None:
                await log_in(
                    connection, candidate, path, identity, self.circuits, asked.endpoint, self._broker
                )
            self._safety.keep(connection)
        except BaseException:
            stream.close()
            raise
        return connection

    async def _greet(self, connection: Connection, path: EgressPath, route: bool) -> None:
        try:
            event = await connection.event("greeting", path.banner_timeout)
        except PeerTimeout as error:
            if connection.stream.peer[1] != IMPLICIT_PORT or path.tls_implicit:
                raise
            text = f"{error}; at port {IMPLICIT_PORT} it probably waits for TLS, see tls_implicit"
            raise PeerTimeout(text, stage="greeting") from None
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

    async def _hello_inside(self, connection: Connection, path: EgressPath, route: bool) -> None:
        """EHLO again, in TLS. Raises: TlsBroken when the peer does not go on: with TLS 1.3 that is how it
        says that our part of the handshake does not please it."""
        connection.client.hello()
        try:
            await self._hello(connection, path, route)
        except (MailLoop, PeerTimeout):
            raise
        except NetworkError as error:
            raise TlsBroken(f"after the TLS handshake: {error}", stage="EHLO") from None

    async def _hello(self, connection: Connection, path: EgressPath, route: bool) -> None:
        event = await connection.event("EHLO", path.ehlo_timeout)
        if not isinstance(event, HelloDone):
            raise RemoteProtocolError(f"expected a reply to EHLO, got {event!r}")
        if not event.ok:
            raise NetworkError(f"EHLO refused: {event.reply.line}", stage="EHLO")
        self._not_ourselves(event.reply, route, "EHLO")


async def _part(connection: Connection) -> None:
    """Say goodbye. The caller closes."""
    connection.client.quit()
    try:
        await connection.event("QUIT", _GOODBYE)
        connection.stream.end_tls()
    except (NetworkError, RemoteProtocolError) as error:
        logger.debug("QUIT to %s: %s", connection.address, error)


async def _tightened(asked: _Asked, candidate: Candidate) -> _Asked:
    """What is asked of this candidate, beyond what is asked of all.

    Raises: ResolveError, DaneImpossible; NetworkError for a host that mail may not go to.
    """
    found: Dane | None = None
    if asked.ask_dane is not None:
        found = await asked.ask_dane(candidate)
        logger.debug("DANE for %s:%d: %s: %s", candidate.host, candidate.port, found.result, found.why)
    if candidate.host in asked.strange and (found is None or found.check is None):
        why = f" ({found.why})" if found is not None else ""
        raise NetworkError(
            f"the domain's MTA-STS policy does not name it, and no TLSA record says who it is{why}"
        )
    if found is None:
        return asked
    return msgspec.structs.replace(asked, need=found.tightened(asked.need), dane=found)


async def _may_connect(pace: Callable[[], float] | None, patience: float) -> bool:
    """Whether one more connection may be made, after a short wait if need be."""
    if pace is None:
        return True
    while (wait := pace()) > 0.0:
        if wait >= patience:
            return False
        await trio.sleep(wait)
    return True
