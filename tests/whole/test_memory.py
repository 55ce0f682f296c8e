"""A process that takes too much memory: no new mail, deliveries go on, and all is well again after it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.ports import until
from tests.support.posthorn import Relay, relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

EXTRA = """
BALLAST = []

@policy.on("smtp_server_ehlo")
async def ehlo(domain, conn_meta, extensions):
    if domain == "fill.example":
        BALLAST.append(b"x" * (220 << 20))
    if domain == "free.example":
        BALLAST.clear()
"""


def limited(running: Relay, limit: str) -> None:
    text = running.policy.read_text()
    running.policy.write_text(
        text.replace(
            "policy.define_spool(", f'policy.configure_memory(limit="{limit}")\n    policy.define_spool('
        )
    )


def test_no_new_mail_while_the_process_takes_too_much(tmp_path: Path) -> None:
    with (
        run_sink(delay=1.0) as sink,
        relay(tmp_path / "relay", next_hop=sink.port, extra=EXTRA, start=False) as running,
    ):
        limited(running, "200MiB")
        running.start()
        with RawClient(running.port) as client:
            for _ in range(3):
                assert client.deliver("a@b.example", "c@d.example", b"Subject: x\r\n\r\n")[0] == 250
            assert client.command("EHLO fill.example")[0] == 250
            until(lambda: "no new mail" in running.stderr, seconds=10, what=lambda: running.stderr)
            code, text = client.command("MAIL FROM:<a@b.example>")
            assert (code, b"4.3.1" in text) == (452, True)
            with socket.create_connection(("127.0.0.1", running.port), 10) as other:
                assert other.recv(100).startswith(b"421 ")
            until(lambda: len(sink.arrivals) == 3, seconds=20, what=lambda: running.stderr)
            assert client.command("EHLO free.example")[0] == 250
            until(lambda: "enough is free again" in running.stderr, seconds=10, what=lambda: running.stderr)
            assert client.deliver("a@b.example", "c@d.example", b"Subject: x\r\n\r\n")[0] == 250


def test_a_limit_below_what_the_process_takes_is_said_at_the_start(tmp_path: Path) -> None:
    extra = 'BALLAST = b"x" * (60 << 20)'
    with (
        run_sink() as sink,
        relay(tmp_path / "relay", next_hop=sink.port, extra=extra, start=False) as running,
    ):
        limited(running, "64MiB")
        process = running.launch()
        assert process.wait(timeout=30) == 2
        time.sleep(0.1)
        assert "configure_memory: limit is 64 MiB, and the process takes" in running.stderr
