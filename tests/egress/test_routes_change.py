"""Routes that change while messages are under way by the old ones: nothing is left behind, nobody asleep.

What one domain's change takes away from a queue, others may have waited for: room, a connection of the
common limit, a look at a queue that stands still.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, HookSet, to
from tests.support.peer import HANG, FakePeer, open_peer, slowly

LOGINS = ("PIPELINING", "AUTH PLAIN")


class Moving:
    """Hooks by which one.example goes to another peer once `moved` is set; its routes are worked out again
    each ten seconds, those of the other domains once an hour. The old peer has a path of its own."""

    def __init__(self, old: FakePeer, new: FakePeer, **path: Any) -> None:
        self.moved = False
        self._old, self._new = old, new
        self._path = path

    def hooks(self) -> HookSet:
        def config(domain: str, tenant: str, campaign: str, routing_domain: str) -> object:
            peer = self._new if domain == "one.example" and self.moved else self._old
            return policy.make_queue_config(
                protocol={"smtp": {"mx_list": [f"127.0.0.1:{peer.port}"]}},
                refresh_interval=10 if domain == "one.example" else 3600,
            )

        def path(domain: str, egress_source: str, site_name: str) -> object:
            own = self._path if str(self._old.port) in site_name else {}
            return policy.make_egress_path(
                **{"enable_tls": "Disabled", "idle_timeout": 0.3, "refresh_interval": 3600, **own}
            )

        return {"get_queue_config": config, "get_egress_path_config": path}


@contextmanager
def no_endless_loop(seconds: int) -> Iterator[None]:
    """An endless loop without a checkpoint stops every clock of ours; the kernel's goes on."""

    def over(*_: object) -> None:
        pytest.fail("an endless loop without a checkpoint")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def test_calling_a_line_in_whose_domain_has_moved_to_a_full_queue(bench: Any, clock: MockClock) -> None:
    """Its messages wait in a line of the queue it left. There is room, but that is not its queue any more."""
    moved = False
    async with open_peer(replies={"MAIL": lambda line: "250 ok" if moved else HANG}) as peer:

        def path(domain: str, egress_source: str, site_name: str) -> object:
            return policy.make_egress_path(
                enable_tls="Disabled",
                connection_limit=1,
                max_ready=2,
                mail_from_timeout=30,
                refresh_interval=2,
                ehlo_domain="new.example" if moved and domain == "one.example" else "old.example",
            )

        with no_endless_loop(20):
            async with bench({**to(peer), "get_egress_path_config": path}) as b:
                await b.submit("x@two.example")
                await b.until(lambda: "MAIL" in peer.words())
                for _ in range(8):
                    await b.submit("x@one.example")
                await b.submit("x@two.example")
                assert b.router.statistics().waiting == 7, "two are ready, the others in line"
                await trio.sleep(3)
                moved = True
                await b.submit("x@one.example")
                await b.until(lambda: len(b.ready()) == 2)
                await b.records("Delivery", 11, seconds=300)
                assert b.log.kinds() == ["TransientFailure"] + ["Delivery"] * 11
                assert {ready.path.ehlo_domain for ready in b.ready() if ready.hungry} == set()


async def test_the_successor_of_a_queue_gets_its_connection(bench: Any, clock: MockClock) -> None:
    """`connection_limit` is 1, and the old queue's only session is in a transaction when the path changes."""
    pauses = iter([0, 20, 0])
    async with open_peer(slowly(taken=lambda: next(pauses))) as peer:
        names = ["old.example"]
        hooks = to(peer)
        config = hooks["get_queue_config"]("", "", "", "")

        async def slow_config(domain: str, tenant: str, campaign: str, routing_domain: str) -> object:
            await trio.sleep(1)
            return config

        def path(domain: str, egress_source: str, site_name: str) -> object:
            return policy.make_egress_path(
                enable_tls="Disabled",
                idle_timeout=50,
                connection_limit=1,
                refresh_interval=5,
                ehlo_domain=names[-1],
            )

        async with bench({"get_queue_config": slow_config, "get_egress_path_config": path}) as b:
            await b.submit()
            await b.records("Delivery")
            await trio.sleep(10)
            names.append("new.example")
            await b.submit()  # taken by the idle session at once; new routes are worked out meanwhile
            await b.until(lambda: [ready.path.ehlo_domain for ready in b.ready()] == ["new.example"])
            await b.submit()
            await trio.sleep(2)
            assert b.router.statistics().ready == 1 and b.log.kinds() == ["Delivery"]
            await b.records("Delivery", 3, seconds=30)
            assert peer.connections == 2 and peer.most_open == 1
            assert [line for line in peer.commands if line.startswith("EHLO")][-1] == "EHLO new.example"


async def test_the_line_behind_those_who_leave_moves_up(bench: Any, clock: MockClock) -> None:
    """one.example filled the queue, two.example stood in line; one.example moves away."""
    async with open_peer() as old, open_peer() as new:
        moving = Moving(old, new, enable_tls="Required", max_ready=2, hold_interval=20)
        async with bench(moving.hooks()) as b:
            await b.submit("x@one.example")
            await b.submit("x@one.example")
            await b.records("TransientFailure")
            await b.submit("y@two.example")
            await b.submit("y@two.example")
            assert b.router.statistics().waiting == 2
            moving.moved = True
            await b.records("Delivery", 2, seconds=60)
            before = old.connections
            await trio.sleep(60)
            assert b.router.statistics().waiting == 0
            assert old.connections > before, "the queue is tried again, now for two.example"
            assert len(new.arrived) == 2 and not old.arrived


async def test_a_held_queue_is_tried_though_the_routes_asked_for_lead_elsewhere(
    bench: Any, clock: MockClock
) -> None:
    """Its wake-up asks for what is due, one.example's routes; two.example's message is still in it."""
    async with open_peer(capabilities=LOGINS, replies={"AUTH": "535 5.7.8 no"}) as old, open_peer() as new:
        moving = Moving(old, new, hold_interval=20, **AUTH)
        async with bench(moving.hooks()) as b:
            await b.submit("x@one.example")
            await b.submit("y@two.example")
            await b.records("TransientFailure")
            moving.moved = True
            old.replies["AUTH"] = "235 ok"
            await b.records("Delivery", 2, seconds=600)
            assert [len(peer.arrived) for peer in (new, old)] == [1, 1]


@pytest.mark.parametrize("intervals", [1, 4])
async def test_a_domain_that_does_not_exist_for_a_while(intervals: int, bench: Any, clock: MockClock) -> None:
    """What it had put in a held queue is tried on all the same, and goes out."""
    gone = False
    async with open_peer(capabilities=LOGINS, replies={"AUTH": "535 5.7.8 no"}) as peer:
        hooks = to(peer, hold_interval=20, refresh_interval=10, **AUTH)
        good = hooks["get_queue_config"]
        hooks["get_queue_config"] = lambda *names: policy.make_queue_config() if gone else good(*names)
        async with bench(hooks) as b:
            await b.submit("x@one.example")
            await b.records("TransientFailure")
            gone = True  # there is no such name in the DNS either
            await trio.sleep(20 * intervals + 5)
            gone = False
            peer.replies["AUTH"] = "235 ok"
            await b.records("Delivery", seconds=600)
            assert b.router.statistics().queued == 0


async def test_everybody_leaves_a_queue_with_a_line(bench: Any, clock: MockClock) -> None:
    """The path changes for all; what was in the queue and in line before it goes by the new one, and the
    old queue is forgotten."""
    names = ["old.example"]
    async with open_peer(replies={"EHLO": "421 4.3.2 not now"}) as peer:

        def path(domain: str, egress_source: str, site_name: str) -> object:
            return policy.make_egress_path(
                enable_tls="Disabled", max_ready=3, refresh_interval=10, ehlo_domain=names[-1]
            )

        async with bench({**to(peer, queue={"retry_interval": 5}), "get_egress_path_config": path}) as b:
            for i in range(12):
                await b.submit(f"x@{('one', 'two', 'three')[i % 3]}.example")
            await b.records("TransientFailure")
            assert b.router.statistics().waiting > 3
            names.append("new.example")
            await trio.sleep(30)
            peer.replies.clear()
            await b.records("Delivery", 12, seconds=300)
            assert [ready.path.ehlo_domain for ready in b.ready()] == ["new.example"]
            assert b.router.statistics().queued == 0


async def test_a_domain_without_route_leaves_the_others_their_queue(bench: Any, clock: MockClock) -> None:
    """Its own line is settled; what others have in the queue they shared is not touched."""
    gone = False
    async with open_peer(capabilities=LOGINS, replies={"AUTH": "535 5.7.8 no"}) as peer:
        hooks = to(peer, max_ready=2, refresh_interval=10, hold_interval=20, **AUTH)
        good = hooks["get_queue_config"]

        def config(domain: str, *names: str) -> object:
            return policy.make_queue_config() if gone and domain == "one.example" else good(domain, *names)

        async with bench({**hooks, "get_queue_config": config}) as b:
            for _ in range(2):
                await b.submit("y@two.example")
            await b.records("TransientFailure")
            for _ in range(3):
                await b.submit("z@one.example")
            await b.until(lambda: b.router.statistics().waiting == 3)
            gone = True
            await trio.sleep(11)
            await b.submit("z@one.example")
            await b.records("Bounce", 4, seconds=600)
            peer.replies.clear()
            await b.records("Delivery", 2, seconds=600)
            assert b.outcomes()["z"] == ["Bounce"] * 4 and b.router.statistics().queued == 0
