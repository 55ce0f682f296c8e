"""The client's side of an SMTP session, without sockets (RFC 5321, 1870, 2920, 3207, 4954).

Two cursors over one conversation: what was sent, and what has been answered (`_expected`, in
order). Pipelining is free to run ahead of the answers where RFC 2920 allows it: MAIL, RCPT and DATA
of a transaction leave together, and with `body(..., then=next)` the content, its final dot *and* the
next transaction's MAIL, RCPT and DATA do (RFC 2920 3.1). DATA ends a group: nothing is sent behind it
until it was answered.

Every violation by the peer raises RemoteProtocolError; the session is then unusable.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from engine import _fast
from engine.errors import LocalProtocolError, RemoteProtocolError

from .auth import decode_base64
from .capabilities import NONE, capabilities_from
from .compose import argument, commands, mail_line, obstacle, rcpt_line
from .events import (
    AuthChallenge,
    AuthDone,
    ClientEvent,
    Greeting,
    HelloDone,
    QuitDone,
    Rsetted,
    StartTlsReply,
    Unsolicited,
)
from .masking import Masker
from .reply import Reply, enhanced_text
from .sasl import ClientMechanism, SaslError
from .state import CLIENT
from .transaction import Finished, GoAhead, Transaction

__all__ = ["ClientSession"]

SASL_ROUNDS = 8
"""Challenges before we give up (reliability C43)."""

_LINE = 510
"""Octets of a command line without its CR LF. An initial response must not make AUTH longer; it then waits
for an empty challenge (RFC 4954 4, RFC 5321 4.5.3.1.4)."""

_CACHED_REPLIES = 64

_CLOSING = -2
"""Marks a RSET that ends a transaction of which nothing was accepted."""


class ClientSession:
    """See the module. One object per connection; `ehlo_domain` is what EHLO says."""

    __slots__ = (
        "_due",
        "_ehlo",
        "_expected",
        "_initial",
        "_left",
        "_mechanism",
        "_out",
        "_reader",
        "_replies",
        "_rounds",
        "_waiting",
        "answered",
        "capabilities",
        "closing",
        "mask",
        "pipelining",
        "tls",
    )

    def __init__(self, ehlo_domain: str, *, pipelining: bool = True) -> None:
        self._ehlo = argument(ehlo_domain)
        if b" " in self._ehlo or not self._ehlo:
            raise LocalProtocolError("the EHLO domain must be one word")
        self._reader = _fast.ReplyReader()
        self._expected: list[tuple[str, Transaction | None, int]] = [("greeting", None, 0)]
        self._due = 0
        """Where in `_expected` the reply stands that comes next; both begin anew when all are there."""
        self._out: list[bytes] = []
        self._waiting: list[ClientEvent] = []
        self._left: list[tuple[str, Transaction, int]] | None = None
        self._mechanism: ClientMechanism | None = None
        self._initial: bytes | None = None
        """An initial response that has not been sent yet."""
        self._rounds = 0
        self._replies: dict[tuple[int, int, bytes], Reply] | None = None
        self.capabilities = NONE
        self.pipelining = pipelining
        self.answered = 0
        """Replies so far; a deadline is for one reply, however many pieces it comes in (C3)."""
        self.mask: Masker | None = None
        """Takes secrets out of what the peer says, once there is one it could repeat (K4)."""
        self.closing = False
        """The peer said 421, or refused in the middle of a message: close when settled."""
        self.tls = False

    # -- octets ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Octets from the server. Drain `next_event` before giving more."""
        self._reader.feed(data)

    def data_to_send(self) -> list[bytes]:
        """What is to be sent now, in order; large bodies are passed through uncopied."""
        out = self._out
        if out:
            self._out = []
        return out

    @property
    def stage(self) -> str:
        """What is waited for: the name of the command whose answer is due."""
        return self._expected[self._due][0] if self._expected else "idle"

    @property
    def unasked(self) -> bool:
        """Whether octets are here that answer nothing: the session is out of step or over (C6)."""
        return not self._expected and bool(self._reader.pending())

    # -- what we say -----------------------------------------------------------------------------

    def _say(self, kind: str, line: bytes) -> None:
        self._out.append(line)
        self._expected.append((kind, None, 0))

    def _alone(self, what: str) -> None:
        """These commands end a group: nothing may be outstanding or already there (C6)."""
        if self._expected:
            raise LocalProtocolError(f"{what} while {self.stage} is unanswered")
        if self._reader.pending():
            raise RemoteProtocolError(f"octets nobody asked for before {what}")

    def hello(self) -> None:
        """EHLO; HELO follows by itself when a server does not know it."""
        self._alone("EHLO")
        self.capabilities = NONE
        self._say("EHLO", b"EHLO " + self._ehlo + b"\r\n")

    def starttls(self) -> None:
        """STARTTLS."""
        self._alone("STARTTLS")
        self._say("STARTTLS", b"STARTTLS\r\n")

    def tls_established(self) -> None:
        """The handshake is done: nothing learned before counts (RFC 3207 4.2)."""
        if self._reader.pending():
            raise RemoteProtocolError("octets behind the answer to STARTTLS")
        self.capabilities = NONE
        self.tls = True

    def auth(self, mechanism: ClientMechanism) -> None:
        """AUTH with the client half of a mechanism."""
        self._alone("AUTH")
        self._mechanism = mechanism
        self._rounds = 0
        initial = mechanism.initial()
        line = b"AUTH " + mechanism.name.encode()
        self._initial = None
        if initial is not None:
            self._hide(initial)
            argument = b" " + (base64.b64encode(initial) or b"=")
            if len(line) + len(argument) <= _LINE:
                line += argument
            else:
                self._initial = initial
        self._say("AUTH", line + b"\r\n")

    def rset(self) -> None:
        """RSET on its own."""
        self._alone("RSET")
        self._say("RSET", b"RSET\r\n")

    def quit(self) -> None:
        """QUIT."""
        self._say("QUIT", b"QUIT\r\n")

    def obstacle(self, tx: Transaction, check_8bit: bool = True) -> Reply | None:
        """Why the peer cannot take this message at all, or None. Ask before `mail`."""
        return obstacle(tx, self.capabilities, check_8bit)

    def mail(self, tx: Transaction) -> None:
        """Begin a transaction: [RSET] MAIL RCPT... DATA, as one group where that is allowed."""
        if self._expected:
            raise LocalProtocolError(f"MAIL while {self.stage} is unanswered")
        if self._reader.pending():
            raise RemoteProtocolError("octets nobody asked for before MAIL")
        if self.pipelining and self.capabilities.pipelining:
            self._out.append(commands(tx, self.capabilities))
            self._expect_group(tx)
            return
        steps: list[tuple[str, Transaction, int]] = []
        if tx.rset:
            steps.append(("RSET", tx, -1))
        steps.append(("MAIL FROM", tx, 0))
        for i in range(len(tx.recipients)):
            steps.append(("RCPT TO", tx, i))
        steps.append(("DATA", tx, 0))
        self._left = steps
        self._next_step()

    def body(self, tx: Transaction, parts: Sequence[bytes], then: Transaction | None = None) -> None:
        """The content, dots stuffed and ended by CR LF, after GoAhead; `then`: the next transaction,
        whose commands travel in the same write."""
        out = self._out
        out.extend(parts)
        self._expected.append(("final dot", tx, 0))
        if then is None:
            out.append(b".\r\n")
            return
        if not (self.pipelining and self.capabilities.pipelining):
            raise LocalProtocolError("pipelining across messages without PIPELINING")
        out.append(b".\r\n" + commands(then, self.capabilities))
        self._expect_group(then)

    def _expect_group(self, tx: Transaction) -> None:
        expected = self._expected
        if tx.rset:
            expected.append(("RSET", tx, -1))
        expected.append(("MAIL FROM", tx, 0))
        for i in range(len(tx.recipients)):
            expected.append(("RCPT TO", tx, i))
        expected.append(("DATA", tx, 0))

    def _next_step(self) -> None:
        """Without pipelining: the next command of the transaction, if it still makes sense."""
        steps = self._left
        if not steps:
            self._left = None
            return
        kind, tx, index = steps.pop(0)
        refused = kind in ("RCPT TO", "DATA") and tx.mail_reply is not None and not tx.mail_reply.is_positive
        if refused or (kind == "DATA" and not tx.accepted):
            self._left = None
            if tx.mail_reply is not None and tx.mail_reply.is_positive:
                # The transaction is open at the peer; the next one must find it closed.
                self._out.append(b"RSET\r\n")
                self._expected.append(("RSET", tx, _CLOSING))
                return
            self._waiting.append(Finished(tx))
            return
        if kind == "MAIL FROM":
            line = mail_line(tx, self.capabilities)
        elif kind == "RCPT TO":
            line = rcpt_line(tx.recipients[index])
        else:
            line = kind.encode() + b"\r\n"  # RSET, DATA
        self._out.append(line)
        self._expected.append((kind, tx, index))

    # -- what we hear ----------------------------------------------------------------------------

    def next_event(self) -> ClientEvent | None:
        """The next event; None when more octets are needed.

        Raises: RemoteProtocolError.
        """
        waiting = self._waiting
        if waiting:
            return waiting.pop(0)
        expected = self._expected
        while True:
            try:
                found = self._reader.next_reply()
            except ValueError as error:
                raise RemoteProtocolError(f"{error} ({self.stage})") from None
            if found is None:
                return None
            if not expected:
                reply = self._reply(found)
                self.closing = True
                return Unsolicited(reply)
            kind, tx, index = expected[self._due]
            self._due += 1
            if self._due == len(expected):
                expected.clear()
                self._due = 0
            self.answered += 1
            code = found[0]
            # 4yz and 5yz answer everything, 2yz all but DATA.
            if (code < 400 and (code >= 300 or kind == "DATA")) and code // 100 not in CLIENT[kind]:
                raise RemoteProtocolError(f"{code} is no answer to {kind}")
            if code < 400 and code >= 300 and kind == "AUTH":
                challenge = self._challenge(code, found[2])
                if challenge is not None:
                    return challenge
                continue
            reply = self._reply(found)
            if code == 421:
                self.closing = True
            event = self._answer(kind, tx, index, reply)
            if self.closing and tx is not None:
                self._end_all(tx)
                return waiting.pop(0) if waiting else None
            if event is not None:
                return event
            if waiting:
                return waiting.pop(0)

    def _reply(self, found: tuple[int, int, bytes]) -> Reply:
        """A Reply object; a peer says the same few things again and again."""
        cache = self._replies
        if cache is None:
            cache = self._replies = {}
        reply = cache.get(found)
        if reply is None:
            code, enhanced, text = found
            shown = text.decode("utf-8", "replace")
            if self.mask is not None:
                shown = self.mask(shown)
            reply = Reply(code, enhanced_text(enhanced), shown)
            if len(cache) < _CACHED_REPLIES and len(text) < 200:
                cache[found] = reply
        return reply

    def _answer(self, kind: str, tx: Transaction | None, index: int, reply: Reply) -> ClientEvent | None:
        if tx is None:
            return self._session_answer(kind, reply)
        if kind == "final dot":
            tx.dot_reply = reply
            return Finished(tx)
        if kind == "MAIL FROM":
            tx.mail_reply = reply
        elif kind == "RCPT TO":
            tx.rcpt_replies[index] = reply
            if 200 <= reply.code <= 299:
                tx.accepted += 1
            elif reply.code in (452, 552) and tx.accepted:
                tx.surplus = (*tx.surplus, index)
        elif kind == "DATA":
            return self._data_answer(tx, reply)
        elif kind == "lone dot":
            return Finished(tx)
        elif not reply.is_positive and reply.code != 421:
            # RSET, and a transaction may still be open at the peer: what comes now would join it.
            raise RemoteProtocolError(f"RSET refused: {reply.line}")
        elif index == _CLOSING:
            return Finished(tx)
        if self._left is not None:
            self._next_step()
        return None

    def _data_answer(self, tx: Transaction, reply: Reply) -> ClientEvent | None:
        if reply.code // 100 == 3 and reply.code != 354:
            raise RemoteProtocolError(f"{reply.code} is no answer to DATA")
        mail = tx.mail_reply
        wanted = tx.accepted and mail is not None and mail.is_positive
        if reply.code != 354:
            if wanted:
                tx.data_reply = reply
            return Finished(tx)
        if self._reader.pending():
            # DATA ends a group. A reply that is here before the message is cannot be about it (C6).
            raise RemoteProtocolError("octets nobody asked for behind the answer to DATA")
        if wanted:
            tx.data_reply = reply
            return GoAhead(tx)
        if tx.accepted:
            # MAIL was refused and a recipient accepted: whose message would this be?
            raise RemoteProtocolError("354 to DATA for a transaction whose MAIL was refused")
        # 354 although nobody was accepted: end the empty message; whatever is said to it, nothing
        # was delivered (reliability C11).
        self._out.append(b".\r\n")
        self._expected.append(("lone dot", tx, 0))
        return None

    def _end_all(self, tx: Transaction) -> None:
        """421: everything that is still expected will not come. Each transaction ends with what it
        has, in order."""
        ended: list[Transaction] = []
        for one in (tx, *[other for _, other, _ in self._expected[self._due :]]):
            if one is not None and one not in ended:
                ended.append(one)
        self._expected.clear()
        self._due = 0
        self._left = None
        self._waiting.extend([Finished(one) for one in ended])

    def _session_answer(self, kind: str, reply: Reply) -> ClientEvent | None:
        if kind == "greeting":
            return Greeting(reply)
        if kind in ("EHLO", "HELO"):
            return self._hello_answer(kind, reply)
        if kind == "STARTTLS":
            if reply.code == 220 and self._reader.pending():
                raise RemoteProtocolError("octets behind the answer to STARTTLS")
            return StartTlsReply(reply)
        if kind == "AUTH":
            return self._auth_answer(reply)
        return QuitDone(reply) if kind == "QUIT" else Rsetted(reply)

    def _hello_answer(self, kind: str, reply: Reply) -> HelloDone | None:
        if reply.is_positive:
            if kind == "EHLO":
                self.capabilities = capabilities_from(reply.text)
            return HelloDone(reply, True)
        if kind == "EHLO" and reply.code in (500, 501, 502, 504, 550, 554):
            self._say("HELO", b"HELO " + self._ehlo + b"\r\n")
            return None
        return HelloDone(reply, False)

    def _challenge(self, code: int, text: bytes) -> AuthChallenge | None:
        """A challenge, as it came: a mask is for what is shown, and could hit base64 by chance."""
        mechanism = self._mechanism
        assert mechanism is not None
        self._rounds += 1
        if code != 334:
            raise RemoteProtocolError(f"{code} to AUTH")
        if self._reader.pending():
            # A success that stands behind the challenge came before our response did (C6, C43).
            raise RemoteProtocolError("octets nobody asked for behind an AUTH challenge")
        try:
            challenge = decode_base64(text.strip()) if text.strip() else b""
        except SaslError:
            raise RemoteProtocolError("an AUTH challenge that is not base64") from None
        if self._rounds > SASL_ROUNDS:
            raise RemoteProtocolError("AUTH does not come to an end")
        if self._initial is not None:
            # It asks for what did not fit into the command, whatever it says besides.
            initial, self._initial = self._initial, None
            self.auth_response(initial)
            return None
        if mechanism.slow:
            return AuthChallenge(challenge)
        self.auth_response(mechanism.respond(challenge))
        return None

    def auth_response(self, response: bytes | None) -> None:
        """The mechanism's answer to an AuthChallenge; None gives up."""
        if response is None:
            self._rounds = SASL_ROUNDS  # one cancellation; whatever is no refusal then ends it
            self._say("AUTH", b"*\r\n")
        else:
            self._hide(response)
            # "=" stands for nothing in an initial response only (RFC 4954 4).
            self._say("AUTH", base64.b64encode(response) + b"\r\n")

    def _hide(self, response: bytes) -> None:
        """A peer that repeats a secret, or the proof of one, must not get it into a record."""
        if self.mask is not None and self._mechanism is not None and self._mechanism.exposed:
            self.mask.add(response)

    def _auth_answer(self, reply: Reply) -> AuthDone | None:
        mechanism = self._mechanism
        assert mechanism is not None
        self._mechanism = None
        why = mechanism.failure
        if why and self.mask is not None:
            why = self.mask(why)
        unsaid = self._initial is not None
        if reply.is_positive and (reply.code != 235 or unsaid or not mechanism.finished):
            raise RemoteProtocolError(f"{reply.code} to AUTH before it was finished" + (why and f": {why}"))
        return AuthDone(reply, reply.is_positive, why, mechanism.exposed and not unsaid)

    def hear_early(self, data: bytes) -> None:
        """Octets that came before the message was complete. A refusal ends the transaction with it
        (reliability C13): its Finished is the next event.

        Raises: RemoteProtocolError for anything else; it must never pass for the answer to the dot.
        """
        self._reader.feed(data)
        try:
            found = self._reader.next_reply()
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from None
        if found is None:
            raise RemoteProtocolError("part of a reply before the message was complete")
        reply = self._reply(found)
        if not self._expected or reply.code < 400:
            raise RemoteProtocolError(f"{reply.code} before the message was complete")
        tx = self._expected[self._due][1]
        assert tx is not None
        tx.dot_reply = reply
        self.closing = True
        self._end_all(tx)
