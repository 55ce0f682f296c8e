"""Who gets a session, how long one may take, and how all of them end."""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.errors import ConfigError
from engine.ingress.guesses import peer_group
from engine.ingress.listener import PeerLimits
from engine.net import Listener, Stream
from tests.ingress.peer import BODY, ENVELOPE, Client, make_hooks, open_relay

# -- limits of connections ---------------------------------------------------------------------------


def test_an_ipv6_client_is_its_64() -> None:
    assert peer_group("192.0.2.1") == "192.0.2.1"
    assert peer_group("2001:db8:1:2:3::4") == peer_group("2001:db8:1:2:ffff::")
    assert peer_group("2001:db8:1:2::") != peer_group("2001:db8:1:3::")
    assert peer_group("fe80::1%eth0") == peer_group("fe80::2%eth0")


def test_counting_per_client_and_listener() -> None:
    limits = PeerLimits()
    one, other = object(), object()
    for address in ("2001:db8::1", "2001:db8::2"):
        assert limits.take(one, address, 2)
    assert not limits.take(one, "2001:db8::3", 2)
    assert limits.take(other, "2001:db8::3", 2)
    assert limits.take(one, "2001:db8:0:1::", 2)
    limits.give_back(one, "2001:db8::2")
    assert limits.take(one, "2001:db8::9", 2)
    for listener, address in (
        (one, "2001:db8::"),
        (one, "2001:db8::"),
        (one, "2001:db8:0:1::"),
        (other, "2001:db8::"),
    ):
        limits.give_back(listener, address)
    assert not limits._counts


@pytest.mark.parametrize("option", ["max_connections", "max_connections_per_peer"])
async def test_connections_over_the_limit_are_turned_away_without_a_banner(option: str) -> None:
    async with open_relay(**{option: 2}) as relay:
        async with relay.client(), relay.client() as second:
            for _ in range(2):
                third = await relay.connect()
                code, text = await third.reply()
                assert (code, text[:6]) == (421, "4.7.0 ")
                assert await third.reply() == (0, "")
            assert (await second.transaction())[0] == 250
            assert relay.listeners.statistics().popitem()[1].denied == 2
            await second.ask(b"QUIT\r\n")
            assert await second.reply() == (0, "")
            async with relay.client() as fourth:
                assert (await fourth.transaction())[0] == 250
        await trio.testing.wait_all_tasks_blocked()
        counters = relay.listeners.statistics().popitem()[1]
        assert (counters.sessions, counters.accepted, counters.transactions) == (0, 3, 2)


async def test_accept_survives_what_the_system_says(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPERM, errno.EMFILE]
    accept = Listener.accept

    async def failing(self: Listener) -> Stream:
        if errors:
            raise OSError(errors.pop(0), "no")
        return await accept(self)

    monkeypatch.setattr(Listener, "accept", failing)
    with caplog.at_level(logging.ERROR):
        async with open_relay() as relay, relay.client() as client:
            assert (await client.transaction())[0] == 250
    assert len(caplog.records) == 1, "told once, not five times"


async def test_an_address_that_cannot_be_listened_on() -> None:
    async with open_relay() as relay:
        port = relay.listeners.addresses[0][1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use"):
            async with open_relay(listen=f"127.0.0.1:{port}"):
                raise AssertionError("not reached")


async def test_ipv6() -> None:
    try:
        async with open_relay(listen="[::1]:0") as relay, relay.client() as client:
            assert (await client.transaction())[0] == 250
            assert b"([IPv6:::1])" in relay.queued[0][0].prefix
            assert relay.queued[0][0].meta["received_from"].startswith("[::1]:")
    except ConfigError:
        pytest.skip("no IPv6 on this machine")


# -- time --------------------------------------------------------------------------------------------


async def _ends(client: Client) -> tuple[int, str, float]:
    """The last reply, and how long it took to come."""
    begun = trio.current_time()
    with trio.fail_after(10_000):
        code, text = await client.reply()
        assert await client.reply() == (0, "")
    return code, text[:6], trio.current_time() - begun


@pytest.mark.parametrize("patience", [5.0, 60.0, 300.0])
async def test_an_idle_client_is_sent_away(patience: float, autojump_clock: MockClock) -> None:
    async with open_relay(client_timeout=patience, seconds=1000) as relay:
        async with relay.client() as client:
            await client.ask(b"MAIL FROM:<>\r\n")
            assert await _ends(client) == (421, "4.4.2 ", pytest.approx(patience, abs=1.1))


async def test_every_command_gives_the_client_its_full_time_again(autojump_clock: MockClock) -> None:
    async with open_relay(client_timeout=10, seconds=1000) as relay:
        async with relay.client() as client:
            for _ in range(20):
                await trio.sleep(9.9)
                assert (await client.ask(b"NOOP\r\n"))[0] == 250
            assert (await _ends(client))[0] == 421


@pytest.mark.parametrize("patience", [10, 100])
async def test_octets_that_make_no_command_do_not_count(patience: int, autojump_clock: MockClock) -> None:
    async with open_relay(client_timeout=patience, seconds=1000) as relay, relay.client() as client:
        begun = trio.current_time()

        async def drip() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.send(b"x")
                    await trio.sleep(2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            code, text = await client.reply()
            nursery.cancel_scope.cancel()
        assert (code, text[:6]) == (421, "4.4.2 ")
        assert trio.current_time() - begun == pytest.approx(patience, abs=3)


async def test_a_slow_command_has_the_time_of_one_command(autojump_clock: MockClock) -> None:
    async with open_relay(client_timeout=100, seconds=10_000) as relay, relay.client() as client:
        for _ in range(5):
            for piece in (b"NO", b"O", b"P\r", b"\n"):
                await trio.sleep(24)
                await client.send(piece)
            assert (await client.reply())[0] == 250
        assert (await client.transaction())[0] == 250


@pytest.mark.parametrize("pause", [59.9, 60.0, 60.9, 61.0, 61.1, 122.0, 299.0])
async def test_a_command_at_the_moment_a_scope_fires_is_not_lost(
    pause: float, autojump_clock: MockClock
) -> None:
    async with open_relay(client_timeout=300, seconds=10_000) as relay, relay.client() as client:
        for _ in range(5):
            await trio.sleep(pause)
            assert (await client.ask(b"NOOP\r\n"))[0] == 250
        assert (await client.transaction())[0] == 250
        assert relay.contents == [BODY]


async def test_inside_data_other_limits_hold(autojump_clock: MockClock) -> None:
    """3 min per read; 100 octets a second on average after a minute (reliability S31)."""
    async with open_relay(client_timeout=10, seconds=1000) as relay:
        for first, pause, piece, expected in (
            (b"x" * 100, 0.0, b"", 60.0),  # silence: after the grace the average counts
            (b"x\r\n" * 10_000, 0.0, b"", 180.0),  # silence after a good start
            (b"", 20.0, b"x", 60.0),  # one octet now and then
            (b"", 50.0, b"\r\n" + b"x\r\n" * 4000, None),  # slow, but within the limit
        ):
            async with relay.client() as client:
                await client.send(ENVELOPE + b"DATA\r\n" + first)
                assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
                if expected is None:
                    for _ in range(10):
                        await trio.sleep(pause)
                        await client.send(piece)
                    assert (await client.ask(b"\r\n.\r\n"))[0] == 250
                    continue
                async with trio.open_nursery() as nursery:

                    async def drip(
                        client: Client = client, pause: float = pause, piece: bytes = piece
                    ) -> None:
                        while pause:
                            await trio.sleep(pause)
                            with suppress(trio.BrokenResourceError):
                                await client.send(piece)

                    nursery.start_soon(drip)
                    assert await _ends(client) == (421, "4.4.2 ", pytest.approx(expected, abs=1.2))
                    nursery.cancel_scope.cancel()
        assert len(relay.queued) == 1


async def test_a_message_may_take_an_hour_and_no_longer(autojump_clock: MockClock) -> None:
    async with open_relay(seconds=10_000) as relay:
        async with relay.client() as client, trio.open_nursery() as nursery:
            await client.send(ENVELOPE + b"DATA\r\n")
            assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]

            async def pour() -> None:
                while True:
                    await client.send(b"line\r\n" * 3000)
                    await trio.sleep(100)

            nursery.start_soon(pour)
            assert await _ends(client) == (421, "4.4.2 ", pytest.approx(3600, abs=1.2))
            nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_our_replies(autojump_clock: MockClock) -> None:
    async with open_relay(max_errors=10_000_000, seconds=1000) as relay, relay.client() as client:
        begun = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send(b"X\r\n" * 20_000)
        assert trio.current_time() - begun == pytest.approx(60, abs=1.2)


async def test_a_handshake_that_never_comes_is_given_up_without_a_word(autojump_clock: MockClock) -> None:
    """S32, S10: behind the 220 nothing is said in the clear."""
    async with open_relay(seconds=1000) as relay, relay.client() as client:
        assert (await client.ask(b"STARTTLS\r\n"))[0] == 220
        begun = trio.current_time()
        assert await client.reply() == (0, "")
        assert trio.current_time() - begun == pytest.approx(30, abs=0.5)


async def test_an_async_hook_is_not_hurried_by_the_clients_clock(autojump_clock: MockClock) -> None:
    async def slow(subject: Any, conn_meta: Any) -> None:
        await trio.sleep(29)

    events = ("mail_from", "rcpt_to", "data", "message_received")
    hooks = {f"smtp_server_{event}": slow for event in events}
    options = {"client_timeout": 5, "data_processing_timeout": 200}
    envelope = b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    async with open_relay(hooks, seconds=1000, **options) as relay, relay.client() as client:
        assert (await client.transaction(envelope=envelope))[0] == 250
        assert (await client.transaction(envelope=envelope))[0] == 250


async def test_a_command_that_arrives_as_the_scope_fires_is_answered_in_full(
    autojump_clock: MockClock,
) -> None:
    async def slow(address: Any, conn_meta: Any) -> None:
        await trio.sleep(1)

    hooks = {"smtp_server_mail_from": slow}
    async with open_relay(hooks, client_timeout=300, seconds=1000) as relay, relay.client() as client:
        await trio.sleep(60.5)
        # The session's task is woken by these octets, and only then the time for it to be looked at comes.
        client.socket._sock.send(b"MAIL FROM:<>\r\n")
        autojump_clock.jump(5)
        assert (await client.reply())[0] == 250


# -- the end -----------------------------------------------------------------------------------------


async def test_drain_ends_idle_sessions_at_once_and_lets_transactions_finish() -> None:
    async with open_relay() as relay, trio.open_nursery() as nursery:
        idle, busy, silent = [await relay.connect() for _ in range(3)]
        for client in (idle, busy):
            await client.reply()
            await client.ask(b"EHLO a\r\n")
        await silent.reply()
        await busy.send(ENVELOPE + b"DATA\r\n")
        assert [(await busy.reply())[0] for _ in range(3)] == [250, 250, 354]
        nursery.start_soon(relay.listeners.drain, 10)
        for client in (idle, silent):
            code, text = await client.reply()
            assert (code, text[:6]) == (421, "4.3.2 ")
            assert await client.reply() == (0, "")
        with pytest.raises(OSError):
            await relay.connect()
        assert (await busy.ask(BODY + b".\r\n"))[0] == 250
        assert (await busy.reply())[0] == 421
        assert await busy.reply() == (0, "")
        assert len(relay.queued) == 1
        assert relay.log.of("Rejection") == []


async def test_a_stop_in_the_middle_of_a_handshake_says_nothing_in_the_clear(
    autojump_clock: MockClock,
) -> None:
    async with open_relay() as relay, relay.client() as client:
        assert (await client.ask(b"STARTTLS\r\n"))[0] == 220
        await relay.listeners.drain(10)
        assert await client.reply() == (0, "")


async def test_drain_waits_no_longer_than_it_was_told(autojump_clock: MockClock) -> None:
    async with open_relay() as relay:
        client = await relay.connect()
        await client.reply()
        await client.send(b"EHLO a\r\n" + ENVELOPE + b"DATA\r\n")
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        await relay.listeners.drain(10)
        assert trio.current_time() - begun == pytest.approx(10)
    codes = await client.codes()
    assert codes == [250, 250, 250, 354, 421]
    assert not relay.queued


async def test_after_its_time_a_transaction_ends_although_the_relay_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_relay() as relay, trio.open_nursery() as nursery:
        quiet, talking = await relay.connect(), await relay.connect()
        for client in (quiet, talking):
            await client.reply()
            await client.send(b"EHLO a\r\n" + ENVELOPE + b"DATA\r\n")
            assert [(await client.reply())[0] for _ in range(4)] == [250, 250, 250, 354]

        async def talk() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await talking.send(b"a line\r\n")
                    await trio.sleep(1)

        nursery.start_soon(talk)
        begun = trio.current_time()
        nursery.start_soon(relay.listeners.drain, 10)
        for client in (quiet, talking):
            code, text = await client.reply()
            assert (code, text[:6]) == (421, "4.3.2 ")
            assert trio.current_time() - begun == pytest.approx(10, abs=1)
            assert await client.reply() == (0, "")
        assert not relay.queued


async def test_after_its_time_a_session_in_a_hook_ends_and_a_commit_is_finished(
    autojump_clock: MockClock,
) -> None:
    async def mail(sender: object, conn_meta: object) -> None:
        if str(sender) == "never@client.example":
            await trio.sleep(29)

    async with open_relay({"smtp_server_mail_from": mail}, seconds=100) as relay:
        async with relay.client() as waiting, relay.client() as committing:
            relay.spool.gate = trio.Event()
            await waiting.send(b"MAIL FROM:<never@client.example>\r\n")
            await committing.send(ENVELOPE + b"DATA\r\n")
            assert [(await committing.reply())[0] for _ in range(3)] == [250, 250, 354]
            await committing.send(BODY + b".\r\n")
            await relay.spool.began.wait()
            begun = trio.current_time()
            await relay.listeners.drain(10)
            assert await waiting.codes() == [421]
            assert trio.current_time() - begun == pytest.approx(10, abs=0.1)
            relay.spool.gate.set()
            assert await committing.codes() == [250, 421]
            assert len(relay.queued) == 1


async def test_a_session_that_breaks_hurts_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_relay() as relay, relay.client() as good:
        for error in (RuntimeError("defect"), SystemExit(1), ExceptionGroup("x", [OSError()]), MemoryError()):
            with monkeypatch.context() as patch:

                def broken(size: int, error: BaseException = error) -> bool:
                    raise error

                async with relay.client() as bad:
                    patch.setattr(relay.spool, "room_for", broken)
                    code, text = await bad.ask(b"MAIL FROM:<>\r\n")
                    assert (code, text[:6]) == (421, "4.3.0 ")
                    assert await bad.reply() == (0, "")
            assert "ended by a defect" in caplog.text
            caplog.clear()
            assert (await good.transaction())[0] == 250


def test_fake_hooks_are_the_engines_own() -> None:
    assert not make_hooks().has("smtp_server_ehlo")
