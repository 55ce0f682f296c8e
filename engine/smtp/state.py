"""What may happen when, as data.

Server
------
A session is in one of four states that a client can see:

``START``     connected (or TLS just began): no EHLO yet
``READY``     greeted, no transaction
``MAIL``      MAIL was accepted
``RCPT``      at least one RCPT was accepted

and in three more in which the next octets are no command: ``DATA`` (message content), ``SASL`` (a
response to a challenge) and ``TLS`` (220 was said, the handshake is due). `SERVER` says for each
state and verb either the state after the command was *accepted*, or the reply that refuses it; a
refusal never changes the state (reliability S13). Verbs that are missing everywhere are unknown:
500. EHLO and HELO end a transaction; STARTTLS forgets everything (RFC 3207 4.2).

Client
------
The client's state is a line of expected replies (`CLIENT` lists their kinds): what was sent and
not yet answered, in order (RFC 2920). Each kind says which first digits are an answer at all; the
rest is a protocol error (reliability C1, C5). The transitions that depend on the answer (354 after
all recipients were refused, a refused MAIL, 421) are in `client.py`, one function per kind.
"""

from __future__ import annotations

from typing import Final

from .reply import Reply

__all__ = [
    "CLIENT",
    "DATA",
    "MAIL",
    "RCPT",
    "READY",
    "SASL",
    "SERVER",
    "START",
    "TLS",
    "VERBS",
]

START: Final = "START"
READY: Final = "READY"
MAIL: Final = "MAIL"
RCPT: Final = "RCPT"
DATA: Final = "DATA"
SASL: Final = "SASL"
TLS: Final = "TLS"

_HELLO_FIRST = Reply(503, "5.5.1", "Send EHLO first")
_MAIL_FIRST = Reply(503, "5.5.1", "Need MAIL first")
_RCPT_FIRST = Reply(503, "5.5.1", "Need RCPT first")
_IN_TRANSACTION = Reply(503, "5.5.1", "Not inside a mail transaction")
_NESTED = Reply(503, "5.5.1", "A transaction is open already")

_SAME = {b"NOOP", b"VRFY", b"EXPN", b"HELP"}

SERVER: Final[dict[str, dict[bytes, str | Reply]]] = {
    START: {
        b"EHLO": READY, b"HELO": READY, b"STARTTLS": _HELLO_FIRST, b"AUTH": _HELLO_FIRST,
        b"MAIL": _HELLO_FIRST, b"RCPT": _HELLO_FIRST, b"DATA": _HELLO_FIRST, b"RSET": START,
        b"QUIT": START, **{verb: START for verb in _SAME},
    },
    READY: {
        b"EHLO": READY, b"HELO": READY, b"STARTTLS": TLS, b"AUTH": READY, b"MAIL": MAIL,
        b"RCPT": _MAIL_FIRST, b"DATA": _MAIL_FIRST, b"RSET": READY, b"QUIT": READY,
        **{verb: READY for verb in _SAME},
    },
    MAIL: {
        b"EHLO": READY, b"HELO": READY, b"STARTTLS": _IN_TRANSACTION, b"AUTH": _IN_TRANSACTION,
        b"MAIL": _NESTED, b"RCPT": RCPT, b"DATA": _RCPT_FIRST, b"RSET": READY, b"QUIT": READY,
        **{verb: MAIL for verb in _SAME},
    },
    RCPT: {
        b"EHLO": READY, b"HELO": READY, b"STARTTLS": _IN_TRANSACTION, b"AUTH": _IN_TRANSACTION,
        b"MAIL": _NESTED, b"RCPT": RCPT, b"DATA": DATA, b"RSET": READY, b"QUIT": READY,
        **{verb: RCPT for verb in _SAME},
    },
}  # fmt: skip

VERBS: Final = frozenset(SERVER[START])

CLIENT: Final[dict[str, tuple[int, ...]]] = {
    "greeting": (2, 4, 5),
    "EHLO": (2, 4, 5),
    "HELO": (2, 4, 5),
    "STARTTLS": (2, 4, 5),
    "AUTH": (2, 3, 4, 5),
    "RSET": (2, 4, 5),
    "MAIL FROM": (2, 4, 5),
    "RCPT TO": (2, 4, 5),
    "DATA": (3, 4, 5),
    "final dot": (2, 4, 5),
    "lone dot": (2, 4, 5),
    "QUIT": (2, 4, 5),
}
"""Kind of reply -> first digits that answer it. The names are those used in records."""
