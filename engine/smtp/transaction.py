"""One message in a client session, and the two events that come for every one of them."""

from __future__ import annotations

from .reply import Reply

__all__ = ["Finished", "GoAhead", "Transaction"]


class Transaction:
    """One transaction of a client session: what to send, and what was answered.

    `size`: octets, 0 when it is not to be declared. `rset`: an RSET goes before MAIL.
    `rcpt_replies`: one for each recipient, None until it is there. `accepted`: recipients accepted so far.
    `surplus`: indices of recipients answered "too many" after others had been accepted; they
    belong in another transaction (RFC 5321 4.5.3.1.10).
    """

    __slots__ = (
        "accepted",
        "body_8bit",
        "data_reply",
        "dot_reply",
        "mail_reply",
        "rcpt_replies",
        "recipients",
        "rset",
        "sender",
        "size",
        "smtputf8",
        "surplus",
    )

    def __init__(
        self,
        sender: str,
        recipients: list[str],
        body_8bit: bool = False,
        smtputf8: bool = False,
        size: int = 0,
        rset: bool = False,
        *,
        mail_reply: Reply | None = None,
        rcpt_replies: list[Reply | None] | None = None,
        data_reply: Reply | None = None,
        dot_reply: Reply | None = None,
    ) -> None:
        self.sender = sender
        self.recipients = recipients
        self.body_8bit = body_8bit
        self.smtputf8 = smtputf8
        self.size = size
        self.rset = rset
        self.mail_reply = mail_reply
        self.rcpt_replies: list[Reply | None] = (
            [None] * len(recipients) if rcpt_replies is None else rcpt_replies
        )
        self.data_reply = data_reply
        self.dot_reply = dot_reply
        self.surplus: tuple[int, ...] = ()
        self.accepted = 0


class GoAhead:
    """DATA was answered 354 and at least one recipient is accepted: give the body."""

    __slots__ = ("tx",)

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx


class Finished:
    """Nothing more will be answered for this transaction."""

    __slots__ = ("tx",)

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
