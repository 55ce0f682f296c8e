"""EXTERNAL: who we are is shown by a client certificate, to a real Dovecot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.dovecot import Dovecot, run_dovecot
from tests.support.pki import Pki
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

MESSAGE = b"Subject: by certificate\r\n\r\nbody\r\n"


@pytest.fixture(scope="module")
def server() -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def clients() -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module")
def dovecot(server: Pki, clients: Pki, sink: ByteSink) -> Iterator[Dovecot]:
    with run_dovecot(
        relay=sink.port,
        pair=server.pair("127.0.0.1"),
        clients=clients.pem,
        users=["scott"],
    ) as running:
        yield running


def file(directory: Path, name: str, content: bytes) -> str:
    made = directory / name
    made.write_bytes(content)
    made.chmod(0o600)
    return str(made)


def path(directory: Path, server: Pki, shown: tuple[bytes, bytes], **login: Any) -> dict[str, Any]:
    return {
        "enable_tls": "Required",
        "tls_ca": file(directory, "ca.pem", server.pem),
        "tls_certificate": file(directory, "client.pem", shown[0]),
        "tls_private_key": file(directory, "client.key.secret", shown[1]),
        "smtp_auth": {"mechanisms": ["EXTERNAL"], "failure_budget": "2/h", **login},
        "hold_interval": 0.5,
    }


def submit(port: int, recipient: str) -> None:
    with RawClient(port) as client:
        assert client.deliver("a@sender.example", recipient, MESSAGE)[0] == 250


@pytest.mark.parametrize("login", [{}, {"username": "scott"}], ids=["as it says", "for scott"])
def test_the_certificate_says_who_we_are(
    login: dict[str, Any], dovecot: Dovecot, server: Pki, clients: Pki, sink: ByteSink, tmp_path: Path
) -> None:
    options = path(tmp_path, server, clients.client("scott"), **login)
    recipient = f"to-{len(login)}@example.com"
    with relay(tmp_path / "relay", next_hop=dovecot.port, path=options) as running:
        submit(running.port, recipient)
        (record,) = running.wait_records("Delivery")
    assert record["smtp_auth_mechanism"] == "EXTERNAL" and record["tls_verified"]
    assert record.get("smtp_auth_user") == login.get("username")
    assert record["tls_client_certificate"] == "CN=scott"
    assert [one for one in sink.arrivals if one.recipients == [recipient]]
    assert "user=<scott>, method=EXTERNAL" in dovecot.log


@pytest.mark.parametrize(
    ("common_name", "login"),
    [("nobody", {}), ("scott", {"username": "tiger"})],
    ids=["unknown", "for another"],
)
def test_a_certificate_that_is_not_taken_holds_the_mail_and_keeps_to_the_budget(
    common_name: str, login: dict[str, Any], dovecot: Dovecot, server: Pki, clients: Pki, tmp_path: Path
) -> None:
    options = path(tmp_path, server, clients.client(common_name), **login)
    before = dovecot.log.count("method=EXTERNAL")
    with relay(tmp_path / "relay", next_hop=dovecot.port, path=options) as running:
        submit(running.port, "held@example.com")
        records = running.wait_records("TransientFailure", 4)
        assert {(record["cause"], record["num_attempts"]) for record in records} == {("login-refused", 0)}
        assert "535" in records[0]["response"]["content"]
    assert dovecot.log.count("method=EXTERNAL") - before == 1, "the other one is kept for a new certificate"


def test_a_certificate_of_a_stranger_is_nobodys_and_a_new_one_is_tried_at_once(
    dovecot: Dovecot, server: Pki, clients: Pki, sink: ByteSink, tmp_path: Path
) -> None:
    options = path(tmp_path, server, Pki().client("scott"), failure_budget="2/h")
    with relay(tmp_path / "relay", next_hop=dovecot.port, path=options) as running:
        submit(running.port, "renewed@example.com")
        (record, *_) = running.wait_records("TransientFailure", 5)
        assert record["cause"] == "login-refused"
        assert "username not known" in dovecot.log
        path(tmp_path, server, clients.client("scott"))
        (record,) = running.wait_records("Delivery")
        assert record["num_attempts"] == 0 and record["smtp_auth_mechanism"] == "EXTERNAL"
    assert [one for one in sink.arrivals if one.recipients == ["renewed@example.com"]]
