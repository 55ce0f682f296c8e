"""A password that changes every ten seconds while a relay works at full speed: no message fails for it."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.certificates import Authority
from tests.support.load import run_load
from tests.support.ports import until
from tests.support.posthorn import relay

pytestmark = pytest.mark.whole

ROTATIONS = 3
PERIOD = 10.0
"""Seconds. A file is read again after one, and a session is asked to make room for a trial every five."""
IN_USE = "was tried and is in use now"


def password(number: int) -> str:
    return f"canary-of-version-{number}"


def store(file: Path, number: int) -> None:
    """As a careful operator replaces a secret."""
    new = file.with_suffix(".new.secret")
    new.write_text(password(number))
    new.chmod(0o600)
    os.replace(new, file)


def test_rotating_at_full_speed_fails_no_message(tmp_path: Path) -> None:
    authority, secret = Authority(), tmp_path / "password.secret"
    store(secret, 0)
    path = {
        "enable_tls": "Required",
        "tls_ca": str(authority.write(tmp_path / "ca.pem")),
        "smtp_auth": {"username": "scott", "password": str(secret)},
        "connection_limit": 8,
    }
    secrets = [password(number) for number in range(ROTATIONS + 1)]
    with run_sink(tls=authority.server_context(), users={"scott": password(0)}) as sink:
        with (
            relay(
                tmp_path / "relay", next_hop=sink.port, path=path, secrets=secrets, level="info"
            ) as running,
            run_load(running.port, 10**9, sessions=3) as load,
        ):

            def in_use(number: int) -> bool:
                return running.stderr.count(IN_USE) == number

            until(lambda: len(sink.arrivals) > 100, seconds=60, what="mail flows")
            for number in range(1, ROTATIONS + 1):
                # The peer takes both for a while, the one before these no more.
                sink.also = sink.users
                sink.users = {"scott": password(number)}
                store(secret, number)
                before = len(sink.arrivals)
                time.sleep(PERIOD)
                assert len(sink.arrivals) > before, "it goes on all the while"
                # On a busy machine a trial may take longer; the version before is gone from the peer next.
                until(partial(in_use, number), seconds=60, what=lambda: running.stderr[-4000:])
            load.abandon()
            accepted = len(load.accepted)
            until(lambda: len(sink.arrivals) >= accepted, seconds=60, what="all has arrived")
            assert len(running.wait_records("Delivery", accepted)) == accepted
            # A rejection is of a client that sent as much as a session may.
            kinds = {record["type"] for record in running.records()} - {"Reception", "Rejection"}
            assert kinds == {"Delivery"}, kinds
            assert sink.logins_refused == 0
            assert in_use(ROTATIONS)
            assert "not taken into use" not in running.stderr
