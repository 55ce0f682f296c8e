"""Peers that say too much, too early, or too little: that decides nothing (reliability C1-C7, C11).

Whatever happens to the replies, no message counts as delivered whose content was not asked for
and sent, and no recipient is given up because of a reply that was about somebody else.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.bench import to
from tests.support.peer import Wire, open_peer

LARGE = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 110_000

# Too early


async def everything_before_mail(wire: Wire) -> None:
    await wire.say("220 hi")
    await wire.line()
    await wire.say("250-peer", "250 PIPELINING", "250 mail", "250 rcpt", "354 data", "250 taken")
    await wire.until_closed()


async def a_250_begun_with_the_354(wire: Wire) -> None:
    await wire.greet()
    for _ in range(3):
        await wire.line()
    await wire.raw("250 ok\r\n250 ok\r\n354 go\r\n2")
    await trio.sleep(0.1)
    await wire.raw("50 2.0.0 taken\r\n")
    await wire.until_closed()


async def a_250_behind_the_354(wire: Wire) -> None:
    await wire.greet()
    for _ in range(3):
        await wire.line()
    await wire.raw("250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken\r\n")
    await wire.data()
    await wire.until_closed()


async def a_250_in_the_middle_of_a_large_body(wire: Wire) -> None:
    await wire.up_to_data()
    await wire.more()
    await wire.say("250 2.0.0 taken")
    await trio.sleep(1)
    await wire.data()
    await wire.until_closed()


@pytest.mark.parametrize(
    "script",
    [
        everything_before_mail,
        a_250_begun_with_the_354,
        a_250_behind_the_354,
        a_250_in_the_middle_of_a_large_body,
    ],
)
async def test_a_250_that_came_before_the_dot_is_no_delivery(
    script: Any, bench: Any, clock: MockClock
) -> None:
    async with open_peer(script, window=4096) as peer:
        async with bench(to(peer, data_dot_timeout=5)) as b:
            await b.submit(body=LARGE)
            record = await b.first(30)
            assert record.type == "TransientFailure"
            await trio.sleep(30)
            assert "Delivery" not in b.log.kinds() and "Bounce" not in b.log.kinds()
            assert b.spool.statistics().messages == 1


async def test_a_small_message_neither(bench: Any, clock: MockClock) -> None:
    async with open_peer(a_250_begun_with_the_354) as peer, bench(to(peer)) as b:
        await b.submit()
        assert (await b.first()).type == "TransientFailure"


async def test_nor_one_that_came_while_the_next_message_was_looked_for(bench: Any, clock: MockClock) -> None:
    """Between the 354 and the content the next message is read from the spool, which may take a moment."""

    async def script(wire: Wire) -> None:
        if wire.number > 1:
            return
        await wire.up_to_data()
        await trio.sleep(1)
        await wire.say("250 2.0.0 taken")
        await wire.until_closed()

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
        b.router._resident_limit = 0
        read = b.spool.read

        async def slow_read(handle: Any) -> Any:
            await trio.sleep(3)
            return await read(handle)

        b.spool.read = slow_read
        await b.submit_many(2)
        await trio.sleep(30)
        assert "Delivery" not in b.log.kinds()


async def test_a_refusal_in_the_middle_of_a_large_body_is_used_at_once(bench: Any, clock: MockClock) -> None:
    """C13: not sent on, and not waited for the answer to the dot."""

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.more()
        await wire.say("552 5.3.4 too big for me")
        assert await wire.until_closed() < len(LARGE)

    async with open_peer(script, window=4096) as peer:
        async with bench(to(peer, data_dot_timeout=600)) as b:
            await b.submit(body=LARGE)
            record = await b.first(10)
            assert (record.type, record.code) == ("Bounce", 552)
            await b.until(lambda: peer.open == 0)


async def test_lost_in_the_middle_of_a_large_body_is_not_sent_completely(
    bench: Any, clock: MockClock
) -> None:
    """D33: "may be delivered twice" is said only where the dot went out."""

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.more()

    async with open_peer(script, window=4096) as peer, bench(to(peer)) as b:
        await b.submit(body=LARGE)
        record = await b.first()
        assert record.type == "TransientFailure" and "twice" not in record.content
        assert b.router.settler.counters.uncertain == 0


# Too much, too little


def by_recipient(line: str) -> str:
    return "550 5.1.1 no such user" if "bad" in line else "250 ok"


async def test_an_answer_to_the_dot_for_each_recipient_bounces_nobody_of_the_next(
    bench: Any, clock: MockClock
) -> None:
    """The habit of LMTP. The surplus 250 must not become the answer to the next message's MAIL."""

    async def script(wire: Wire) -> None:
        await wire.greet()
        while True:
            line = await wire.line()
            if line.startswith("RCPT"):
                await wire.say(by_recipient(line))
            elif line == "DATA":
                await wire.say("354 go")
                await wire.data()
                await wire.say("250 taken", "250 taken")
            else:
                await wire.say("250 ok")

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit(["a@example.com", "b@example.com"])
        await b.submit(["bad@example.com", "good@example.com"])
        await b.records("Delivery", 1)
        await trio.sleep(30)
        assert b.outcomes()["a"] == b.outcomes()["b"] == ["Delivery"]
        assert "Bounce" not in b.outcomes()["good"]


@pytest.mark.parametrize("silent", ["RSET", "MAIL", "RCPT"])
async def test_a_command_that_is_not_answered_shifts_no_refusal_to_another(
    silent: str, bench: Any, clock: MockClock
) -> None:
    """From the second message on one command goes unanswered: the 550 to the bad recipient comes where
    another command's answer is due."""

    def table(word: str, usual: str) -> Any:
        def answer(line: str) -> str:
            if word == silent and peer.arrived:
                return ""
            return by_recipient(line) if word == "RCPT" else usual

        return answer

    async with open_peer() as peer:
        peer.replies = {word: table(word, "250 ok") for word in ("RSET", "MAIL", "RCPT")}
        patience = {"rset_timeout": 5, "mail_from_timeout": 5, "rcpt_to_timeout": 5, "data_timeout": 5}
        async with bench(to(peer, connection_limit=1, **patience)) as b:
            await b.submit("first@example.com")
            await b.records("Delivery")
            await b.submit(["good@example.com", "bad@example.com"])
            await trio.sleep(30)
            assert "Bounce" not in b.outcomes().get("good", [])


async def test_a_reply_nobody_asked_for_ends_the_session_and_no_message(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        await wire.say("250 taken")
        await trio.sleep(1)
        await wire.say("250 and thanks")
        await wire.until_closed()

    async with open_peer(script) as peer:
        async with bench(to(peer, idle_timeout=60)) as b:
            await b.submit()
            await b.records("Delivery")
            await trio.sleep(2)
            assert peer.open == 0
            peer.script = None
            await b.submit()
            await b.records("Delivery", 2)
            assert "TransientFailure" not in b.log.kinds() and peer.connections == 2


# The answer to the dot


async def answer_the_dot(bench: Any, reply: str, *, end: bool = False) -> Any:
    """The first record of a message whose dot is answered so; `end`: and then the peer sends FIN."""

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        await wire.raw(reply)
        if end:
            await wire.socket.send_eof()
        await wire.until_closed()

    async with open_peer(script) as peer, bench(to(peer, data_dot_timeout=5)) as b:
        await b.submit()
        return await b.first(10)


@pytest.mark.parametrize(
    "reply",
    [
        *("25 ok", "2500 ok", "250ok", "199 x", "600 x", "+50 ok", " 250 ok", "250\tok", "250_ok", "2e0 ok"),
        *("٢٥٠ ok", "250-a\r\n450 b", "250-a\r\n", "\r\n", "", "250\0ok", "354 x", "100 x"),
    ],
)
async def test_nonsense_to_the_dot_is_neither_success_nor_failure(
    reply: str, bench: Any, clock: MockClock
) -> None:
    record = await answer_the_dot(bench, reply + "\r\n")
    assert record.type == "TransientFailure" and "twice" in record.content


@pytest.mark.parametrize(
    "reply",
    ["250", "250 ", "299 x", "200 x", "250-a\r\n250 b", "250 ok\rx", "250 " + "x" * 5000, "250 5.0.0 x"],
)
async def test_odd_but_good_answers_to_the_dot(reply: str, bench: Any, clock: MockClock) -> None:
    assert (await answer_the_dot(bench, reply + "\r\n")).type == "Delivery"


@pytest.mark.parametrize("cut", ["250 taken", "250 taken\r", "250-taken\r\n", "25"])
async def test_an_answer_cut_by_the_end_of_the_connection_is_none(
    cut: str, bench: Any, clock: MockClock
) -> None:
    """C29: even where its digits are complete."""
    record = await answer_the_dot(bench, cut, end=True)
    assert record.type == "TransientFailure" and "twice" in record.content


async def test_a_reset_behind_the_answer_to_the_dot_changes_nothing(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        await wire.say("250 taken")
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with open_peer(script) as peer, bench(to(peer)) as b:
        await b.submit()
        await trio.sleep(30)
        assert b.log.kinds() == ["Delivery"]


async def test_replies_in_pieces_of_one_octet(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.drip("220 x\r\n", 0)
        await wire.line()
        await wire.drip("250-x\r\n250-PIPELINING\r\n250 8BITMIME\r\n", 0)
        while True:
            if await wire.word() == "DATA":
                await wire.drip("354 go\r\n", 0)
                await wire.data()
                await wire.drip("250-a\r\n250 2.0.0 b\r\n", 0)
            else:
                await wire.drip("250 2.1.0 ok\r\n", 0)

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit_many(20)
        await b.records("Delivery", 20)


# Envelopes that must not be mixed


@pytest.mark.parametrize("path", [{}, {"enable_rset": False}, {"enable_pipelining": False}], ids=str)
@pytest.mark.parametrize("rset", ["250 reset", "500 5.5.1 unknown command"])
@pytest.mark.parametrize("refusal", ["450 4.2.1 busy", "550 5.1.1 no such user"])
async def test_a_transaction_left_open_takes_no_recipient_of_the_next_message(
    refusal: str, rset: str, path: dict[str, Any], bench: Any, clock: MockClock
) -> None:
    """C11: the first message's only recipient is refused, so its transaction stays open at the peer. If
    the second's recipients joined it, a lone dot would deliver an empty message from the wrong sender."""
    taken: list[tuple[str, bytes]] = []

    def rcpt(line: str) -> str:
        return refusal if "bad" in line else "250 ok"

    async def lax(wire: Wire) -> None:
        """Nested MAIL is refused, but the recipients behind it are taken."""
        await wire.greet()
        sender, recipients = "", 0
        while True:
            line = await wire.line()
            word = line[:4].upper()
            if word == "MAIL":
                await wire.say("503 5.5.1 nested MAIL" if sender else "250 ok")
                sender = sender or line
            elif word == "RCPT":
                recipients += "bad" not in line
                await wire.say(rcpt(line))
            elif word == "DATA" and not recipients:
                await wire.say("554 no recipients")
            elif word == "DATA":
                await wire.say("354 go")
                taken.append((sender, await wire.data()))
                sender, recipients = "", 0
                await wire.say("250 taken")
            elif word == "RSET":
                if rset[0] == "2":
                    sender, recipients = "", 0
                await wire.say(rset)
            else:
                return

    async with open_peer(lax) as peer, bench(to(peer, connection_limit=1, **path)) as b:
        await b.submit("bad@example.com", sender="one@a.example")
        await b.submit("good@example.com", sender="two@b.example")
        await b.records("Delivery", seconds=120)
        assert len(taken) == 1 and "two@b.example" in taken[0][0] and taken[0][1]
        assert "Bounce" not in b.outcomes()["good"]
        if rset[0] == "2":
            assert b.outcomes()["good"] == ["Delivery"]
