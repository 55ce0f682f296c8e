"""SASL mechanisms that present an OAuth 2 access token: OAUTHBEARER (RFC 7628) and XOAUTH2, its
predecessor at Google and Microsoft. Both halves of each.

A server that does not take a token answers with a challenge that holds JSON, and refuses after an
empty-handed response to it (RFC 7628 3.2.2).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import msgspec

from policy.secret import Secret

from .sasl import Context, Credentials, OneResponse, SaslError, text_of

__all__ = ["BearerClient", "BearerServer", "XOauth2Client", "XOauth2Server"]

_LONGEST_STATUS = 100


class _Failure(msgspec.Struct):
    status: str | int = ""


_failure = msgspec.json.Decoder(_Failure)

_TOKEN = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750 2.1."""


class _Client(ABC):
    """What both have in common: one message, and one answer to a failure."""

    slow = False
    __slots__ = ("_context", "_failed", "_sent", "_token", "_user", "failure")

    def __init__(self, user: str, token: Secret, context: Context) -> None:
        self._user = user
        self._token = token
        self._context = context
        self._sent = False
        self._failed = False
        self.failure = ""

    @property
    def finished(self) -> bool:
        # A server that said why it failed and then says 235 is not believed.
        return self._sent and not self._failed

    @property
    def exposed(self) -> bool:
        return self._sent

    @abstractmethod
    def _message(self) -> bytes:
        """What presents the token."""

    @abstractmethod
    def _dummy(self) -> bytes:
        """The empty-handed response."""

    def initial(self) -> bytes | None:
        self._sent = True
        return self._message()

    def respond(self, challenge: bytes) -> bytes | None:
        if self._failed:
            return None
        self._failed = True
        try:
            status = str(_failure.decode(challenge).status)[:_LONGEST_STATUS]
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.failure = "the token is not accepted"
        else:
            shown = "".join(c for c in status if c.isprintable())
            self.failure = f"the token is not accepted: {shown}" if shown else "the token is not accepted"
        return self._dummy()


class BearerClient(_Client):
    """OAUTHBEARER."""

    name = "OAUTHBEARER"
    __slots__ = ()

    def _message(self) -> bytes:
        user = self._user.replace("=", "=3D").replace(",", "=2C")
        message = (b"n,a=" + user.encode() if user else b"n,") + b",\x01"
        if self._context.host:
            message += b"host=" + self._context.host.encode() + b"\x01"
        if self._context.port:
            message += b"port=%d\x01" % self._context.port
        return message + b"auth=Bearer " + self._token.reveal() + b"\x01\x01"

    def _dummy(self) -> bytes:
        return b"\x01"


class XOauth2Client(_Client):
    """XOAUTH2."""

    name = "XOAUTH2"
    __slots__ = ()

    def _message(self) -> bytes:
        return b"user=" + self._user.encode() + b"\x01auth=Bearer " + self._token.reveal() + b"\x01\x01"

    def _dummy(self) -> bytes:
        return b""


def _bearer(pairs: list[bytes]) -> Secret:
    """The token of ``auth=Bearer ...`` among key=value pairs. Raises: SaslError."""
    found = [pair[5:] for pair in pairs if pair[:5].lower() == b"auth="]
    if len(found) != 1 or found[0][:7].lower() != b"bearer ":
        raise SaslError("no bearer token")
    token = found[0][7:].strip(b" ")
    if not _TOKEN.fullmatch(token):
        raise SaslError("no bearer token")
    return Secret(token)


class BearerServer(OneResponse):
    """OAUTHBEARER, the server's half."""

    name = "OAUTHBEARER"
    __slots__ = ()

    def _read(self, response: bytes) -> Credentials:
        header, *pairs = response.split(b"\x01")
        parts = header.split(b",")
        if len(parts) != 3 or parts[0] != b"n" or parts[2] or pairs[-2:] != [b"", b""]:
            raise SaslError("OAUTHBEARER takes a GS2 header and key=value pairs")
        if parts[1] and not parts[1].startswith(b"a="):
            raise SaslError("no authorization identity")
        return Credentials("", _unescaped(text_of(parts[1][2:])), token=_bearer(pairs))


class XOauth2Server(OneResponse):
    """XOAUTH2, the server's half."""

    name = "XOAUTH2"
    __slots__ = ()

    def _read(self, response: bytes) -> Credentials:
        first, *pairs = response.split(b"\x01")
        if first[:5].lower() != b"user=" or not first[5:] or pairs[-2:] != [b"", b""]:
            raise SaslError("XOAUTH2 takes user= and auth=Bearer")
        return Credentials("", text_of(first[5:]), token=_bearer(pairs))


def _unescaped(name: str) -> str:
    """A saslname (RFC 5801): =2C and =3D stand for comma and equals sign. Raises: SaslError."""
    if "=" in name.replace("=2C", "").replace("=3D", ""):
        raise SaslError("a stray equals sign in an identity")
    return name.replace("=2C", ",").replace("=3D", "=")
