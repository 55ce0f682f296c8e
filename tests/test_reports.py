"""What the tests themselves stand on: reports, what a skip says, free ports."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.programs import need

ROOT = Path(__file__).parents[1]


def test_a_lone_surrogate_in_the_log_reaches_the_other_process() -> None:
    """pytest-xdist broke off with INTERNALERROR."""
    test = "tests/log/test_diagnostics.py::test_json_lines"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_skip_names_the_one_command_that_installs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        need("no-such-program", "no-such-package")
    text = str(skipped.value)
    assert "no-such-program of the Debian package no-such-package" in text
    command = text.partition("all that tests need: ")[2]
    assert command in (ROOT / "tests" / "system-packages.txt").read_text()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"tests/system-packages\.txt"):
        need("no-such-program", "no-such-package")


def test_a_free_port_is_none_that_an_outgoing_connection_may_get() -> None:
    """Between the look and the server that takes it, thousands of them are given to other tests."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert given.getsockname()[1] >= kernel
    ports = [free_port() for _ in range(200)]
    assert all(1024 < port < kernel for port in ports) and len(set(ports)) > 150
