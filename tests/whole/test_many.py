"""A spool full of mail: what a start costs, and what a queued message costs in memory.

Promised: a start within 10 s with 100,000 messages queued, and 1,000,000 of them in at most 1 GiB. A start is
counted in processor time here: the wall clock of a machine with other things to do says little.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import trio

from engine.model import Message, QueueName, new_message_id
from engine.spool import open_spool
from tests.support.ports import free_port, until
from tests.support.posthorn import Relay, relay

pytestmark = pytest.mark.whole

TOGETHER = 100
"""Messages of one transaction: filling the spool is not what is measured."""
DOMAINS = 100
MOST = 2**30 / 1_000_000
"""Octets of memory per message."""


async def fill(directory: Path, total: int) -> None:
    """So many messages that were tried once and wait for their next attempt."""
    async with open_spool(directory) as spool:
        for first in range(0, total, TOGETHER):
            messages = [
                Message(
                    id=new_message_id(),
                    sender=f"sender{number}@sender.example",
                    recipients=[f"recipient{number}@domain{number % DOMAINS}.example"],
                    queue=QueueName(f"domain{number % DOMAINS}.example", f"tenant{number % 7}"),
                    created=time.time(),
                    prefix=b"Received: from a.example by b.example; Thu, 26 Nov 2026 12:00:00 +0000\r\n",
                    size=600,
                    meta={"received_from": "127.0.0.1:1234"},
                )
                for number in range(first, first + TOGETHER)
            ]
            for handle in await spool.commit(
                [b"Subject: one of many\r\n\r\n" + b"x" * 500 + b"\r\n"], messages
            ):
                spool.postpone(handle, 1, time.time() + 7200.0)


def resident(running: Relay) -> int:
    """Octets of memory of the relay's process."""
    assert running.process is not None
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


def processor_seconds(running: Relay) -> float:
    """Of the relay's process since it was started."""
    assert running.process is not None
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "total",
    [
        20_000,
        pytest.param(100_000, marks=pytest.mark.slow),
        pytest.param(1_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_full_queue_costs_a_short_start_and_a_kibibyte_each(total: int, tmp_path: Path) -> None:
    trio.run(fill, tmp_path / "relay" / "spool", total)
    with relay(tmp_path / "empty", next_hop=free_port(), level="info") as empty:
        alone = resident(empty)
    with relay(tmp_path / "relay", next_hop=free_port(), level="info", start=False) as running:
        running.start(seconds=120)
        until(
            lambda: f"{total} messages found" in running.stderr,
            seconds=120,
            what=lambda: running.stderr,
        )
        busy = processor_seconds(running)
        each = (resident(running) - alone) / total
        print(f"{total} messages: {busy:.1f} s of processor time, {each:.0f} octets each")
        assert busy <= 10.0 * max(1.0, total / 100_000)
        assert each <= MOST
        assert running.records() == [], "none of them is due"
