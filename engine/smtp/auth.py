"""SASL mechanisms PLAIN (RFC 4616) and LOGIN, both halves.

A mechanism is a small object that is fed the other side's octets (base64 is removed and put on by
the sessions). `MECHANISMS` is the table of what there is.
"""

from __future__ import annotations

import base64
import binascii
from typing import Protocol

from policy.secret import Secret

__all__ = [
    "MECHANISMS",
    "ClientMechanism",
    "Credentials",
    "SaslError",
    "ServerMechanism",
    "client_mechanism",
    "decode_base64",
    "server_mechanism",
]


class SaslError(Exception):
    """The client's response cannot be read; the text holds nothing of it."""


class Credentials:
    """What a client presented. Not a Struct: it must not be shown by accident."""

    __slots__ = ("authcid", "authzid", "password")

    def __init__(self, authzid: str, authcid: str, password: Secret) -> None:
        self.authzid = authzid
        self.authcid = authcid
        self.password = password


class ClientMechanism(Protocol):
    """The client's half."""

    name: str

    def initial(self) -> bytes | None:
        """The initial response, None when the server speaks first."""
        ...

    def respond(self, challenge: bytes) -> bytes | None:
        """The answer to a challenge, None to give up."""
        ...


class ServerMechanism(Protocol):
    """The server's half."""

    name: str

    def step(self, response: bytes | None) -> bytes | Credentials:
        """The next challenge, or the credentials. `response` None: there was no initial response.

        Raises: SaslError.
        """
        ...


class PlainClient:
    """PLAIN: everything in one response."""

    name = "PLAIN"
    __slots__ = ("_password", "_sent", "_user")

    def __init__(self, user: str, password: Secret) -> None:
        self._user = user
        self._password = password
        self._sent = 0

    def initial(self) -> bytes | None:
        self._sent += 1
        return b"\0" + self._user.encode() + b"\0" + self._password.reveal()

    def respond(self, challenge: bytes) -> bytes | None:
        # Some servers answer an initial response with an empty challenge: say it once more.
        return self.initial() if self._sent < 2 else None


class LoginClient:
    """LOGIN: user, then password, whatever the prompts say."""

    name = "LOGIN"
    __slots__ = ("_password", "_step", "_user")

    def __init__(self, user: str, password: Secret) -> None:
        self._user = user
        self._password = password
        self._step = 0

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes | None:
        self._step += 1
        if self._step == 1:
            return self._user.encode()
        return self._password.reveal() if self._step == 2 else None


class PlainServer:
    """PLAIN, the server's half: [authzid] NUL authcid NUL password."""

    name = "PLAIN"

    def step(self, response: bytes | None) -> bytes | Credentials:
        if response is None:
            return b""
        parts = response.split(b"\0")
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise SaslError("PLAIN takes authzid NUL authcid NUL password")
        return Credentials(_text(parts[0]), _text(parts[1]), Secret(parts[2]))


class LoginServer:
    """LOGIN, the server's half."""

    name = "LOGIN"

    def __init__(self) -> None:
        self._user: str | None = None

    def step(self, response: bytes | None) -> bytes | Credentials:
        if response is None:
            return b"Username:"
        if self._user is None:
            self._user = _text(response)
            if not self._user:
                raise SaslError("the user name is empty")
            return b"Password:"
        if not response:
            raise SaslError("the password is empty")
        return Credentials("", self._user, Secret(response))


MECHANISMS: dict[str, tuple[type[PlainClient] | type[LoginClient], type[PlainServer] | type[LoginServer]]] = {
    "PLAIN": (PlainClient, PlainServer),
    "LOGIN": (LoginClient, LoginServer),
}
"""Name -> (client half, server half)."""


def client_mechanism(name: str, user: str, password: Secret) -> ClientMechanism:
    """The client's half of a mechanism of the table."""
    return MECHANISMS[name][0](user, password)


def server_mechanism(name: str) -> ServerMechanism:
    """The server's half of a mechanism of the table."""
    return MECHANISMS[name][1]()


def decode_base64(text: bytes) -> bytes:
    """Strict base64; ``=`` alone is the empty response (RFC 4954 4). Raises: SaslError."""
    if text == b"=":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("not base64") from None


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise SaslError("not UTF-8") from None
