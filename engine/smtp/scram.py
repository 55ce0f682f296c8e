"""SASL mechanisms SCRAM-SHA-1 and SCRAM-SHA-256, with and without channel binding (RFC 5802, 7677,
5929): both halves, around `scramp`, which parses the messages and does the arithmetic.

What is ours: the bound on iterations, checked before any of them is done; that the exchange is over
only when the server has shown that it knows the password; that an unknown user is led to the same end
as a wrong password; and that nothing of an exchange gets into an error's text.

`scramp` binds by tls-server-end-point or tls-unique. TLS 1.3 has no tls-unique, and Python's ssl module
exports no keying material for tls-exporter (RFC 9266), so tls-server-end-point it is.
"""

from __future__ import annotations

import contextlib
import hmac
from typing import Any

import scramp  # type: ignore[import-untyped]
from scramp.utils import saslprep  # type: ignore[import-untyped]

from policy.scramkeys import MOST_ITERATIONS, ScramHash, ScramKeys, derive
from policy.secret import Secret

from .sasl import Context, Credentials, Known, Lookup, SaslError, text_of

__all__ = ["ScramClient", "ScramServer", "password_fits", "scram_client", "scram_server"]

_LONGEST = 4096
"""Octets of a message of the other side."""


class ScramClient:
    """The client's half of one of the four."""

    slow = True
    __slots__ = ("_context", "_password", "_scramp", "_user", "exposed", "failure", "finished", "name")

    def __init__(self, name: str, user: str, password: Secret, context: Context) -> None:
        self.name = name
        self.failure = ""
        self.finished = False
        self.exposed = False
        self._user = user
        self._password = password
        self._context = context
        self._scramp: Any = None

    def initial(self) -> bytes | None:
        binding = self._context.binding
        plus = self.name.endswith("-PLUS")
        if not plus and self._context.peer_binds:
            # The flag "y" would say that the peer offers no binding; it does, we just do not use it.
            binding = None
        tied = None if binding is None else (binding.kind, binding.data)
        try:
            self._scramp = scramp.ScramClient(
                [self.name],
                self._user,
                self._password.reveal().decode(),
                channel_binding=tied,
                c_nonce=self._context.nonce,
            )
            first: str = self._scramp.get_client_first()
        except (scramp.ScramException, UnicodeDecodeError):
            self._give_up("name or password hold characters that SCRAM does not allow")
            return None
        return first.encode()

    def respond(self, challenge: bytes) -> bytes | None:
        if self._scramp is None and not self.finished:
            return None
        try:
            return self._answer(_message(challenge))
        except scramp.ScramException as error:
            known = error.server_error
            said = "" if known is None or known.value == "other-error" else f": {known.value}"
            if self.exposed:
                return self._give_up(f"the peer did not prove that it knows the password{said}")
            return self._give_up(f"the peer's answer is not right{said}")
        except SaslError:
            return self._give_up("the peer's answer cannot be read")

    def _answer(self, message: str) -> bytes | None:
        client = self._scramp
        if self.finished:
            return self._give_up("the peer goes on after the end")
        if self.exposed:
            client.set_server_final(message)
            self.finished = True
            self._scramp = None
            return b""
        client.set_server_first(message)
        iterations = int(client.iterations)
        if iterations > MOST_ITERATIONS:
            return self._give_up(f"the peer asks for {iterations} iterations, more than {MOST_ITERATIONS}")
        final: str = client.get_client_final()
        self.exposed = True
        return final.encode()

    def _give_up(self, why: str) -> bytes | None:
        self.finished = False
        self.failure = why
        self._scramp = None
        return None

    def __repr__(self) -> str:
        return f"ScramClient({self.name})"


class ScramServer:
    """The server's half of one of the four."""

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self._hash: ScramHash = "SHA-256" if "SHA-256" in name else "SHA-1"
        self._context = context
        self._first: str | None = None
        self._user = ""
        self._scramp: Any = None
        self._known = False
        self._proven: bool | None = None

    def step(self, response: bytes | None) -> bytes | Credentials | Lookup:
        if self._first is None:
            if response is None:
                return b""
            self._first = _message(response)
            self._user = self._name(self._first)
            return Lookup("", self._user)
        if self._proven is not None:
            return Credentials("", self._user, proven=self._proven and not response)
        server = self._scramp
        try:
            server.set_client_final(_message(response or b""))
            final: str = server.get_server_final()
        except scramp.ScramException as error:
            known = error.server_error
            if known is not None and known.value in ("invalid-proof", "channel-bindings-dont-match"):
                return Credentials("", self._user, proven=False)
            raise SaslError("the client's final message is not right") from None
        if not self._known:
            return Credentials("", self._user, proven=False)
        self._proven = True
        return final.encode()

    def known(self, known: Known, unknown: ScramKeys) -> bytes:
        # Whatever is stored, the same work is done: how long this takes tells nothing about the user.
        password = _prepared(known) if isinstance(known, Secret) else None
        keys = derive(self._hash, password or b"\0", unknown.salt, unknown.iterations)
        self._known = password is not None
        if isinstance(known, ScramKeys) and known.hash == self._hash:
            keys, self._known = known, True
        self._scramp = self._server(lambda name: _row(keys))
        try:
            self._scramp.set_client_first(self._first)
            first: str = self._scramp.get_server_first()
        except scramp.ScramException:
            raise SaslError("the client's first message is not right") from None
        return first.encode()

    def _server(self, look: Any) -> Any:
        binding = self._context.binding
        tied = None if binding is None else (binding.kind, binding.data)
        try:
            mechanism = scramp.ScramMechanism(self.name)
            return mechanism.make_server(look, channel_binding=tied, s_nonce=self._context.nonce)
        except scramp.ScramException:
            raise SaslError("no channel binding here") from None

    def _name(self, first: str) -> str:
        """Whom the first message is from: a server that knows nobody hears the name."""
        heard: list[str] = []

        def look(name: str) -> None:
            heard.append(name)

        with contextlib.suppress(scramp.ScramException):
            self._server(look).set_client_first(first)
        if not heard:
            raise SaslError("the client's first message is not right")
        return heard[0]


def _row(keys: ScramKeys) -> tuple[bytes, bytes, bytes, int]:
    return keys.salt, keys.stored_key.reveal(), keys.server_key.reveal(), keys.iterations


def _message(octets: bytes) -> str:
    if len(octets) > _LONGEST:
        raise SaslError("a message that is too long")
    return text_of(octets)


def _prepared(password: Secret) -> bytes | None:
    """RFC 4013; None for a password that cannot be used with SCRAM."""
    try:
        text: str = saslprep(password.reveal().decode())
    except (scramp.ScramException, UnicodeDecodeError):
        return None
    return text.encode() or None


def password_fits(password: Secret, keys: ScramKeys) -> bool:
    """Whether stored keys are those of a password that came in plain. Takes as long as they say."""
    prepared = _prepared(password)
    found = derive(keys.hash, prepared or b"\0", keys.salt, keys.iterations)
    same = hmac.compare_digest(found.stored_key.reveal(), keys.stored_key.reveal())
    return same and prepared is not None


def scram_client(name: str) -> Any:
    """What makes the client's half of that name."""
    return lambda user, password, context: ScramClient(name, user, password, context)


def scram_server(name: str) -> Any:
    """What makes the server's half of that name."""
    return lambda context: ScramServer(name, context)
