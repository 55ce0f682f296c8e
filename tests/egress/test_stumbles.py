"""Pipelining, also across messages: a peer that does not cope costs the pipelining and no mail.

The commands of a message may travel behind the final dot of the one before. Peers that take that
for an attack (or simply lose it) refuse, close or say nothing; the message that was sent ahead was
then not tried at all, and whatever is said of it is no verdict.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import work
from engine.egress.work import Stumblers
from tests.support.bench import to
from tests.support.peer import DROP, Wire, open_peer


async def up_to_the_dot(wire: Wire) -> None:
    """A correct peer until the first final dot was answered with 250, in the same segment as nothing else."""
    await wire.greet()
    while True:
        if await wire.word() == "DATA":
            await wire.say("354 go")
            await wire.data()
            await wire.say("250 taken")
            return
        await wire.say("250 ok")


def stumbling(answers: list[str], *, pause: float = 0.2) -> Any:
    """A script: what is found behind a final dot is answered so, and then the connection is closed. A
    peer that is spoken to plainly is content."""

    async def script(wire: Wire) -> None:
        while True:
            await up_to_the_dot(wire)
            if not wire.buffer:
                break
            for answer in answers:
                await wire.say(answer)
            await trio.sleep(pause)
            return
        await wire.peer.obey(wire)

    return script


REFUSALS = {
    "a synchronization error at once": ["554 SMTP synchronization error"],
    "a synchronization error to MAIL": ["250 reset", "554 5.5.1 synchronization error"],
    "bad sequence to MAIL": ["250 reset", "503 5.5.1 bad sequence"],
    "closed without a word": [],
    "421": ["421 4.7.0 too eager"],
    "421 to MAIL": ["250 reset", "421 4.7.0 too eager"],
}


@pytest.mark.parametrize("answers", REFUSALS.values(), ids=list(REFUSALS))
@pytest.mark.parametrize("pause", [0.0, 0.2])
async def test_what_was_sent_ahead_is_untried_however_it_is_refused(
    answers: list[str], pause: float, bench: Any, clock: MockClock
) -> None:
    async with open_peer(stumbling(answers, pause=pause)) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit_many(6)
        await b.records("Delivery", 6)
        assert set(b.log.kinds()) == {"Delivery"}
        if "421" not in "".join(answers):
            assert b.router.services.stumblers.has("127.0.0.1")


async def test_without_rset_neither(bench: Any, clock: MockClock) -> None:
    script = stumbling(["554 SMTP synchronization error"])
    async with open_peer(script) as peer, bench(to(peer, connection_limit=1, enable_rset=False)) as b:
        await b.submit_many(3)
        await b.records("Delivery", 3)
        assert set(b.log.kinds()) == {"Delivery"}


async def test_a_peer_that_loses_what_was_sent_ahead(bench: Any, clock: MockClock) -> None:
    async with open_peer(stumbles=True) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit_many(6)
        await b.records("Delivery", 6, seconds=600)
        assert set(b.log.kinds()) == {"Delivery"} and len(peer.arrived) == 6
        assert b.router.services.stumblers.has("127.0.0.1")


async def test_it_is_spoken_to_plainly_from_then_on(bench: Any, clock: MockClock) -> None:
    async with open_peer(stumbling(REFUSALS["bad sequence to MAIL"])) as peer:
        async with bench(to(peer, connection_limit=1)) as b:
            await b.submit_many(4)
            await b.records("Delivery", 4)
            await b.until(lambda: peer.open == 0)
            before = peer.connections
            await b.submit_many(4)
            await b.records("Delivery", 8)
            assert peer.connections == before + 1


async def test_for_a_day(clock: MockClock) -> None:
    stumblers = Stumblers()
    stumblers.add("192.0.2.1")
    assert not stumblers.has("192.0.2.2")
    await trio.sleep(24 * 3600 - 1)
    assert stumblers.has("192.0.2.1")
    await trio.sleep(2)
    assert not stumblers.has("192.0.2.1")


async def test_as_many_hosts_as_there_is_room_for(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_STUMBLERS", 10)
    stumblers = Stumblers()
    for i in range(50):
        stumblers.add(f"192.0.2.{i}")
        await trio.sleep(24 * 3600 / 5)
    assert len(stumblers._until) <= 12 and stumblers.has("192.0.2.49")


async def test_a_421_glued_to_the_answer_to_the_dot_is_no_attempt_of_the_next_message(
    bench: Any, clock: MockClock
) -> None:
    """C16, without anything sent ahead."""

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        await wire.say("250 taken", "421 4.3.2 closing")
        await trio.sleep(0.1)

    path = {"connection_limit": 1, "enable_pipelining_across_messages": False}
    async with open_peer(script) as peer, bench(to(peer, **path)) as b:
        await b.submit_many(3)
        await b.records("Delivery", 3)
        assert set(b.log.kinds()) == {"Delivery"} and peer.connections == 3


@pytest.mark.parametrize("said", ["421 idle too long", "250 what", ""])
async def test_an_idle_connection_that_the_peer_ends_is_no_attempt(
    said: str, bench: Any, clock: MockClock
) -> None:
    async def script(wire: Wire) -> None:
        if wire.number > 1:
            await wire.peer.converse(wire)
            return
        await up_to_the_dot(wire)
        await trio.sleep(20)
        if said:
            await wire.say(said)

    async with open_peer(script) as peer, bench(to(peer, idle_timeout=60)) as b:
        await b.submit()
        await b.records("Delivery")
        await trio.sleep(30)
        assert peer.open == 0
        await b.submit()
        await b.records("Delivery", 2)
        assert set(b.log.kinds()) == {"Delivery"}


# Nothing is sent ahead where that is not allowed


@pytest.mark.parametrize(
    ("capabilities", "path", "ahead"),
    [
        (["PIPELINING"], {}, {"RSET", "MAIL", "RCPT", "."}),
        (["PIPELINING"], {"enable_pipelining_across_messages": False}, {"RSET", "MAIL", "RCPT"}),
        (["PIPELINING"], {"enable_pipelining": False}, set()),
        (["8BITMIME"], {}, set()),
    ],
    ids=["as usual", "within messages", "not at all", "not offered"],
)
async def test_behind_which_commands_another_one_may_wait(
    capabilities: list[str], path: dict[str, Any], ahead: set[str], bench: Any, clock: MockClock
) -> None:
    found: set[str] = set()

    async def script(wire: Wire) -> None:
        async def look(word: str) -> None:
            with trio.move_on_after(0.1):
                await wire.more()
            if wire.buffer:
                found.add(word)

        await wire.greet(*capabilities)
        while (word := await wire.word()) != "QUIT":
            await look(word)
            if word == "DATA":
                await wire.say("354 go")
                await wire.data()
                await look(".")
            await wire.say("250 ok")

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1, **path)) as b:
        await b.submit_many(3)
        await b.records("Delivery", 3)
        assert found == ahead


# Without PIPELINING a message waits for its own end and no other's


@pytest.mark.parametrize("refusal", ["550 5.1.1 no such user", "450 4.2.1 busy"])
async def test_a_refused_recipient_and_a_message_behind_it(
    refusal: str, bench: Any, clock: MockClock
) -> None:
    """The transaction of which nothing was accepted ends with a RSET before the next one begins; a
    message that was begun meanwhile was in no queue any more."""
    replies: dict[str, Any] = {"RCPT": lambda line: refusal if "bad" in line else "250 ok"}
    async with open_peer(replies=replies, capabilities=["8BITMIME"]) as peer:
        async with bench(to(peer, connection_limit=1)) as b:
            await b.submit("bad@example.com")
            await b.submit_many(5)
            await b.records("Delivery", 5)
            assert b.outcomes()["bad"] == ["Bounce" if refusal[0] == "5" else "TransientFailure"]
            assert b.log.kinds().count("Delivery") == len(peer.arrived) == 5
            statistics = b.router.statistics()
            assert statistics.queued == statistics.timed == b.spool.statistics().messages


async def test_an_idle_session_too(bench: Any, clock: MockClock) -> None:
    replies: dict[str, Any] = {"RCPT": lambda line: "550 no" if "bad" in line else "250 ok"}
    async with open_peer(replies=replies, capabilities=["8BITMIME"]) as peer:
        async with bench(to(peer, connection_limit=1, idle_timeout=60)) as b:
            await b.submit("bad@example.com")
            await b.records("Bounce")
            await trio.sleep(10)
            await b.submit("good@example.com")
            await b.records("Delivery")
            assert peer.connections == 1


# An address that cannot be said


async def test_an_address_with_controls_is_given_up_and_blocks_nobody(bench: Any, clock: MockClock) -> None:
    """Such an address may come in by SMTPUTF8 (U+0085); it is never sent, and the message behind which it
    would have been sent ahead is delivered."""
    capabilities = ["PIPELINING", "8BITMIME", "SMTPUTF8"]
    async with open_peer(capabilities=capabilities) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit("one@example.com")
        await b.submit("a\x85b@example.com", smtputf8=True)
        await b.submit("two@example.com")
        await b.records("Delivery", 2)
        (bounce,) = await b.records("Bounce")
        assert (bounce.code, bounce.enhanced_code) == (553, "5.1.3")
        assert [arrived.recipients for arrived in peer.arrived] == [["one@example.com"], ["two@example.com"]]
        assert not any("\x85" in line for line in peer.commands)
        assert b.router.statistics().queued == 0


async def test_a_connection_lost_with_a_message_sent_ahead_is_one_attempt_of_one(
    bench: Any, clock: MockClock
) -> None:
    """The message whose dot was unanswered is uncertain; the one behind it was not tried."""
    async with open_peer(replies={".": [DROP, "250 taken"]}) as peer:
        async with bench(to(peer, connection_limit=1)) as b:
            await b.submit("one@example.com")
            await b.submit("two@example.com")
            await b.records("Delivery", 2, seconds=120)
            assert b.outcomes() == {"one": ["TransientFailure", "Delivery"], "two": ["Delivery"]}


async def test_a_session_that_is_cancelled_with_the_engine_is_no_stumbling(
    bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The process leaves at once, without a drain: the peer has nothing to do with it."""
    stumblers = Stumblers()

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        await wire.data()
        while True:
            await wire.line()

    for _ in range(2):
        async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
            b.router.services.stumblers = stumblers
            await b.submit_many(2)
            await b.until(lambda peer=peer: peer.words().count("MAIL") == 2)
    assert not stumblers.has("127.0.0.1") and not stumblers.suspect("127.0.0.1")
    assert "stumbles" not in caplog.text
