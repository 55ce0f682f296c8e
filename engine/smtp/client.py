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
from .reply import Reply
from .sasl import ClientMechanism, SaslError
from .state import CLIENT
from .transaction import Finished, GoAhead, Transaction

__all__ = ["ClientSession"]

SASL_ROUNDS = 8
"""Challenges before we give up (reliability C43)."""

_LINE = 510
"""Octets of a command line without its CR LF. An initial response must not make AUTH longer; it then waits
for an empty challenge (RFC 4954 4, RFC 5321 4.5.3.1.4)."""

_SHORT = 200
"""Octets of text from which on a reply is not kept to be compared with the next."""

# Kinds of reply as numbers, which compare faster than their names, in the order of `CLIENT`.
_NAMES = tuple(CLIENT)
_DIGITS = tuple(CLIENT.values())
_GREETING = _NAMES.index("greeting")
_EHLO = _NAMES.index("EHLO")
_HELO = _NAMES.index("HELO")
_STARTTLS = _NAMES.index("STARTTLS")
_AUTH = _NAMES.index("AUTH")
_RSET = _NAMES.index("RSET")
_MAIL = _NAMES.index("MAIL FROM")
_RCPT = _NAMES.index("RCPT TO")
_DATA = _NAMES.index("DATA")
_DOT = _NAMES.index("final dot")
_LONE_DOT = _NAMES.index("lone dot")
_QUIT = _NAMES.index("QUIT")

_CLOSING = -2
"""Marks a RSET that ends a transaction of which nothing was accepted."""


class ClientSession:
    """See the module. One object per connection; `ehlo_domain` is what EHLO says."""

    __slots__ = (
        "_due",
        "_ehlo",
        "_expected",
        "_found",
        "_heard",
        "_initial",
        "_left",
        "_mechanism",
        "_out",
        "_reader",
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
        self._expected: list[tuple[int, Transaction | None, int]] = [(_GREETING, None, 0)]
        self._due = 0
        """Where in `_expected` the reply stands that comes next; both begin anew when all are there."""
        self._out: list[bytes] = []
        self._waiting: list[ClientEvent] = []
        self._left: list[tuple[int, Transaction, int]] | None = None
        self._mechanism: ClientMechanism | None = None
        self._initial: bytes | None = None
        """An initial response that has not been sent yet."""
        self._rounds = 0
        self._found: list[tuple[int, int, bytes] | None] = [None] * len(_NAMES)
        self._heard: list[Reply | None] = [None] * len(_NAMES)
        """The latest short reply of each kind in a transaction, as it was read and as it is told: a peer
        says the same few things again and again."""
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
        return _NAMES[self._expected[self._due][0]] if self._expected else "idle"

    @property
    def unasked(self) -> bool:
        """Whether octets are here that answer nothing: the session is out of step or over (C6)."""
        return not self._expected and bool(self._reader.pending())

    # -- what we say -----------------------------------------------------------------------------

    def _say(self, kind: int, line: bytes) -> None:
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
        self._say(_EHLO, b"EHLO " + self._ehlo + b"\r\n")

    def starttls(self) -> None:
        """STARTTLS."""
        self._alone("STARTTLS")
        self._say(_STARTTLS, b"STARTTLS\r\n")

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
        self._say(_AUTH, line + b"\r\n")

    def rset(self) -> None:
        """RSET on its own."""
        self._alone("RSET")
        self._say(_RSET, b"RSET\r\n")

    def quit(self) -> None:
        """QUIT."""
        self._say(_QUIT, b"QUIT\r\n")

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
        steps: list[tuple[int, Transaction, int]] = []
        if tx.rset:
            steps.append((_RSET, tx, -1))
        steps.append((_MAIL, tx, 0))
        for i in range(len(tx.recipients)):
            steps.append((_RCPT, tx, i))
        steps.append((_DATA, tx, 0))
        self._left = steps
        self._next_step()

    def body(self, tx: Transaction, parts: Sequence[bytes], then: Transaction | None = None) -> None:
        """The content, dots stuffed and ended by CR LF, after GoAhead; `then`: the next transaction,
        whose commands travel in the same write."""
        out = self._out
        out.extend(parts)
        self._expected.append((_DOT, tx, 0))
        if then is None:
            out.append(b".\r\n")
            return
        if not (self.pipelining and self.capabilities.pipelining):
            raise LocalProtocolError("pipelining across messages without PIPELINING")
        out.append(commands(then, self.capabilities, True))
        self._expect_group(then)

    def _expect_group(self, tx: Transaction) -> None:
        expected = self._expected
        if tx.rset:
            expected.append((_RSET, tx, -1))
        expected.append((_MAIL, tx, 0))
        for i in range(len(tx.recipients)):
            expected.append((_RCPT, tx, i))
        expected.append((_DATA, tx, 0))

    def _next_step(self) -> None:
        """Without pipelining: the next command of the transaction, if it still makes sense."""
        steps = self._left
        if not steps:
            self._left = None
            return
        kind, tx, index = steps.pop(0)
        refused = kind in (_RCPT, _DATA) and tx.mail_reply is not None and not tx.mail_reply.is_positive
        if refused or (kind == _DATA and not tx.accepted):
            self._left = None
            if tx.mail_reply is not None and tx.mail_reply.is_positive:
                # The transaction is open at the peer; the next one must find it closed.
                self._out.append(b"RSET\r\n")
                self._expected.append((_RSET, tx, _CLOSING))
                return
            self._waiting.append(Finished(tx))
            return
        if kind == _MAIL:
            line = mail_line(tx, self.capabilities)
        elif kind == _RCPT:
            line = rcpt_line(tx.recipients[index])
        else:
            line = b"DATA\r\n" if kind == _DATA else b"RSET\r\n"
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
        tx: Transaction | None = None
        kind, index = _GREETING, 0
        while True:
            if expected:
                kind, tx, index = expected[self._due]
            before = self._found[kind]
            try:
                found = self._reader.next_reply(before)
            except ValueError as error:
                raise RemoteProtocolError(f"{error} ({self.stage})") from None
            if found is None:
                return None
            if not expected:
                self.closing = True
                return Unsolicited(self._reply(found))
            self._due += 1
            if self._due == len(expected):
                expected.clear()
                self._due = 0
            self.answered += 1
            code = found[0]
            # 4yz and 5yz answer everything, 2yz all but DATA.
            if (code < 400 and (code >= 300 or kind == _DATA)) and code // 100 not in _DIGITS[kind]:
                raise RemoteProtocolError(f"{code} is no answer to {_NAMES[kind]}")
            if code < 400 and code >= 300 and kind == _AUTH:
                challenge = self._challenge(code, found[2])
                if challenge is not None:
                    return challenge
                continue
            reply = self._heard[kind]
            if reply is None or found is not before:
                reply = self._reply(found)
                if tx is not None and len(found[2]) < _SHORT:
                    self._found[kind], self._heard[kind] = found, reply
            if code == 421:
                self.closing = True
            event = self._answer(kind, tx, index, reply, code)
            if self.closing and tx is not None:
                self._end_all(tx)
                return waiting.pop(0) if waiting else None
            if event is not None:
                return event
            if waiting:
                return waiting.pop(0)

    def _reply(self, found: tuple[int, int, bytes]) -> Reply:
        """What was read, as it is told."""
        code, enhanced, text = found
        shown = text.decode("utf-8", "replace")
        if self.mask is not None:
            shown = self.mask(shown)
        return Reply(code, _enhanced_text(enhanced), shown)

    def _answer(
        self, kind: int, tx: Transaction | None, index: int, reply: Reply, code: int
    ) -> ClientEvent | None:
        if tx is None:
            return self._session_answer(kind, reply)
        if kind == _DOT:
            tx.dot_reply = reply
            return Finished(tx)
        if kind == _MAIL:
            tx.mail_reply = reply
        elif kind == _RCPT:
            tx.rcpt_replies[index] = reply
            if code <= 299:
                tx.accepted += 1
            elif code in (452, 552) and tx.accepted:
                tx.surplus = (*tx.surplus, index)
        elif kind == _DATA:
            return self._data_answer(tx, reply, code)
        elif kind == _LONE_DOT:
            return Finished(tx)
        elif code > 299 and code != 421:
            # RSET, and a transaction may still be open at the peer: what comes now would join it.
            raise RemoteProtocolError(f"RSET refused: {reply.line}")
        elif index == _CLOSING:
            return Finished(tx)
        if self._left is not None:
            self._next_step()
        return None

    def _data_answer(self, tx: Transaction, reply: Reply, code: int) -> ClientEvent | None:
        if code < 400 and code != 354:
            raise RemoteProtocolError(f"{code} is no answer to DATA")
        mail = tx.mail_reply
        wanted = tx.accepted > 0 and mail is not None and 200 <= mail.code <= 299
        if code != 354:
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
        self._expected.append((_LONE_DOT, tx, 0))
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

    def _session_answer(self, kind: int, reply: Reply) -> ClientEvent | None:
        if kind == _GREETING:
            return Greeting(reply)
        if kind in (_EHLO, _HELO):
            return self._hello_answer(kind, reply)
        if kind == _STARTTLS:
            if reply.code == 220 and self._reader.pending():
                raise RemoteProtocolError("octets behind the answer to STARTTLS")
            return StartTlsReply(reply)
        if kind == _AUTH:
            return self._auth_answer(reply)
        return QuitDone(reply) if kind == _QUIT else Rsetted(reply)

    def _hello_answer(self, kind: int, reply: Reply) -> HelloDone | None:
        if reply.is_positive:
            if kind == _EHLO:
                self.capabilities = capabilities_from(reply.text)
            return HelloDone(reply, True)
        if kind == _EHLO and reply.code in (500, 501, 502, 504, 550, 554):
            self._say(_HELO, b"HELO " + self._ehlo + b"\r\n")
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
            self._say(_AUTH, b"*\r\n")
        else:
            self._hide(response)
            # "=" stands for nothing in an initial response only (RFC 4954 4).
            self._say(_AUTH, base64.b64encode(response) + b"\r\n")

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


def _enhanced_text(packed: int) -> str:
    """The text of an enhanced code packed as class * 1,000,000 + subject * 1,000 + detail."""
    if not packed:
        return ""
    return f"{packed // 1_000_000}.{packed // 1000 % 1000}.{packed % 1000}"
