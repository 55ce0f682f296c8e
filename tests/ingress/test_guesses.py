"""engine/ingress/guesses.py: whoever tries passwords is slow, in however many sessions; nobody else is."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.ingress import guesses
from engine.ingress.guesses import Guesses, TurnDenied
from policy import Reject, Secret
from tests.ingress.peer import open_relay

HOME, AWAY = "192.0.2.1", "198.51.100.7"
RIGHT = "tiger"


async def attempt(
    table: Guesses, peer: str, account: str, *, right: bool = False, takes: float = 0.0
) -> float:
    """One login. Returns: seconds until its end."""
    begun = trio.current_time()
    async with table.turn(peer, account):
        judged = trio.current_time()
        await trio.sleep(takes)
        if right:
            table.granted(peer, account)
            return trio.current_time() - begun
        due = table.refused(peer, account, judged)
    await trio.sleep_until(due)
    return trio.current_time() - begun


async def test_refusals_grow_slower_and_are_forgotten_after_an_hour(autojump_clock: MockClock) -> None:
    table = Guesses()
    took = [await attempt(table, HOME, f"user{i}") for i in range(10)]
    assert took == [1, 1, 1, 2, 4, 8, 16, 32, 32, 32]
    await trio.sleep(3600 - 33)
    assert await attempt(table, HOME, "scott") == 32
    await trio.sleep(3601)
    assert await attempt(table, HOME, "scott") == 1


async def test_a_slow_hook_shows_in_whole_steps_only(autojump_clock: MockClock) -> None:
    table = Guesses()
    assert await attempt(table, HOME, "scott", takes=0.3) == pytest.approx(1.0)
    assert await attempt(table, HOME, "scott", takes=2.3) == pytest.approx(3.0)


@pytest.mark.parametrize("peers", [[HOME], [f"198.51.100.{i}" for i in range(100)]], ids=["one", "many"])
async def test_many_sessions_make_no_more_guesses_than_one(
    peers: list[str], autojump_clock: MockClock
) -> None:
    """Of one address against many accounts, and of many addresses against one account."""
    table = Guesses()
    judged: list[float] = []

    async def guesser(number: int) -> None:
        peer, account = peers[number % len(peers)], "scott" if len(peers) > 1 else f"user{number}"
        while True:
            try:
                async with table.turn(peer, account):
                    judged.append(trio.current_time())
                    begun = trio.current_time()
                    await trio.sleep(0.01)
                    due = table.refused(peer, account, begun)
            except TurnDenied:
                continue
            await trio.sleep_until(due)

    with trio.move_on_after(600):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(guesser, number)
    # Five at once at first; then about one in 32 seconds.
    assert len([moment for moment in judged if moment == judged[0]]) == 5
    assert 600 / 32 - 2 <= len(judged) <= 5 + 6 + 600 / 32


async def test_the_owner_is_let_in_at_his_usual_place(autojump_clock: MockClock) -> None:
    table = Guesses()
    assert await attempt(table, HOME, "scott", right=True) == 0
    for i in range(30):
        await attempt(table, f"203.0.113.{i}", "Scott")
    assert await attempt(table, HOME, "scott", right=True) == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, table, AWAY, "scott")
        await trio.sleep(0.5)
        assert await attempt(table, HOME, "scott", right=True) == 0
        assert await attempt(table, AWAY, "scott", right=True) > 10


async def test_a_neighbour_who_guesses_does_not_shut_the_office_out(autojump_clock: MockClock) -> None:
    table = Guesses()
    await attempt(table, HOME, "scott", right=True)
    for i in range(20):
        await attempt(table, HOME, f"user{i}")
    assert await attempt(table, HOME, "scott", right=True) == 0
    assert await attempt(table, HOME, "scott") == 1, "a typo"


async def test_from_his_own_place_it_is_no_faster(autojump_clock: MockClock) -> None:
    table = Guesses()
    await attempt(table, HOME, "scott", right=True)
    assert [await attempt(table, HOME, "scott") for _ in range(6)] == [1, 1, 1, 2, 4, 8]
    assert await attempt(table, HOME, "scott", right=True) == 0
    assert await attempt(table, HOME, "scott") == 1, "whoever knows the password may mistype it again"


async def test_logging_in_with_an_own_account_buys_no_guesses(autojump_clock: MockClock) -> None:
    table = Guesses()
    took = []
    for i in range(6):
        assert await attempt(table, AWAY, "mallory", right=True) == 0
        took.append(await attempt(table, AWAY, f"user{i}"))
    assert took == [1, 1, 1, 2, 4, 8]


async def test_an_ipv6_client_is_its_network(autojump_clock: MockClock) -> None:
    table = Guesses()
    took = [await attempt(table, f"2001:db8::{i}", f"user{i}") for i in range(5)]
    assert took == [1, 1, 1, 2, 4]


async def test_who_waits_too_long_is_refused_unheard(autojump_clock: MockClock) -> None:
    table = Guesses()
    for i in range(10):
        await attempt(table, HOME, f"user{i}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(attempt, table, HOME, "user", takes=100))
        await trio.sleep(33)
        begun = trio.current_time()
        with pytest.raises(TurnDenied):
            await attempt(table, HOME, "scott", right=True)
        assert trio.current_time() - begun == 60


async def test_the_tables_do_not_grow(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(guesses, "_KEPT", 50)
    monkeypatch.setattr(guesses, "STEP", 0.001)
    table = Guesses()
    for i in range(200):
        peer, account = f"10.0.0.{i}", f"user{i}"
        await attempt(table, peer, account)
        await attempt(table, peer, account, right=True)
    assert [len(table._addresses), len(table._accounts), len(table._usual)] == [50, 50, 50]


async def test_who_never_fails_leaves_no_row_but_his_usual_place(autojump_clock: MockClock) -> None:
    table = Guesses()
    await attempt(table, HOME, "scott", right=True)
    assert [len(table._addresses), len(table._accounts), len(table._usual)] == [0, 0, 1]


async def test_one_that_leaves_while_it_waits_is_no_hindrance(autojump_clock: MockClock) -> None:
    table = Guesses()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(partial(attempt, table, HOME, "scott", right=True, takes=5))
        await trio.sleep(1)
        for _ in range(3):
            with trio.move_on_after(1) as left:
                await attempt(table, HOME, "other", right=True)
            assert left.cancelled_caught
    assert await attempt(table, HOME, "other", right=True) == 0
    assert not table._addresses and not table._accounts


# -- in a session ----------------------------------------------------------------------------------


def plain(user: str, password: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()) + b"\r\n"


async def test_the_count_is_shared_by_sessions_and_listeners(autojump_clock: MockClock) -> None:
    def check(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        if password == Secret("locked"):
            raise Reject(535, "5.7.8 this account is locked")
        return password == Secret(RIGHT)

    hooks = {"smtp_server_auth_plain": check}
    took = []
    async with open_relay(hooks, allow_auth_without_tls=True) as relay:
        for number in range(5):
            async with relay.client() as client:
                begun = trio.current_time()
                word = "locked" if number % 2 else "wrong"
                assert (await client.ask(plain(f"user{number}", word)))[0] == 535
                took.append(round(trio.current_time() - begun, 3))
        assert took == [1, 1, 1, 2, 4]
        async with relay.client() as client:
            assert (await client.ask(plain("scott", RIGHT)))[0] == 235


async def test_a_login_that_waits_too_long_ends_with_421_and_says_why_in_the_record(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(guesses, "_PATIENCE", 1.5)

    async def check(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        await trio.sleep(0.6)
        return False

    hooks = {"smtp_server_auth_plain": check}
    async with open_relay(hooks, allow_auth_without_tls=True) as relay:
        seen: list[int] = []

        async def guess() -> None:
            async with relay.client() as client:
                seen.append((await client.ask(plain("scott", "wrong")))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(guess)
        assert set(seen) == {535, 421} and seen.count(535) <= 8
        causes = {record.cause for record in relay.log.of("Rejection") if record.code == 421}
        assert causes == {"too many failed logins before this one"}
