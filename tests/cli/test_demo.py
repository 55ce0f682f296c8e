"""The demo as it is run in a terminal: to its end, and until Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.ports import until
from tests.support.posthorn import command, environment

pytestmark = pytest.mark.whole


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [*command(), "demo", "--directory", str(directory), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        process_group=0,
    )


def children_of(directory: Path) -> list[int]:
    """Processes that have this directory in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words:
            found.append(int(entry.parent.name))
    return found


def test_to_its_end(tmp_path: Path) -> None:
    demo = start(tmp_path, "--messages", "30", "--sessions", "3")
    out, err = demo.communicate(timeout=120)
    assert (demo.returncode, err) == (0, "")
    assert re.search(r"delivered +30\n", re.sub(" +\n", "\n", out))
    assert children_of(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_and_its_children(tmp_path: Path, number: int, status: int) -> None:
    """A terminal sends Ctrl-C to the whole group; the children are stopped in order all the same."""
    demo = start(tmp_path, "--messages", "100000")

    def under_way() -> bool:
        assert demo.poll() is None
        spool = tmp_path / "spool" / "segments"
        return any(path.stat().st_size > 100_000 for path in spool.glob("*.seg"))

    until(under_way, seconds=60, what=lambda: "messages are submitted")
    os.killpg(demo.pid, number)
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (status, "posthorn demo: interrupted\n")
    assert "Traceback" not in out
    assert children_of(tmp_path) == []
    # Stopped in order: the relay drained and said so, the sink wrote its last line.
    relay = (tmp_path / "relay.txt").read_text()
    assert "stopped: " in relay and "Traceback" not in relay
    last = (tmp_path / "next-hop.txt").read_text().splitlines()[-1]
    assert json.loads(last)["final"] is True
