"""From a domain to what becomes of the mail (reliability N1-N10): destinations.py, in a namespace.

Public addresses and port 25 are needed, so those tests run in a network namespace of their own, where
nobody else listens. Skipped where the system does not let us have one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import need

ADDRESSES = ("198.51.100.1", "198.51.100.2", "198.51.100.3", "10.9.9.9")
"""What the namespace's loopback interface is called besides 127.0.0.1."""


def test_in_a_network_namespace() -> None:
    need("unshare", "util-linux")
    need("ip", "iproute2")
    script = "ip link set lo up" + "".join(f" && ip addr add {each}/32 dev lo" for each in ADDRESSES)
    enter = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
    tried = subprocess.run([*enter, script], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespace to be had: {tried.stderr.strip()}")
    tests = Path(__file__).with_name("destinations.py")
    run = [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [*enter, f'{script} && exec "$@"', "sh", *run],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
