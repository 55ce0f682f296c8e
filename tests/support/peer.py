"""A next hop that does what the test says: an SMTP server as a small table of answers.

`FakePeer.replies` maps a command word (``MAIL``, ``RCPT``, ``DATA``, ``.``, ``EHLO``, ``connect``, ...)
to what is answered: text, a list of texts used one after the other (the last one stays), or a
function of the command line. Special answers: ``DROP`` closes the connection, ``HANG`` says nothing
any more, ``""`` says nothing this once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

DROP = "<drop>"
HANG = "<hang>"

Answer = str | list[str] | Callable[[str], str]


@dataclass
class Arrived:
    """One message as it arrived: `data` with dots removed."""

    sender: str
    recipients: list[str]
    data: bytes


@dataclass
class FakePeer:
    """See the module. `stumbles`: throws away what is pipelined behind a final dot."""

    replies: dict[str, Answer] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=lambda: ["PIPELINING", "8BITMIME", "SIZE 10000000"])
    stumbles: bool = False
    port: int = 0
    connections: int = 0
    open: int = 0
    most_open: int = 0
    commands: list[str] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)

    def answer(self, word: str, line: str, default: str) -> str:
        """What to say to this command, and move on in a list of answers."""
        answer = self.replies.get(word, default)
        if isinstance(answer, list):
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer if isinstance(answer, str) else answer(line)

    def words(self) -> list[str]:
        """The command words heard so far."""
        return [line.split(":", 1)[0].split(" ", 1)[0].upper() for line in self.commands]

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with trio.CancelScope():
                await self._conversation(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def _say(self, stream: trio.SocketStream, text: str) -> bool:
        if text == DROP:
            return False
        if text == HANG:
            await trio.sleep_forever()
        if text:
            await stream.send_all(text.encode() + b"\r\n")
        return True

    async def _conversation(self, stream: trio.SocketStream) -> None:
        if not await self._say(stream, self.answer("connect", "", "220 peer.example ESMTP")):
            return
        buffer = bytearray()
        sender, recipients = "", []
        while True:
            line = await self._line(stream, buffer)
            if line is None:
                return
            self.commands.append(line)
            word = line.split(":", 1)[0].split(" ", 1)[0].upper()
            argument = line[line.find("<") + 1 : line.find(">")] if "<" in line else ""
            if word == "EHLO":
                lines = ["peer.example", *self.capabilities]
                default = "\r\n".join(
                    f"250{'-' if i < len(lines) - 1 else ' '}{x}" for i, x in enumerate(lines)
                )
            elif word == "DATA":
                default = "354 go ahead" if recipients else "503 5.5.1 no recipients"
            elif word == "AUTH":
                default = "235 2.7.0 ok"
            elif word == "QUIT":
                default = "221 2.0.0 bye"
            else:
                default = "250 2.0.0 ok"
            reply = self.answer(word, line, default)
            if not await self._say(stream, reply):
                return
            if word == "MAIL":
                sender, recipients = argument, []
            elif word == "RCPT" and reply[:1] == "2":
                recipients.append(argument)
            elif word == "RSET":
                sender, recipients = "", []
            elif word == "DATA" and reply[:3] == "354":
                data = await self._data(stream, buffer)
                if data is None:
                    return
                if self.stumbles:
                    buffer.clear()
                reply = self.answer(".", "", "250 2.0.0 taken")
                if reply[:1] == "2" or reply == DROP:
                    self.arrived.append(Arrived(sender, recipients, data))
                if not await self._say(stream, reply):
                    return
                sender, recipients = "", []
            elif word == "QUIT" or reply[:3] == "421":
                return

    async def _line(self, stream: trio.SocketStream, buffer: bytearray) -> str | None:
        while (end := buffer.find(b"\r\n")) < 0:
            chunk = await stream.receive_some()
            if not chunk:
                return None
            buffer += chunk
        line = bytes(buffer[:end]).decode("utf-8", "replace")
        del buffer[: end + 2]
        return line

    async def _data(self, stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
        while not buffer.startswith(b".\r\n") and b"\r\n.\r\n" not in buffer:
            chunk = await stream.receive_some()
            if not chunk:
                return None
            buffer += chunk
        end = 0 if buffer.startswith(b".\r\n") else buffer.index(b"\r\n.\r\n") + 2
        data = bytes(buffer[:end])
        del buffer[: end + 3]
        if data.startswith(b"."):
            data = data[1:]
        return data.replace(b"\r\n.", b"\r\n")


@asynccontextmanager
async def open_peer(**options: object) -> AsyncIterator[FakePeer]:
    """A `FakePeer` listening on a loopback port of its own."""
    peer = FakePeer(**options)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        peer.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        yield peer
        nursery.cancel_scope.cancel()
