"""The tests' own reports: they reach the process that shows them, whatever was logged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
