"""A next hop that does what the test says: a table of answers, or a script, or first one and then the other.

The table. `NextHop.replies` maps a command word (``MAIL``, ``RCPT``, ``DATA``, ``.``, ``EHLO``,
``connect``, ...) to what is answered: text, a list of texts used one after the other (the last one
stays), or a function of the command line. Special answers: ``DROP`` closes the connection, ``HANG``
says nothing any more, ``""`` says nothing this once. Where the table says nothing the hop is a
correct and strict MTA: MAIL within a transaction, RCPT without MAIL and DATA without a recipient are
refused, and so is a login that is not one of its `users`.

A script. `NextHop.script` is called with the `Wire` of each connection instead, and may say
anything at any time; ``await hop.obey(wire)`` goes on by the table. The connection is closed when
it returns.

It speaks in bytes over a stream, whatever that is: a pair of sockets inside a relay of `open_relay`, or
TCP.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from engine.ca import ThrowAwayCa
from engine.smtp import Auth, AuthLookup, Binding, Context, Reply
from engine.smtp.exchange import ServerExchange
from policy.scramkeys import derive
from policy.secret import Secret

__all__ = [
    "DROP",
    "HANG",
    "PLAIN",
    "Answer",
    "Arrived",
    "Hangup",
    "NextHop",
    "Wire",
    "command_word",
    "hello",
    "slowly",
]

DROP = "<drop>"
HANG = "<hang>"

Answer: TypeAlias = str | list[str] | Callable[[str], str]

PLAIN = ("PIPELINING", "8BITMIME", "SIZE 100000000")
"""What a peer offers unless told otherwise."""

_HOT = 2000
"""Connections at one moment (of a clock that jumps only when all is quiet) that nobody makes on purpose."""


class Hangup(Exception):
    """The other side closed the connection."""


@dataclass
class Arrived:
    """One message as it arrived: `data` with dots removed."""

    sender: str
    recipients: list[str]
    data: bytes


class Wire:
    """One connection as the hop sees it. `number`: 1 for the first; `buffer`: read and not looked at."""

    def __init__(self, stream: trio.SocketStream, peer: NextHop, number: int) -> None:
        self.socket = stream
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        self.peer = peer
        self.number = number
        self.buffer = bytearray()

    async def say(self, *lines: str) -> None:
        """Some lines, in one segment."""
        await self.raw("".join(f"{line}\r\n" for line in lines))

    async def raw(self, octets: str | bytes) -> None:
        """Some octets, in one segment."""
        await self.stream.send_all(octets if isinstance(octets, bytes) else octets.encode())

    async def drip(self, pieces: Sequence[str], pause: float) -> None:
        """One piece after the other, with pauses."""
        for piece in pieces:
            await self.raw(piece)
            await trio.sleep(pause)

    @property
    def secure(self) -> bool:
        """Whether it has become TLS."""
        return self.stream is not self.socket

    async def more(self) -> None:
        """Wait for more octets."""
        chunk = await self.stream.receive_some()
        if not chunk:
            raise Hangup
        self.buffer += chunk

    async def line(self) -> str:
        """The next command line, without its line end."""
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self.more()
        line = bytes(self.buffer[:end]).decode("utf-8", "replace")
        del self.buffer[: end + 2]
        self.peer.commands.append(line)
        return line

    async def word(self) -> str:
        """The word of the next command line."""
        return command_word(await self.line())

    async def data(self) -> bytes:
        """The mail data up to the final dot, dots removed."""
        while not self.buffer.startswith(b".\r\n") and b"\r\n.\r\n" not in self.buffer:
            await self.more()
        end = 0 if self.buffer.startswith(b".\r\n") else self.buffer.index(b"\r\n.\r\n") + 2
        data = bytes(self.buffer[:end])
        del self.buffer[: end + 3]
        return data.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    async def greet(self, *capabilities: str) -> None:
        """Greeting and EHLO."""
        await self.say("220 peer.example ESMTP")
        await self.line()
        await self.say(hello(capabilities or PLAIN))

    async def up_to_data(self) -> None:
        """Greeting, EHLO and `envelope`."""
        await self.greet()
        await self.envelope()

    async def envelope(self) -> None:
        """MAIL, RCPT and DATA of a message with one recipient, pipelined: all but the content."""
        for _ in range(3):
            await self.line()
        await self.say("250 ok", "250 ok", "354 go ahead")

    async def until_closed(self) -> int:
        """Read and throw away until the other side closes. Returns: how many octets that were."""
        octets = len(self.buffer)
        try:
            while chunk := await self.stream.receive_some():
                octets += len(chunk)
        except trio.BrokenResourceError:
            pass
        return octets

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Become TLS. A handshake that fails is the end of the connection."""
        tls = trio.SSLStream(self.socket, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            raise Hangup from None
        self.stream = tls
        self.peer.commands.append("(tls)")
        subject = (tls.getpeercert() or {}).get("subject", ())
        names = [value for part in subject for key, value in part if key == "commonName"]
        self.peer.shown.append(names[0] if names else None)


_UNKNOWN = derive("SHA-256", b"nobody", b"salt of nobodies", 4096)
"""SCRAM is played to the end for users that there are not."""


@dataclass
class NextHop:
    """See the module.

    `tls`: STARTTLS is offered and done, with this context or, in a relay of `open_relay`, with True, with a
    certificate that the relay trusts. `secured`: what is offered afterwards (None: the same). `implicit`: TLS
    is there before the greeting instead.
    `users`: names and passwords (or tokens) that may log in; AUTH is offered with these `mechanisms`, where
    TLS is offered only inside it. Without `users` every AUTH command is welcome and none is offered.
    `stumbles`: throws away what is pipelined behind a final dot.
    `down`: ``"refused"`` takes no connection, ``"silent"`` lets nothing through, so that connecting times
    out.
    """

    replies: dict[str, Answer] = field(default_factory=dict)
    capabilities: Sequence[str] = PLAIN
    stumbles: bool = False
    tls: ssl.SSLContext | bool | None = None
    secured: Sequence[str] | None = None
    implicit: bool = False
    script: Callable[[Wire], Awaitable[object]] | None = None
    users: dict[str, str] | None = field(default=None, repr=False)
    mechanisms: Sequence[str] = ("PLAIN", "LOGIN")
    binding: Binding | None = None
    """What ties a login to the connection: mechanisms that end in -PLUS need it."""
    down: str | None = None
    port: int = 0
    connections: int = 0
    """Taken so far."""
    open: int = 0
    """Open now."""
    most_open: int = 0
    """Open at one time, at most."""
    times: list[float] = field(default_factory=list)
    """When each connection was made (`trio.current_time`)."""
    sources: list[str] = field(default_factory=list)
    """Where each connection came from, in a relay of `open_relay`."""
    commands: list[str] = field(default_factory=list, repr=False)
    """Lines heard so far. They hold what clients say of passwords."""
    shown: list[str | None] = field(default_factory=list)
    """The common name of the client's certificate, for each handshake."""
    arrived: list[Arrived] = field(default_factory=list)
    """Messages taken so far."""
    logins: list[tuple[str, str]] = field(default_factory=list)
    """Logins that were right: mechanism and user."""
    tried: list[str] = field(default_factory=list)
    """Mechanisms of all logins, in order."""

    _certified: ssl.SSLContext | None = None

    def certify(self, ca: ThrowAwayCa, names: Iterable[str]) -> None:
        """Get a certificate for these names and addresses, for `tls` True. `open_relay` calls it."""
        self._certified = ca.server_context(*names)

    @property
    def _context(self) -> ssl.SSLContext | None:
        if self.tls is not True:
            return self.tls or None
        if self._certified is None:
            raise ValueError("tls=True is for a relay of open_relay; elsewhere give an ssl.SSLContext")
        return self._certified

    def answer(self, word: str, line: str, default: str) -> str:
        """What to say to this command, and move on in a list of answers."""
        answer = self.replies.get(word, default)
        if isinstance(answer, list):
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer if isinstance(answer, str) else answer(line)

    def words(self) -> list[str]:
        """The command words heard so far."""
        return [command_word(line) for line in self.commands]

    async def serve(self, stream: trio.SocketStream, source: str = "") -> None:
        """One connection. `source`: the address it comes from, where that is known."""
        self.connections += 1
        self.sources.append(source)
        self.times.append(trio.current_time())
        if len(self.times) >= _HOT and self.times[-_HOT] == self.times[-1]:
            raise AssertionError(f"a hot loop: {_HOT} connections at one moment")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            wire = Wire(stream, self, self.connections)
            if self.implicit and self._context is not None:
                await wire.start_tls(self._context)
            await (self.script(wire) if self.script is not None else self.converse(wire))
        except (Hangup, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def converse(self, wire: Wire) -> None:
        """A whole conversation by the table."""
        greeting = self.respond(wire, "connect", self.answer("connect", "", "220 peer.example ESMTP"))
        await self._say(wire, greeting)
        if greeting[:3] != "421":
            await self.obey(wire)

    async def obey(self, wire: Wire) -> None:
        """A conversation by the table, from the first command on."""
        envelope: Arrived | None = None
        while True:
            line = await wire.line()
            word = command_word(line)
            if word == "MAIL" and envelope is not None:
                await wire.say("503 5.5.1 nested MAIL")
                continue
            if word == "RCPT" and envelope is None:
                await wire.say("503 5.5.1 MAIL first")
                continue
            if word == "DATA" and (envelope is None or not envelope.recipients):
                await wire.say("554 5.5.1 no valid recipients")
                continue
            if word == "AUTH" and self.users is not None and "AUTH" not in self.replies:
                await self._log_in(wire, line)
                continue
            reply = self.respond(wire, word, self.answer(word, line, self._usual(word, wire)))
            await self._say(wire, reply)
            argument = line[line.find("<") + 1 : line.find(">")] if "<" in line else ""
            if word == "QUIT" or reply[:3] == "421":
                return
            if word == "STARTTLS" and self._context is not None and reply[:3] == "220":
                await wire.start_tls(self._context)
            elif word == "MAIL" and reply[:1] == "2":
                envelope = Arrived(argument, [], b"")
            elif word == "RCPT" and reply[:1] == "2":
                assert envelope is not None
                envelope.recipients.append(argument)
            elif word == "RSET" and reply[:1] == "2":
                envelope = None
            elif word == "DATA" and reply[:3] == "354":
                assert envelope is not None
                envelope.data = await wire.data()
                if self.stumbles:
                    wire.buffer.clear()
                reply = self.respond(wire, ".", self.answer(".", "", "250 2.0.0 taken"), envelope.data)
                if reply[:1] == "2" or reply == DROP:
                    self.arrived.append(envelope)
                await self._say(wire, reply)
                if reply[:3] == "421":
                    return
                envelope = None

    def _usual(self, word: str, wire: Wire) -> str:
        """What a correct MTA says where the table says nothing."""
        if word == "EHLO":
            return hello(self.offers(wire))
        usual = {"DATA": "354 go ahead", "AUTH": "235 2.7.0 ok", "STARTTLS": "220 go", "QUIT": "221 bye"}
        return usual.get(word, "250 2.0.0 ok")

    def offers(self, wire: Wire) -> list[str]:
        """The keywords of the reply to EHLO."""
        offered = list(self.capabilities if not wire.secure or self.secured is None else self.secured)
        if self._context is not None and not wire.secure:
            offered.append("STARTTLS")
        elif self.users is not None and not any(keyword.startswith("AUTH ") for keyword in offered):
            offered.append("AUTH " + " ".join(self.mechanisms))
        return offered

    def respond(self, wire: Wire, word: str, reply: str, data: bytes = b"") -> str:
        """The last word on a reply, for hops of a character of their own: what is said in its place. `word`:
        what it answers; ``connect``: the greeting, ``.``: the final dot of `data`."""
        return reply

    def judge(self, user: str, right: bool) -> str:
        """The reply to a login of this user, whose password is right or not."""
        return "235 2.7.0 ok" if right else "535 5.7.8 authentication failed"

    async def _log_in(self, wire: Wire, line: str) -> None:
        """One AUTH exchange, with the server's halves of the engine's own mechanisms."""
        assert self.users is not None
        _, mechanism, *initial = line.split(" ")
        mechanism = mechanism.upper()
        offered = " ".join(self.offers(wire)).split()
        if mechanism not in offered:
            await wire.say("504 5.5.4 mechanism not offered")
            return
        self.tried.append(mechanism)
        context = Context(nonce=secrets.token_hex(12), binding=self.binding, host="peer.example")
        exchange = ServerExchange(mechanism, context)
        turn = exchange.begin(initial[0].encode() if initial else b"")
        while True:
            if isinstance(turn, AuthLookup):
                stored = self.users.get(turn.authcid)
                turn = exchange.known(None if stored is None else Secret(stored), _UNKNOWN)
            elif isinstance(turn, bytes):
                await wire.raw(turn)
                turn = exchange.line((await wire.line()).encode())
            else:
                break
        if isinstance(turn, Reply):
            await wire.raw(turn.encode())
            return
        assert isinstance(turn, Auth)
        shown = turn.password or turn.token
        right = turn.proven
        if right is None:
            right = shown is None or shown == Secret(self.users.get(turn.authcid, ""))
        reply = self.judge(turn.authcid or turn.authzid, right)
        if reply[:1] == "2":
            self.logins.append((turn.mechanism, turn.authcid or turn.authzid))
        else:
            parting = exchange.parting(Reply(535, "5.7.8", "no"))
            if parting is not None:
                await wire.raw(parting)
                await wire.line()
        await self._say(wire, reply)

    async def _say(self, wire: Wire, text: str) -> None:
        if text == DROP:
            raise Hangup
        if text == HANG:
            await wire.until_closed()
            raise Hangup
        if text:
            await wire.say(text)


def command_word(line: str) -> str:
    """The word of a command line."""
    return line.split(":", 1)[0].split(" ", 1)[0].upper()


def hello(capabilities: Sequence[str]) -> str:
    """The reply to EHLO."""
    lines = ["peer.example", *capabilities]
    return "\r\n".join(f"250{'-' if i < len(lines) - 1 else ' '}{x}" for i, x in enumerate(lines))


def slowly(
    what: Callable[[Wire], Awaitable[object]] | None = None, **seconds: float | Callable[[], float]
) -> Callable[[Wire], Awaitable[object]]:
    """A script: `what` (none: all by the table), where lines with these words are said so late; a function
    is asked each time. ``slowly(taken=5)`` is about the usual answer to a final dot."""

    async def script(wire: Wire) -> None:
        say = wire.say

        async def slow(*lines: str) -> None:
            for word, pause in seconds.items():
                if word in lines[0].split():
                    await trio.sleep(pause if isinstance(pause, (int, float)) else pause())
            await say(*lines)

        wire.say = slow  # type: ignore[method-assign]
        await (what or wire.peer.converse)(wire)

    return script
