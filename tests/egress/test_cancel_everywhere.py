"""A session broken off at any of its steps: each message is in one place afterwards, and goes out.

The steps are those of the scheduler, so that this is every moment at which a session can be broken off:
by the end of a drain, or because the peer was silent for too long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress.router import Router
from tests.support.bench import open_bench, to
from tests.support.peer import open_peer


class At(trio.abc.Instrument):
    """Breaks off the sessions when one of them is about to do its `step`th step (all sessions' steps are
    counted together). `how`: "abort" is what a drain does, "timeout" what the deadline of a reply does."""

    def __init__(self, router: Router, step: int, how: str) -> None:
        self.steps = 0
        self._router, self._step, self._how = router, step, how

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not task.name.endswith("Crew._session"):
            return
        self.steps += 1
        if self.steps != self._step:
            return
        for session in list(self._router._crew.sessions):
            if self._how == "abort":
                session.abort()
            elif session._scope is not None:
                session._scope.cancel()


def by_turns(*answers: str) -> Callable[[str], str]:
    """One answer after the other, again and again."""
    count = 0

    def answer(line: str) -> str:
        nonlocal count
        count += 1
        return answers[count % len(answers)]

    return answer


@dataclass
class Scenario:
    """Messages with so many `recipients` each, and the peer they go to."""

    recipients: tuple[int, ...]
    rcpt: tuple[str, ...] = ("250 ok",)
    path: dict[str, Any] = field(default_factory=dict)
    octets: int = 100
    resident: bool = True
    """Whether the messages are in memory; else they are read from the spool."""
    down: bool = False
    """Whether the first connection comes to nothing, for the whole queue."""
    few: int = 4
    """Steps at which it is broken off by default, spread over the whole; all of them: -m slow."""


LATER, TOO_MANY = "451 4.2.1 later", "452 4.5.3 too many"
SCENARIOS = {
    "plain": Scenario((1,) * 5, few=10),
    "read": Scenario((1,) * 4, resident=False),
    "down": Scenario(
        (1,) * 4, path={"consecutive_connection_failures_before_delay": 1}, resident=False, down=True, few=12
    ),
    "batches": Scenario((5,) * 3, path={"max_recipients_per_batch": 2}, few=8),
    "surplus": Scenario((4,) * 3, rcpt=("250 ok", "250 ok", TOO_MANY)),
    "large": Scenario((1,) * 3, octets=600_000),
    "mixed": Scenario(
        (7,) * 3, rcpt=("250 ok", LATER, TOO_MANY, "250 ok"), path={"max_recipients_per_batch": 3}
    ),
}


async def go_through(scenario: Scenario, how: str, step: int) -> int:
    """Send the scenario's messages, with one break; each recipient is settled once. Returns: the steps."""
    replies: dict[str, Any] = {"RCPT": by_turns(*scenario.rcpt)}
    if scenario.down:
        replies["connect"] = ["421 4.3.2 busy", "220 peer.example"]
    path = {"connection_limit": 1, "idle_timeout": 1, **scenario.path}
    queue = {"retry_interval": 5, "max_retry_interval": 5}
    async with open_peer(replies=replies) as peer, open_bench(to(peer, queue=queue, **path)) as b:
        b.router.settler._dice.random = lambda: 0.5  # type: ignore[method-assign]
        if not scenario.resident:
            b.router._resident_limit = 0
        at = At(b.router, step, how)
        trio.lowlevel.add_instrument(at)
        try:
            body = b"Subject: x\r\n\r\n" + b"x" * scenario.octets + b"\r\n"
            for number, recipients in enumerate(scenario.recipients):
                await b.submit([f"m{number}r{i}@example.com" for i in range(recipients)], body)
            with trio.move_on_after(3600) as late:
                while b.router.statistics().queued or b.router._crew.sessions or peer.open:
                    await trio.sleep(4)
        finally:
            trio.lowlevel.remove_instrument(at)
        where = f"step {step}: {b.router.statistics()}, {b.log.kinds()}"
        assert not late.cancelled_caught, where
        outcomes = b.outcomes()
        assert len(outcomes) == sum(scenario.recipients), where
        for kinds in outcomes.values():
            assert kinds[-1] == "Delivery" and set(kinds[:-1]) <= {"TransientFailure"}, where
        arrived = sum(len(arrived.recipients) for arrived in peer.arrived)
        assert arrived <= len(outcomes) + b.router.settler.counters.uncertain, where
        assert b.spool.statistics().messages == b.router.settler.resident == 0, where
        (ready,) = b.ready()
        assert ready.lease.used == ready.sessions == ready.starting == ready.idle_sessions() == 0, where
    return at.steps


@pytest.mark.parametrize("how", ["abort", "timeout"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_few_steps(name: str, how: str, clock: MockClock) -> None:
    steps = await go_through(SCENARIOS[name], how, 0)
    assert steps > 8
    few = min(SCENARIOS[name].few, steps)
    for part in range(few):
        await go_through(SCENARIOS[name], how, 1 + part * steps // few)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["abort", "timeout"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_step(name: str, how: str, clock: MockClock) -> None:
    steps = await go_through(SCENARIOS[name], how, 0)
    assert steps > 8
    for step in range(1, steps + 1):
        await go_through(SCENARIOS[name], how, step)
