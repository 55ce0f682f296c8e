"""engine/testing/hop.py: what a next hop says, by the table and by itself."""

from __future__ import annotations

import base64
import ssl
from typing import Any

import pytest
import trio
import trio.testing

from engine.testing.client import Client
from engine.testing.clock import bare
from engine.testing.hop import DROP, NextHop, Wire
from policy.testing import ThrowAwayCa, scenario

LOGIN = "AUTH PLAIN " + base64.b64encode(b"\0scott\0tiger").decode()
MAIL = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", "..x\r\n.")


async def talk(hop: NextHop, *commands: str) -> list[str]:
    """The replies to some commands."""
    here, there = trio.testing.memory_stream_pair()
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hop.serve, there)
        client = Client(here)  # type: ignore[arg-type]
        try:
            await client.reply()
            for command in commands:
                said.append(str(await client.ask(command)).replace("\n", "|"))
        except EOFError:
            said.append("closed")
        await here.aclose()
    return said


@scenario
async def test_an_mta_that_is_strict() -> None:
    hop = NextHop()
    assert await talk(hop, "RCPT TO:<b@example.com>", "DATA", MAIL[0], MAIL[0], "DATA", *MAIL[1:]) == [
        "503 5.5.1 MAIL first",
        "554 5.5.1 no valid recipients",
        "250 2.0.0 ok",
        "503 5.5.1 nested MAIL",
        "554 5.5.1 no valid recipients",
        "250 2.0.0 ok",
        "354 go ahead",
        "250 2.0.0 taken",
    ]
    (message,) = hop.arrived
    assert (message.sender, message.recipients, message.data) == (
        "a@example.com",
        ["b@example.com"],
        b".x\r\n",
    )


@scenario
async def test_the_table_of_answers() -> None:
    hop = NextHop(
        replies={
            "RCPT": ["450 4.2.0 later", "250 2.1.5 ok"],
            "MAIL": lambda line: "550 5.7.1 no" if "evil" in line else "250 2.1.0 fine",
            "NOOP": DROP,
        }
    )
    rcpt = "RCPT TO:<b@example.com>"
    assert await talk(hop, "MAIL FROM:<evil>", MAIL[0], rcpt, rcpt, rcpt, "NOOP") == [
        "550 5.7.1 no",
        "250 2.1.0 fine",
        "450 4.2.0 later",
        "250 2.1.5 ok",
        "250 2.1.5 ok",
        "closed",
    ]
    assert hop.words() == ["MAIL", "MAIL", "RCPT", "RCPT", "RCPT", "NOOP"]


@scenario
async def test_logins_are_judged_for_each_connection() -> None:
    hop = NextHop(users={"scott": "tiger"}, mechanisms=("PLAIN", "SCRAM-SHA-256"))
    wrong = "AUTH PLAIN " + base64.b64encode(b"\0scott\0lion").decode()
    said = await talk(hop, "EHLO me", wrong, "AUTH LOGIN", "AUTH PLAIN", "*", LOGIN)
    assert said[0].endswith("|AUTH PLAIN SCRAM-SHA-256")
    assert said[1:] == [
        "535 5.7.8 authentication failed",
        "504 5.5.4 mechanism not offered",
        "334 ",
        "501 5.7.0 Authentication cancelled",
        "235 2.7.0 ok",
    ]
    assert hop.logins == [("PLAIN", "scott")] and hop.tried == ["PLAIN"] * 3


@scenario
async def test_without_users_every_login_is_welcome_and_none_offered() -> None:
    said = await talk(NextHop(), "EHLO me", LOGIN)
    assert "AUTH" not in said[0] and said[1] == "235 2.7.0 ok"


@scenario
async def test_starttls_and_what_is_offered_inside() -> None:
    ca = ThrowAwayCa()
    hop = NextHop(
        tls=ca.server_context("hop.example"), users={"scott": "tiger"}, secured=["PIPELINING", "8BITMIME"]
    )
    said = await talk(hop, "EHLO me", LOGIN)
    assert said[0].endswith("|STARTTLS") and "AUTH" not in said[0]
    assert said[1] == "504 5.5.4 mechanism not offered"
    here, there = trio.testing.memory_stream_pair()
    context = ssl.create_default_context(cadata=ca.pem.decode())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hop.serve, there)
        client = Client(here)  # type: ignore[arg-type]
        await client.reply()
        assert (await client.ask("STARTTLS")).code == 220
        secure: Any = trio.SSLStream(here, context, server_hostname="hop.example", https_compatible=True)
        client = Client(secure)
        assert (await client.ask("EHLO me")).text.split("\n")[1:] == [
            "PIPELINING",
            "8BITMIME",
            "AUTH PLAIN LOGIN",
        ]
        assert (await client.ask(LOGIN)).code == 235
        assert (await client.ask("STARTTLS")).code == 220  # words alone: nothing is done
        nursery.cancel_scope.cancel()


@scenario
async def test_a_script_says_what_it_likes_and_goes_on_by_the_table() -> None:
    async def script(wire: Wire) -> None:
        await wire.say("220-slow", "220 hop.example")
        assert await wire.word() == "HELO"
        await wire.say(f"250 number {wire.number}")
        await wire.peer.obey(wire)

    hop = NextHop(script=script)
    assert await talk(hop, "HELO me", "NOOP") == ["250 number 1", "250 2.0.0 ok"]
    assert await talk(hop, "HELO me", "QUIT") == ["250 number 2", "221 bye"]
    assert (hop.connections, hop.open, hop.most_open) == (2, 0, 1)


def test_a_hop_shows_no_password() -> None:
    hop = NextHop(users={"scott": "tiger"})
    hop.commands.append(LOGIN)
    assert "tiger" not in repr(hop) and LOGIN not in repr(hop)


@scenario
async def test_a_hot_loop_is_no_patience() -> None:
    hop = NextHop(replies={"connect": DROP})
    with pytest.raises(AssertionError, match=r"a hot loop: 2000 connections at one moment"), bare():
        for _ in range(2000):
            await talk(hop)
