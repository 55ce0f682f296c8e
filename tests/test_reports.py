"""The tests' own reports: they reach the process that shows them, and a skip says what would help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
