"""The kinds of trouble, each with its stage.

Four families (house style section 3). A peer that refuses is *not* here: that is a
``Reply``, a value. These classes are for conversations and parts that are broken.

``NetworkError``         the road is bad: transient, reaches the host
``RemoteProtocolError``  the peer broke SMTP: transient, the connection is unusable
``HeldError``            we will not go on (TLS, AUTH, secret): held, no attempt is spent
``LocalProtocolError``,
``SpoolError``,
``ConfigError``          our own side is wrong: never blamed on the mail
"""

from __future__ import annotations

__all__ = [
    "AuthNotOffered",
    "ConfigError",
    "ConnectError",
    "ConnectionLost",
    "DaneImpossible",
    "HeldError",
    "HookError",
    "LocalProtocolError",
    "LoginRefused",
    "MessageUnreadable",
    "NetworkError",
    "PeerTimeout",
    "PosthornError",
    "ReleaseRefused",
    "RemoteProtocolError",
    "ResolveError",
    "SecretUnavailable",
    "SpoolError",
    "SpoolFull",
    "SpoolLocked",
    "TlsError",
    "TlsRequired",
]


class PosthornError(Exception):
    """Base of everything this package raises on purpose."""


class NetworkError(PosthornError):
    """The road to the peer is bad. `stage` names the step, e.g. ``connect`` or ``MAIL FROM``."""

    def __init__(self, text: str, *, stage: str = "") -> None:
        super().__init__(text)
        self.stage = stage


class ResolveError(NetworkError):
    """DNS could not answer now (SERVFAIL, REFUSED, timeout). Never means "does not exist"."""


class ConnectError(NetworkError):
    """TCP did not come up, or the bind to the source address failed."""


class TlsError(NetworkError):
    """A TLS handshake failed."""


class MailLoop(NetworkError):
    """The host that was reached says that it is this one."""


class TurnLost(NetworkError):
    """A connection ended while it waited for its turn to log in: nothing was tried."""


class ConnectionLost(NetworkError):
    """The peer or the network closed the connection."""


class TlsBroken(ConnectionLost):
    """The peer ended the connection, or refused to go on, right after the TLS handshake."""


class PeerTimeout(NetworkError):
    """The peer was slower than the limit of `stage`."""


class RemoteProtocolError(PosthornError):
    """The peer broke SMTP; the connection cannot be used any more."""


class HeldError(PosthornError):
    """We will not go on. The mail waits; no attempt is counted; an operator is told.

    `cause` is a short stable word for records and metrics. The text never holds a secret.
    """

    cause = "held"

    def __init__(self, reason: str, remark: str = "") -> None:
        super().__init__(f"{reason} ({remark})" if remark else reason)
        self.reason = reason
        """The text without its `remark`, which may be another one each time: equal for equal troubles."""
        self.remark = remark

    def at(self, where: str) -> HeldError:
        """The same trouble, saying with whom."""
        error = type(self)(f"{where}: {self.reason}", self.remark)
        error.cause = self.cause
        return error


class TlsRequired(HeldError):
    """The path asks for TLS and the peer does not give it, or its certificate is not trusted."""

    cause = "tls"


class DaneImpossible(HeldError):
    """The path asks for DANE, and the name server is none that could be believed."""

    cause = "dane"


class AuthNotOffered(HeldError):
    """The path asks for AUTH and the peer offers none, or no mechanism we may use."""

    cause = "auth-not-offered"


class LoginRefused(HeldError):
    """The peer refused our credentials (535 and friends)."""

    cause = "login-refused"


class ReleaseRefused(HeldError):
    """The credential is bound to peers by `release_to`, and this one is none of them."""

    cause = "credential-bound"


class SecretUnavailable(HeldError):
    """A key source could not give its secret."""

    cause = "secret-unavailable"


class LocalProtocolError(PosthornError):
    """We were about to break SMTP: a wrong call, or an argument holding control characters."""


class HookError(PosthornError):
    """A policy hook raised something other than Reject, returned the wrong type or was too slow.

    The text names event, function, file and line.
    """


class SpoolError(PosthornError):
    """The spool cannot do what was asked (EIO, read-only file system, closed)."""


class SpoolFull(SpoolError):
    """No space: ENOSPC, EDQUOT or EFBIG. New mail is answered 452 4.3.1."""


class SpoolLocked(SpoolError):
    """Another process owns the spool directory."""


class MessageUnreadable(SpoolError):
    """A stored message is damaged (checksum, framing). It is quarantined, never delivered."""


class ConfigError(PosthornError):
    """A configuration value is wrong. The text names file, key, value and what would be right."""
