"""Logging in to a peer: which mechanism, under which protection, and what its end means.

The peer's list and the path's are intersected, the strongest first; a peer that offers only what the
path does not allow gets no attempt (reliability C41). Whether this peer may have the credential at all is
the broker's to say (C40).

A mechanism with channel binding names the kind of binding before anything secret is sent, and a peer
that knows only other kinds refuses there and then. Inside verified TLS the mechanism without binding
is tried next: no proof was sent, and who is at the other end is known by the certificate. The peer may count
the refusal all the same, so we do, and for a day the host is not asked again. Without verification nothing
follows.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import (
    AuthNotOffered,
    ConnectionLost,
    LoginRefused,
    NetworkError,
    RemoteProtocolError,
    TurnLost,
)
from engine.smtp import (
    MECHANISMS,
    AuthChallenge,
    AuthDone,
    Binding,
    Context,
    Masker,
    client_mechanism,
)

from .circuits import LOGIN_DEFERRED, LOGIN_UNANSWERED, Try

if TYPE_CHECKING:
    from policy.egress import EgressPath
    from policy.secret import Secret

    from .broker import Broker, Identity
    from .circuits import Circuits, Endpoint
    from .connection import Connection
    from .resolve import Candidate

__all__ = ["log_in", "login_try"]

_LISTED = 12
"""Mechanisms of a peer that a text names."""


def login_try(identity: Identity, candidate: Candidate, path: EgressPath) -> Try:
    """What a peer counts failures of."""
    return Try(
        candidate.name,
        candidate.port,
        identity.user.casefold(),  # peers that tell Scott from scott are rare
        identity.version,
        pause=path.hold_interval,
        budget=identity.login.failure_budget,
        source=identity.source,
        trial=identity.trial,
    )


async def log_in(
    connection: Connection,
    candidate: Candidate,
    path: EgressPath,
    identity: Identity,
    circuits: Circuits,
    endpoint: Endpoint,
    broker: Broker,
) -> None:
    """AUTH. Raises: TlsRequired, ReleaseRefused, AuthNotOffered, LoginRefused."""
    secret = broker.release(identity, connection, path)
    client = connection.client
    binding = connection.stream.binding()
    tls = connection.stream.tls
    names = _usable(identity, client.capabilities.auth, binding, asked=tls is not None and tls.asked)
    safe = tls is not None and tls.verified
    if safe and circuits.unbound(candidate.name, candidate.port):
        names = [name for name in names if not MECHANISMS[name].binds] or names
    client.mask = Masker((secret,), (identity.user,))
    context = Context(
        binding=binding if any(MECHANISMS[name].binds for name in identity.login.mechanisms) else None,
        peer_binds=any(name.endswith("-PLUS") for name in client.capabilities.auth),
        host=candidate.name,
        port=candidate.port,
    )
    async with circuits.turn(endpoint, login_try(identity, candidate, path)) as turn:
        if connection.stream.receive_nowait(1) is not None:
            if not turn.waited:
                # Nobody kept it waiting: it always does so, perhaps, and is not to be tried without a pause.
                raise ConnectionLost("the peer closed or spoke before AUTH", stage="AUTH")
            raise TurnLost("the peer closed or spoke before our turn to log in came", stage="AUTH")
        while True:
            await turn.begin()
            name = names.pop(0)
            context = msgspec.structs.replace(context, nonce=secrets.token_urlsafe(24))
            done = await _exchange(connection, path, identity, name, secret, context)
            if done.ok:
                break
            why = f" ({done.why})" if done.why else ""
            if not done.reply.is_permanent:
                text = f"login as {identity.shown} not possible now with AUTH {name}: {done.reply.line}{why}"
                raise _trouble(text, LOGIN_DEFERRED)
            names = [other for other in names if not MECHANISMS[other].binds]
            unheard = MECHANISMS[name].binds and not done.exposed
            if unheard and safe:
                circuits.does_not_bind(candidate.name, candidate.port)
            if not (unheard and names and safe):
                raise LoginRefused(
                    f"login as {identity.shown} refused with AUTH {name}: {done.reply.line}{why}"
                )
    identity.accepted()
    connection.identity = identity
    connection.auth_user = identity.user
    connection.auth_mechanism = name


def _usable(
    identity: Identity, offered: frozenset[str], binding: Binding | None, *, asked: bool
) -> list[str]:
    """What both sides can do, the strongest first; at least one. `asked`: the peer asked for our certificate
    and has it. Raises: AuthNotOffered."""
    allowed = identity.login.mechanisms
    unseen = "EXTERNAL" in allowed and "EXTERNAL" in offered and not asked
    if unseen:
        # It would be about whatever else the peer knows of us, its address for one: not who we say we are.
        offered -= {"EXTERNAL"}
    names = [
        name for name in allowed if name in offered and (binding is not None or not MECHANISMS[name].binds)
    ]
    if names:
        return names
    if unseen and not offered.intersection(allowed):
        raise AuthNotOffered(
            f"the path needs AUTH as {identity.shown}; the peer offers EXTERNAL and did not ask for the "
            "client certificate"
        )
    known = sorted(name for name in offered if name.isprintable() and len(name) <= 20)
    listed = " ".join(known[:_LISTED]) + (" ..." if len(offered) > _LISTED else "")
    raise AuthNotOffered(
        f"the path needs AUTH as {identity.shown} and the peer offers "
        + (f"only {listed}; the path allows {', '.join(allowed)}" if offered else "no AUTH")
    )


async def _exchange(
    connection: Connection, path: EgressPath, identity: Identity, name: str, secret: Secret, context: Context
) -> AuthDone:
    client = connection.client
    mechanism = client_mechanism(name, identity.user, secret, context)
    client.auth(mechanism)
    until = trio.current_time() + path.auth_timeout
    try:
        while True:
            event = await connection.event("AUTH", max(0.0, until - trio.current_time()))
            if not isinstance(event, AuthChallenge):
                break
            # Thousands of iterations of a hash: not in the event loop. A few hundred ms at most.
            client.auth_response(await trio.to_thread.run_sync(mechanism.respond, event.challenge))
    except (NetworkError, RemoteProtocolError) as error:
        # The peer has the password and did not say what it thinks of it: as good as refused.
        text = f"login as {identity.shown} with AUTH {name} not answered: {error}"
        raise _trouble(text, LOGIN_UNANSWERED) from None
    if not isinstance(event, AuthDone):
        raise RemoteProtocolError(f"expected the end of AUTH, got {type(event).__name__}")
    return event


def _trouble(text: str, cause: str) -> LoginRefused:
    error = LoginRefused(text)
    error.cause = cause
    return error
