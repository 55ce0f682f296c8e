"""A peer in step (a reply for each command, in order) whose replies are drawn by lot.

Whatever it says: no message is lost or in two places, a delivery is what the peer took, a bounce is
what it refused, and nobody gets a message twice whose outcome was known. A few draws run always;
``-m slow`` runs many.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.bench import to
from tests.support.peer import Wire, open_peer

MESSAGES = 20


@dataclass
class Draw:
    """One run. `recipients`: of each message; `surplus`: the peer says "too many" now and then."""

    pipelining: bool = True
    recipients: int = 1
    surplus: bool = False
    path: dict[str, Any] = field(default_factory=dict)


DRAWS = {
    "pipelining": Draw(),
    "plain": Draw(pipelining=False),
    "no rset": Draw(path={"enable_rset": False}),
    "several": Draw(recipients=4),
    "surplus": Draw(recipients=5, surplus=True),
    "batches": Draw(recipients=5, path={"max_recipients_per_batch": 2}),
    "plain batches": Draw(pipelining=False, recipients=5, path={"max_recipients_per_batch": 2}),
}


class RandomPeer:
    """The script, and the truth about it: the replies that decided, by (sender, recipient)."""

    def __init__(self, dice: random.Random, draw: Draw) -> None:
        self.dice = dice
        self.draw = draw
        self.truth: dict[tuple[str, str], list[str]] = defaultdict(list)

    async def script(self, wire: Wire) -> None:
        await wire.greet(*(["PIPELINING"] if self.draw.pipelining else []), "8BITMIME")
        sender: str | None = None
        recipients: list[str] = []
        while True:
            line = await wire.line()
            word = line.split(":")[0].split(" ")[0]
            argument = line[line.find("<") + 1 : line.find(">")] if "<" in line else ""
            chance = self.dice.random()
            if chance < 0.02:
                return
            if chance < 0.04:
                await wire.say("421 4.3.2 bye")
                return
            if word == "QUIT":
                await wire.say("221 bye")
                return
            if word == "MAIL" and sender is None:
                sender, recipients = await self._mail(wire, chance, argument), []
            elif word == "RCPT" and sender is not None:
                await self._rcpt(wire, chance, sender, argument, recipients)
            elif word == "DATA" and sender is not None and recipients:
                if await self._data(wire, chance, sender, recipients):
                    sender, recipients = None, []
            elif word == "DATA" and chance < 0.5:
                await wire.say("354 go")  # although there is nobody to send it to
                await wire.data()
                await wire.say("554 nobody")
                sender = None
            elif word == "RSET":
                sender, recipients = None, []
                await wire.say("250 reset")
            else:
                await wire.say("503 5.5.1 bad sequence")

    def _decided(self, sender: str, recipients: list[str], what: str) -> None:
        for recipient in recipients:
            self.truth[sender, recipient].append(what)

    async def _mail(self, wire: Wire, chance: float, sender: str) -> str | None:
        if chance < 0.08:
            await wire.say("451 4.1.0 mail")
            return None
        if chance < 0.09:
            self._decided(sender, ["*"], "550")
            await wire.say("550 5.1.0 mail")
            return None
        await wire.say("250 ok")
        return sender

    async def _rcpt(
        self, wire: Wire, chance: float, sender: str, recipient: str, recipients: list[str]
    ) -> None:
        if chance < 0.10:
            await wire.say("450 4.2.0 rcpt")
        elif chance < 0.13:
            self._decided(sender, [recipient], "550")
            await wire.say("550 5.1.1 rcpt")
        elif self.draw.surplus and recipients and chance < 0.3:
            await wire.say("452 4.5.3 too many")
        else:
            recipients.append(recipient)
            await wire.say("250 ok" if chance < 0.9 else "251 will forward")

    async def _data(self, wire: Wire, chance: float, sender: str, recipients: list[str]) -> bool:
        """Whether the transaction is over."""
        if chance < 0.07:
            await wire.say("451 data")
            return False
        if chance < 0.08:
            self._decided(sender, recipients, "554")
            await wire.say("554 data")
            return False
        await wire.say("354 go")
        await wire.data()
        chance = self.dice.random()
        if chance < 0.05:
            self._decided(sender, recipients, "lost")
            await trio.aclose_forcefully(wire.socket)
        elif chance < 0.08:
            await wire.say("451 dot")
        elif chance < 0.10:
            self._decided(sender, recipients, "554")
            await wire.say("554 dot")
        elif chance < 0.12:
            await wire.say("421 dot")
            await trio.aclose_forcefully(wire.socket)
        else:
            self._decided(sender, recipients, "250")
            await wire.say("250 taken")
        return True


def problems(b: Any, truth: dict[tuple[str, str], list[str]]) -> list[str]:
    """What is wrong in the end."""
    found: list[str] = []
    statistics = b.router.statistics()
    if b.spool.statistics().messages or statistics.queued:
        found.append(f"not settled: {statistics}, in the spool: {b.spool.statistics().messages}")
    final: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for record in b.log.records:
        listed = [record.recipient] if isinstance(record.recipient, str) else record.recipient
        for recipient in listed:
            if record.type in ("Delivery", "Bounce"):
                final[record.sender, recipient].append((record.type, record.code))
    for key, results in final.items():
        facts = truth[key] + truth[key[0], "*"]
        (kind, code), *more = results
        if more:
            found.append(f"two results: {key} {results}")
        if kind == "Delivery" and "250" not in facts:
            found.append(f"a delivery that was none: {key} {facts}")
        if kind == "Bounce" and str(code) not in facts:
            found.append(f"a bounce that was none: {key} {code} {facts}")
    for key, facts in truth.items():
        if facts.count("250") > 1:
            found.append(f"twice: {key} {facts}")
    return found


async def run(bench: Any, name: str, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    draw = DRAWS[name]
    random_peer = RandomPeer(random.Random(f"{name} {seed}"), draw)
    async with open_peer(random_peer.script) as peer:
        path = {"connection_limit": 3, "idle_timeout": 1, **draw.path}
        queue = {"retry_interval": 5, "max_retry_interval": 20}
        async with bench(to(peer, queue=queue, **path)) as b:
            recipients = [f"r{j}@example.com" for j in range(draw.recipients)]
            for i in range(MESSAGES):
                await b.submit(recipients, sender=f"m{i}@sender.example")
            with trio.move_on_after(3000):
                while b.spool.statistics().messages:
                    await b.log.written.wait()
                    b.log.written = trio.Event()
            assert problems(b, random_peer.truth) == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", DRAWS)
async def test_nothing_is_lost_doubled_or_misjudged(
    name: str, seed: int, bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run(bench, name, seed, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 40))
@pytest.mark.parametrize("name", DRAWS)
async def test_nor_in_many_more_draws(
    name: str, seed: int, bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await run(bench, name, seed, caplog)
