"""What a failure means: the one place where that is decided. Pure.

The protocol code and the drivers report facts: replies, errors, how far a conversation had come.
Here a fact becomes an `Outcome` for one recipient:

===========  =====================================================================
delivered    the peer took responsibility: a 2xx to the final dot
transient    try again by the retry schedule; an attempt is counted
permanent    give up and tell: a 5xx that applies to this recipient
held         something of ours or of the path is in the way; no attempt is counted
uncertain    the final dot was sent and no reply came: perhaps delivered. Retried by
             the ordinary schedule, counted, and said so (RFC 1047, reliability D33)
untried      the conversation ended before this recipient was tried at all
===========  =====================================================================

Unknown means transient: mail is lost by being certain too early. One recipient's refusal never
changes another's outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from engine.smtp import Reply, Transaction
from policy.shaping.rules import INTERNAL

__all__ = [
    "INTERNAL",
    "Outcome",
    "Verdict",
    "broken",
    "expired",
    "finished",
    "grouped",
    "internal",
    "out_of_step",
    "refused_at",
]

Verdict = Literal["delivered", "transient", "permanent", "held", "uncertain", "untried"]

_AUTH_CODES = frozenset((530, 534, 535, 538))
"""The peer wants (other) credentials. A fault of the configuration, not of the mail."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one recipient, and the reply that says so."""

    verdict: Verdict
    reply: Reply
    command: str = ""
    """The command the reply answers (for records), without secrets."""
    by_rule: bool = False
    """A rule on replies decided it; rules do not look at it again."""


def internal(code: int, enhanced: str, text: str) -> Reply:
    """A reply of our own making, marked so."""
    return Reply(code, enhanced, INTERNAL + text)


def expired(text: str) -> Reply:
    """The reply recorded when a message is given up because of its age (551 5.4.7)."""
    return internal(551, "5.4.7", text)


def refused_at(command: str, reply: Reply) -> Outcome:
    """The outcome of a refusal (or an unexpected reply) to MAIL, RCPT, DATA or the final dot."""
    code = reply.code
    if 500 <= code <= 599:
        if code == 503:
            # "Bad sequence": we and the peer disagree on the conversation; not the mail's fault.
            return Outcome("transient", reply, command)
        if code == 552 and command.startswith("RCPT"):
            # RFC 5321 4.5.3.1.10: to be read as 452, "too many recipients".
            return Outcome("transient", reply, command)
        if code in _AUTH_CODES:
            return Outcome("transient", reply, command)
        return Outcome("permanent", reply, command)
    return Outcome("transient", reply, command)


def grouped(indices: Sequence[int], results: Sequence[Outcome]) -> list[tuple[Outcome, list[int]]]:
    """Which recipients have the very same outcome, in the order of the first of each.

    Raises: ValueError: there are not as many results as recipients.
    """
    if len(indices) == 1 and len(results) == 1:
        return [(results[0], [indices[0]])]
    groups: dict[int, tuple[Outcome, list[int]]] = {}
    for index, result in zip(indices, results, strict=True):
        found = groups.get(id(result))
        if found is None:
            groups[id(result)] = (result, [index])
        else:
            found[1].append(index)
    return list(groups.values())


def finished(tx: Transaction, lost: Reply, dot_sent: bool) -> list[Outcome]:
    """The outcome of each recipient of one transaction, complete or broken off.

    `lost`: the internal reply that says how the conversation broke off; used where the peer's
    answer is missing. `dot_sent`: whether the final dot was handed to the kernel.
    """
    recipients, rcpt_replies = tx.recipients, tx.rcpt_replies
    mail_reply, data_reply, dot_reply = tx.mail_reply, tx.data_reply, tx.dot_reply
    if mail_reply is None:
        return [Outcome("transient", lost, "MAIL FROM")] * len(recipients)
    if not mail_reply.is_positive:
        return [refused_at(f"MAIL FROM:<{tx.sender}>", mail_reply)] * len(recipients)
    accepted: Outcome
    if data_reply is None:
        accepted = Outcome("transient", lost, "DATA")
    elif not data_reply.is_intermediate:
        accepted = refused_at("DATA", data_reply)
    elif dot_reply is None:
        accepted = Outcome("uncertain" if dot_sent else "transient", lost, "." if dot_sent else "DATA")
    elif dot_reply.is_positive:
        accepted = Outcome("delivered", dot_reply, ".")
    else:
        accepted = refused_at(".", dot_reply)
    if len(recipients) == 1:
        reply = rcpt_replies[0]
        if reply is not None and reply.is_positive:
            return [accepted]
    outcomes: list[Outcome] = []
    for recipient, reply in zip(recipients, rcpt_replies, strict=True):
        command = f"RCPT TO:<{recipient}>"
        if reply is None:
            outcomes.append(Outcome("transient", lost, command))
        elif reply.is_positive:
            outcomes.append(accepted)
        else:
            outcomes.append(refused_at(command, reply))
    return outcomes


def out_of_step(tx: Transaction, lost: Reply, *, dot_sent: bool) -> list[Outcome]:
    """Each recipient's outcome when the peer broke the protocol or left a command unanswered.

    Then nobody knows which reply answered what: a reply too few or too many makes the next
    recipient's refusal this one's. So no refusal is believed, and all are tried again.
    """
    verdict: Verdict = "uncertain" if dot_sent and tx.dot_reply is None else "transient"
    return [Outcome(verdict, lost, "." if dot_sent else "")] * len(tx.recipients)


def broken(stage: str, text: str, *, timeout: bool, dot_sent: bool) -> Reply:
    """The internal reply for a conversation that broke off at `stage`."""
    code, enhanced = (421, "4.4.2") if timeout else (451, "4.4.2")
    if dot_sent:
        text += "; the message was sent completely and may be delivered twice"
    return internal(code, enhanced, f"{text} ({stage})" if stage else text)
