"""Starting and stopping: SIGTERM under load, the second signal, two relays on one spool."""

from __future__ import annotations

import collections
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.load import run_load
from tests.support.ports import free_port, is_open, until
from tests.support.posthorn import Relay, relay, write_policy
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_loses_and_repeats_nothing(sign: signal.Signals, tmp_path: Path) -> None:
    total = 800
    with (
        run_sink(delay=0.001) as sink,
        relay(tmp_path / "relay", next_hop=sink.port, path={"connection_limit": 4}, level="info") as running,
        run_load(running.port, total, sessions=6) as load,
    ):
        for part in (1, 2):
            patience = time.monotonic() + 60
            while len(load.accepted) < total * part // 3 and not load.failures:
                assert time.monotonic() < patience, running.stderr
                time.sleep(0.005)
            assert running.process is not None
            running.process.send_signal(sign)
            assert running.wait(seconds=40) == 0, running.stderr
            assert "stopped" in running.stderr
            assert "Traceback" not in running.stderr
            running.start()
        load.wait(seconds=120)
        until(
            lambda: len(sink.arrivals) >= total,
            seconds=60,
            what=lambda: f"{len(sink.arrivals)}: {running.stderr}",
        )
        running.stop()
        counts = collections.Counter(arrival.recipients[0] for arrival in sink.arrivals)
        assert load.accepted <= set(counts)
        assert [name for name, count in counts.items() if count > 1] == []


def test_a_stop_waits_for_the_reply_to_the_final_dot(tmp_path: Path) -> None:
    with run_sink(delay=2.0) as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: slow\r\n\r\n")[0] == 250
        until(lambda: sink.sessions > 0, seconds=10, what=lambda: running.stderr)
        time.sleep(0.5)  # the message is on its way; the sink answers two seconds later
        running.stop()
        assert len(running.records("Delivery")) == 1
        running.start()
        time.sleep(1.0)  # nothing may come a second time
        running.stop()
        assert len(sink.arrivals) == 1


def test_a_second_signal_leaves_at_once_and_loses_nothing(tmp_path: Path) -> None:
    with run_sink(delay=30.0) as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: very slow\r\n\r\n")[0] == 250
        until(lambda: sink.sessions > 0, seconds=10, what=lambda: running.stderr)
        time.sleep(0.5)
        running.terminate()
        until(lambda: "stopping" in running.stderr, seconds=10, what=lambda: running.stderr)
        assert running.process is not None
        assert running.process.poll() is None, "it should wait for the reply to the dot"
        running.terminate()
        begun = time.monotonic()
        running.wait(seconds=10)
        assert time.monotonic() - begun < 3.0
        assert "Traceback" not in running.stderr
        sink.delay = 0.0
        running.start()
        running.wait_records("Delivery", 1)


def test_an_idle_client_is_told_and_the_port_is_closed_at_once(tmp_path: Path) -> None:
    with run_sink() as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        with RawClient(running.port) as client:
            running.terminate()
            code, text = client.reply()
            assert (code, text[:5]) == (421, b"4.3.2")
            assert client.at_end()
        assert running.wait(seconds=20) == 0
        assert not is_open(running.port)


def touched(directory: Path) -> dict[Path, tuple[int, int, int]]:
    """What a process that changes a file cannot help changing."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        state = path.stat()
        found[path] = (state.st_mode, state.st_size, state.st_ctime_ns)
    return found


def test_a_second_relay_on_the_same_spool_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    with run_sink() as sink, relay(tmp_path / "relay", next_hop=sink.port) as running:
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: first\r\n\r\n")[0] == 250
        running.wait_records("Delivery", 1)
        (running.directory / "log" / "20260102-030405.678901").write_bytes(b"")  # of a run that was killed
        places = [running.directory / "log", running.directory / "spool"]
        time.sleep(0.5)  # the notes are synced, the log has written
        before = [touched(place) for place in places]
        policy = write_policy(running.directory, port=free_port(), next_hop=sink.port, name="second.py")
        second = Relay(policy, running.port, [], None, "info")
        second._starts = 100  # its output beside that of the first
        second.launch()
        assert second.wait(seconds=20) != 0
        assert "spool" in second.stderr
        assert "another process" in second.stderr or "in use" in second.stderr or "lock" in second.stderr
        assert "Traceback" not in second.stderr
        # The first one did not notice.
        assert [touched(place) for place in places] == before
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: still here\r\n\r\n")[0] == 250
        running.wait_records("Delivery", 2)


def test_a_port_in_use_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        policy = write_policy(tmp_path, port=port, next_hop=free_port())
        late = Relay(policy, port, [], None, "info")
        late.launch()
        assert late.wait(seconds=20) == 2
        assert str(port) in late.stderr
        assert "Traceback" not in late.stderr


def test_mail_waits_for_a_next_hop_that_is_down(tmp_path: Path) -> None:
    port = free_port()
    path = {"connect_timeout": "2s"}
    with relay(tmp_path / "relay", next_hop=port, path=path, queue={"retry_interval": "1s"}) as running:
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: patience\r\n\r\n")[0] == 250
        record = running.wait_records("TransientFailure")[0]
        assert str(port) in record["response"]["content"]
        running.stop()
        assert running.records("Bounce") == []
        # It persists: a relay started later, with a next hop elsewhere, still has it.
        with run_sink() as sink:
            write_policy(running.directory, port=running.port, next_hop=sink.port)
            running.start()
            running.wait_records("Delivery", 1)
            assert len(sink.arrivals) == 1
