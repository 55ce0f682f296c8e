"""The statements that need more than one process, or a file that changes while it runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.certificates import Authority
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient
from tests.whole.test_shaping import edit, shaped, submit

pytestmark = pytest.mark.whole

RECEIVER = """
@policy.on("smtp_server_auth_plain")
def log_in(authz, authc, password, conn_meta):
    return authc == "scott" and password == policy.Secret("tiger-of-a-peer")
"""


def test_S04_a_peer_in_a_chain_knows_who_we_are(tmp_path: Path) -> None:
    authority = Authority()
    chain, key = authority.write_pair(tmp_path)
    path = {
        "enable_tls": "Required",
        "tls_ca": {"file": str(authority.write(tmp_path / "ca.pem"))},
        "smtp_auth_plain_username": "scott",
        "smtp_auth_plain_password": {"key_data": "tiger-of-a-peer"},
    }
    listener = {
        "tls_certificate": str(chain),
        "tls_private_key": str(key),
        "relay_hosts": [],
        "relay_authenticated": True,
    }
    with (
        run_sink() as sink,
        relay(tmp_path / "peer", next_hop=sink.port, listener=listener, extra=RECEIVER) as peer,
        relay(tmp_path / "relay", next_hop=peer.port, path=path) as running,
    ):
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: s\r\n\r\n")[0] == 250
        (delivery,) = running.wait_records("Delivery")
        (reception,) = peer.wait_records("Reception")
        peer.wait_records("Delivery")
    assert delivery["smtp_auth_user"] == reception["smtp_auth_user"] == "scott"


def test_S21_a_file_of_our_own_is_read_behind_the_shipped_one_and_again_when_it_changes(
    tmp_path: Path,
) -> None:
    password = "canary=Shaping+1/password"
    (tmp_path / "password.secret").write_text(password)
    before = '["127.0.0.1"]\nmx_rollup = false\nenable_tls = "Disabled"\n'
    after = before + (
        'smtp_auth_plain_username = "scott"\nallow_smtp_auth_plain_without_tls = true\n'
        f'smtp_auth_plain_password = "{tmp_path / "password.secret"}"\n'
    )
    with (
        run_sink() as open_sink,
        shaped(tmp_path, [f"127.0.0.1:{open_sink.port}"], before) as running,
    ):
        submit(running)
        (first,) = running.wait_records("Delivery")
        edit(running, after)
        process = running.process
        time.sleep(2.5)
        submit(running)
        (held,) = running.wait_records("TransientFailure")
        assert running.process is process, "no restart"
    assert first.get("smtp_auth_user") is None
    assert held["cause"] == "auth-not-offered" and "AUTH as 'scott'" in held["response"]["content"]
