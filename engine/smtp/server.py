"""The server's side of an SMTP session, without sockets (RFC 5321, 1870, 2920, 3207, 4954, 6152, 6531).

Feed it octets, ask for events, answer each event that needs a decision with `accept` or `refuse`,
send what `data_to_send` gives. Replies collect until they are fetched, so a pipelined group is
answered by one write. Everything that needs no decision (syntax, order, limits, RSET, NOOP, VRFY)
is answered inside and shows up in `take_refusals` when it was a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine import _fast
from engine.errors import LocalProtocolError
from policy.scramkeys import ScramKeys

from . import words
from .address import Address, AddressError
from .command import ParameterError, parse_hello, parse_mail, parse_rcpt, shown
from .content import TOO_BIG, content_fault, repaired_fault
from .events import (
    Auth,
    AuthLookup,
    BodyReceived,
    Data,
    Hello,
    Mail,
    Rcpt,
    Refusal,
    ServerEvent,
    StartTls,
)
from .exchange import ServerExchange, Turn, binding_for, usable
from .reply import Reply
from .sasl import Binding, Context, Known
from .serverconfig import ServerConfig
from .state import DATA, MAIL, RCPT, READY, SASL, SERVER, START, TLS

__all__ = ["ServerSession"]

COMMAND_LIMIT = 2048
AUTH_LIMIT = 12288
"""Octets of a line with its CR LF (reliability S20; RFC 4954 4)."""

_NULL_EVENT_DATA = Data()


class ServerSession:
    """See the module. One object per connection."""

    __slots__ = (
        "_abandoned",
        "_awaiting",
        "_config",
        "_content",
        "_errors",
        "_exchange",
        "_line",
        "_noops",
        "_out",
        "_reader",
        "_ready",
        "_refusals",
        "_state",
        "_surplus",
        "binding",
        "closing",
        "ehlo_domain",
        "esmtp",
        "forward_paths",
        "identity",
        "reverse_path",
        "smtputf8",
        "tls",
    )

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        # An initial response makes the AUTH line itself as long as the lines behind it may be.
        self._reader = _fast.CommandReader(AUTH_LIMIT if config.offer_auth else COMMAND_LIMIT)
        self._state = START
        self._out: list[bytes] = []
        self._awaiting: ServerEvent | None = None
        self._content: _fast.DataReader | None = None
        self._abandoned: Reply | None = None
        self._line = b""
        self._exchange: ServerExchange | None = None
        self._ready: ServerEvent | None = None
        self._errors = 0
        self._noops = 0
        self._refusals: list[Refusal] = []
        self.closing = False
        """Send what is pending, then close."""
        self.tls = False
        self.binding: Binding | None = None
        """What mechanisms with channel binding are tied to, once there is TLS."""
        self._forget()

    def _forget(self) -> None:
        """What TLS makes forgotten (reliability S9)."""
        self.ehlo_domain = ""
        self.esmtp = False
        self.identity: str | None = None
        self._end_transaction()

    def _end_transaction(self) -> None:
        self.reverse_path: Address | None = None
        self.forward_paths: list[Address] = []
        self._surplus = 0
        self.smtputf8 = False

    # -- octets ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Octets from the client. Drain `next_event` before giving more."""
        content = self._content
        if content is None or content.done:
            self._reader.feed(data)
            return
        used = content.feed(data)
        if used < len(data):
            self._reader.feed(data[used:])

    def data_to_send(self) -> bytes:
        """What is to be sent now; b"" when nothing is."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    @property
    def pending(self) -> int:
        """Octets received and not yet looked at (what the client sent ahead)."""
        return self._reader.pending()

    @property
    def in_data(self) -> bool:
        """Whether message content is being received."""
        return self._content is not None

    @property
    def abandoned(self) -> bool:
        """Whether the content that is being received will be refused in any case; see `abandon`."""
        return self._abandoned is not None

    @property
    def extensions(self) -> list[str]:
        """What EHLO advertises now."""
        return self._config.extensions(tls=self.tls, mechanisms=self._mechanisms())

    def _mechanisms(self) -> list[str]:
        return usable(self._config.offer_auth, self.binding, chance=self._config.nonce is not None)

    # -- events ----------------------------------------------------------------------------------

    def next_event(self) -> ServerEvent | None:
        """The next event; None when more octets are needed or the session is over."""
        if self._awaiting is not None:
            raise LocalProtocolError(f"{type(self._awaiting).__name__} has not been answered")
        if self._ready is not None:
            self._awaiting, self._ready = self._ready, None
            return self._awaiting
        while not self.closing:
            content = self._content
            if content is not None:
                if not content.done:
                    return None
                event: ServerEvent | None = self._end_of_data(content)
            else:
                line = self._reader.next_line()
                if line is None or self._state == TLS:
                    return None
                if isinstance(line, bytes):
                    event = self._sasl_line(line) if self._state == SASL else self._command(line)
                else:
                    self._bad_line(line)
                    continue
            if event is not None:
                self._awaiting = event
                return event
        return None

    def _bad_line(self, which: int) -> None:
        self._line = b""
        if self._state == SASL:
            self._end_sasl()
            code = 500 if which == _fast.LINE_TOO_LONG else 501
            self._error(Reply(code, f"{code // 100}.5.2", "Authentication response not understood"))
        else:
            self._error(words.BAD_LINES[which])

    def _command(self, line: bytes) -> ServerEvent | None:
        self._line = line
        verb, rest = _fast.parse_command(line)
        if len(line) > COMMAND_LIMIT - 2 and verb != b"AUTH":
            self._line = b""
            self._error(words.TOO_LONG)
            return None
        step = SERVER[self._state].get(verb)
        if type(step) is Reply:
            self._error(step)
            return None
        if verb == b"MAIL":
            return self._mail(rest)
        if verb == b"RCPT":
            return self._rcpt(rest)
        if verb == b"DATA":
            if rest:
                self._error(Reply(501, "5.5.4", "DATA takes no argument"))
                return None
            return _NULL_EVENT_DATA
        if step is None:
            self._error(words.UNKNOWN)
            return None
        return self._seldom(verb, rest)

    def _mail(self, rest: bytes) -> Mail | None:
        config = self._config
        try:
            event = parse_mail(rest, auth_offered=bool(config.offer_auth))
        except (AddressError, ParameterError) as error:
            self._error(error.reply)
            return None
        if event.size > config.max_message_size:
            self._error(TOO_BIG)
            return None
        return event

    def _rcpt(self, rest: bytes) -> Rcpt | None:
        most = self._config.max_recipients
        if len(self.forward_paths) >= most and rest[:3].upper() == b"TO:":
            self._surplus += 1
            if self._surplus > most:
                self._error(words.TOO_MANY)  # no client needs as many again to understand
            else:
                self._refuse(words.TOO_MANY)
            return None
        try:
            return parse_rcpt(rest, smtputf8=self.smtputf8)
        except (AddressError, ParameterError) as error:
            self._error(error.reply)
            return None

    def _seldom(self, verb: bytes, rest: bytes) -> ServerEvent | None:
        if verb in (b"EHLO", b"HELO"):
            if self.ehlo_domain:
                self._idle()
                if self.closing:
                    return None  # it was one too many: nothing follows the 421
            return self._hello(verb == b"EHLO", rest)
        if verb == b"QUIT":
            if rest:
                self._error(Reply(501, "5.5.4", "QUIT takes no argument"))
                return None
            self._out.append(words.BYE.encode())
            self.closing = True
            return None
        if verb == b"STARTTLS":
            return self._starttls(rest)
        if verb == b"AUTH":
            return self._auth(rest)
        if verb == b"RSET":
            if rest:
                self._error(Reply(501, "5.5.4", "RSET takes no argument"))
                return None
            self._state = READY if self._state != START else START
            self._end_transaction()
            self._out.append(b"250 2.0.0 OK\r\n")
        elif verb == b"NOOP":
            self._out.append(b"250 2.0.0 OK\r\n")
        elif verb == b"VRFY":
            self._out.append(b"252 2.1.5 Cannot verify, but will take the message\r\n")
        elif verb == b"EXPN":
            self._refuse(Reply(502, "5.5.1", "Not implemented"))
        else:
            self._out.append(b"214 2.0.0 RFC 5321\r\n")
        self._idle()
        return None

    def _hello(self, esmtp: bool, rest: bytes) -> Hello | None:
        try:
            return parse_hello(rest, esmtp=esmtp)
        except ParameterError as error:
            self._error(error.reply)
            return None

    def _starttls(self, rest: bytes) -> StartTls | None:
        if rest:
            self._error(Reply(501, "5.5.4", "STARTTLS takes no argument"))
        elif self.tls:
            self._error(Reply(503, "5.5.1", "TLS is active already"))
        elif not self._config.offer_starttls:
            self._error(Reply(502, "5.5.1", "STARTTLS is not offered"))
        else:
            return StartTls()
        return None

    def _auth(self, rest: bytes) -> Auth | AuthLookup | None:
        config = self._config
        if not config.offer_auth:
            self._error(Reply(502, "5.5.1", "AUTH is not offered"))
            return None
        if self.identity is not None:
            self._error(Reply(503, "5.5.1", "Authenticated already"))
            return None
        if config.require_tls_for_auth and not self.tls:
            # The response that may stand in this line is not even decoded (reliability S52).
            self._error(Reply(538, "5.7.11", "Encryption required for authentication"))
            return None
        word, _, rest = rest.partition(b" ")
        name = word.decode("ascii", "replace").upper()
        offered = self._mechanisms()
        if name not in offered:
            self._error(Reply(504, "5.5.4", "Authentication mechanism not offered"))
            return None
        nonce = config.nonce() if config.nonce is not None else ""
        self._exchange = exchange = ServerExchange(
            name, Context(nonce=nonce, binding=binding_for(offered, self.binding), host=config.hostname)
        )
        self._state = SASL
        return self._sasl(exchange.begin(rest))

    def _sasl_line(self, line: bytes) -> Auth | AuthLookup | None:
        self._line = b"AUTH (response)"
        assert self._exchange is not None
        return self._sasl(self._exchange.line(line))

    def _sasl(self, turn: Turn) -> Auth | AuthLookup | None:
        if type(turn) is bytes:
            self._out.append(turn)
            return None
        if type(turn) is AuthLookup:
            return turn
        exchange = self._exchange
        self._end_sasl()
        if type(turn) is Reply:
            self._error(turn)
            return None
        assert type(turn) is Auth
        self._exchange = exchange  # until the verdict
        return turn

    def known(self, known: Known, unknown: ScramKeys) -> None:
        """What is stored for the name of the AuthLookup at hand; see `sasl.ServerMechanism.known`."""
        if type(self._awaiting) is not AuthLookup or self._exchange is None:
            raise LocalProtocolError("nobody asked what is stored")
        self._awaiting = None
        event = self._sasl(self._exchange.known(known, unknown))
        if event is not None:
            self._ready = event

    def _end_sasl(self) -> None:
        self._exchange = None
        self._state = READY

    def _end_of_data(self, content: _fast.DataReader) -> BodyReceived | None:
        self._content = None
        self._line = b"DATA"
        config = self._config
        if self._abandoned is not None:
            fault: Reply | None = self._abandoned
            self._abandoned = None
        else:
            fault = content_fault(content, config.text_line_limit, bare_lines=config.bare_lines)
        data = content.take()
        header_end = content.header_end
        if fault is None and (content.bare_cr or content.bare_lf):
            data = _fast.clean_lines(data)
            header_end = _fast.scan(data)[2]
            fault = repaired_fault(data, header_end, config.max_message_size)
        if fault is not None:
            self._refuse(fault)
            self._state = READY
            self._end_transaction()
            return None
        return BodyReceived(data, content.eight_bit, header_end)

    # -- answers ---------------------------------------------------------------------------------

    def greet(self, reply: Reply | None = None, *, cause: str | None = None) -> None:
        """The first words. With a refusal the session is over; `cause` as with `refuse`."""
        if reply is None:
            self._out.append(f"220 {self._config.hostname} {self._config.banner}\r\n".encode())
            return
        self._refuse(reply, cause=cause)
        self.closing = True

    def accept(self, reply: Reply | None = None, extensions: Sequence[str] | None = None) -> None:
        """A positive answer to the event at hand; without `reply` the usual words.

        `extensions`: what EHLO advertises instead of the usual list.
        """
        event = self._awaiting
        self._awaiting = None
        kind = type(event)
        out = self._out
        if kind is Mail:
            assert isinstance(event, Mail)
            self.reverse_path = event.address
            self.smtputf8 = event.smtputf8
            self._state = MAIL
            out.append(words.OK_MAIL if reply is None else reply.encode())
        elif kind is Rcpt:
            assert isinstance(event, Rcpt)
            self.forward_paths.append(event.address)
            self._state = RCPT
            out.append(words.OK_RCPT if reply is None else reply.encode())
        elif kind is Data:
            out.append(words.GO_AHEAD)
            self._state = DATA
            content = _fast.DataReader(self._config.max_message_size, self._config.text_line_limit)
            self._content = content
            reader = self._reader
            if reader.pending():
                ahead = reader.take()
                used = content.feed(ahead)
                if used < len(ahead):
                    reader.feed(ahead[used:])
        elif kind is BodyReceived:
            out.append((reply or words.OK).encode())
            self._state = READY
            self._noops = 0
            self._end_transaction()
        elif kind is Hello:
            assert isinstance(event, Hello)
            self._accept_hello(event, extensions)
        elif kind is StartTls:
            if self._reader.pending():
                # Response injection from the client's side (reliability S8; CVE-2011-0411).
                self.close_with(words.INJECTED)
                return
            out.append(words.TLS_READY.encode())
            self._state = TLS
        elif kind is Auth:
            self._exchange = None
            out.append((reply or words.LOGGED_IN).encode())
        else:
            raise LocalProtocolError("there is no event to accept")

    def _accept_hello(self, event: Hello, extensions: Sequence[str] | None) -> None:
        self.ehlo_domain = event.domain
        self.esmtp = event.esmtp
        self._state = READY
        self._end_transaction()
        if not event.esmtp:
            self._out.append(f"250 {self._config.hostname}\r\n".encode())
            return
        lines = [self._config.hostname, *(self.extensions if extensions is None else extensions)]
        self._out.append(Reply(250, "", "\n".join(lines)).encode())

    def refuse(self, reply: Reply, *, close: bool = False, cause: str | None = None) -> None:
        """A negative answer to the event at hand. 421 and `close` end the session.

        `cause`: for the record of this refusal, not for the client.
        """
        event = self._awaiting
        if event is None:
            raise LocalProtocolError("there is no event to refuse")
        self._awaiting = None
        if isinstance(event, Auth | AuthLookup) and self._parting(reply, close):
            return
        recipient = event.address.text if isinstance(event, Rcpt) else ""
        self._refuse(reply, recipient, cause)
        if isinstance(event, BodyReceived):
            self._state = READY
            self._end_transaction()
        if isinstance(event, Auth | AuthLookup):
            self._count_error()
        if close or reply.code == 421:
            self.closing = True

    def _parting(self, reply: Reply, close: bool) -> bool:
        """The AUTH at hand is refused; True when the client must first be told why, and answer."""
        exchange = self._exchange
        self._end_sasl()
        if exchange is None or close or reply.code != 535:
            return False
        parting = exchange.parting(reply)
        if parting is None:
            return False
        self._out.append(parting)
        self._exchange, self._state = exchange, SASL
        return True

    def abandon(self, reply: Reply) -> bool:
        """Keep nothing of the content that is being received, and refuse it so when its end has come.
        Returns: whether content is being received."""
        content = self._content
        if content is None or content.done:
            return False
        content.abandon()
        self._abandoned = reply
        return True

    def tls_established(self, binding: Binding | None = None) -> None:
        """The handshake is done: start anew inside TLS (reliability S9)."""
        if self._state != TLS:
            raise LocalProtocolError("STARTTLS was not accepted")
        self.tls = True
        self.binding = binding
        self._state = START
        self._reader.take()
        self._forget()

    def authenticated(self, identity: str) -> None:
        """The credentials of the Auth event at hand are right."""
        self.identity = identity

    def close_with(self, reply: Reply) -> None:
        """Say this and end the session."""
        self._awaiting = None
        if reply.code >= 400:
            self._refuse(reply)
        else:
            self._out.append(reply.encode())
        self.closing = True

    def take_refusals(self) -> list[Refusal]:
        """Every 4xx and 5xx since the last call, but those that only say that we stop (421 4.3.2)."""
        found = self._refusals
        if found:
            self._refusals = []
        return found

    # -- refusing --------------------------------------------------------------------------------

    def _refuse(self, reply: Reply, recipient: str = "", cause: str | None = None) -> None:
        self._out.append(reply.encode())
        if reply.code == 421 and reply.enhanced == "4.3.2":
            return
        sender = self.reverse_path.text if self.reverse_path is not None else ""
        if not recipient and self.forward_paths and self._line[:4].upper() != b"RCPT":
            # What was refused of a RCPT is not the recipient before it.
            recipient = self.forward_paths[-1].text
        command = shown(self._line)
        self._refusals.append(Refusal(reply, command, sender, recipient, cause))

    def _error(self, reply: Reply) -> None:
        """A refusal of something the client did wrong; too many of those end the session (S28)."""
        self._refuse(reply)
        self._count_error()

    def _count_error(self) -> None:
        self._errors += 1
        if self._errors >= self._config.max_errors and not self.closing:
            self.close_with(words.ENOUGH_ERRORS)

    def _idle(self) -> None:
        """A command that does nothing; beyond a number of them each counts as an error (S29)."""
        self._noops += 1
        if self._noops > self._config.max_noop:
            self._count_error()
