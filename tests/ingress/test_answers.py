"""Hooks of a session: asked at their time, obeyed when they refuse, never a yes when they fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import policy
from engine.errors import SpoolFull
from tests.ingress.peer import BODY, ENVELOPE, HELLO, open_relay

COMMANDS = {
    "smtp_server_ehlo": b"EHLO again.example\r\n",
    "smtp_server_mail_from": b"MAIL FROM:<a@b.example>\r\n",
    "smtp_server_rcpt_to": ENVELOPE,
    "get_listener_domain": ENVELOPE,
    "smtp_server_data": ENVELOPE + b"DATA\r\n" + BODY + b".\r\n",
    "smtp_server_message_received": ENVELOPE + b"DATA\r\n" + BODY + b".\r\n",
}


def _hook(event: str, action: Callable[[], Any], *, is_async: bool) -> Callable[..., Any]:
    """A hook of `event` that does `action`, but not for the first EHLO."""
    skip = [event == "smtp_server_ehlo"]

    def plain(*arguments: Any) -> Any:
        if skip[0]:
            skip[0] = False
            return None
        return action()

    async def waiting(*arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return plain(*arguments)

    return waiting if is_async else plain


def _raise(error: BaseException) -> Callable[[], Any]:
    def action() -> Any:
        raise error

    return action


FAILURES = [
    ValueError("broken"),
    SystemExit(3),
    ExceptionGroup("many", [ValueError(1)]),
    BaseException("bare"),
    MemoryError(),
    RecursionError(),
    KeyboardInterrupt(),
    GeneratorExit(),
    BaseExceptionGroup("many", [KeyboardInterrupt()]),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("event", COMMANDS)
async def test_a_hook_that_fails_is_451_for_that_command_and_nothing_else(
    event: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"relay_hosts": []} if event == "get_listener_domain" else {}
    for error in FAILURES:
        hooks = {event: _hook(event, _raise(error), is_async=is_async)}
        async with open_relay(hooks, **options) as relay, relay.client() as client:
            await client.send(COMMANDS[event] + b"NOOP\r\n")
            replies = [await client.reply()]
            while replies[-1] != (250, "2.0.0 OK"):
                replies.append(await client.reply())
            assert len(replies) < 8
            failed = [reply for reply in replies if reply[0] == 451]
            assert len(failed) == 1, replies
            assert failed[0][1].startswith("4.3.0 ")
            assert "test_answers" not in failed[0][1], "the client is told nothing of our insides"
            assert not relay.queued
            assert not relay.spool.commits
            (record,) = [record for record in relay.log.of("Rejection") if record.code == 451]
            assert type(error).__name__ in (record.cause or "")
            assert event in (record.cause or "")
            assert event in caplog.text
            caplog.clear()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("event", [event for event in COMMANDS if event != "get_listener_domain"])
@pytest.mark.parametrize(
    ("reject", "ends"),
    [
        (policy.Reject(550, "5.7.1 go away\r\n250 2.0.0 forged"), []),
        (policy.Reject(450, "later"), []),
        (policy.Reject(421, "bye"), None),
        (policy.Reject(550, "bye", mode="ForceDisconnect"), None),
        (policy.Reject(550, "bye", mode="FollowWith421"), [421]),
    ],
)
async def test_reject_modes(
    event: str, is_async: bool, reject: policy.Reject, ends: list[int] | None
) -> None:
    hooks = {event: _hook(event, _raise(reject), is_async=is_async)}
    async with open_relay(hooks) as relay, relay.client() as client:
        await client.send(COMMANDS[event] + b"NOOP\r\n")
        codes = []
        while True:
            code, text = await client.reply()
            codes.append(code)
            if code == reject.code:
                break
        assert text.startswith("5.7.1 go away" if reject.enhanced else f"{reject.code // 100}.0.0 ")
        assert not relay.queued
        if ends is None:
            assert await client.codes() == []
        elif ends:
            assert await client.codes() == ends
        else:
            assert (await client.reply())[0] == 250
            assert (await client.ask(b"QUIT\r\n"))[0] == 221


async def test_the_record_of_a_failed_hook_has_its_own_cause_and_no_other_has() -> None:
    def rcpt(recipient: Any, conn_meta: Any) -> None:
        if recipient.user in ("first", "second"):
            raise ValueError if recipient.user == "first" else KeyError

    async with open_relay({"smtp_server_rcpt_to": rcpt}) as relay, relay.client() as client:
        commands = [b"RCPT TO:<syntax", b"RCPT TO:<first@b.example>", b"WHAT", b"RCPT TO:<second@b.example>",
                    b"RCPT TO:<a@b.example> X=Y"]  # fmt: skip
        await client.send(b"MAIL FROM:<>\r\n" + b"".join(command + b"\r\n" for command in commands))
        assert [(await client.reply())[0] for _ in range(6)] == [250, 501, 451, 500, 451, 555]
        await client.ask(b"QUIT\r\n")
        causes = [(record.code, record.cause) for record in relay.log.of("Rejection")]
    assert [code for code, cause in causes if cause is None] == [501, 500, 555]
    first, second = (cause for _, cause in causes if cause is not None)
    assert "ValueError" in first
    assert "KeyError" in second


async def test_connection_hook() -> None:
    def accepted(conn_meta: Any) -> None:
        if conn_meta.get_meta("received_from").startswith("127."):
            raise policy.Reject(554, "5.7.1 no")

    async with open_relay({"smtp_server_connection_accepted": accepted}) as relay:
        client = await relay.connect()
        assert await client.reply() == (554, "5.7.1 no")
        assert await client.reply() == (0, "")
        assert relay.log.of("Rejection")[0].code == 554

    async def failing(conn_meta: Any) -> None:
        raise KeyError

    async with open_relay({"smtp_server_connection_accepted": failing}) as relay:
        client = await relay.connect()
        code, text = await client.reply()
        assert (code, text[:6]) == (421, "4.3.0 ")
        assert await client.reply() == (0, "")
        (record,) = relay.log.of("Rejection")
        assert "KeyError" in (record.cause or "")


async def test_the_ehlo_hook_may_replace_what_is_advertised() -> None:
    offered = []

    def ehlo(domain: str, conn_meta: Any, extensions: Any) -> Any:
        offered.append(extensions)
        return ["PIPELINING", "X-OWN"] if domain == "client.example" else None

    async with open_relay({"smtp_server_ehlo": ehlo}) as relay, relay.client(greeted=False) as client:
        await client.reply()
        _, text = await client.ask(HELLO)
        assert text.split("\n")[1:] == ["PIPELINING", "X-OWN"]
        _, text = await client.ask(b"EHLO other.example\r\n")
        assert "8BITMIME" in text.split("\n")
        assert "PIPELINING" in offered[0]
        assert (await client.ask(b"HELO third.example\r\n"))[0] == 250
        assert not offered[2]


async def test_hooks_see_addresses_and_meta() -> None:
    seen: list[Any] = []

    def mail(address: Any, conn_meta: Any) -> None:
        seen.append(
            (str(address), address.user, address.domain, address.email, conn_meta.get_meta("ehlo_domain"))
        )
        conn_meta.set_meta("x_n", (conn_meta.get_meta("x_n") or 0) + 1)
        conn_meta.set_meta("tenant", "t")

    def rcpt(address: Any, conn_meta: Any) -> None:
        seen.append((str(address), address.user, address.domain))

    hooks = {"smtp_server_mail_from": mail, "smtp_server_rcpt_to": rcpt}
    async with open_relay(hooks) as relay, relay.client() as client:
        envelope = b'MAIL FROM:<"a@b c"@Client.example>\r\nRCPT TO:<to@[192.0.2.1]>\r\n'
        assert (await client.transaction(envelope=envelope))[0] == 250
        assert (await client.transaction(envelope=b"MAIL FROM:<>\r\nRCPT TO:<to@example.com>\r\n"))[0] == 250
        assert seen == [
            ('"a@b c"@Client.example', "a@b c", "Client.example", '"a@b c"@Client.example', "client.example"),
            ("to@[192.0.2.1]", "to", "[192.0.2.1]"),
            ("", "", "", "", "client.example"),
            ("to@example.com", "to", "example.com"),
        ]
        (first, _), (second, _) = relay.queued
        assert (first.meta["x_n"], second.meta["x_n"]) == (1, 2)
        assert str(first.queue) == "t@[192.0.2.1]"


async def test_listener_domains() -> None:
    def domain(domain: str, listener: str, conn_meta: Any) -> Any:
        if domain == "ours.example":
            return policy.make_listener_domain(relay_to=True)
        if domain == "customer.example":
            return policy.make_listener_domain(relay_from=["127.0.0.0/8"])
        return None

    async with open_relay({"get_listener_domain": domain}, relay_hosts=[]) as relay, relay.client() as client:
        for sender, recipient, code in (
            ("x@any.example", "to@OURS.example", 250),
            ("x@any.example", "to@theirs.example", 550),
            ("x@customer.example", "to@theirs.example", 250),
            ("", "to@theirs.example", 550),
            ("", "to@ours.example", 250),
            ("x@any.example", '"to@theirs.example"@ours.example', 250),
            ("x@any.example", "to%theirs.example@ours.example", 250),
            ("x@any.example", '"to@ours.example"@theirs.example', 550),
        ):
            await client.send(f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nRSET\r\n".encode())
            codes = [(await client.reply())[0] for _ in range(3)]
            assert codes == [250, code, 250], (sender, recipient)


async def test_no_rule_means_no_relay() -> None:
    async with open_relay(relay_hosts=[]) as relay, relay.client() as client:
        for recipient in (b"a@b.example", b"a%b@mx.example", b"@mx.example:a@b.example", b"postmaster"):
            await client.send(b"MAIL FROM:<x@mx.example>\r\nRCPT TO:<" + recipient + b">\r\nRSET\r\n")
            assert [(await client.reply())[0] for _ in range(3)] == [250, 550, 250]


async def test_a_spool_in_trouble_is_said_at_connect_and_at_mail() -> None:
    async with open_relay() as relay, relay.client() as client:
        relay.spool.trouble = "no space"
        code, text = await client.ask(b"MAIL FROM:<>\r\n")
        assert (code, text[:6]) == (452, "4.3.1 ")
        late = await relay.connect()
        code, text = await late.reply()
        assert (code, text[:6]) == (421, "4.3.0 ")
        assert await late.reply() == (0, "")
        relay.spool.trouble = None
        relay.spool.room = False
        assert (await client.ask(b"MAIL FROM:<> SIZE=1000\r\n"))[0] == 452
        relay.spool.room = True
        assert (await client.transaction())[0] == 250, "no restart needed"
        relay.spool.fail = SpoolFull("full")
        assert (await client.transaction())[0] == 452
        relay.spool.fail = None
        assert (await client.transaction())[0] == 250
