"""One AUTH exchange, the server's side (RFC 4954 4): lines in, challenges or a verdict out."""

from __future__ import annotations

import base64

from .auth import Credentials, SaslError, decode_base64, server_mechanism
from .events import Auth
from .reply import Reply

__all__ = ["ServerExchange", "Turn"]

Turn = bytes | Auth | Reply
"""A challenge line to send; the credentials, when the client has said everything; or a refusal.
With the last two the exchange is over."""

_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
_NOT_BASE64 = Reply(501, "5.5.2", "Authentication response is not base64")
_NOT_UNDERSTOOD = Reply(501, "5.5.2", "Authentication response not understood")


class ServerExchange:
    """From ``AUTH mechanism`` to its end. `mechanism`: a name of `auth.MECHANISMS`."""

    __slots__ = ("_mechanism",)

    def __init__(self, mechanism: str) -> None:
        self._mechanism = server_mechanism(mechanism)

    def begin(self, argument: bytes) -> Turn:
        """`argument`: what stood behind the mechanism, the initial response or nothing."""
        argument = argument.strip(b" ")
        return self.line(argument) if argument else self._step(None)

    def line(self, line: bytes) -> Turn:
        """A response as it came."""
        if line == b"*":
            return _CANCELLED
        try:
            response = decode_base64(line)
        except SaslError:
            return _NOT_BASE64
        return self._step(response)

    def _step(self, response: bytes | None) -> Turn:
        mechanism = self._mechanism
        try:
            answer = mechanism.step(response)
        except SaslError:
            return _NOT_UNDERSTOOD
        if type(answer) is Credentials:
            return Auth(mechanism.name, answer.authzid, answer.authcid, answer.password)
        assert type(answer) is bytes
        return b"334 " + base64.b64encode(answer) + b"\r\n"
