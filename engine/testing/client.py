"""A client that hands in mail, one command after the other, and looks at every answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec
import trio

__all__ = ["Client", "Said", "Submission", "deliver"]


class Said(msgspec.Struct, frozen=True):
    """A reply of the relay. `text`: its lines without codes, joined by LF."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"

    @property
    def ok(self) -> bool:
        """Whether it is a 2yz or a 3yz."""
        return self.code < 400


class Submission(msgspec.Struct, frozen=True):
    """What came of handing in a message. `reply`: the last that mattered: to the final dot, or the refusal
    that ended it before. `refused`: recipients that were refused, and how; `accepted`: the others."""

    reply: Said
    accepted: tuple[str, ...] = ()
    refused: dict[str, Said] = {}

    @property
    def ok(self) -> bool:
        """Whether the relay took the message for every recipient."""
        return self.reply.ok and not self.refused


class Client:
    """An SMTP session with a listener. `greeting`: what it was met with."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.greeting = Said(0, "")
        self._buffer = bytearray()

    async def ask(self, command: str | bytes) -> Said:
        """Send a command line and read the reply. Raises: EOFError when the relay has closed."""
        # Where it has, what it said before can still be read.
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all((command.encode() if isinstance(command, str) else command) + b"\r\n")
        return await self.reply()

    async def reply(self) -> Said:
        """Read a reply. Raises: EOFError when the relay has closed."""
        lines: list[str] = []
        while True:
            line = await self._line()
            lines.append(line[4:])
            if line[3:4] != "-":
                return Said(int(line[:3]), "\n".join(lines))

    async def _line(self) -> str:
        while (end := self._buffer.find(b"\r\n")) < 0:
            try:
                more = await self.stream.receive_some()
            except trio.BrokenResourceError:
                more = b""
            if not more:
                raise EOFError("the relay has closed the session")
            self._buffer += more
        line = bytes(self._buffer[:end]).decode("utf-8", "replace")
        del self._buffer[: end + 2]
        return line


async def deliver(
    session: Client, sender: str, recipients: Sequence[str], content: str | bytes
) -> Submission:
    """One message, after the greeting. Line ends become CR LF."""
    if not session.greeting.ok:
        return Submission(session.greeting)
    octets = content.encode() if isinstance(content, str) else content
    octets = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if octets and not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    body = "" if octets.isascii() else " BODY=8BITMIME"
    for command in ("EHLO client.example", f"MAIL FROM:<{sender}>{body}"):
        said = await session.ask(command)
        if not said.ok:
            return Submission(said)
    accepted: list[str] = []
    refused: dict[str, Said] = {}
    for recipient in recipients:
        said = await session.ask(f"RCPT TO:<{recipient}>")
        if said.ok:
            accepted.append(recipient)
        else:
            refused[recipient] = said
    if accepted:
        said = await session.ask("DATA")
        if said.ok:
            stuffed = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:]
            said = await session.ask(stuffed + b".")
    return Submission(said, tuple(accepted) if said.ok else (), refused)
