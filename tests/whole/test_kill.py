"""kill -9 in the middle of a load, again and again: nothing that was accepted is lost.

And hardly anything comes twice: only a message that was between the next hop's 250 and our note of it
can, and that is at most one per outgoing session and kill.
"""

from __future__ import annotations

import collections
import time
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.corpus import without_received
from tests.support.load import content_of, run_load
from tests.support.ports import until
from tests.support.posthorn import relay

pytestmark = pytest.mark.whole

SESSIONS_OUT = 5
SESSIONS_IN = 8


@pytest.mark.parametrize(
    ("total", "kills"),
    [
        pytest.param(1_500, 3, id="1500-messages-3-kills"),
        pytest.param(20_000, 10, id="20000-messages-10-kills", marks=pytest.mark.slow),
    ],
)
def test_kill_9_under_load_loses_nothing(total: int, kills: int, tmp_path: Path) -> None:
    at_risk = waiting = 0
    with (
        run_sink(delay=0.005) as sink,
        relay(
            tmp_path / "relay",
            next_hop=sink.port,
            path={"connection_limit": SESSIONS_OUT, "max_ready": 5_000},
            level="info",
        ) as running,
        run_load(running.port, total, sessions=SESSIONS_IN) as load,
    ):
        for kill in range(kills):
            enough = total * (kill + 1) // (kills + 1)
            patience = time.monotonic() + 120
            while len(load.accepted) < enough and not load.failures:
                assert time.monotonic() < patience, f"{len(load.accepted)} accepted\n{running.stderr}"
                time.sleep(0.005)
            waiting += max(0, len(load.accepted) - len(sink.arrivals))
            running.kill()
            at_risk += SESSIONS_OUT
            until(lambda: sink.sessions == 0, seconds=20, what="the sessions of the dead are over")
            running.start()
        load.wait(seconds=300)
        accepted = set(load.accepted)

        def arrived() -> set[str]:
            return {arrival.recipients[0] for arrival in sink.arrivals}

        until(
            lambda: accepted <= arrived(),
            seconds=120,
            what=lambda: f"{len(accepted - arrived())} messages that got their 250: {running.stderr}",
        )
        running.stop()
        assert waiting > 0, "nothing was queued at any of the kills, so they showed nothing"
        counts = collections.Counter(arrival.recipients[0] for arrival in sink.arrivals)
        duplicates = sum(counts.values()) - len(counts)
        assert duplicates <= at_risk, f"{duplicates} duplicates after {kills} kills"
        for arrival in sink.arrivals:
            assert without_received(arrival.content) == content_of(arrival.recipients[0])
        assert running.records("Bounce", "Expiration") == []


def test_a_start_after_kill_9_with_nothing_to_do_delivers_nothing_again(tmp_path: Path) -> None:
    with run_sink() as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        with run_load(running.port, 50, sessions=2) as load:
            load.wait(seconds=60)
        until(lambda: len(sink.arrivals) >= 50, seconds=30, what=lambda: running.stderr)
        until(lambda: len(running.records("Delivery")) >= 50, seconds=30, what=lambda: running.stderr)
        running.kill()
        running.start()
        with run_load(running.port, 1, sessions=1) as load:
            load.wait(seconds=60)
        until(lambda: len(sink.arrivals) >= 51, seconds=30, what=lambda: running.stderr)
        running.stop()
        assert len(sink.arrivals) == 51
