"""SASL mechanisms that send a secret as it is, or none: PLAIN (RFC 4616), LOGIN, EXTERNAL (RFC 4422),
and CRAM-MD5 (RFC 2195), which is old and weak and used only where a list names it. Both halves of each.
"""

from __future__ import annotations

import hashlib
import hmac

from policy.scramkeys import ScramKeys
from policy.secret import Secret

from .sasl import Context, Credentials, Known, Lookup, OneResponse, SaslError, WithoutLookup, text_of

__all__ = [
    "CramMd5Client",
    "CramMd5Server",
    "ExternalClient",
    "ExternalServer",
    "LoginClient",
    "LoginServer",
    "PlainClient",
    "PlainServer",
]


class _Client:
    """What the simple ones have in common."""

    slow = False
    failure = ""
    __slots__ = ("_password", "_step", "_user")

    def __init__(self, user: str, password: Secret, context: Context) -> None:
        self._user = user
        self._password = password
        self._step = 0

    @property
    def finished(self) -> bool:
        return self._step > 0

    @property
    def exposed(self) -> bool:
        return self._step > 0


class PlainClient(_Client):
    """PLAIN: everything in one response."""

    name = "PLAIN"
    __slots__ = ()

    def initial(self) -> bytes | None:
        self._step += 1
        return b"\0" + self._user.encode() + b"\0" + self._password.reveal()

    def respond(self, challenge: bytes) -> bytes | None:
        # Some servers answer an initial response with an empty challenge: say it once more.
        return self.initial() if self._step < 2 else None


class LoginClient(_Client):
    """LOGIN: user, then password, whatever the prompts say."""

    name = "LOGIN"
    __slots__ = ()

    @property
    def finished(self) -> bool:
        return self._step >= 2

    exposed = finished

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes | None:
        self._step += 1
        if self._step == 1:
            return self._user.encode()
        return self._password.reveal() if self._step == 2 else None


class ExternalClient(_Client):
    """EXTERNAL: who we are was shown outside, by a client certificate; `user` is whom to act for."""

    name = "EXTERNAL"
    exposed = False  # there is nothing secret
    __slots__ = ()

    def initial(self) -> bytes | None:
        self._step += 1
        return self._user.encode()

    def respond(self, challenge: bytes) -> bytes | None:
        return self.initial() if self._step < 2 else None


class CramMd5Client(_Client):
    """CRAM-MD5: a digest of the challenge under the password."""

    name = "CRAM-MD5"
    __slots__ = ()

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes | None:
        # An empty challenge would make the answer the same every time.
        if self._step or not challenge:
            return None
        self._step = 1
        digest = hmac.digest(self._password.reveal(), challenge, "md5")
        return self._user.encode() + b" " + digest.hex().encode()


class PlainServer(OneResponse):
    """PLAIN, the server's half: [authzid] NUL authcid NUL password."""

    name = "PLAIN"
    __slots__ = ()

    def _read(self, response: bytes) -> Credentials:
        parts = response.split(b"\0")
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise SaslError("PLAIN takes authzid NUL authcid NUL password")
        return Credentials(text_of(parts[0]), text_of(parts[1]), Secret(parts[2]))


class LoginServer(WithoutLookup):
    """LOGIN, the server's half."""

    name = "LOGIN"
    __slots__ = ("_user",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._user: str | None = None

    def step(self, response: bytes | None) -> bytes | Credentials:
        if response is None:
            return b"Username:"
        if self._user is None:
            self._user = text_of(response)
            if not self._user:
                raise SaslError("the user name is empty")
            return b"Password:"
        if not response:
            raise SaslError("the password is empty")
        return Credentials("", self._user, Secret(response))


class ExternalServer(OneResponse):
    """EXTERNAL, the server's half: the response is the authorization identity, or empty."""

    name = "EXTERNAL"
    __slots__ = ()

    def _read(self, response: bytes) -> Credentials:
        if b"\0" in response:
            raise SaslError("a NUL in an identity")
        return Credentials(text_of(response), "")


class CramMd5Server:
    """CRAM-MD5, the server's half. The challenge is the nonce in the form of a message id."""

    name = "CRAM-MD5"

    def __init__(self, context: Context) -> None:
        self._challenge = f"<{context.nonce}@{context.host}>".encode()
        self._begun = False
        self._user = ""
        self._digest = b""

    def step(self, response: bytes | None) -> bytes | Lookup:
        if not self._begun:
            if response is not None:
                raise SaslError("the server speaks first")
            self._begun = True
            return self._challenge
        user, space, digest = (response or b"").rpartition(b" ")
        if not space or not user or len(digest) != 32:
            raise SaslError("CRAM-MD5 takes a name and 32 hexadecimal digits")
        self._user, self._digest = text_of(user), digest.lower()
        return Lookup("", self._user)

    def known(self, known: Known, unknown: ScramKeys) -> Credentials:
        # For nobody, and for keys that are no password, the work is done all the same.
        password = known if isinstance(known, Secret) else unknown.server_key
        right = hmac.digest(password.reveal(), self._challenge, hashlib.md5).hex().encode()
        same = hmac.compare_digest(right, self._digest)
        return Credentials("", self._user, proven=same and isinstance(known, Secret))
