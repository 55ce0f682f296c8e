"""One AUTH exchange, the server's side (RFC 4954 4): lines in, challenges or a verdict out."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from policy.scramkeys import ScramKeys

from .auth import MECHANISMS, decode_base64, server_mechanism
from .events import Auth, AuthLookup
from .reply import Reply
from .sasl import Binding, Context, Credentials, Known, Lookup, SaslError

__all__ = ["ServerExchange", "Turn", "binding_for", "usable"]

Turn = bytes | AuthLookup | Auth | Reply
"""A challenge line to send; a question, after which `known` goes on; the credentials, when the client has
said everything; or a refusal. With the last two the exchange is over, but for `parting`."""

_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
_NOT_BASE64 = Reply(501, "5.5.2", "Authentication response is not base64")
_NOT_UNDERSTOOD = Reply(501, "5.5.2", "Authentication response not understood")
_INVALID_TOKEN = b'{"status":"invalid_token"}'


class ServerExchange:
    """From ``AUTH mechanism`` to its end. `mechanism`: a name of `auth.MECHANISMS`."""

    __slots__ = ("_mechanism", "_refusal", "_token")

    def __init__(self, mechanism: str, context: Context) -> None:
        self._mechanism = server_mechanism(mechanism, context)
        self._token = False
        self._refusal: Reply | None = None

    def begin(self, argument: bytes) -> Turn:
        """`argument`: what stood behind the mechanism, the initial response or nothing."""
        argument = argument.strip(b" ")
        return self.line(argument) if argument else self._step(None)

    def line(self, line: bytes) -> Turn:
        """A response as it came."""
        if self._refusal is not None:
            return self._refusal  # the client has read why; whatever it says
        if line == b"*":
            return _CANCELLED
        try:
            response = decode_base64(line)
        except SaslError:
            return _NOT_BASE64
        return self._step(response)

    def known(self, known: Known, unknown: ScramKeys) -> Turn:
        """The answer to an AuthLookup; see `sasl.ServerMechanism`."""
        try:
            return self._turn(self._mechanism.known(known, unknown))
        except SaslError:
            return _NOT_UNDERSTOOD

    def parting(self, refusal: Reply) -> bytes | None:
        """A challenge line that must be answered before the client may hear `refusal` (RFC 7628 3.2.3);
        None for a mechanism without one."""
        if not self._token or self._refusal is not None:
            return None
        self._refusal = refusal
        return _line(_INVALID_TOKEN)

    def _step(self, response: bytes | None) -> Turn:
        try:
            return self._turn(self._mechanism.step(response))
        except SaslError:
            return _NOT_UNDERSTOOD

    def _turn(self, answer: bytes | Credentials | Lookup) -> Turn:
        name = self._mechanism.name
        if isinstance(answer, Lookup):
            return AuthLookup(name, answer.authzid, answer.authcid)
        if isinstance(answer, Credentials):
            self._token = answer.token is not None
            return Auth(name, answer.authzid, answer.authcid, answer.password, answer.token, answer.proven)
        return _line(answer)


def usable(names: Sequence[str], binding: Binding | None, *, chance: bool) -> list[str]:
    """The mechanisms of a listener that can be used in a session as it is. `chance`: it has nonces."""
    rows = [(name, MECHANISMS[name]) for name in names]
    return [name for name, row in rows if (binding or not row.binds) and (chance or not row.random)]


def binding_for(offered: Sequence[str], binding: Binding | None) -> Binding | None:
    """What a mechanism is told: a session that offers no binding mechanism has none, or a client that could
    bind and saw nothing offered would be taken for one that was deceived (RFC 5802 6)."""
    return binding if any(MECHANISMS[name].binds for name in offered) else None


def _line(challenge: bytes) -> bytes:
    return b"334 " + base64.b64encode(challenge) + b"\r\n"
