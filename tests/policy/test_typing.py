"""What a type checker says of a policy: it finds the package where `make` installed it, and helps."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.programs import missing

GOOD = """
import policy

@policy.on("init")
def init() -> None:
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["127.0.0.1"])

@policy.on("smtp_server_message_received")
def received(msg: policy.Message, conn_meta: policy.ConnectionMeta) -> None:
    msg.set_meta("tenant", msg.sender().domain)

@policy.on("get_egress_path_config")
def path(domain: str, egress_source: str, site_name: str) -> policy.EgressPath:
    return policy.make_egress_path(enable_tls="Required", connect_timeout="5s")
"""

WRONG = """
import policy

policy.make_egress_pth()
policy.make_egress_path(enable_tls="Reqired")
policy.define_spool("var/spool")
"""


def mypy(text: str, directory: Path) -> str:
    if find_spec("mypy") is None:
        missing("needs mypy, of the dependency group lint")
    (directory / "mail.py").write_text(text)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(directory / "cache"), "mail.py"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_policy_type_checks(tmp_path: Path) -> None:
    assert mypy(GOOD, tmp_path) == "Success: no issues found in 1 source file\n"


def test_mistakes_are_seen(tmp_path: Path) -> None:
    text = mypy(WRONG, tmp_path)
    assert 'mail.py:4: error: Module has no attribute "make_egress_pth"' in text
    assert "mail.py:5: error:" in text and "Reqired" in text
    assert "mail.py:6: error:" in text


TESTS = """
from policy.testing import CountsFailedLogins, load, open_relay, scenario

asked = load("mail.py", dns={"example.com": {"MX": ["10 mx.example.com."]}})

def test_path() -> None:
    assert asked.path("bob@example.com").connection_limit > 1

@scenario
async def test_delivery(number: int) -> None:
    hop = CountsFailedLogins(limit=number)
    async with open_relay("mail.py", hops={"mx.example.com": hop}) as relay:
        (record,) = await relay.wait_for("Delivery", within="1 hour")
        assert record.num_attempts == 0 and hop.failed["scott"] == 0

test_delivery(3)
CountsFailedLogins(limits=3)
test_delivery("3")
"""


@pytest.mark.slow  # the engine is checked along
def test_tests_of_a_policy_type_check(tmp_path: Path) -> None:
    text = mypy(TESTS, tmp_path)
    assert "Found 2 errors in 1 file" in text
    assert (
        'Unexpected keyword argument "limits"' in text and 'incompatible type "str"; expected "int"' in text
    )
