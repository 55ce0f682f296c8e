"""A scripted client over loopback, and the engine around a listener reduced to what can be looked at."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from engine.errors import SecretUnavailable, SpoolError
from engine.hooks import Hooks
from engine.ingress import Listeners, open_listeners
from engine.ingress.strangers import Strangers
from engine.log import Capture, Record
from engine.memory import Memory
from engine.model import Message
from policy.hooks import HookTable, on, registering
from policy.ingress import LISTENER

HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<from@client.example>\r\nRCPT TO:<to@example.com>\r\n"
BODY = b"Subject: hello\r\n\r\nbody\r\n"


class FakeSpool:
    """Keeps what is committed. `fail` is raised by commit; `gate`, if set, holds commits back."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.halted: str | None = None
        self.room = True
        self.fail: BaseException | None = None
        self.gate: trio.Event | None = None
        self.began = trio.Event()
        self.commits: list[tuple[list[bytes], list[Message]]] = []

    def room_for(self, size: int) -> bool:
        return self.room

    async def commit(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float
    ) -> list[Any]:
        self.began.set()
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            await trio.lowlevel.checkpoint()
            if self.gate is not None:
                await self.gate.wait()
        if scope.cancelled_caught:
            raise SpoolError("the disk did not answer in time")
        if self.fail is not None:
            raise self.fail
        self.commits.append((list(bodies), list(messages)))
        return [object() for _ in messages]


class FakeLog:
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.capture = Capture()
        self.full = False
        self.waited = 0

    def write(self, record: Record) -> None:
        self.records.append(record)

    async def wait_room(self) -> None:
        self.waited += 1
        self.full = False
        await trio.lowlevel.checkpoint()

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.records if record.type == kind]


OPENED: list[Client] = []
"""Every client a test opened; closed by the fixture in conftest.py when the test is over."""


class NoKeys:
    """A key ring without keys."""

    async def fetch(self, ref: Any) -> Any:
        raise SecretUnavailable(f"{ref.name}: not there")


class Relay:
    """What a test looks at."""

    def __init__(self, listeners: Listeners, spool: FakeSpool, log: FakeLog) -> None:
        self.listeners = listeners
        self.spool = spool
        self.log = log
        self.memory = Memory(1 << 30)
        self.queued: list[tuple[Message, bytes]] = []

    def enqueue(self, message: Message, body: bytes, handle: object) -> None:
        self.queued.append((message, body))

    @property
    def contents(self) -> list[bytes]:
        """What was queued, without our Received field: its prefix is asserted to be one."""
        found = []
        for message, body in self.queued:
            assert message.prefix.startswith(b"Received: from ")
            found.append(body)
        return found

    async def connect(self, number: int = 0) -> Client:
        host, port = self.listeners.addresses[number]
        client = Client(await trio.open_tcp_stream(host, port))
        OPENED.append(client)
        return client

    @asynccontextmanager
    async def client(self, number: int = 0, *, greeted: bool = True) -> AsyncIterator[Client]:
        """A connected client; `greeted`: it has read the banner and said EHLO."""
        client = await self.connect(number)
        try:
            if greeted:
                assert (await client.reply())[0] == 220
                assert (await client.ask(HELLO))[0] == 250
            yield client
        finally:
            client.socket.close()


class Client:
    """Sends what the test says, reads replies."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream: Any = stream
        self.socket = stream.socket
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_slowly(self, data: bytes) -> None:
        """One octet per segment."""
        for at in range(len(data)):
            await self.stream.send_all(data[at : at + 1])
            await trio.lowlevel.checkpoint()

    async def line(self) -> bytes:
        """One line, ``b""`` at the end."""
        while b"\r\n" not in self.buffer:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                assert self.buffer == b"", self.buffer
                return b""
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    async def reply(self) -> tuple[int, str]:
        """Code and text (lines joined by LF, without codes); (0, "") at the end."""
        lines = []
        while True:
            line = await self.line()
            if not line:
                assert not lines
                return 0, ""
            lines.append(line[4:].decode())
            if line[3:4] != b"-":
                return int(line[:3]), "\n".join(lines)

    async def ask(self, data: bytes) -> tuple[int, str]:
        await self.send(data)
        return await self.reply()

    async def codes(self) -> list[int]:
        """All replies until the connection is closed."""
        found = []
        while True:
            code, _ = await self.reply()
            if not code:
                return found
            found.append(code)

    async def transaction(self, content: bytes = BODY, envelope: bytes = ENVELOPE) -> tuple[int, str]:
        """A whole pipelined transaction; the reply to the final dot, or the first one that refuses."""
        await self.send(envelope + b"DATA\r\n")
        for _ in range(envelope.count(b"\r\n")):
            code, text = await self.reply()
            if code != 250:
                return code, text
        code, text = await self.reply()
        if code != 354:
            return code, text
        return await self.ask(content + b".\r\n")

    async def start_tls(self) -> None:
        assert (await self.ask(b"STARTTLS\r\n"))[0] == 220
        assert self.buffer == b""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.stream = trio.SSLStream(self.stream, context, server_hostname="mx.example")
        await self.stream.do_handshake()


def make_hooks(functions: dict[str, Callable[..., Any]] | None = None) -> Hooks:
    """The engine's hook caller over these functions by event."""
    table = HookTable()
    token = registering.set(table)
    try:
        for event, function in (functions or {}).items():
            on(event)(function)
    finally:
        registering.reset(token)
    return Hooks(table)


@asynccontextmanager
async def open_relay(
    hooks: dict[str, Callable[..., Any]] | None = None,
    *,
    keys: Any = None,
    seconds: float = 20.0,
    strangers: Strangers | None = None,
    **options: Any,
) -> AsyncIterator[Relay]:
    """A listener on a free port of 127.0.0.1 with these hooks and `start_esmtp_listener` options, open for
    at most `seconds`."""
    options = {"listen": "127.0.0.1:0", "hostname": "mx.example"} | options
    declaration = LISTENER(None, options)
    spool, log = FakeSpool(), FakeLog()
    relay = Relay(None, spool, log)  # type: ignore[arg-type]
    async with _listeners(declaration, relay, make_hooks(hooks), keys or NoKeys(), strangers) as listeners:
        relay.listeners = listeners
        with trio.fail_after(seconds):
            yield relay


def _listeners(declaration: Any, relay: Relay, hooks: Hooks, keys: Any, strangers: Any = None) -> Any:
    return open_listeners(
        [declaration],
        hooks=hooks,
        spool=relay.spool,  # type: ignore[arg-type]
        enqueue=relay.enqueue,
        log=relay.log,  # type: ignore[arg-type]
        keys=keys,
        hostname="fallback.example",
        memory=relay.memory,
        strangers=strangers,
    )
