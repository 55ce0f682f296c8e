"""A next hop that keeps every message exactly as it came, octet for octet. Threads and plain sockets.

What it offers can be changed while it runs (`tls`, `users`, `offer_starttls`, `offer_auth`), which is how
tests break and repair it. Messages are kept with the dots of transparency removed and nothing else
changed.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Arrival", "ByteSink", "run_sink"]


@dataclass
class Arrival:
    """One message. `user`: who had logged in, `tls`: the protocol version or None."""

    sender: str
    recipients: list[str]
    content: bytes
    user: str | None
    tls: str | None


@dataclass
class ByteSink:
    """See the module. `delay`: seconds before a message is answered, as if it went to a disk."""

    port: int = 0
    tls: ssl.SSLContext | None = None
    users: dict[str, str] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)
    """Passwords that are right beside those of `users`: the ones before, while they change."""
    offer_starttls: bool = True
    offer_auth: bool = True
    delay: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    sessions: int = 0
    """Sessions that are open just now."""
    logins_refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def add(self, arrival: Arrival) -> None:
        with self._lock:
            self.arrivals.append(arrival)

    def count(self, change: int) -> None:
        with self._lock:
            self.sessions += change


class _Session:
    """One connection: a loop over commands, the replies to a pipelined group in one write."""

    def __init__(self, sink: ByteSink, connection: socket.socket) -> None:
        self._sink = sink
        self._socket = connection
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._user: str | None = None
        self._tls: str | None = None
        self._sender: str | None = None
        self._recipients: list[str] = []

    def run(self) -> None:
        self._say(b"220 sink.example ESMTP")
        while True:
            line = self._line()
            if line is None:
                return
            word, _, rest = line.partition(b" ")
            verb = word.upper()
            if verb == b"QUIT":
                self._say(b"221 2.0.0 bye")
                self._flush()
                return
            self._command(verb, rest)

    def _command(self, verb: bytes, rest: bytes) -> None:
        sink = self._sink
        if verb in (b"EHLO", b"HELO"):
            self._say(*self._capabilities())
        elif verb == b"STARTTLS":
            self._start_tls()
        elif verb == b"AUTH":
            self._auth(rest)
        elif verb == b"MAIL":
            if sink.users and self._user is None:
                self._say(b"530 5.7.0 Authentication required")
            else:
                self._sender = _path(rest)
                self._recipients = []
                self._say(b"250 2.1.0 ok")
        elif verb == b"RCPT":
            if self._sender is None:
                self._say(b"503 5.5.1 MAIL first")
            else:
                self._recipients.append(_path(rest))
                self._say(b"250 2.1.5 ok")
        elif verb == b"DATA":
            self._data()
        elif verb == b"RSET":
            self._sender = None
            self._say(b"250 2.0.0 ok")
        elif verb == b"NOOP":
            self._say(b"250 2.0.0 ok")
        else:
            self._say(b"502 5.5.1 not here")

    def _capabilities(self) -> list[bytes]:
        sink = self._sink
        lines = [b"sink.example", b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"SIZE 100000000"]
        lines.append(b"ENHANCEDSTATUSCODES")
        if sink.tls is not None and sink.offer_starttls and self._tls is None:
            lines.append(b"STARTTLS")
        if sink.users and sink.offer_auth and (self._tls is not None or sink.tls is None):
            lines.append(b"AUTH PLAIN")
        return [b"250-" + line for line in lines[:-1]] + [b"250 " + lines[-1]]

    def _start_tls(self) -> None:
        context = self._sink.tls
        if context is None or not self._sink.offer_starttls or self._tls is not None:
            self._say(b"502 5.5.1 not here")
            return
        if self._buffer:
            raise ConnectionError("commands behind STARTTLS")
        self._say(b"220 2.0.0 go ahead")
        self._flush()
        secured = context.wrap_socket(self._socket, server_side=True)
        self._socket, self._tls = secured, secured.version()
        self._user = self._sender = None

    def _auth(self, rest: bytes) -> None:
        mechanism, _, blob = rest.partition(b" ")
        if mechanism.upper() != b"PLAIN":
            self._say(b"504 5.5.4 unknown mechanism")
            return
        if not blob:
            self._say(b"334 ")
            blob = self._line() or b""
        try:
            _, user, password = base64.b64decode(blob, validate=True).decode().split("\0")
        except ValueError:
            self._say(b"501 5.5.2 not like that")
            return
        if password in (self._sink.users.get(user), self._sink.also.get(user)):
            self._user = user
            self._say(b"235 2.7.0 welcome")
        else:
            self._sink.logins_refused += 1
            # Some servers repeat what they were told; nothing of it may end up in a record.
            self._say(b"535 5.7.8 wrong password " + password.encode() + b" for " + user.encode())

    def _data(self) -> None:
        sender, recipients = self._sender, self._recipients
        if sender is None or not recipients:
            self._say(b"503 5.5.1 RCPT first")
            return
        self._say(b"354 go")
        content = self._content()
        self._sender = None
        if self._sink.delay:
            self._sink._stop.wait(self._sink.delay)
        self._sink.add(Arrival(sender, recipients, content, self._user, self._tls))
        self._say(b"250 2.0.0 taken")

    def _content(self) -> bytes:
        # The CRLF of the DATA line counts as the one before the first line.
        content = bytearray(b"\r\n") + self._buffer
        self._buffer.clear()
        at = 0
        while (end := content.find(b"\r\n.\r\n", at)) < 0:
            at = max(0, len(content) - 4)
            content += self._more()
        self._buffer += content[end + 5 :]
        return bytes(content[: end + 2]).replace(b"\r\n..", b"\r\n.")[2:]

    def _line(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            try:
                self._buffer += self._more()
            except ConnectionError:
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _more(self) -> bytes:
        self._flush()
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        while not pending:
            if self._sink._stop.is_set():
                raise ConnectionAbortedError
            pending = bool(select.select([self._socket], [], [], 0.2)[0])
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        return data

    def _say(self, *lines: bytes) -> None:
        self._out += [line + b"\r\n" for line in lines]

    def _flush(self) -> None:
        if self._out:
            self._socket.sendall(b"".join(self._out))
            self._out.clear()


def _path(rest: bytes) -> str:
    return rest[rest.index(b"<") + 1 : rest.index(b">")].decode()


@contextmanager
def run_sink(
    *,
    tls: ssl.SSLContext | None = None,
    users: dict[str, str] | None = None,
    delay: float = 0.0,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[ByteSink]:
    """A sink on a loopback port. `tls`: offers STARTTLS with it. `users`: AUTH PLAIN is demanded."""
    sink = ByteSink(tls=tls, users=users or {}, delay=delay)
    with socket.create_server((host, port), backlog=128) as listener:
        sink.port = listener.getsockname()[1]
        listener.settimeout(0.1)
        threads: list[threading.Thread] = []

        def serve(connection: socket.socket) -> None:
            session = _Session(sink, connection)
            try:
                with contextlib.suppress(OSError):
                    session.run()
            finally:
                sink.count(-1)
                session._socket.close()

        def accept() -> None:
            while not sink._stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(60.0)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sink.count(1)
                thread = threading.Thread(target=serve, args=(connection,), daemon=True)
                thread.start()
                threads.append(thread)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield sink
        finally:
            sink._stop.set()
            accepting.join(10)
            for thread in threads:
                thread.join(10)
