"""The sink's side of one SMTP conversation: bytes in, bytes out, no socket and no clock.

Much simpler and laxer than `engine.smtp.server`, and faster: it is the peer a relay is measured
with, so it must cost a small part of what the relay does. Command lines end at LF, a message ends
at CRLF.CRLF and nothing else. Pipelined input is answered in order; whatever one `feed` brings is
answered by one write. While nobody asks for messages their bytes are not kept.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable

import msgspec

from .sink_rules import Rules

__all__ = ["KEYWORDS", "Arrival", "Counts", "Pause", "Session", "SinkConfig"]

KEYWORDS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE", "STARTTLS", "AUTH")
"""What EHLO may offer."""

_END = b"\r\n.\r\n"
_LINE_LIMIT = 64 * 1024
_SIZE_OFFERED = 1 << 30

_MAIL_OK = b"250 2.1.0 Ok\r\n"
_RCPT_OK = b"250 2.1.5 Ok\r\n"
_DATA_OK = b"354 End data with <CR><LF>.<CR><LF>\r\n"
_DOT_OK = b"250 2.0.0 Ok\r\n"


class Arrival(msgspec.Struct):
    """One message as it arrived: dot transparency removed, every other octet as it came.

    `sender`, `recipients`: what stood between the angle brackets. `user`: who had logged in.
    `tls`: the protocol version, None in the clear.
    """

    sender: str
    recipients: list[str]
    content: bytes
    ehlo: str
    user: str | None
    tls: str | None
    peer: tuple[str, int]


class Counts(msgspec.Struct):
    """What a sink has seen. `messages` got a 2xx to their final dot; `octets` are theirs."""

    connections: int = 0
    sessions: int = 0
    tls: int = 0
    logins: int = 0
    messages: int = 0
    recipients: int = 0
    octets: int = 0


class SinkConfig(msgspec.Struct):
    """What sessions offer and insist on. May be changed while the sink runs.

    `offer_tls`: STARTTLS is offered. `login`: user and password that must be given before MAIL,
    inside TLS unless `login_without_tls`. `without`: EHLO keywords that are not offered.
    """

    name: str = "posthorn-sink"
    offer_tls: bool = False
    login: tuple[str, str] | None = None
    login_without_tls: bool = False
    without: frozenset[str] = frozenset()
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")
    rules: Rules = {}


class Pause(msgspec.Struct):
    """What the driver has to do, once everything is sent, before it calls `Session.feed` again.

    First it waits `seconds`. `kind`: ``delay`` (nothing else), ``tls`` (handshake, then
    `tls_started`), ``keep`` (store `arrival`), ``hang`` (read and say nothing), ``close``.
    """

    kind: str
    seconds: float = 0.0
    arrival: Arrival | None = None


class Session:
    """One conversation.

    `on_message` is called for each accepted message; what it returns, if anything, is the reply
    line sent instead of 250. `keeps`: messages are given to the driver to be stored.
    """

    def __init__(
        self,
        config: SinkConfig,
        counts: Counts,
        *,
        peer: tuple[str, int] = ("", 0),
        on_message: Callable[[Arrival], str | None] | None = None,
        keeps: bool = False,
    ) -> None:
        self.pause: Pause | None = None
        self.accepted = 0
        self._config = config
        self._counts = counts
        self._peer = peer
        self._on_message = on_message
        self._keeps = keeps
        self._wants_content = keeps or on_message is not None
        self._rest = b""
        self._held = b""  # the reply that waits for a pause to be over
        self._next: Pause | None = None  # what to do once it is sent
        self._ehlo = ""
        self._user: str | None = None
        self._tls: str | None = None
        self._ready = False  # MAIL is allowed
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._continue: Callable[[bytes], bytes] | None = None  # AUTH: takes the client's next line
        self._login_user = ""
        self._in_body = False
        self._tail = b""
        self._chunks: list[bytes] = []
        self._size = 0

    def begin(self) -> bytes:
        """The greeting."""
        reply = self._rule("connect", b"220 %s ESMTP\r\n" % self._config.name.encode())
        if not self._is(reply, b"2"):
            self._then(Pause("close"))
        return reply

    def tls_started(self, version: str) -> None:
        """The handshake is done: everything learnt before is forgotten (RFC 3207 section 4.2)."""
        self._tls = version
        self._counts.tls += 1
        self._user = None
        self._ehlo = ""
        self._ready = False
        # What was sent ahead of the handshake came in the clear: never to be taken for protected.
        self._rest = b""
        self._reset()

    def feed(self, data: bytes) -> bytes:
        """Take what arrived (or nothing, after a pause); returns what to send. Then look at `pause`."""
        out = []
        if self._held:
            out.append(self._held)
            self._held = b""
        self.pause, self._next = self._next, None
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        while self.pause is None:
            if self._in_body:
                at = self._body(data, at, out)
                if at < 0:
                    return b"".join(out)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                break
            line = data[at:end]
            at = end + 1
            verb = line[:4].upper()
            if verb == b"RCPT" and self._continue is None:
                out.append(self._rcpt(line))
            elif verb == b"MAIL" and self._continue is None:
                out.append(self._mail(line))
            elif verb == b"DATA" and self._continue is None:
                out.append(self._data())
            else:
                out.append(self._other(verb, line.rstrip(b"\r")))
        self._rest = data[at:]
        if len(self._rest) > _LINE_LIMIT and self.pause is None:
            out.append(b"500 5.5.6 Line too long\r\n")
            self.pause = Pause("close")
        return b"".join(out)

    # -- commands --------------------------------------------------------------------------------

    def _mail(self, line: bytes) -> bytes:
        if not self._ready:
            return self._not_ready()
        if self._sender is not None:
            return b"503 5.5.1 Sender already given\r\n"
        reply = self._rule("mail", _MAIL_OK) if self._config.rules else _MAIL_OK
        if self._is(reply, b"2"):
            self._sender = line
        return reply

    def _rcpt(self, line: bytes) -> bytes:
        if self._sender is None:
            return b"503 5.5.1 MAIL first\r\n"
        reply = self._rule("rcpt", _RCPT_OK) if self._config.rules else _RCPT_OK
        if self._is(reply, b"2"):
            self._recipients.append(line)
        return reply

    def _data(self) -> bytes:
        if not self._recipients:
            return (
                b"503 5.5.1 RCPT first\r\n" if self._sender is None else b"554 5.5.1 No valid recipients\r\n"
            )
        reply = self._rule("data", _DATA_OK) if self._config.rules else _DATA_OK
        if self._is(reply, b"3"):
            self._in_body = True
            self._tail = b"\r\n"
            self._size = 0
        return reply

    def _other(self, verb: bytes, line: bytes) -> bytes:
        if self._continue is not None:
            step, self._continue = self._continue, None
            return step(line)
        if verb == b"EHLO":
            return self._hello(line, b"ehlo")
        if verb == b"HELO":
            return self._hello(line, b"helo")
        if verb == b"RSET":
            self._reset()
            return self._rule("rset", b"250 2.0.0 Ok\r\n")
        if verb == b"NOOP":
            return b"250 2.0.0 Ok\r\n"
        if verb == b"QUIT":
            reply = self._rule("quit", b"221 2.0.0 Bye\r\n")
            self._then(Pause("close"))
            return reply
        if verb == b"STAR" and line.upper().rstrip() == b"STARTTLS":
            return self._starttls()
        if verb == b"AUTH":
            return self._auth(line)
        if verb == b"VRFY":
            return b"252 2.1.5 Send and see\r\n"
        return b"500 5.5.2 What?\r\n"

    def _hello(self, line: bytes, verb: bytes) -> bytes:
        config = self._config
        name = config.name.encode()
        reply = b"250 %s\r\n" % name
        if verb == b"ehlo":
            offered = ["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", f"SIZE {_SIZE_OFFERED}"]
            if config.offer_tls and self._tls is None:
                offered.append("STARTTLS")
            if config.login is not None and (self._tls is not None or config.login_without_tls):
                offered.append("AUTH " + " ".join(config.mechanisms))
            offered = [word for word in offered if word.partition(" ")[0] not in config.without]
            lines = [config.name, *offered]
            reply = "".join(
                f"250{' ' if at == len(lines) else '-'}{text}\r\n" for at, text in enumerate(lines, 1)
            ).encode()
        reply = self._rule(verb.decode(), reply)
        if self._is(reply, b"2"):
            self._ehlo = line[5:].decode("utf-8", "replace").strip()
            self._ready = config.login is None or self._user is not None
            self._reset()
        return reply

    def _not_ready(self) -> bytes:
        if not self._ehlo:
            return b"503 5.5.1 EHLO first\r\n"
        if self._tls is None and not self._config.login_without_tls:
            return b"530 5.7.0 Must issue a STARTTLS command first\r\n"
        return b"530 5.7.0 Authentication required\r\n"

    def _starttls(self) -> bytes:
        if not self._config.offer_tls or self._tls is not None:
            return b"503 5.5.1 STARTTLS not available\r\n"
        reply = self._rule("starttls", b"220 2.0.0 Go ahead\r\n")
        if self._is(reply, b"2"):
            self._then(Pause("tls"))
        return reply

    # -- AUTH ------------------------------------------------------------------------------------

    def _auth(self, line: bytes) -> bytes:
        config = self._config
        if config.login is None or not self._ehlo:
            return b"503 5.5.1 AUTH not available\r\n"
        if self._user is not None or self._sender is not None:
            return b"503 5.5.1 Not now\r\n"
        if self._tls is None and not config.login_without_tls:
            return b"538 5.7.11 Encryption required for this mechanism\r\n"
        words = line.split()
        mechanism = words[1].upper().decode("ascii", "replace") if len(words) > 1 else ""
        step = {"PLAIN": self._plain, "LOGIN": self._login_name}.get(mechanism)
        if step is None or mechanism not in config.mechanisms or len(words) > 3:
            return b"504 5.5.4 Unknown mechanism\r\n"
        if len(words) == 3:
            return step(b"" if words[2] == b"=" else words[2])
        self._continue = step
        return b"334 \r\n" if mechanism == "PLAIN" else b"334 VXNlcm5hbWU6\r\n"

    def _plain(self, line: bytes) -> bytes:
        parts = (_decoded(line) or b"").split(b"\0")
        if len(parts) != 3:
            return b"501 5.5.2 Not understood\r\n"
        return self._log_in(parts[1], parts[2])

    def _login_name(self, line: bytes) -> bytes:
        name = _decoded(line)
        if name is None:
            return b"501 5.5.2 Not understood\r\n"
        self._continue = lambda answer: self._login_password(name, answer)
        return b"334 UGFzc3dvcmQ6\r\n"

    def _login_password(self, name: bytes, line: bytes) -> bytes:
        password = _decoded(line)
        if password is None:
            return b"501 5.5.2 Not understood\r\n"
        return self._log_in(name, password)

    def _log_in(self, name: bytes, password: bytes) -> bytes:
        assert self._config.login is not None
        right = "\0".join(self._config.login).encode()
        good = hmac.compare_digest(name + b"\0" + password, right)
        reply = self._rule(
            "auth",
            b"235 2.7.0 Authentication succeeded\r\n" if good else b"535 5.7.8 Authentication failed\r\n",
        )
        if good and self._is(reply, b"2"):
            self._user = name.decode("utf-8", "replace")
            self._ready = True
            self._counts.logins += 1
        return reply

    # -- the message -----------------------------------------------------------------------------

    def _body(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Look for the end of the message; the offset behind it, or -1 when all of `data` is body."""
        tail = self._tail
        # The end may have begun in what came before.
        joint = (tail + data[at : at + 4]).find(_END)
        if joint >= 0:
            stop = at + joint + 5 - len(tail)
        else:
            found = data.find(_END, at)
            if found < 0:
                self._size += len(data) - at
                self._tail = (tail + data[at:])[-4:] if len(data) - at < 4 else data[-4:]
                if self._wants_content:
                    self._chunks.append(data[at:])
                return -1
            stop = found + 5
        self._size += stop - at - 3
        self._in_body = False
        out.append(self._message(data[at:stop] if self._wants_content else b""))
        return stop

    def _message(self, last: bytes) -> bytes:
        number = len(self._recipients)
        reply = self._rule("dot", _DOT_OK) if self._config.rules else _DOT_OK
        accepted = self._is(reply, b"2")
        if accepted and self._wants_content:
            arrival = self._arrival(last)
            answer = None if self._on_message is None else self._on_message(arrival)
            if answer is not None:
                if self._held:
                    self._held = answer.encode() + b"\r\n"
                else:
                    reply = answer.encode() + b"\r\n"
                accepted = self._is(reply, b"2")
            if accepted and self._keeps:
                # The 250 may only leave once the message is stored.
                delay = 0.0 if self.pause is None else self.pause.seconds
                self.pause = Pause("keep", delay, arrival)
                self._held, reply = self._held or reply, b""
        if accepted:
            self.accepted += 1
            counts = self._counts
            counts.messages += 1
            counts.recipients += number
            counts.octets += self._size
        self._reset()
        return reply

    def _arrival(self, last: bytes) -> Arrival:
        content = b"".join([*self._chunks, last])[:-3].replace(b"\r\n..", b"\r\n.")
        if content.startswith(b".."):
            content = content[1:]
        return Arrival(
            sender=_path(self._sender or b""),
            recipients=[_path(line) for line in self._recipients],
            content=content,
            ehlo=self._ehlo,
            user=self._user,
            tls=self._tls,
            peer=self._peer,
        )

    def _reset(self) -> None:
        self._sender = None
        if self._recipients:
            self._recipients = []
        if self._chunks:
            self._chunks = []

    def _rule(self, stage: str, reply: bytes) -> bytes:
        """The reply for `stage` as the rules want it; sets `pause` when more than a reply is wanted.

        With a delay nothing is sent now, and the reply is in `_held`.
        """
        for rule in self._config.rules.get(stage, ()):
            if not rule.applies():
                continue
            if rule.drop or rule.hang:
                self.pause = Pause("close" if rule.drop else "hang")
                return b""
            if rule.code:
                reply = rule.reply
            if rule.delay:
                self.pause = Pause("delay", rule.delay)
                self._held = reply
                reply = b""
            if rule.code == 421:
                self._then(Pause("close"))
            break
        return reply

    def _is(self, reply: bytes, kind: bytes) -> bool:
        """Whether the reply, sent now or held, begins with the digit `kind`."""
        return (reply or self._held)[:1] == kind

    def _then(self, pause: Pause) -> None:
        """Set `pause`, or have it set when the delay that is on is over. Leaves any other as it is."""
        if self.pause is None:
            self.pause = pause
        elif self.pause.kind == "delay":
            self._next = pause


def _decoded(line: bytes) -> bytes | None:
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        return None


def _path(line: bytes) -> str:
    """What stands between the first ``<`` and the last ``>`` before the parameters."""
    start = line.find(b"<")
    quoted = line.rfind(b'"')
    end = line.find(b">", max(start, quoted))
    if start < 0 or end < 0:
        return line.partition(b":")[2].strip().decode("utf-8", "replace")
    return line[start + 1 : end].decode("utf-8", "replace")
