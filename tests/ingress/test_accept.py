"""From the final dot to the 250: all recipients or none, and nothing before the commit."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import policy
from engine.errors import SpoolError, SpoolFull
from tests.ingress.peer import BODY, ENVELOPE, Client, Relay, open_relay

TWO = b"MAIL FROM:<from@client.example>\r\nRCPT TO:<one@a.example>\r\nRCPT TO:<two@b.example>\r\n"


@pytest.mark.parametrize(
    ("error", "code", "enhanced"),
    [(SpoolFull("no space"), 452, "4.3.1 "), (SpoolError("I/O error"), 451, "4.3.0 ")],
)
async def test_a_commit_that_fails(error: SpoolError, code: int, enhanced: str) -> None:
    async with open_relay() as relay, relay.client() as client:
        relay.spool.fail = error
        reply = await client.transaction(envelope=TWO)
        assert (reply[0], reply[1][:6]) == (code, enhanced)
        assert not relay.queued
        assert not relay.log.of("Reception")
        assert relay.log.of("Rejection")[0].code == code
        relay.spool.fail = None
        assert (await client.transaction(envelope=TWO))[0] == 250
        assert len(relay.queued) == 2


@pytest.mark.parametrize(
    ("halted", "code", "enhanced"), [(None, 452, "4.3.1 "), ("the disk is on fire", 451, "4.3.0 ")]
)
async def test_the_room_is_looked_at_again_at_the_dot(halted: str | None, code: int, enhanced: str) -> None:
    """It was there at MAIL (D18). No hook is asked about a message that cannot be kept."""
    asked = []
    async with open_relay({"smtp_server_data": lambda *args: asked.append(args)}) as relay:
        async with relay.client() as client:
            await client.send(ENVELOPE + b"DATA\r\n")
            assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
            relay.spool.room, relay.spool.halted = False, halted
            reply = await client.ask(BODY + b".\r\n")
            assert (reply[0], reply[1][:6]) == (code, enhanced)
            assert not (relay.spool.commits or relay.queued or asked)
            relay.spool.room, relay.spool.halted = True, None
            assert (await client.transaction())[0] == 250


async def test_a_commit_that_breaks_ends_the_session_only(caplog: pytest.LogCaptureFixture) -> None:
    async with open_relay() as relay, relay.client() as client, relay.client() as other:
        relay.spool.fail = ZeroDivisionError("a defect")
        reply = await client.transaction()
        assert (reply[0], reply[1][:6]) == (421, "4.3.0 ")
        assert await client.reply() == (0, "")
        assert "a defect" in caplog.text
        relay.spool.fail = None
        assert (await other.transaction())[0] == 250
        assert len(relay.queued) == 1
        assert relay.listeners.statistics().popitem()[1].failures == 1


async def test_a_commit_that_hangs_is_given_up_after_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_relay(seconds=200) as relay, relay.client() as client:
        relay.spool.gate = trio.Event()
        begun = trio.current_time()
        reply = await client.transaction()
        assert trio.current_time() - begun == pytest.approx(60, abs=1)
        assert (reply[0], reply[1][:6]) == (451, "4.3.0 ")
        relay.spool.gate.set()
        await trio.sleep(1)
        assert not relay.queued
        assert (await client.transaction())[0] == 250, "and the session goes on"


async def test_nothing_is_queued_or_said_before_the_commit_is_done() -> None:
    async with open_relay() as relay, relay.client() as client:
        await begin(relay, client)
        await trio.testing.wait_all_tasks_blocked()
        assert not relay.queued
        assert not relay.log.records
        with pytest.raises(BlockingIOError):
            client.socket._sock.recv(1)
        assert relay.spool.gate is not None
        relay.spool.gate.set()
        assert (await client.reply())[0] == 250
        assert len(relay.queued) == len(relay.log.records) == 1


async def begin(relay: Relay, client: Client) -> None:
    """A transaction up to the commit, which hangs until the gate is set."""
    relay.spool.gate = trio.Event()
    await client.send(ENVELOPE + b"DATA\r\n")
    assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
    await client.send(BODY + b".\r\n")
    await relay.spool.began.wait()


async def _run(
    task_status: trio.TaskStatus[tuple[Relay, trio.CancelScope]] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope() as scope:
        async with open_relay() as relay:
            task_status.started((relay, scope))
            await trio.sleep_forever()


async def test_cancelled_during_the_commit_it_is_finished_and_the_client_is_told() -> None:
    async with trio.open_nursery() as nursery:
        relay, scope = await nursery.start(_run)
        async with relay.client() as client:
            await begin(relay, client)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not relay.queued
            assert relay.spool.gate is not None
            relay.spool.gate.set()
            assert await client.codes() == [250, 421]
        assert len(relay.queued) == len(relay.log.of("Reception")) == 1


async def test_cancelled_at_every_step_a_message_is_queued_or_was_never_committed() -> None:
    for steps in range(1, 60):
        async with open_relay() as relay:
            client = await relay.connect()
            await client.send(b"EHLO a\r\n" + ENVELOPE + b"DATA\r\n" + BODY + b".\r\n")
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
        committed = [message.id for _, messages in relay.spool.commits for message in messages]
        assert committed == [message.id for message, _ in relay.queued]
        assert committed == [bytes.fromhex(record.id) for record in relay.log.of("Reception")]
        codes = await client.codes()
        assert (codes.count(250) == 4) is bool(committed), "what is ours was acknowledged"


async def test_hooks_change_envelope_meta_and_headers_of_each_message() -> None:
    ids = []

    def received(msg: Any, conn_meta: Any) -> None:
        ids.append(msg.id())
        if str(msg.recipient()) == "one@a.example":
            msg.prepend_header("X-For", "one")
            msg.set_meta("tenant", "t1")
            msg.set_meta("campaign", "c1")
            msg.set_meta("routing_domain", "hub.example")
            assert msg.queue_name() == "c1:t1@a.example!hub.example"
        else:
            msg.set_header("Subject", "changed")
            msg.set_sender("bounces@client.example")
            msg.set_recipient(["three@c.example", "four@c.example"])

    async with open_relay({"smtp_server_message_received": received}) as relay, relay.client() as client:
        code, text = await client.transaction(envelope=TWO)
        assert code == 250
        assert text.replace("\n2.0.0", " ").split("ids=")[1].split() == ids
        ((bodies, messages),) = relay.spool.commits
        one, two = messages
        assert bodies == [BODY, b"Subject: changed\r\n\r\nbody\r\n"]
        assert (one.body_index, two.body_index) == (0, 1)
        assert [body for _, body in relay.queued] == bodies
        assert one.prefix.startswith(b"X-For: one\r\nReceived: from ")
        assert two.prefix.startswith(b"Received: from ")
        assert str(one.queue) == "c1:t1@a.example!hub.example"
        assert str(two.queue) == "c.example"
        assert two.sender == "bounces@client.example"
        assert two.recipients == ["three@c.example", "four@c.example"]
        assert one.meta["tenant"] == "t1"
        assert "tenant" not in two.meta
        for message in messages:
            assert message.size == len(message.prefix) + len(bodies[message.body_index])
        assert [record.recipient for record in relay.log.records] == [
            "one@a.example",
            ["three@c.example", "four@c.example"],
        ]


async def test_what_the_data_hook_changes_holds_for_all() -> None:
    def data(msg: Any, conn_meta: Any) -> None:
        assert [str(address) for address in msg.recipient_list()] == ["one@a.example", "two@b.example"]
        assert msg.get_data() == BODY
        msg.set_meta("x_data", 1)
        msg.set_sender("")
        msg.append_header("X-Data", "é")
        msg.prepend_header("X-Top", "1")

    async with open_relay({"smtp_server_data": data}) as relay, relay.client() as client:
        assert (await client.transaction(envelope=TWO))[0] == 250
        ((bodies, messages),) = relay.spool.commits
        assert bodies == [b"Subject: hello\r\nX-Data: =?utf-8?b?w6k=?=\r\n\r\nbody\r\n"]
        for message in messages:
            assert message.meta["x_data"] == 1
            assert message.sender == ""
            assert message.prefix.startswith(b"Received: from ")
            assert message.prefix.endswith(b"+0000\r\nX-Top: 1\r\n")


async def test_only_changed_content_is_stored_once() -> None:
    def received(msg: Any, conn_meta: Any) -> None:
        msg.set_data(b"Subject: new\n\nb\xc3\xa9\n.\n")

    async with open_relay({"smtp_server_message_received": received}) as relay, relay.client() as client:
        assert (await client.transaction())[0] == 250
        ((bodies, (message,)),) = relay.spool.commits
        assert bodies == [b"Subject: new\r\n\r\nb\xc3\xa9\r\n.\r\n"]
        assert message.body_index == 0
        assert message.prefix == b""
        assert message.eight_bit


async def test_one_reject_refuses_the_whole_transaction() -> None:
    def received(msg: Any, conn_meta: Any) -> None:
        if str(msg.recipient()) == "two@b.example":
            raise policy.Reject(552, "5.3.4 not this one")

    async with open_relay({"smtp_server_message_received": received}) as relay, relay.client() as client:
        assert await client.transaction(envelope=TWO) == (552, "5.3.4 not this one")
        assert not relay.spool.commits
        assert not relay.queued
        assert (await client.transaction())[0] == 250


@pytest.mark.parametrize("event", ["smtp_server_data", "smtp_server_message_received"])
async def test_hooks_that_take_too_long_over_a_message(
    event: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(msg: Any, conn_meta: Any) -> None:
        await trio.sleep(6)

    async with open_relay({event: slow}, data_processing_timeout=5) as relay, relay.client() as client:
        reply = await client.transaction()
        assert (reply[0], reply[1][:6]) == (451, "4.4.5 ")
        assert not relay.spool.commits
        assert (await client.ask(b"NOOP\r\n"))[0] == 250


async def test_an_explicit_queue_is_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    def received(msg: Any, conn_meta: Any) -> None:
        msg.set_meta("queue", "a@b")

    async with open_relay({"smtp_server_message_received": received}) as relay, relay.client() as client:
        assert (await client.transaction())[0] == 451
        assert 'meta "queue" (an explicit queue name) is not supported yet' in caplog.text
        assert not relay.queued
