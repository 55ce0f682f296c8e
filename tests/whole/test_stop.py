"""A stop at awkward moments: during the start, in a hook that never returns, beside SIGHUP."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from engine.signals import LAST_RESORT
from tests.support.bytesink import run_sink
from tests.support.ports import free_port, until
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

AT_IMPORT = """
import pathlib, time
pathlib.Path("reached").touch()
time.sleep(60)
"""
CAUGHT_AT_IMPORT = """
import pathlib, time
try:
    pathlib.Path("reached").touch()
    time.sleep(60)
except BaseException:
    pass
"""
IN_PRE_INIT = """
import pathlib, trio
@policy.on("pre_init")
async def wait():
    pathlib.Path("reached").touch()
    await trio.sleep_forever()
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "extra", [AT_IMPORT, CAUGHT_AT_IMPORT, IN_PRE_INIT], ids=["import", "caught", "init"]
)
def test_a_stop_during_the_start_is_no_failure(extra: str, sign: signal.Signals, tmp_path: Path) -> None:
    with relay(tmp_path / "relay", next_hop=free_port(), extra=extra, start=False) as running:
        process = running.launch()
        reached = running.directory / "reached"
        until(reached.exists, seconds=20, what=lambda: running.stderr)
        process.send_signal(sign)
        assert running.wait(seconds=10) == 0, running.stderr
        assert "Traceback" not in running.stderr
        assert not (running.directory / "spool").exists()


def test_hanging_up_is_logged_and_nothing_stops(tmp_path: Path) -> None:
    with run_sink() as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        assert running.process is not None
        running.process.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP" in running.stderr, seconds=10, what=lambda: running.stderr)
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: on we go\r\n\r\n")[0] == 250
        running.wait_records("Delivery", 1)


HANGS = """
import threading
@policy.on("smtp_server_rcpt_to")
def never(recipient, conn_meta):
    threading.Event().wait()
"""


@pytest.mark.slow
def test_a_hook_that_never_returns_is_named_and_does_not_keep_the_process(tmp_path: Path) -> None:
    with relay(tmp_path / "relay", next_hop=free_port(), extra=HANGS) as running:
        with RawClient(running.port) as client:
            client.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n")
            until(lambda: "has been holding" in running.stderr, seconds=10, what=lambda: running.stderr)
            assert f"{running.policy}:" in running.stderr
            assert " in never(): " in running.stderr
            begun = time.monotonic()
            running.terminate()
            assert running.wait(seconds=LAST_RESORT + 5) == -signal.SIGALRM
            assert time.monotonic() - begun > LAST_RESORT - 2


@pytest.mark.slow
def test_a_delivery_that_begins_during_the_drain_is_waited_for(tmp_path: Path) -> None:
    with (
        run_sink(delay=LAST_RESORT + 15) as sink,
        relay(tmp_path / "relay", next_hop=sink.port) as running,
        RawClient(running.port) as late,
        RawClient(running.port) as never,
    ):
        for client in (late, never):
            for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
                client.command(command)
        running.terminate()
        until(lambda: "stopping" in running.stderr, seconds=10, what=lambda: running.stderr)
        late.send(b"Subject: late\r\n\r\n.\r\n")
        assert late.reply()[0] == 250
        begun = time.monotonic()
        assert never.reply()[0] == 421, "ten seconds, whatever else goes on"
        assert time.monotonic() - begun < 12
        assert running.wait(seconds=60) == 0, running.stderr
        assert len(running.records("Delivery")) == 1
