"""Messages that are being received take a limited memory, however many sessions there are (S37, O1)."""

from __future__ import annotations

import pytest
import trio

from engine import memory
from tests.ingress.peer import HELLO, Client, open_relay

LIMIT = 2_000_000
HEADER = b"Subject: " + b"y" * 67 + b"\r\n\r\n"
LINE = b"y" * 78 + b"\r\n"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PATIENCE", (0.2, 0.4))


async def begin(client: Client, octets: int) -> None:
    """Up to the middle of a message."""
    await client.ask(HELLO)
    await client.ask(b"MAIL FROM:<a@b.example>\r\n")
    await client.ask(b"RCPT TO:<c@d.example>\r\n")
    assert (await client.ask(b"DATA\r\n"))[0] == 354
    if octets:
        await client.send(HEADER + LINE * (octets // len(LINE) - 1))


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await trio.sleep(0.01)


async def test_one_octet_decides_at_mail() -> None:
    async with open_relay() as relay, relay.client() as first, relay.client() as second:
        relay.memory.limit = LIMIT
        await begin(first, 800_000)
        await until(lambda: relay.memory.used == 800_000)
        await second.ask(HELLO)
        for size, code in ((1_200_001, 452), (1_200_000, 250)):
            answer = await second.ask(b"MAIL FROM:<a@b.example> SIZE=%d\r\n" % size)
            assert answer[0] == code
        assert (await second.ask(b"RSET\r\n"))[0] == 250
        relay.memory.limit = 799_999
        code, text = await second.ask(b"MAIL FROM:<a@b.example>\r\n")
        assert (code, text[:6]) == (452, "4.3.1 ")
        relay.memory.limit = LIMIT
        assert (await first.ask(b".\r\n"))[0] == 250
        assert relay.memory.used == 0
        assert (await second.transaction())[0] == 250


async def test_the_greatest_message_gives_way_to_the_others_and_its_client_is_told() -> None:
    async with open_relay() as relay:
        relay.memory.limit = LIMIT
        async with relay.client() as hog, relay.client() as small:
            await begin(hog, 1_600_000)
            await until(lambda: relay.memory.used == 1_600_000)
            await begin(small, 800_000)
            await until(lambda: 0 < relay.memory.used <= 800_000)
            assert (await small.ask(b".\r\n"))[0] == 250
            # The hog goes on, and is heard to its end: nothing of it is kept, nothing of it is a command.
            await hog.send(LINE * 10_000 + b"QUIT\r\n")
            await trio.sleep(0.05)
            assert relay.memory.used == 0
            code, text = await hog.ask(b".\r\n")
            assert (code, text[:6]) == (452, "4.3.1 ")
            assert len(relay.queued) == 1
            assert (await hog.transaction())[0] == 250
            assert relay.memory.used == 0
        (record,) = relay.log.of("Rejection")
        assert (record.code, record.enhanced_code, record.command) == (452, "4.3.1", "DATA")


async def test_nobody_is_read_from_past_the_limit() -> None:
    async with open_relay() as relay, relay.client() as client:
        relay.memory.limit = LIMIT
        await begin(client, 0)
        with trio.move_on_after(0.15) as scope:
            await client.send(LINE * 500_000)
        assert scope.cancelled_caught
        assert relay.memory.used <= LIMIT + 65_536


async def test_what_a_client_leaves_behind_is_given_back() -> None:
    async with open_relay() as relay:
        async with relay.client() as client:
            await begin(client, 500_000)
            await until(lambda: relay.memory.used == 500_000)
        await until(lambda: relay.memory.used == 0)
        assert not relay.memory._holders


async def test_a_refused_message_is_given_back_too() -> None:
    async with open_relay(max_message_size=100_000) as relay, relay.client() as client:
        await begin(client, 500_000)
        assert (await client.ask(b".\r\n"))[0] == 552
        assert relay.memory.used == 0


async def test_a_process_that_takes_too_much_takes_no_new_mail() -> None:
    """Whatever is counted: the kernel says what there is (O1)."""
    async with open_relay() as relay, relay.client() as first, relay.client() as second:
        await begin(first, 10_000)
        await second.ask(HELLO)
        relay.memory.refuse(True)
        code, text = await second.ask(b"MAIL FROM:<a@b.example>\r\n")
        assert (code, text[:6]) == (452, "4.3.1 ")
        async with relay.client(greeted=False) as third:
            code, text = await third.reply()
            assert (code, text[:6]) == (421, "4.3.0 ")
        await first.send(LINE * 1000)
        with trio.move_on_after(0.1) as scope:
            await until(lambda: relay.memory.used > 10_000 + 65_536)
        assert scope.cancelled_caught, "it is read from"
        relay.memory.refuse(False)
        assert (await first.ask(b".\r\n"))[0] in (250, 452)
        assert (await second.transaction())[0] == 250


async def test_who_is_in_the_middle_of_a_message_goes_on_when_there_is_memory_again() -> None:
    async with open_relay() as relay, relay.client() as client:
        await begin(client, 10_000)
        relay.memory.refuse(True)
        await client.send(LINE)
        await trio.sleep(0.05)
        relay.memory.refuse(False)
        assert (await client.ask(b".\r\n"))[0] == 250
