"""``posthorn sink``: a fast test next hop that can insist on TLS and AUTH, and can misbehave.

It keeps nothing (or a maildir), counts, and answers pipelined input in as few writes as possible;
its loop is its own because a sink must be faster than what it measures.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from cyclopts import Parameter

from engine import _fast
from engine.cli.ca import ThrowAwayCa
from engine.errors import ConfigError, ConnectionLost, TlsError
from engine.net import Listener, Stream, open_listener

__all__ = ["Behaviour", "Sink", "SinkOptions", "open_sink", "sink"]

STAGES = ("connect", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot", "quit")
_LIMIT = 1 << 30
_READ = 256 * 1024


class Behaviour(msgspec.Struct, frozen=True):
    """What to do at a stage instead of the usual. `every` N: only each Nth time.

    `action`: ``reply`` (with `text`), ``drop`` the connection, ``hang``, or ``delay`` by `seconds`
    and then answer as usual.
    """

    action: str
    text: str = ""
    seconds: float = 0.0
    every: int = 1


def parse_behaviour(value: str) -> tuple[str, Behaviour]:
    """``STAGE=CODE TEXT``, ``STAGE=drop``, ``STAGE=hang``, ``STAGE=delay=SECONDS``; ``;every=N`` behind.

    Raises: ConfigError.
    """
    stage, equals, what = value.partition("=")
    what, _, option = what.partition(";")
    every = 1
    if option:
        name, _, number = option.partition("=")
        if name != "every" or not number.isdigit() or int(number) < 1:
            raise ConfigError(f"--reply {value!r}: after ';' only every=N is known, with N at least 1")
        every = int(number)
    if not equals or stage not in STAGES:
        raise ConfigError(f"--reply {value!r}: STAGE must be one of {', '.join(STAGES)}")
    if what in ("drop", "hang"):
        return stage, Behaviour(what, every=every)
    if what.startswith("delay="):
        try:
            return stage, Behaviour("delay", seconds=float(what[6:]), every=every)
        except ValueError:
            raise ConfigError(f"--reply {value!r}: delay= takes seconds") from None
    if len(what) < 3 or not what[:3].isdigit() or what[0] not in "2345" or what[3:4] not in ("", " "):
        raise ConfigError(f"--reply {value!r}: CODE TEXT, drop, hang or delay=SECONDS expected")
    return stage, Behaviour("reply", text=what, every=every)


class SinkOptions(msgspec.Struct, kw_only=True):
    """How a sink behaves. `auth`: (user, password), None when AUTH is not offered."""

    host: str = "127.0.0.1"
    port: int = 0
    context: ssl.SSLContext | None = None
    auth: tuple[str, str] | None = None
    auth_without_tls: bool = False
    behaviours: dict[str, Behaviour] = {}
    store: Path | None = None
    on_message: Callable[[str, list[str], bytes], None] | None = None


class Sink:
    """A running sink. `count`: messages taken; `connections`: ever made; `open`: now."""

    def __init__(self, options: SinkOptions, listener: Listener, ca_pem: bytes = b"") -> None:
        self._options = options
        self.address = listener.address
        self.ca_pem = ca_pem
        self.count = 0
        self.connections = 0
        self.open = 0
        self.octets = 0
        self._turns = dict.fromkeys(STAGES, 0)
        self._serial = 0

    def behaviour(self, stage: str) -> Behaviour | None:
        """What is asked for at this stage, this time."""
        found = self._options.behaviours.get(stage)
        if found is None:
            return None
        self._turns[stage] += 1
        return found if self._turns[stage] % found.every == 0 else None

    async def serve(self, stream: Stream) -> None:
        """One connection."""
        self.connections += 1
        self.open += 1
        try:
            await _Conversation(self, self._options, stream).run()
        except (ConnectionLost, TlsError):
            pass
        finally:
            self.open -= 1
            stream.close()

    def take(self, sender: str, recipients: list[str], content: bytes) -> None:
        """A message arrived."""
        self.count += 1
        self.octets += len(content)
        if self._options.on_message is not None:
            self._options.on_message(sender, recipients, content)
        if self._options.store is not None:
            self._serial += 1
            name = f"{int(time.time())}.{os.getpid()}_{self._serial}.sink"
            unfinished = self._options.store / "tmp" / name
            unfinished.write_bytes(content)
            unfinished.rename(self._options.store / "new" / name)


class _Conversation:
    """The state of one connection; replies collect in `out` until the input is used up."""

    def __init__(self, sink: Sink, options: SinkOptions, stream: Stream) -> None:
        self.sink = sink
        self.options = options
        self.stream = stream
        self.out: list[bytes] = []
        self.reader = _fast.CommandReader(65536)
        self.data: _fast.DataReader | None = None
        self.sender = ""
        self.recipients: list[str] = []
        self.login: list[str] | None = None
        self.user: str | None = None
        self.tls = False
        self.done = False
        # Nothing is asked for: skip every look at the behaviours.
        self.plain = not options.behaviours and options.auth is None

    async def run(self) -> None:
        if not await self.answer("connect", b"220 sink.posthorn.invalid ESMTP sink\r\n"):
            return
        stream, out = self.stream, self.out
        while not self.done:
            if out:
                data = b"".join(out)
                out.clear()
                await stream.send_all(data)
            chunk = await stream.receive_some(_READ)
            if not chunk:
                return
            start = 0
            if self.data is not None:
                start = await self.content(chunk, 0)
            if start < len(chunk):
                self.reader.feed(chunk[start:] if start else chunk)
                await self.commands()
        if out:
            await stream.send_all(b"".join(out))

    async def content(self, chunk: bytes, start: int) -> int:
        """Feed message content; the offset of what lies behind it."""
        data = self.data
        assert data is not None
        used = data.feed(chunk, start)
        if data.done:
            self.data = None
            if await self.answer("dot", b"250 2.0.0 taken\r\n") and self.out[-1][:1] == b"2":
                self.sink.take(self.sender, self.recipients, data.take())
            self.recipients = []
        return start + used

    async def commands(self) -> None:
        reader = self.reader
        while not self.done:
            line = reader.next_line()
            if line is None:
                return
            if not isinstance(line, bytes):
                self.out.append(b"500 5.5.2 bad line\r\n")
                continue
            if self.login is not None:
                await self.auth_line(line)
                continue
            await self.command(line)
            while self.data is not None and reader.pending():
                ahead = reader.take()
                used = await self.content(ahead, 0)
                if used < len(ahead):
                    reader.feed(ahead[used:])

    async def command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"MAIL":
            if self.options.auth is not None and self.user is None:
                self.out.append(b"530 5.7.0 Authentication required\r\n")
            elif await self.answer("mail", b"250 2.1.0 ok\r\n"):
                self.sender = _path(line)
                self.recipients = []
        elif verb == b"RCPT":
            if self.options.auth is not None and self.user is None:
                self.out.append(b"530 5.7.0 Authentication required\r\n")
            elif await self.answer("rcpt", b"250 2.1.5 ok\r\n") and self.out[-1][:1] == b"2":
                self.recipients.append(_path(line))
        elif verb == b"DATA":
            if not self.recipients:
                self.out.append(b"503 5.5.1 no recipients\r\n")
            elif await self.answer("data", b"354 go ahead\r\n") and self.out[-1][:3] == b"354":
                self.data = _fast.DataReader(_LIMIT)
        elif verb in (b"EHLO", b"HELO", b"LHLO"):
            await self.answer("ehlo", self.hello() if verb == b"EHLO" else b"250 sink.posthorn.invalid\r\n")
        elif verb == b"RSET":
            self.recipients = []
            self.out.append(b"250 2.0.0 ok\r\n")
        elif verb == b"NOOP":
            self.out.append(b"250 2.0.0 ok\r\n")
        elif verb == b"QUIT":
            await self.answer("quit", b"221 2.0.0 bye\r\n")
            self.done = True
        elif line[:8].upper() == b"STARTTLS" and self.options.context is not None and not self.tls:
            await self.starttls()
        elif verb == b"AUTH" and self.options.auth is not None:
            await self.auth(line)
        else:
            self.out.append(b"502 5.5.1 not here\r\n")

    def hello(self) -> bytes:
        lines = ["sink.posthorn.invalid", "PIPELINING", "SIZE 1073741824", "8BITMIME", "SMTPUTF8"]
        lines.append("ENHANCEDSTATUSCODES")
        if self.options.context is not None and not self.tls:
            lines.append("STARTTLS")
        if self.options.auth is not None and (self.tls or self.options.auth_without_tls):
            lines.append("AUTH PLAIN LOGIN")
        last = len(lines) - 1
        return "".join(f"250{' ' if i == last else '-'}{line}\r\n" for i, line in enumerate(lines)).encode()

    async def starttls(self) -> None:
        if not await self.answer("starttls", b"220 2.0.0 go ahead\r\n") or self.out[-1][:3] != b"220":
            return
        await self.stream.send_all(b"".join(self.out))
        self.out.clear()
        assert self.options.context is not None
        await self.stream.start_tls(self.options.context, server_side=True)
        self.tls = True
        self.user = None
        self.reader = _fast.CommandReader(65536)

    async def auth(self, line: bytes) -> None:
        if not (self.tls or self.options.auth_without_tls):
            self.out.append(b"538 5.7.11 encryption required\r\n")
            return
        words = line.split()
        name = words[1].upper() if len(words) > 1 else b""
        if name not in (b"PLAIN", b"LOGIN"):
            self.out.append(b"504 5.5.4 PLAIN or LOGIN\r\n")
            return
        self.login = [name.decode()]
        if len(words) > 2:
            await self.auth_line(words[2])
        else:
            self.out.append(b"334 \r\n" if name == b"PLAIN" else b"334 VXNlcm5hbWU6\r\n")

    async def auth_line(self, line: bytes) -> None:
        login = self.login
        assert login is not None and self.options.auth is not None
        try:
            text = base64.b64decode(line, validate=True).decode()
        except ValueError:
            self.login = None
            self.out.append(b"501 5.5.2 not base64\r\n")
            return
        if login[0] == "PLAIN":
            login += text.split("\0")[1:]
        else:
            login.append(text)
            if len(login) == 2:
                self.out.append(b"334 UGFzc3dvcmQ6\r\n")
                return
        self.login = None
        user, password = self.options.auth
        given = "\0".join(login[1:]).encode()
        right = hmac.compare_digest(given, f"{user}\0{password}".encode())
        reply = b"235 2.7.0 welcome\r\n" if right else b"535 5.7.8 wrong user or password\r\n"
        if await self.answer("auth", reply) and self.out[-1][:3] == b"235":
            self.user = user

    async def answer(self, stage: str, usual: bytes) -> bool:
        """Queue the answer of a stage; False when the connection is over."""
        if self.plain:
            self.out.append(usual)
            return True
        found = self.sink.behaviour(stage)
        if found is None:
            self.out.append(usual)
        elif found.action == "reply":
            self.out.append(found.text.encode() + b"\r\n")
            if found.text.startswith("421"):
                self.done = True
        elif found.action == "delay":
            await trio.sleep(found.seconds)
            self.out.append(usual)
        elif found.action == "hang":
            await trio.sleep_forever()
        else:
            raise ConnectionLost("dropped on purpose")
        return True


def _path(line: bytes) -> str:
    return line[line.find(b"<") + 1 : line.rfind(b">")].decode("utf-8", "replace")


@asynccontextmanager
async def open_sink(
    options: SinkOptions | None = None, *, ca: ThrowAwayCa | None = None
) -> AsyncIterator[Sink]:
    """A running sink; `Sink.address` is where. `ca`: offers STARTTLS with a certificate of it."""
    options = options or SinkOptions()
    if ca is not None and options.context is None:
        options.context = ca.server_context(options.host)
    if options.store is not None:
        for part in ("tmp", "new", "cur"):
            await trio.Path(options.store / part).mkdir(parents=True, exist_ok=True)
    listener = open_listener(options.host, options.port)
    running = Sink(options, listener, ca.pem if ca is not None else b"")
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                try:
                    nursery.start_soon(running.serve, await listener.accept())
                except OSError:
                    await trio.sleep(0.05)

        nursery.start_soon(accept)
        try:
            yield running
        finally:
            nursery.cancel_scope.cancel()
            listener.close()


def sink(
    *,
    listen: str = "127.0.0.1:2600",
    tls: bool = False,
    cert: Path | None = None,
    key: Path | None = None,
    ca_out: Path | None = None,
    auth: str | None = None,
    auth_without_tls: bool = False,
    reply: Annotated[list[str] | None, Parameter(negative=())] = None,
    store: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """A fast next hop for experiments: takes every message, counts it, and can misbehave.

    Parameters
    ----------
    listen
        Where to listen, HOST:PORT.
    tls
        Offer STARTTLS with a certificate of a throw-away CA made at the start.
    cert
        Certificate chain (PEM) to use instead; needs --key.
    key
        Its private key (PEM).
    ca_out
        Write the throw-away CA's certificate to this file.
    auth
        USER:PASSWORD; insist on AUTH PLAIN or LOGIN, inside TLS.
    auth_without_tls
        Take AUTH in clear text as well.
    reply
        Misbehave: STAGE=CODE TEXT, STAGE=drop, STAGE=hang or STAGE=delay=SECONDS, each with ;every=N
        behind it if wanted. Stages: connect ehlo starttls auth mail rcpt data dot quit. May be repeated.
    store
        Keep the messages in this maildir.
    json_
        No status line; one line of JSON at the end.
    """
    from engine.cli.report import guarded

    return guarded(
        lambda: trio.run(
            _run, listen, tls, cert, key, ca_out, auth, auth_without_tls, reply or [], store, json_
        ),
        command="sink",
    )


async def _run(
    listen: str,
    tls: bool,
    cert: Path | None,
    key: Path | None,
    ca_out: Path | None,
    auth: str | None,
    auth_without_tls: bool,
    reply: list[str],
    store: Path | None,
    as_json: bool,
) -> None:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise ConfigError(f"--listen {listen!r}: HOST:PORT expected")
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together")
    login: tuple[str, str] | None = None
    if auth is not None:
        user, colon, password = auth.partition(":")
        if not colon or not user or not password:
            raise ConfigError("--auth takes USER:PASSWORD")
        login = (user, password)
        if not (tls or cert or auth_without_tls):
            raise ConfigError("--auth needs --tls, or --auth-without-tls to take passwords in clear text")
    options = SinkOptions(
        host=host,
        port=int(port),
        auth=login,
        auth_without_tls=auth_without_tls,
        behaviours=dict(parse_behaviour(value) for value in reply),
        store=store,
    )
    ca: ThrowAwayCa | None = None
    if cert is not None:
        options.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options.context.load_cert_chain(cert, key)
    elif tls:
        ca = ThrowAwayCa()
        if ca_out is not None:
            await trio.Path(ca_out).write_bytes(ca.pem)
    async with open_sink(options, ca=ca) as running:
        begun = time.monotonic()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                if not as_json:
                    nursery.start_soon(_status, running)
                await anext(signals)
                nursery.cancel_scope.cancel()
        facts = {
            "messages": running.count,
            "connections": running.connections,
            "octets": running.octets,
            "seconds": round(time.monotonic() - begun, 3),
        }
        print(json.dumps(facts) if as_json else "", flush=True)


async def _status(running: Sink) -> None:
    """One line that is rewritten: what came, and how fast in the last second."""
    host, port = running.address
    last = -1
    while True:
        rate = running.count - max(last, 0)
        if running.count != last:
            line = f"{host}:{port}  {running.count:,} messages  {running.open} open  {rate:,}/s"
            print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)
        last = running.count
        await trio.sleep(1)
