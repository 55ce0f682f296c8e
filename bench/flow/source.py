"""Our own load source: for TLS, AUTH, pipelining and latency, which smtp-source does not know.

``python -m bench.flow.source --to 127.0.0.1:2525 --sessions 20 --messages 20000 --size 4096``

One process, one epoll, connections kept. A message is MAIL, RCPT, DATA and body, one round trip
each (as smtp-source does it); ``--pipeline`` sends MAIL, RCPT and DATA in one write, ``--across``
also puts the next message's commands into the write that ends a body (RFC 2920 section 3.1).
"""

from __future__ import annotations

import argparse
import base64
import json
import select
import socket
import ssl
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

__all__ = ["main", "submit"]

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MAIL = b"MAIL FROM:<a@sender.example>\r\n"
_DATA = b"DATA\r\n"


def body_of(size: int) -> bytes:
    """A message of `size` octets, ended by the lone dot."""
    head = b"From: <a@sender.example>\r\nTo: <b@domain.example>\r\nSubject: performance test\r\n\r\n"
    line = b"XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX\r\n"
    text = (head + line * (size // len(line) + 1))[: max(size - 2, len(head))].rstrip(b"\r\n")
    return text + b"\r\n.\r\n"


class _Client:
    """One session. `steps`: what is written when the replies to the step before are in."""

    def __init__(self, sock: socket.socket, load: _Load) -> None:
        self.sock = sock
        self.load = load
        self.rest = b""
        self.out = b""
        self.awaited = 0  # replies outstanding before the next step
        self.step = 0
        self.commands: tuple[bytes, ...] = ()
        self.sent_at = 0.0
        self.ahead = False  # the next message's commands went out with the last body

    def next_message(self) -> None:
        """Begin a message, or leave."""
        if not self.load.left:
            self.step = -1
            self.awaited = 1
            self.write(b"QUIT\r\n")
            return
        self.load.left -= 1
        self.commands = self.load.envelope()
        self.step = 0
        self.advance()

    def advance(self) -> None:
        """All replies of a step are in: write the next one."""
        load = self.load
        if self.step == -1:
            load.gone(self)
        elif load.pipeline:
            if self.step == 0:
                self.step, self.awaited = 1, 3
                self.write(b"".join(self.commands))
            elif self.step == 1:
                self._body()
            else:
                self._taken()
        elif self.step < 3:
            self.step, self.awaited = self.step + 1, 1
            self.write(self.commands[self.step - 1])
        elif self.step == 3:
            self._body()
        else:
            self._taken()

    def _body(self) -> None:
        load = self.load
        self.step = 9
        self.sent_at = time.perf_counter()
        if load.across and load.left:
            load.left -= 1
            self.awaited = 4
            self.ahead = True
            self.write(load.body + b"".join(load.envelope()))
        else:
            self.awaited = 1
            self.ahead = False
            self.write(load.body)

    def _taken(self) -> None:
        if self.ahead:
            self._body()
        else:
            self.next_message()

    def write(self, data: bytes) -> None:
        self.out += data
        self.flush()

    def flush(self) -> None:
        before = bool(self.out)
        try:
            while self.out:
                self.out = self.out[self.sock.send(self.out) :]
        except _LATER:
            pass
        if before:
            mask = select.EPOLLIN | (select.EPOLLOUT if self.out else 0)
            self.load.watch(self, mask)

    def read(self) -> None:
        while self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(65536)
            except _LATER:
                return
            if not data:
                raise SystemExit("source: the relay closed the connection")
            lines = (self.rest + data).split(b"\r\n")
            self.rest = lines.pop()
            for line in lines:
                if line[3:4] == b"-":
                    continue
                self.reply(line)
            if not isinstance(self.sock, ssl.SSLSocket):
                return

    def reply(self, line: bytes) -> None:
        if line[:1] not in b"23":
            raise SystemExit(f"source: refused: {line.decode(errors='replace')}")
        self.awaited -= 1
        if self.step == 9 and self.awaited in (0, 3) and self.sent_at:
            self.load.times.append(time.perf_counter() - self.sent_at)
            self.sent_at = 0.0
        if not self.awaited:
            self.advance()


class _Load:
    """What is left to do, and who does it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.left: int = options.messages
        self.pipeline: bool = options.pipeline or options.across
        self.across: bool = options.across
        self.body = body_of(options.size)
        self.times: list[float] = []
        self._number: int = options.skip
        self._domains: int = options.domains
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._masks: dict[int, int] = {}

    def envelope(self) -> tuple[bytes, ...]:
        self._number += 1
        if self._domains > 1:
            domain = b"d%d.domain.example" % (self._number % self._domains)
        else:
            domain = b"domain.example"
        return _MAIL, b"RCPT TO:<b@%s>\r\n" % domain, _DATA

    def watch(self, client: _Client, mask: int) -> None:
        fd = client.sock.fileno()
        if self._masks.get(fd) != mask:
            if fd in self._masks:
                self._epoll.modify(fd, mask)
            self._masks[fd] = mask

    def gone(self, client: _Client) -> None:
        fd = client.sock.fileno()
        self._epoll.unregister(fd)
        del self._clients[fd]
        client.sock.close()

    def run(self, sockets: list[socket.socket]) -> float:
        """Send everything; the seconds it took."""
        for sock in sockets:
            sock.setblocking(False)
            fd = sock.fileno()
            self._epoll.register(fd, select.EPOLLIN)
            self._masks[fd] = select.EPOLLIN
            self._clients[fd] = _Client(sock, self)
        begun = time.perf_counter()
        for client in list(self._clients.values()):
            client.next_message()
        ready: deque[int] = deque()
        while self._clients:
            ready.extend(fd for fd, _ in self._epoll.poll(60, 256))
            if not ready:
                raise SystemExit("source: nothing came back for a minute")
            while ready:
                found = self._clients.get(ready.popleft())
                if found is not None:
                    if found.out:
                        found.flush()
                    found.read()
        return time.perf_counter() - begun


def _open(options: argparse.Namespace) -> socket.socket:
    """Connect, greet, and do TLS and AUTH; blocking."""
    host, _, port = options.to.rpartition(":")
    sock: socket.socket = socket.create_connection((host, int(port)), 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _ask(sock, b"")
    _ask(sock, b"EHLO source.example\r\n")
    if options.tls:
        _ask(sock, b"STARTTLS\r\n")
        context = ssl.create_default_context(cafile=options.ca)
        if options.ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname=host)
        _ask(sock, b"EHLO source.example\r\n")
    if options.auth:
        token = base64.b64encode(b"\0" + options.auth.replace(":", "\0", 1).encode())
        _ask(sock, b"AUTH PLAIN " + token + b"\r\n")
    return sock


def _ask(sock: socket.socket, command: bytes) -> None:
    if command:
        sock.sendall(command)
    reply = b""
    while not reply.endswith(b"\r\n") or reply.splitlines()[-1][3:4] == b"-":
        data = sock.recv(4096)
        if not data:
            raise SystemExit("source: the relay closed the connection")
        reply += data
    if reply[:1] not in b"23":
        raise SystemExit(f"source: refused: {reply.decode(errors='replace').strip()}")


def submit(options: argparse.Namespace) -> dict[str, Any]:
    """Submit everything; what it took. Times from the end of a body to its 250, in milliseconds."""
    load = _Load(options)
    sockets = [_open(options) for _ in range(min(options.sessions, options.messages))]
    begun = time.time()
    cpu = time.process_time()
    seconds = load.run(sockets)
    cpu = time.process_time() - cpu
    cuts = statistics.quantiles(load.times, n=100, method="inclusive") if len(load.times) > 1 else [0.0] * 99
    return {
        "begun": begun,
        "messages": options.messages,
        "seconds": round(seconds, 4),
        "per_second": round(options.messages / seconds, 1),
        "cpu_us_per_message": round(cpu * 1e6 / options.messages, 1),
        "accept_p50_ms": round(cuts[49] * 1e3, 3),
        "accept_p99_ms": round(cuts[98] * 1e3, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow.source", description=__doc__)
    parser.add_argument("--to", default="127.0.0.1:2525", help="HOST:PORT")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--domains", type=int, default=1, help="spread the recipients over so many domains")
    parser.add_argument("--skip", type=int, default=0, help="begin with a later one of the domains")
    parser.add_argument("--pipeline", action="store_true", help="MAIL, RCPT and DATA in one write")
    parser.add_argument("--across", action="store_true", help="and the next message's with the body")
    parser.add_argument("--tls", action="store_true", help="STARTTLS")
    parser.add_argument("--ca", type=Path, help="verify the relay's certificate with this CA")
    parser.add_argument("--auth", help="USER:PASSWORD for AUTH PLAIN")
    print(json.dumps(submit(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
