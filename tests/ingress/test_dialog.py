"""Whole sessions over loopback: what a client says, what it hears, what is stored."""

from __future__ import annotations

import re
import socket
import struct
from typing import Any

import pytest
import trio
import trio.testing

from tests.ingress.peer import BODY, ENVELOPE, HELLO, open_relay

IDS = re.compile(r"OK ids=([0-9a-f]{32}(?: [0-9a-f]{32})*)")


async def test_one_message() -> None:
    async with open_relay() as relay, relay.client(greeted=False) as client:
        assert await client.reply() == (220, "mx.example ESMTP Posthorn")
        code, text = await client.ask(HELLO)
        assert code == 250
        extensions = text.split("\n")
        assert extensions[0].startswith("mx.example")
        assert {"PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "STARTTLS"} <= set(extensions)
        assert "SIZE 52428800" in extensions
        assert not any(extension.startswith("AUTH") for extension in extensions), "nobody could check it"
        code, text = await client.transaction()
        assert code == 250
        ids = IDS.search(text)
        assert ids is not None
        ((message, body),) = relay.queued
        assert body == BODY
        assert ids[1] == message.id.hex()
        assert message.sender == "from@client.example"
        assert message.recipients == ["to@example.com"]
        assert str(message.queue) == "example.com"
        assert message.size == len(message.prefix) + len(body)
        assert message.reception_protocol == "ESMTP"
        assert not message.eight_bit
        assert not message.smtputf8
        assert re.fullmatch(
            rb"Received: from client\.example \(\[127\.0\.0\.1\]\)\r\n"
            rb"\tby mx\.example \(Posthorn\) with ESMTP\r\n"
            rb"\tid %b\r\n\tfor <to@example\.com>;\r\n\t[^\r\n]+\r\n" % message.id.hex().encode(),
            message.prefix,
        )
        assert message.meta == {
            "reception_protocol": "ESMTP",
            "received_from": message.meta["received_from"],
            "received_via": f"127.0.0.1:{relay.listeners.addresses[0][1]}",
            "hostname": "mx.example",
            "ehlo_domain": "client.example",
        }
        (record,) = relay.log.records
        assert (record.type, record.id, record.code) == ("Reception", message.id.hex(), 250)
        assert (record.sender, record.recipient) == ("from@client.example", "to@example.com")
        assert (record.queue, record.size) == ("example.com", message.size)
        assert (record.peer_name, record.peer_addr) == ("client.example", "127.0.0.1")
        assert record.session_id
        assert (await client.ask(b"QUIT\r\n"))[0] == 221
        assert await client.reply() == (0, "")


async def test_messages_of_one_session_share_what_they_can() -> None:
    async with open_relay() as relay, relay.client() as client:
        for _ in range(3):
            assert (await client.transaction())[0] == 250
        first, second, third = (message for message, _ in relay.queued)
        assert first.meta is second.meta is third.meta
        assert first.queue is second.queue
        assert len({first.id, second.id, third.id}) == 3
        assert len({record.session_id for record in relay.log.records}) == 1


async def test_helo_and_meta_option() -> None:
    async with open_relay(meta={"x_site": "office"}) as relay, relay.client(greeted=False) as client:
        await client.reply()
        assert (await client.ask(b"HELO old.example\r\n"))[0] == 250
        assert (await client.transaction())[0] == 250
        message, _ = relay.queued[0]
        assert b"with SMTP\r\n" in message.prefix
        assert message.meta["x_site"] == "office"


async def test_one_message_per_recipient_with_one_body() -> None:
    envelope = b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<u%d@%d.example>\r\n" % (i, i % 2) for i in range(12))
    async with open_relay() as relay, relay.client() as client:
        code, text = await client.transaction(envelope=envelope)
        assert code == 250
        ids = IDS.search(text.replace("\n2.0.0 ", " "))
        assert ids is not None
        assert ids[1].split() == [message.id.hex() for message, _ in relay.queued]
        assert [message.recipients for message, _ in relay.queued] == [
            [f"u{i}@{i % 2}.example"] for i in range(12)
        ]
        ((bodies, messages),) = relay.spool.commits
        assert bodies == [BODY]
        assert len(messages) == 12
        assert all(message.sender == "" for message in messages)
        assert b"for <u7@1.example>;" in messages[7].prefix
        assert len(relay.log.of("Reception")) == 12


async def test_a_reply_with_many_ids_keeps_its_lines_short() -> None:
    envelope = b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<u%d@example.com>\r\n" % i for i in range(1000))
    async with open_relay() as relay, relay.client() as client:
        await client.send(envelope + b"DATA\r\n")
        assert [(await client.reply())[0] for _ in range(1002)] == [250] * 1001 + [354]
        await client.send(BODY + b".\r\n")
        lines = []
        while True:
            lines.append(await client.line())
            if lines[-1][3:4] == b" ":
                break
        assert max(map(len, lines)) <= 510
        assert len(b" ".join(lines).split(b"ids=")[1].split()) >= 1000
        assert len(relay.queued) == 1000


async def test_batch_by_domain() -> None:
    envelope = (
        b"MAIL FROM:<a@b.example>\r\nRCPT TO:<1@One.example>\r\nRCPT TO:<2@two.example>\r\n"
        b"RCPT TO:<3@one.EXAMPLE>\r\n"
    )
    async with open_relay(batch_handling="BatchByDomain") as relay, relay.client() as client:
        assert (await client.transaction(envelope=envelope))[0] == 250
        (one, _), (two, _) = relay.queued
        assert one.recipients == ["1@One.example", "3@one.EXAMPLE"]
        assert two.recipients == ["2@two.example"]
        assert str(one.queue) == "one.example"
        assert b"for <" not in one.prefix, "recipients are not told of each other"
        assert b"for <2@two.example>" in two.prefix
        assert relay.log.of("Reception")[0].recipient == ["1@One.example", "3@one.EXAMPLE"]


async def test_no_received_field_if_not_wanted() -> None:
    options = {"trace_headers": {"received_header": False}}
    async with open_relay(**options) as relay, relay.client() as client:
        assert (await client.transaction())[0] == 250
        assert relay.queued[0][0].prefix == b""


@pytest.mark.parametrize("content", [b"", b"\r\n", b"..\r\n", b"...\r\n..x\r\n", b"no header\r\n"])
async def test_unusual_content_arrives_unstuffed(content: bytes) -> None:
    async with open_relay() as relay, relay.client() as client:
        assert (await client.transaction(content))[0] == 250
        assert relay.contents == [re.sub(rb"(?m)^\.", b"", content)]


@pytest.mark.parametrize("start", [b" ", b"\t"])
async def test_content_cannot_continue_our_received_field(start: bytes) -> None:
    content = start + b"forged (by somebody)\r\nSubject: x\r\n\r\nbody\r\n"
    async with open_relay() as relay, relay.client() as client:
        assert (await client.transaction(content))[0] == 250
        assert relay.contents == [b"\r\n" + content]


async def test_eight_bit_and_smtputf8_are_marked_when_needed() -> None:
    eight = "Subject: é\r\n\r\nx\r\n".encode()
    async with open_relay() as relay, relay.client() as client:
        for envelope, content in (
            (ENVELOPE, eight),
            (ENVELOPE.replace(b"example>", b"example> SMTPUTF8", 1), BODY),
            (ENVELOPE.replace(b"example>", b"example> BODY=8BITMIME SMTPUTF8", 1), eight),
            ("MAIL FROM:<jörg@client.example> SMTPUTF8\r\nRCPT TO:<a@exämple.com>\r\n".encode(), BODY),
        ):
            assert (await client.transaction(content, envelope))[0] == 250
        flags = [(message.eight_bit, message.smtputf8) for message, _ in relay.queued]
        assert flags == [(True, False), (False, False), (True, True), (False, True)]
        message, _ = relay.queued[3]
        assert message.sender == "jörg@client.example"
        assert str(message.queue) == "xn--exmple-cua.com"
        assert b"with UTF8SMTP\r\n" in message.prefix


async def test_a_thousand_pipelined_commands_and_a_half_close() -> None:
    async with open_relay(max_errors=2000) as relay, relay.client() as client:
        commands = [b"NOOP\r\n"] * 90
        expected = [250] * 90
        for number in range(130):
            commands += [ENVELOPE, b"DATA\r\n"[:0] + b"RSET\r\n", b"BOGUS%d\r\n" % number, b"VRFY a\r\n"]
            expected += [250, 250, 250, 500, 252]
            commands += [ENVELOPE + b"DATA\r\n" + b"\r\n.\r\n"]
            expected += [250, 250, 354, 250]
        assert len(expected) > 1000
        await client.send(b"".join(commands))
        await client.stream.send_eof()
        codes = await client.codes()
        assert [500 if code == 502 else code for code in codes] == expected[:-1] + codes[-1:]
        # The very last dot came with the end of the stream: stored or not, there was one reply.
        assert codes[-1] in (250, 451)
        assert len(relay.queued) == 129 + (codes[-1] == 250)


async def test_a_client_that_has_gone_before_the_commit_gets_nothing_stored() -> None:
    closed = trio.Event()

    async def data(msg: Any, conn_meta: Any) -> None:
        await closed.wait()

    for behind, codes in ((b"", [451]), (b"QUIT\r\n", [250, 221])):
        closed = trio.Event()
        async with open_relay({"smtp_server_data": data}) as relay, relay.client() as client:
            await client.send(ENVELOPE + b"DATA\r\n" + BODY + b".\r\n" + behind)
            await client.stream.send_eof()
            closed.set()
            assert await client.codes() == [250, 250, 354, *codes], "one that had more to say was there"
            assert len(relay.spool.commits) == len(relay.queued) == codes.count(250)


async def test_a_client_that_resets_before_the_commit_gets_nothing_stored() -> None:
    closed = trio.Event()

    async def data(msg: Any, conn_meta: Any) -> None:
        await closed.wait()

    async with open_relay({"smtp_server_data": data}) as relay, relay.client() as client:
        await client.send(ENVELOPE + b"DATA\r\n" + BODY + b".\r\n")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        closed.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not relay.spool.commits


async def test_rejections_are_recorded() -> None:
    async with open_relay(relay_hosts=["192.0.2.0/24"]) as relay, relay.client() as client:
        await client.send(ENVELOPE + b"DATA\r\n")
        assert (await client.reply())[0] == 250
        code, text = await client.reply()
        assert code == 550
        assert text.startswith("5.7.1 ")
        assert "127.0.0.1" in text
        assert (await client.reply())[0] == 503
        await client.ask(b"NOOP\r\n")
        relayed, data = relay.log.of("Rejection")
        assert (relayed.code, relayed.enhanced_code) == (550, "5.7.1")
        assert relayed.command == "RCPT TO:<to@example.com>"
        assert relayed.sender == "from@client.example"
        assert relayed.recipient == "to@example.com"
        assert (relayed.id, relayed.size, relayed.queue) == ("", 0, "")
        assert (data.code, data.command) == (503, "DATA")


async def test_a_mail_loop_is_refused_at_fifty_one_received_fields() -> None:
    async with open_relay() as relay, relay.client() as client:
        for count, code in ((50, 250), (51, 554)):
            reply = await client.transaction(b"received: from x\r\n\tby y\r\n" * count + b"\r\n")
            assert reply[0] == code
        assert reply[1].startswith("5.4.6 ")
        assert len(relay.queued) == 1
        (record,) = relay.log.of("Rejection")
        assert (record.code, record.sender) == (554, "from@client.example")


async def test_bare_postmaster_is_ours() -> None:
    async with open_relay() as relay, relay.client() as client:
        assert (await client.transaction(envelope=b"MAIL FROM:<>\r\nRCPT TO:<PostMaster>\r\n"))[0] == 250
        message, _ = relay.queued[0]
        assert message.recipients == ["PostMaster"]
        assert str(message.queue) == "mx.example"


async def test_many_sessions_at_once() -> None:
    async with open_relay() as relay:

        async def one() -> None:
            async with relay.client() as client:
                for _ in range(5):
                    assert (await client.transaction())[0] == 250

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert len(relay.queued) == 100
        assert relay.listeners.statistics()[f"127.0.0.1:{relay.listeners.addresses[0][1]}"].accepted == 20


async def test_a_log_that_is_behind_slows_the_client_down() -> None:
    async with open_relay() as relay, relay.client() as client:
        assert (await client.transaction())[0] == 250
        relay.log.full = True
        assert (await client.transaction())[0] == 250
        assert relay.log.waited == 1
