"""An SMTP client that sends exactly the octets a test asks for. Blocking, for real processes."""

from __future__ import annotations

import re
import socket

__all__ = ["RawClient", "stuffed"]

_LINE_START_DOT = re.compile(rb"(?m)(?:\A|(?<=\r\n))\.")


def stuffed(content: bytes) -> bytes:
    """`content` as it goes over the wire behind DATA: dots doubled, the CRLF at its end that an SMTP
    client adds where there is none, and the final dot. An empty message is the lone dot."""
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return _LINE_START_DOT.sub(b"..", content) + b".\r\n"


class RawClient:
    """One session. Raises ConnectionError when the server is gone, TimeoutError when it is silent."""

    def __init__(self, port: int, *, hello: str = "client.example", timeout: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        try:
            self.greeting = self.reply()
            self.send(b"EHLO " + hello.encode() + b"\r\n")
            self.capabilities = self.reply()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send octets as they are."""
        self._socket.sendall(data)

    def reply(self) -> tuple[int, bytes]:
        """The next reply: its code, and its text with the lines joined by LF."""
        lines: list[bytes] = []
        while True:
            line = self._line()
            lines.append(line[4:])
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(lines)

    def command(self, line: str) -> tuple[int, bytes]:
        """Send one command and read its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def deliver(self, sender: str, recipient: str, content: bytes, *, options: str = "") -> tuple[int, bytes]:
        """One message, its commands in one write as PIPELINING allows; the reply to the final dot, or
        the refusal that came before it."""
        self.send(f"MAIL FROM:<{sender}>{options}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode())
        replies = [self.reply() for _ in range(3)]
        if replies[2][0] != 354:
            return next(reply for reply in replies if reply[0] >= 400)
        self.send(stuffed(content))
        return self.reply()

    def at_end(self) -> bool:
        """Whether the server closed the connection, with nothing more to say."""
        return not self._buffer and not self._socket.recv(1)

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line
