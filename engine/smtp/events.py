"""What the sessions report to their drivers. Plain facts, made per command or per transaction."""

from __future__ import annotations

import msgspec

from policy.secret import Secret

from .address import Address
from .reply import Reply
from .transaction import Finished, GoAhead

__all__ = [
    "Auth",
    "AuthChallenge",
    "AuthDone",
    "AuthLookup",
    "BodyReceived",
    "ClientEvent",
    "Data",
    "Greeting",
    "Hello",
    "HelloDone",
    "Mail",
    "QuitDone",
    "Rcpt",
    "Refusal",
    "Rsetted",
    "ServerEvent",
    "StartTls",
    "StartTlsReply",
    "Unsolicited",
]


class Hello(msgspec.Struct, frozen=True, gc=False):
    """EHLO (`esmtp`) or HELO. Answer it."""

    domain: str
    esmtp: bool


class StartTls(msgspec.Struct, frozen=True, gc=False):
    """STARTTLS. After `accept`: flush, do the handshake, call `tls_established`."""


class Auth(msgspec.Struct, frozen=True, gc=False):
    """Credentials to check. Call `authenticated` before `accept`, or refuse.

    There is a `password`, or a `token`, or `proven` says what the mechanism found out by itself; with none
    of them the client points at something outside, such as its certificate.
    """

    mechanism: str
    authzid: str
    authcid: str
    password: Secret | None = None
    token: Secret | None = None
    proven: bool | None = None


class AuthLookup(msgspec.Struct, frozen=True, gc=False):
    """The mechanism must know what is stored for `authcid`. Call `known`, or refuse."""

    mechanism: str
    authzid: str
    authcid: str


class Mail(msgspec.Struct, frozen=True, gc=False):
    """MAIL FROM. `size` 0: not declared."""

    address: Address
    size: int
    body_8bit: bool
    smtputf8: bool


class Rcpt(msgspec.Struct, frozen=True, gc=False):
    """RCPT TO."""

    address: Address


class Data(msgspec.Struct, frozen=True, gc=False):
    """DATA, with at least one recipient."""


class BodyReceived(msgspec.Struct, frozen=True, gc=False):
    """A whole message, dots removed. `header_end`: offset behind the empty line, -1 without one.
    The answer to this is the answer to the final dot."""

    content: bytes
    eight_bit: bool
    header_end: int


ServerEvent = Hello | StartTls | Auth | AuthLookup | Mail | Rcpt | Data | BodyReceived


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A command that was refused, for Rejection records. Secrets in `command` are masked. `cause`: what
    the driver said of it."""

    reply: Reply
    command: str
    sender: str = ""
    recipient: str = ""
    cause: str | None = None


class Greeting(msgspec.Struct, frozen=True, gc=False):
    """The server's first words."""

    reply: Reply


class HelloDone(msgspec.Struct, frozen=True, gc=False):
    """EHLO, or HELO after it, was answered; `ok` when either was accepted."""

    reply: Reply
    ok: bool


class StartTlsReply(msgspec.Struct, frozen=True, gc=False):
    """The answer to STARTTLS; 220 means: handshake now."""

    reply: Reply


class AuthDone(msgspec.Struct, frozen=True, gc=False):
    """AUTH came to its end; `ok` only for 235 after everything was said and the peer proved what it must.
    `why`: what the mechanism knows of a failure, or "". `exposed`: the secret or a proof of it was sent."""

    reply: Reply
    ok: bool
    why: str = ""
    exposed: bool = True


class AuthChallenge(msgspec.Struct, frozen=True, gc=False):
    """A challenge that takes long to answer: give what the mechanism's `respond` says to
    `auth_response`."""

    challenge: bytes


class Rsetted(msgspec.Struct, frozen=True, gc=False):
    """The answer to an RSET asked for on its own."""

    reply: Reply


class Unsolicited(msgspec.Struct, frozen=True, gc=False):
    """A reply that answers nothing; the session cannot be used any more."""

    reply: Reply


class QuitDone(msgspec.Struct, frozen=True, gc=False):
    """The answer to QUIT."""

    reply: Reply


ClientEvent = (
    Greeting
    | HelloDone
    | StartTlsReply
    | AuthChallenge
    | AuthDone
    | GoAhead
    | Finished
    | Rsetted
    | Unsolicited
    | QuitDone
)
