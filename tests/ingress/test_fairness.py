"""One busy client does not hold the loop, and the reply to a final dot waits for nothing behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import engine.hooks
import policy
from engine.errors import ConnectionLost
from engine.ingress.guesses import Guesses
from engine.ingress.service import Service
from engine.ingress.smtp import InboundSession
from engine.ingress.strangers import Strangers
from engine.memory import Memory
from engine.tripwire import Tripwire
from policy.ingress import LISTENER
from tests.ingress.peer import BODY, ENVELOPE, FakeLog, FakeSpool, NoKeys, make_hooks, open_relay


class Torrent:
    """A stream on which there is always something to read, until the pieces end."""

    peer = ("127.0.0.1", 1025)
    local = ("127.0.0.1", 25)
    tls = None

    def __init__(self, first: bytes, more: bytes, octets: int) -> None:
        self._waiting = first
        self._more = more
        self._left = octets
        self.octets = 0
        self.output = b""

    def receive_nowait(self, limit: int) -> bytes | None:
        if not self._waiting and self._left > 0:
            self._waiting = self._more
            self._left -= len(self._more)
        data, self._waiting = self._waiting[:limit], self._waiting[limit:]
        self.octets += len(data)
        return data

    async def wait_readable(self) -> None:
        raise AssertionError("there is always something")

    async def send_all(self, data: bytes) -> None:
        self.output += data

    def close(self) -> None:
        pass


def _session(stream: Any, hooks: dict[str, Callable[..., Any]], options: dict[str, Any]) -> InboundSession:
    service = Service(
        LISTENER(None, {"listen": "127.0.0.1:0"} | options),
        hostname="mx.example",
        address="127.0.0.1:25",
        hooks=make_hooks(hooks),
        spool=FakeSpool(),  # type: ignore[arg-type]
        enqueue=lambda *args: None,
        log=FakeLog(),  # type: ignore[arg-type]
        keys=NoKeys(),  # type: ignore[arg-type]
        guesses=Guesses(),
        memory=Memory(1 << 30),
        strangers=Strangers(),
        tripwire=Tripwire(),
    )
    return InboundSession(stream, service)


START = b"EHLO x.example\r\n"
FLOODS: dict[str, tuple[bytes, bytes, int]] = {
    # What opens the flood, the flood, and octets after which others must have had a turn.
    "content": (START + ENVELOPE + b"DATA\r\n", (b"x" * 72 + b"\r\n") * 1000, 1 << 20),
    "content of one line": (START + ENVELOPE + b"DATA\r\n", b"x" * 70000, 1 << 20),
    "recipients": (START + ENVELOPE, b"RCPT TO:<d@e.example>\r\n" * 3000, 8192),
    "refused recipients": (START + ENVELOPE, b"RCPT TO:<refused@e.example>\r\n" * 3000, 8192),
    "NOOP": (START, b"NOOP\r\n" * 10000, 8192),
    "unknown": (START, b"X\r\n" * 20000, 8192),
    "no command at all": (START, b"x" * 70000, 8192),
    "transactions": (START, b"MAIL FROM:<>\r\nRSET\r\n" * 3000, 8192),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_client_that_sends_without_end_lets_others_run(flood: str) -> None:
    opening, more, stride = FLOODS[flood]
    stream = Torrent(opening, more, 8 << 20 if flood.startswith("content") else 1 << 18)

    def rcpt(recipient: Any, conn_meta: Any) -> None:
        if recipient.user == "refused":
            raise policy.Reject(550, "5.7.1 no")

    options = {
        "max_errors": 10_000_000,
        "max_recipients_per_message": 100_000,
        "max_message_size": 100_000_000,
    }
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(stream.octets)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        await _session(stream, {"smtp_server_rcpt_to": rcpt}, options).run()
        nursery.cancel_scope.cancel()
    assert stream.octets > 1 << 17
    gaps = [after - before for before, after in zip(turns, [*turns[1:], stream.octets], strict=True)]
    assert max(gaps) <= 2 * (stride + 4096), "the two take turns in either order"


async def test_a_client_that_sends_without_end_can_be_stopped() -> None:
    stream = Torrent(START + ENVELOPE + b"DATA\r\n", (b"x" * 72 + b"\r\n") * 1000, 1 << 40)
    session = _session(stream, {}, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        while stream.octets < 1 << 20:
            await trio.lowlevel.checkpoint()
        session.stop()
    assert stream.output.endswith(b"\r\n421 4.3.2 Service is shutting down\r\n")


class Seconds:
    """Time as the hooks' caller sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr(engine.hooks.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "event", ["smtp_server_rcpt_to", "get_listener_domain", "smtp_server_message_received"]
)
async def test_hooks_that_are_each_quick_enough_let_others_run_between_them(
    event: str, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds(monkeypatch)
    calls: list[float] = []
    turns: list[int] = []

    def plain(*args: Any) -> Any:
        calls.append(seconds.now)
        seconds.now += 0.02
        return policy.make_listener_domain(relay_to=True) if event == "get_listener_domain" else None

    async def at_once(*args: Any) -> Any:
        return plain(*args)

    async def other() -> None:
        while True:
            turns.append(len(calls))
            await trio.lowlevel.checkpoint()

    recipients = b"".join(b"RCPT TO:<a@d%d.example>\r\n" % number for number in range(50))
    content = START + b"MAIL FROM:<>\r\n" + recipients + b"DATA\r\n" + BODY + b".\r\n"
    options = {"relay_hosts": []} if event == "get_listener_domain" else {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        await _session(Torrent(content, b"", 0), {event: at_once if is_async else plain}, options).run()
        nursery.cancel_scope.cancel()
    assert len(calls) == 50
    assert max(after - before for before, after in zip([0, *turns], [*turns, 50], strict=True)) <= 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_hooks_of_many_recipients_together_have_the_time_of_one_message(
    is_async: bool, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    seconds = Seconds(monkeypatch)
    calls = [0]

    def plain(*args: Any) -> None:
        calls[0] += 1
        seconds.now += 0.9
        mock_clock.jump(0.9)

    async def at_once(*args: Any) -> None:
        plain()

    recipients = b"".join(b"RCPT TO:<a%d@d.example>\r\n" % number for number in range(100))
    content = START + b"MAIL FROM:<>\r\n" + recipients + b"DATA\r\n" + BODY + b".\r\n"
    stream = Torrent(content, b"", 0)
    hook = at_once if is_async else plain
    await _session(stream, {"smtp_server_message_received": hook}, {}).run()
    assert stream.output.endswith(
        b"451 4.4.5 The policy took too long over this message; try again later\r\n"
    )
    assert calls[0] == 67, "60 s, the limit, and no more"


async def test_a_message_for_many_lets_others_run() -> None:
    turns = [0]

    async def other() -> None:
        while True:
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    async def turns_of(recipients: int) -> int:
        commands = b"".join(b"RCPT TO:<a%d@d.example>\r\n" % number for number in range(recipients))
        content = START + b"MAIL FROM:<>\r\n" + commands + b"DATA\r\n"
        session = _session(Torrent(content, BODY + b".\r\n", len(BODY) + 3), {}, {})
        before = turns[0]
        await session.run()
        return turns[0] - before

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        few, many = await turns_of(1), await turns_of(1000)
        nursery.cancel_scope.cancel()
    assert many - few >= 1000 // 128 + 1000 // 64


async def test_surplus_recipients_end_the_session_at_last() -> None:
    stream = Torrent(START + ENVELOPE, b"RCPT TO:<d@e.example>\r\n" * 1000, 1 << 18)
    await _session(stream, {}, {"max_recipients_per_message": 100}).run()
    codes = [line[:3] for line in stream.output.split(b"\r\n")]
    assert codes.count(b"452") == 100 + 20
    assert codes[-2:] == [b"421", b""]


async def slow(*args: Any) -> None:
    await trio.sleep(5)


@pytest.mark.parametrize(
    ("event", "behind"),
    [
        ("smtp_server_mail_from", b"MAIL FROM:<a@slow.example>\r\nNOOP\r\n"),
        ("smtp_server_ehlo", b"EHLO again.example\r\n"),
        ("smtp_server_auth_plain", b"AUTH PLAIN AGEAYg==\r\n"),
    ],
)
async def test_the_reply_to_the_dot_does_not_wait_for_a_hook_behind_it(
    event: str, behind: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_relay({event: slow}, allow_auth_without_tls=True, seconds=1000) as relay:
        client = await relay.connect()
        assert (await client.reply())[0] == 220
        assert (await client.ask(START))[0] == 250
        await client.send(ENVELOPE + b"DATA\r\n")
        assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        begun = trio.current_time()
        await client.send(BODY + b".\r\n" + behind)
        assert (await client.reply())[0] == 250
        assert trio.current_time() == begun
        await client.reply()
        assert trio.current_time() >= begun + 5


async def test_the_reply_to_the_dot_does_not_wait_for_the_next_commit() -> None:
    async with open_relay() as relay, relay.client() as client:
        await client.send(ENVELOPE + b"DATA\r\n")
        assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        relay.spool.gate = trio.Event()
        relay.spool.gate.set()
        envelope = ENVELOPE + b"DATA\r\n" + BODY + b".\r\n"

        def hold(*args: Any) -> None:
            relay.spool.gate = trio.Event()

        relay.enqueue = hold  # type: ignore[method-assign]
        relay.listeners._pairs[0][1].acceptor._enqueue = hold
        await client.send(BODY + b".\r\n" + envelope)
        assert [(await client.reply())[0] for _ in range(4)] == [250, 250, 250, 354]
        relay.spool.gate.set()
        assert (await client.reply())[0] == 250


async def test_the_reply_to_the_dot_does_not_wait_for_plain_hooks_that_add_up(
    mock_clock: trio.testing.MockClock,
) -> None:
    said: list[bool] = []

    def rcpt(recipient: Any, conn_meta: Any) -> None:
        said.append(b"OK ids=" in stream.output)
        mock_clock.jump(0.2)

    behind = b"MAIL FROM:<>\r\n" + b"RCPT TO:<a@b.example>\r\n" * 6
    stream = Torrent(START + ENVELOPE + b"DATA\r\n" + BODY + b".\r\n" + behind, b"", 0)
    await _session(stream, {"smtp_server_rcpt_to": rcpt}, {}).run()
    assert said == [False] * 4 + [True] * 3


async def test_replies_of_a_group_without_a_dot_go_out_together() -> None:
    sent: list[bytes] = []

    class Counting(Torrent):
        async def send_all(self, data: bytes) -> None:
            sent.append(data)

    async def rcpt(recipient: Any, conn_meta: Any) -> None:
        await trio.lowlevel.checkpoint()

    stream = Counting(START + ENVELOPE + b"DATA\r\n", BODY + b".\r\n", len(BODY) + 3)
    await _session(stream, {"smtp_server_rcpt_to": rcpt}, {}).run()
    assert [data.count(b"\r\n") for data in sent] == [1, 7 + 3, 1]


async def test_a_client_that_left_before_the_reply_to_its_dot() -> None:
    class Gone(Torrent):
        async def send_all(self, data: bytes) -> None:
            if b"OK ids=" in data:
                raise ConnectionLost("gone")

    async def rcpt(recipient: Any, conn_meta: Any) -> None:
        asked.append(recipient)

    asked: list[Any] = []
    behind = b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\n"
    stream = Gone(START + ENVELOPE + b"DATA\r\n" + BODY + b".\r\n" + behind, b"", 0)
    await _session(stream, {"smtp_server_rcpt_to": rcpt}, {}).run()
    assert len(asked) == 1, "what stands behind the dot was not looked at"
