"""Making a connection as safe as its path demands, before anything but EHLO is said in it.

One class holds what is remembered between connections: TLS contexts, sessions to resume, and the hosts
whose handshake failed lately. The need (`TlsNeed`) is obeyed here and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.certificates import read, subject_of
from engine.errors import NetworkError, PeerTimeout, RemoteProtocolError, TlsError, TlsRequired
from engine.smtp import StartTlsReply
from policy.tlskinds import OBSOLETE

from .chain import weakness
from .pins import pinned
from .resumption import SessionKey, Sessions
from .tls import TlsContexts, TlsSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.net import Stream, TlsFacts
    from policy.egress import EgressPath

    from .clientcert import ClientCertificate
    from .connection import Connection
    from .resolve import Candidate
    from .tlsneed import TlsNeed

__all__ = ["Safety", "Terms"]

logger = logging.getLogger("posthorn.egress")

_BROKEN_TLS_DEFAULT = 900.0
"""Seconds a failed handshake is remembered when only the reconnect option is set (egress 3.2)."""

_BROKEN_KEPT = 10_000

_IN_CLEAR = ("wrong version number", "packet length too long", "record layer failure")
"""What OpenSSL says when it reads a greeting where a handshake should be."""

_Broken = tuple[str, int, "TlsNeed", object]


class Terms(msgspec.Struct, frozen=True):
    """Under which terms one connection is made safe.

    `ca_pem`: the content of `tls_ca`. `certificate`: what to show. `login`: the version of the secret, ""
    without one. `clear_allowed`: a host whose handshake failed lately may be spoken to in clear text.
    """

    path: EgressPath
    need: TlsNeed
    source_address: str | None
    ca_pem: bytes | None
    certificate: ClientCertificate | None
    login: str
    clear_allowed: bool

    def session_key(self, candidate: Candidate, name: str) -> SessionKey:
        return SessionKey(
            self.path,
            self.need,
            candidate.name,
            name,
            candidate.address,
            candidate.port,
            self.source_address,
            self.certificate,
            self.login,
        )

    def broken_key(self, candidate: Candidate) -> _Broken:
        """What a failed handshake says something about: this host under these demands, no others."""
        return (candidate.address, candidate.port, self.need, self.path.tls_ca)


class Safety:
    """See the module. One for the engine."""

    def __init__(self) -> None:
        self._sessions = Sessions()
        self._contexts = TlsContexts(gone=self._sessions.drop)
        self._broken: OrderedDict[_Broken, float] = OrderedDict()

    def remember_broken(self, candidate: Candidate, terms: Terms) -> bool:
        """Note a failed handshake if the path wants that; True when a clear-text retry is allowed."""
        path = terms.path
        seconds = path.remember_broken_tls
        retry = path.opportunistic_tls_reconnect_on_failed_handshake
        if seconds is None and retry:
            seconds = _BROKEN_TLS_DEFAULT
        if seconds is not None:
            key = terms.broken_key(candidate)
            self._broken[key] = trio.current_time() + seconds
            self._broken.move_to_end(key)
            if len(self._broken) > _BROKEN_KEPT:
                self._broken.popitem(last=False)
        return retry

    def _is_broken(self, candidate: Candidate, terms: Terms) -> bool:
        until = self._broken.get(terms.broken_key(candidate))
        return until is not None and trio.current_time() < until

    async def secure(self, connection: Connection, candidate: Candidate, terms: Terms) -> bool:
        """TLS as the terms say; True when it is there now and EHLO is due (again).

        With `implicit` TLS this comes before the greeting, else after the first EHLO.
        Raises: TlsRequired when the peer does not give what is needed, TlsError when a handshake failed or
        the peer is not who it must be, NetworkError, RemoteProtocolError.
        """
        need = terms.need
        if not need.use:
            connection.tls_why = "disabled by the path"
            return False
        if not need.implicit:
            if terms.clear_allowed and not need.required and self._is_broken(candidate, terms):
                connection.tls_why = "a handshake with this host failed lately; the path allows clear text"
                return False
            if not await _ask(connection, need, terms.path.starttls_timeout):
                return False
        await self._handshake(connection, candidate, terms)
        connection.client.tls_established()
        return True

    async def _handshake(self, connection: Connection, candidate: Candidate, terms: Terms) -> None:
        need, seconds = terms.need, terms.path.starttls_timeout
        stream = connection.stream
        stage = "TLS" if need.implicit else "STARTTLS"
        context = await self._contexts.get(
            TlsSetting(
                need.verify,
                terms.ca_pem if need.verify else None,
                need.minimum,
                need.ciphers,
                terms.certificate,
            )
        )
        name = need.name_for(candidate.name)
        key = terms.session_key(candidate, name)
        kept = self._sessions.take(key, context)
        try:
            with trio.move_on_after(seconds) as scope:
                await stream.start_tls(
                    context,
                    server_hostname=name,
                    session=kept.session if kept is not None else None,
                    stage=stage,
                )
        except TlsError as error:
            if need.implicit and any(reason in str(error) for reason in _IN_CLEAR):
                text = f"{error}; the peer seems to begin in clear text, and tls_implicit is set"
                raise TlsError(text, stage=stage) from None
            raise
        if scope.cancelled_caught:
            raise PeerTimeout(f"TLS handshake not done within {seconds:g} s", stage=stage)
        facts = stream.tls
        assert facts is not None  # `start_tls` returns with TLS
        if facts.resumed:
            if kept is None:
                raise TlsError("the peer resumed a session that was not offered", stage=stage)
            # The same checks under the same key: what they found still holds.
            facts = msgspec.structs.replace(kept.facts, resumed=True, cipher=facts.cipher)
        else:
            facts = _checked(stream, need, facts, stage)
            own = stream.peer_chain()[:1]
            facts = msgspec.structs.replace(facts, subject=subject_of(own[0]) if own else ())
        stream.tls = facts
        connection.tls_why = facts.why
        connection.certificate = terms.certificate
        connection.resumable = (key, context)

    def keep(self, connection: Connection) -> None:
        """Keep the session of a connection that is ready for mail: a later one may resume it."""
        session, facts = connection.stream.session(), connection.stream.tls
        if session is not None and facts is not None and connection.resumable is not None:
            key, context = connection.resumable
            self._sessions.keep(key, session, context, facts, facts.expires - time.time())


def _checked(stream: Stream, need: TlsNeed, facts: TlsFacts, stage: str) -> TlsFacts:
    """What is known of the peer after a whole handshake. Raises: TlsError when it is not who it must be."""
    verified = stream.verified_chain() if need.verify else ()
    if need.minimum in OBSOLETE:
        if _version(facts.version) < _version(need.minimum):
            text = f"the peer speaks {facts.version}, and tls_minimum_version is {need.minimum}"
            raise TlsError(text, stage=stage)
        if fault := weakness(verified):
            raise TlsError(f"certificate not trusted: {fault}", stage=stage)
    if verified:
        facts = msgspec.structs.replace(facts, expires=_first_end(verified))
    if need.pins:
        # On a path that is content with the peer's own key, nobody else's demands make it content with more.
        issuers = verified if need.mode == "Required" else ()
        pin = pinned(issuers or stream.peer_chain()[:1], need.pins)
        if pin is None:
            whose = "of its certificates' keys" if issuers else "key of its certificate"
            own = stream.peer_pin() or "of a kind that cannot be read"
            raise TlsError(f"no {whose} is among tls_pins; its own is {own}", stage=stage)
        facts = msgspec.structs.replace(facts, pin=pin)
    if need.check is not None:
        verdict = need.check(stream.peer_chain())
        if not verdict.ok:
            raise TlsError(verdict.why, stage=stage)
        why = f"{facts.why}; {verdict.why}" if need.verify else verdict.why
        expires = min(facts.expires, verdict.expires)
        name = facts.peer_name or verdict.name
        return msgspec.structs.replace(facts, verified=True, why=why, expires=expires, peer_name=name)
    if not need.verify:
        why = f"enable_tls is {need.mode}: the certificate is not checked"
        if facts.pin is not None:
            why = f"enable_tls is {need.mode}: chain and name are not checked, and the key is pinned"
        return msgspec.structs.replace(facts, why=why)
    return facts


def _version(name: str) -> str:
    """Of ``TLSv1`` (1.0, as OpenSSL calls it) and others, so that they can be compared; SSL is less."""
    number = name.removeprefix("TLSv")
    return number if "." in number else f"{number}.0" if number.isdigit() else ""


def _first_end(chain: Sequence[bytes]) -> float:
    """When the first of these certificates (DER) ends, as `time.time`."""
    ends = [read(one).not_valid_after_utc.timestamp() for one in chain]
    return min(ends)


async def _ask(connection: Connection, need: TlsNeed, seconds: float) -> bool:
    """STARTTLS. False: the peer does not do it, and need not."""
    client = connection.client
    if not client.capabilities.starttls:
        if need.required:
            raise TlsRequired(f"{need.demand} and the peer does not offer STARTTLS")
        connection.tls_why = "not offered by the peer"
        return False
    client.starttls()
    event = await connection.event("STARTTLS", seconds)
    if not isinstance(event, StartTlsReply):
        raise RemoteProtocolError(f"expected a reply to STARTTLS, got {event!r}")
    if event.reply.code == 421:
        raise NetworkError(f"the peer ended the session: {event.reply.line}", stage="STARTTLS")
    if event.reply.code != 220:
        if need.required:
            raise TlsRequired(f"{need.demand} and STARTTLS was refused: {event.reply.line}")
        # The session is intact: the peer said no before anything changed.
        connection.tls_why = f"STARTTLS refused: {event.reply.line}"
        return False
    return True
