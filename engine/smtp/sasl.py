"""The seam of SASL (RFC 4422): what a mechanism is, and what it is told.

A mechanism is a small object that is fed the other side's octets (base64 is removed and put on by
the sessions). Chance, channel bindings and stored credentials are handed in; nothing here waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from policy.scramkeys import ScramKeys
from policy.secret import Secret

__all__ = [
    "Binding",
    "ClientMechanism",
    "Context",
    "Credentials",
    "Known",
    "Lookup",
    "OneResponse",
    "SaslError",
    "ServerMechanism",
    "WithoutLookup",
    "text_of",
]


class SaslError(Exception):
    """What the other side said cannot be read, or not accepted; the text holds nothing of it."""


class Binding(msgspec.Struct, frozen=True, gc=False):
    """What ties a login to its TLS session. `kind`: a name of RFC 5929; `data`: its value."""

    kind: str
    data: bytes


class Context(msgspec.Struct, frozen=True, gc=False):
    """What a mechanism may need besides name and secret; each takes what it uses.

    `nonce`: fresh random text, printable and without a comma. `binding`: of the TLS session, None
    without one. `peer_binds`: the peer offers a mechanism with channel binding. `host`, `port`: whom
    the client meant to reach.
    """

    nonce: str = ""
    binding: Binding | None = None
    peer_binds: bool = False
    host: str = ""
    port: int = 0


class ClientMechanism(Protocol):
    """The client's half."""

    name: str
    slow: bool
    """`respond` may take longer than an event loop should be held."""

    @property
    def finished(self) -> bool:
        """Whether success may be said now: everything was said, and the server proved what it must."""
        ...

    @property
    def exposed(self) -> bool:
        """Whether the secret, or a proof of it, was sent: a refusal is then a verdict on it, and what was
        sent must not be shown."""
        ...

    @property
    def failure(self) -> str:
        """Why the mechanism gave up, or what the server said of the failure; "" when nothing is known.
        May quote the server: mask it."""
        ...

    def initial(self) -> bytes | None:
        """The initial response, None when the server speaks first."""
        ...

    def respond(self, challenge: bytes) -> bytes | None:
        """The answer to a challenge, None to give up."""
        ...


class Credentials:
    """What a client presented, for somebody to judge. Not a Struct: it must not be shown by accident.

    One of: `password`; `token`; neither, when the client points at something outside (EXTERNAL).
    `proven` True or False: the mechanism has judged already.
    """

    __slots__ = ("authcid", "authzid", "password", "proven", "token")

    def __init__(
        self,
        authzid: str,
        authcid: str,
        password: Secret | None = None,
        *,
        token: Secret | None = None,
        proven: bool | None = None,
    ) -> None:
        self.authzid = authzid
        self.authcid = authcid
        self.password = password
        self.token = token
        self.proven = proven


class Lookup(msgspec.Struct, frozen=True, gc=False):
    """The server's half must know what is stored for this name: give it to `known`."""

    authzid: str
    authcid: str


Known = Secret | ScramKeys | None
"""What is stored for a name: its password, or keys made from it. None: there is no such user, or nothing
this mechanism could use; the exchange goes on and fails where a wrong password fails."""


class ServerMechanism(Protocol):
    """The server's half."""

    name: str

    def step(self, response: bytes | None) -> bytes | Credentials | Lookup:
        """The next challenge, a question, or the end. `response` None: there was no initial response.

        Raises: SaslError.
        """
        ...

    def known(self, known: Known, unknown: ScramKeys) -> bytes | Credentials:
        """The answer to a Lookup. `unknown`: what stands in when nothing is stored, or when `known` is a
        password: salt and iterations are then those of `unknown`. Raises: SaslError."""
        ...


def text_of(value: bytes) -> str:
    """UTF-8. Raises: SaslError."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise SaslError("not UTF-8") from None


class WithoutLookup:
    """A server's half that never asks what is stored, and needs nothing of its context."""

    __slots__ = ()

    def __init__(self, context: Context) -> None:
        pass

    def known(self, known: Known, unknown: ScramKeys) -> bytes | Credentials:
        raise AssertionError("nobody asked")


class OneResponse(WithoutLookup, ABC):
    """One in which a single response of the client's says everything. Without an initial response an empty
    challenge asks for it."""

    __slots__ = ()

    def step(self, response: bytes | None) -> bytes | Credentials:
        return b"" if response is None else self._read(response)

    @abstractmethod
    def _read(self, response: bytes) -> Credentials:
        """What the response says. Raises: SaslError."""
