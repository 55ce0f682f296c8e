"""A relay whose egress paths come from shaping files: the seed page's example, and an edit while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.certificates import Authority
from tests.support.openbao import run_openbao
from tests.support.ports import free_port
from tests.support.posthorn import Relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

PASSWORD = "c4n4ry=Shaping+1/password"

POLICY = """\
import policy

policy.shaping.setup([policy.shaping.SHIPPED, "shaping.toml"])


@policy.on("init")
def init():
    policy.define_spool(path="spool", min_free_space="1%", min_free_inodes="1%")
    policy.configure_local_logs(log_dir="log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}")


@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={{"smtp": {{"mx_list": {mx_list!r}}}}}, retry_interval="1s")
"""

SEED = """\
["127.0.0.1"]
mx_rollup = false
smtp_auth_plain_username = "scott"
smtp_auth_plain_password = { vault_mount = "secret", vault_path = "smtp-auth/local" }
"""
"""The example of the page, with the address of this machine's next hop."""


@contextmanager
def shaped(
    directory: Path, mx_list: list[str], shaping: str, env: dict[str, str] | None = None
) -> Iterator[Relay]:
    port = free_port()
    (directory / "mail.py").write_text(POLICY.format(port=port, mx_list=mx_list))
    (directory / "shaping.toml").write_text(shaping)
    running = Relay(directory / "mail.py", port, [PASSWORD], env, "debug")
    try:
        running.start()
        yield running
        running.stop()
        assert running.leaks() == []
    finally:
        if running.process is not None and running.process.poll() is None:
            running.kill()
        print(running.stderr)  # shown if the test fails


def submit(running: Relay, recipient: str = "b@example.com") -> None:
    with RawClient(running.port) as client:
        assert client.deliver("a@sender.example", recipient, b"Subject: x\r\n\r\nbody\r\n")[0] == 250


def edit(running: Relay, text: str) -> None:
    """As an editor does it."""
    new = running.directory / "shaping.new"
    new.write_text(text)
    os.replace(new, running.directory / "shaping.toml")


def test_the_seed_page_s_example_delivers_with_auth_to_the_address(tmp_path: Path) -> None:
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    with (
        run_openbao(tmp_path) as bao,
        run_sink(tls=authority.server_context(), users={"scott": PASSWORD}) as sink,
    ):
        bao.put("smtp-auth/local", {"key": PASSWORD})
        env = {"VAULT_ADDR": bao.address, "VAULT_TOKEN": bao.token, "SSL_CERT_FILE": str(ca)}
        with shaped(tmp_path, [f"[127.0.0.1]:{sink.port}"], SEED, env) as running:
            submit(running)
            (record,) = running.wait_records("Delivery")
        assert record["smtp_auth_user"] == "scott"
        assert [(arrival.user, arrival.tls) for arrival in sink.arrivals] == [("scott", "TLSv1.3")]


def test_a_file_that_is_edited_while_the_relay_runs(tmp_path: Path) -> None:
    secret = tmp_path / "password.secret"
    secret.write_text(PASSWORD)
    block = '["127.0.0.1"]\nmx_rollup = false\nhold_interval = "1h"\nsmtp_auth_plain_username = "scott"\n'
    block += f'smtp_auth_plain_password = "{secret}"\n'
    with run_sink(users={"scott": PASSWORD}) as sink:
        with shaped(tmp_path, [f"127.0.0.1:{sink.port}"], block) as running:
            submit(running)
            # The sink has no TLS, so the password is not sent and the mail is held, for an hour.
            (record,) = running.wait_records("TransientFailure")
            assert record["num_attempts"] == 0 and sink.arrivals == []
            edit(running, block + "allow_smtp_auth_plain_without_tsl = true\n")
            time.sleep(2.5)
            assert "shaping.toml:6:" in running.stderr and "did you mean" in running.stderr
            assert sink.arrivals == []
            begun = time.monotonic()
            edit(running, block + "allow_smtp_auth_plain_without_tls = true\n")
            (record,) = running.wait_records("Delivery")
            assert time.monotonic() - begun < 5
            assert record["smtp_auth_user"] == "scott" and running.records("Bounce") == []
