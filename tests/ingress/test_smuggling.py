"""One and only one byte sequence ends a message (reliability S1 to S6, S8, S20 to S29)."""

from __future__ import annotations

import itertools

import pytest
import trio

from tests.ingress.peer import BODY, ENVELOPE, Client, Relay, open_relay

ENDS = {
    "LF": b"\n",
    "CR": b"\r",
    "CRLF": b"\r\n",
    "CRCRLF": b"\r\r\n",
    "LFLF": b"\n\n",
    "LFCR": b"\n\r",
    "NUL CRLF": b"\0\r\n",
    "CRLF NUL": b"\r\n\0",
    "NUL LF": b"\0\n",
}
HEADER = 512 * 1024
FORGED = b"MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nforged\r\n"
PAIRS = list(itertools.product(ENDS, ENDS))
FALSE_ENDS = [pair for pair in PAIRS if b"\r\n.\r\n" not in ENDS[pair[0]] + b"." + ENDS[pair[1]]]


async def _attack(relay: Relay, before: str, after: str, *, slowly: bool) -> list[tuple[int, str]]:
    async with relay.client() as client:
        await client.send(ENVELOPE + b"DATA\r\n")
        assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        data = b"Subject: x\r\n\r\nfirst" + ENDS[before] + b"." + ENDS[after] + FORGED + b".\r\nQUIT\r\n"
        if slowly:
            cut = data.index(b"first") + 5
            await client.send(data[:cut])
            await client.send_slowly(data[cut : cut + 6])
            await client.send(data[cut + 6 :])
        else:
            await client.send(data)
        replies = []
        while (reply := await client.reply())[0]:
            replies.append(reply)
        return replies


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("policy", ["Deny", "Fix"])
async def test_nothing_but_the_true_sequence_ends_a_message(policy: str, slowly: bool) -> None:
    async with open_relay(invalid_line_endings=policy) as relay:
        for before, after in FALSE_ENDS:
            relay.queued.clear()
            replies = await _attack(relay, before, after, slowly=slowly)
            codes = [code for code, _ in replies]
            assert len(codes) == 2, (before, after, replies)
            assert codes[1] == 221, (before, after, replies)
            if codes[0] == 250:
                ((message, content),) = relay.queued
                assert message.sender == "from@client.example"
                assert b"forged" in content
                assert b"\0" not in content
                assert content.replace(b"\r\n", b"").isascii()
                assert b"\r" not in content.replace(b"\r\n", b"")
                assert b"\n" not in content.replace(b"\r\n", b"")
            else:
                assert codes[0] == 550, (before, after, replies)
                assert replies[0][1].startswith("5.6.0 ")
                assert not relay.queued
            assert (codes[0] == 250) is (policy == "Fix" and "NUL" not in before + after)


@pytest.mark.parametrize("after", ["CRLF NUL"])
async def test_what_stands_directly_behind_a_true_end_is_part_of_the_next_command(after: str) -> None:
    async with open_relay() as relay:
        replies = await _attack(relay, "CRLF", after, slowly=False)
        assert replies[0][0] == 250
        assert replies[1][0] == 500
        assert replies[-1][0] == 221
        assert [message.sender for message, _ in relay.queued] == ["from@client.example"]


async def test_a_true_end_behind_a_stray_carriage_return_is_an_end() -> None:
    async with open_relay() as relay, relay.client() as client:
        code, text = await client.transaction(b"first\r\r\n")
        assert (code, text[:6]) == (550, "5.6.0 ")
        assert (await client.transaction())[0] == 250, "the stream is in step"


@pytest.mark.parametrize(
    "content",
    [
        b"x\n.\nMAIL FROM:<evil@client.example>\n" + b"y" * 3000 + b"\r\n",
        b"x\r.\r" + FORGED.replace(b"\r\n", b"\n") + b"\r\n",
        b"too big " * 200 + b"\r\n\n.\r\n.\n" + FORGED.replace(b"\r\n", b"\n") + b"\r\n",
    ],
)
async def test_the_rule_holds_while_a_message_is_thrown_away(content: bytes) -> None:
    async with open_relay(max_message_size=1000) as relay, relay.client() as client:
        # A dot alone in the third content is only so between wrong line ends, so it is stuffed by hand.
        content = content.replace(b"\r\n.\n", b"\r\n..\n")
        code, _ = await client.transaction(content)
        assert code in (550, 552)
        assert (await client.transaction())[0] == 250
        assert len(relay.queued) == 1


@pytest.mark.parametrize("bad", [b"NOOP\n", b"NOOP\rNOOP", b"NO\0OP", b"RCPT TO:<a@b>\x07", b"NOOP \x7f"])
async def test_a_command_with_a_stray_byte_is_not_executed(bad: bytes) -> None:
    async with open_relay() as relay, relay.client() as client:
        code, _ = await client.ask(bad + b"RSET\r\n")
        assert code in (500, 501)
        assert (await client.ask(b"NOOP\r\n"))[0] == 250


async def check_limit(relay: Relay, line: bytes, expected: set[int], *, slowly: bool) -> None:
    async with relay.client() as client:
        await (client.send_slowly if slowly else client.send)(line)
        code, text = await client.reply()
        assert code in expected, (len(line), code, text)
        assert (await client.ask(b"NOOP\r\n"))[0] == 250, "in step"


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize(("length", "good"), [(2047, True), (2048, True), (2049, False), (5000, False)])
async def test_command_line_limit(length: int, good: bool, slowly: bool) -> None:
    async with open_relay() as relay:
        line = b"NOOP ".ljust(length - 2, b"x") + b"\r\n"
        assert len(line) == length
        await check_limit(relay, line, {250} if good else {500}, slowly=slowly)


async def content_code(client: Client, content: bytes) -> int:
    return (await client.transaction(content))[0]


async def test_message_size_limit_declared_and_found_out() -> None:
    limit = 4000
    async with open_relay(max_message_size=limit) as relay, relay.client() as client:
        for size, codes in ((limit - 1, 250), (limit, 250), (limit + 1, 552), (10 * limit, 552)):
            content = b"x: y\r\n\r\n".ljust(size - 2, b"z") + b"\r\n"
            assert await content_code(client, content) == codes, size
            reply = await client.ask(b"MAIL FROM:<> SIZE=%d\r\n" % size)
            assert reply[0] == codes
            await client.ask(b"RSET\r\n")
        assert (await client.ask(b"MAIL FROM:<> SIZE=123456789012345678901\r\n"))[0] == 501
        assert (await client.ask(b"MAIL FROM:<> SIZE=-1\r\n"))[0] == 501
        assert len(relay.queued) == 2


async def test_text_line_limit() -> None:
    async with open_relay(line_length_hard_limit=1000) as relay, relay.client() as client:
        for length, good in ((997, True), (998, True), (1001, False), (3000, False)):
            code = await content_code(client, b"Subject: x\r\n\r\n" + b"z" * length + b"\r\n")
            assert (code == 250) is good, length
        assert len(relay.queued) == 2


async def test_recipient_limit() -> None:
    async with open_relay(max_recipients_per_message=100) as relay, relay.client() as client:
        await client.send(b"MAIL FROM:<>\r\n" + b"RCPT TO:<a@example.com>\r\n" * 102 + b"DATA\r\n")
        codes = [(await client.reply())[0] for _ in range(104)]
        assert codes == [250] * 101 + [452] * 2 + [354]
        assert (await client.ask(BODY + b".\r\n"))[0] == 250
        assert len(relay.queued) == 100


async def test_header_limits() -> None:
    async with open_relay() as relay, relay.client() as client:
        for fields, code in ((999, 250), (1000, 250), (1001, 552)):
            assert await content_code(client, b"A: b\r\n" * fields + b"\r\nx\r\n") == code, fields
        for octets, code in ((HEADER - 1, 250), (HEADER, 250), (HEADER + 1, 552)):
            fields = b"A: " + b"a" * 995 + b"\r\n"
            header = fields * (octets // 1000 - 1)
            header += b"B: ".ljust(octets - len(header) - 4, b"b") + b"\r\n\r\n"
            assert len(header) == octets
            assert await content_code(client, header + b"x\r\n") == code, octets


async def test_too_many_errors_end_the_session() -> None:
    async with open_relay(max_errors=5) as relay, relay.client() as client:
        await client.send(b"BOGUS\r\n" * 50)
        codes = await client.codes()
        assert codes[-1] == 421
        assert codes.count(421) == 1
        assert len(codes) <= 6
        assert len(relay.log.of("Rejection")) >= 5


async def test_commands_that_do_nothing_are_limited() -> None:
    async with open_relay() as relay, relay.client() as client:
        await client.send(b"NOOP\r\n" * 200)
        codes = await client.codes()
        assert codes[-1] == 421
        assert 95 <= codes.count(250) <= 125


async def test_messages_per_session() -> None:
    async with open_relay(max_messages_per_connection=2) as relay, relay.client() as client:
        for _ in range(2):
            assert (await client.transaction())[0] == 250
        code, text = await client.ask(b"MAIL FROM:<>\r\n")
        assert (code, text[:6]) == (421, "4.7.0 ")
        assert await client.reply() == (0, "")
        assert len(relay.queued) == 2


@pytest.mark.parametrize(
    "behind", [b"MAIL FROM:<evil@client.example>\r\n", b"x", b"\r\n", b"EHLO a\r\n" * 100]
)
async def test_plain_text_behind_starttls_is_never_executed(behind: bytes) -> None:
    async with open_relay() as relay, relay.client() as client:
        await client.send(b"STARTTLS\r\n" + behind)
        codes = await client.codes()
        assert codes == [554]
        assert not relay.queued


async def test_plain_text_after_the_220_ends_the_session() -> None:
    async with open_relay() as relay, relay.client() as client:
        assert (await client.ask(b"STARTTLS\r\n"))[0] == 220
        await client.send(ENVELOPE + b"DATA\r\n" + BODY + b".\r\n")
        rest = b""
        while data := await _some(client):
            rest += data
        # At most a TLS alert comes back, never a reply.
        assert b"250" not in rest
        assert not relay.queued


async def _some(client: Client) -> bytes:
    try:
        return bytes(await client.stream.receive_some(4096))
    except trio.BrokenResourceError:
        return b""
