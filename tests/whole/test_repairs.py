"""What is in the way of the mail is said, the mail waits, and it leaves once the cause is repaired.

Five causes, each broken and repaired while the relay runs. In none of them does a message bounce, an
attempt count, or a secret show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.certificates import Authority
from tests.support.openbao import ROOT_TOKEN, run_openbao
from tests.support.ports import free_port
from tests.support.posthorn import Relay, relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

RIGHT = "c4n4ry=Right+1/password"
WRONG = "c4n4ry=Wrong+2/password"


def submit(running: Relay, count: int = 3) -> None:
    with RawClient(running.port) as client:
        for number in range(count):
            reply = client.deliver(
                "a@sender.example", f"n{number}@held.example", b"Subject: waits\r\n\r\nbody\r\n"
            )
            assert reply[0] == 250


def held_then_delivered(
    running: Relay,
    sink: ByteSink,
    *,
    says: tuple[str, ...],
    cause: str,
    repair: Callable[[], None],
) -> dict[str, Any]:
    """Submit, wait for a record that says why the mail is held, repair, wait for the delivery. The first
    of the records that said so."""
    submit(running)
    first = running.wait_records("TransientFailure")[0]
    for words in says:
        assert words in first["response"]["content"], first
    assert first["response"]["code"] // 100 == 4
    assert first["cause"] == cause
    assert first["next_due"]
    # Every message that waits has a record of its own.
    waiting = {record["id"] for record in running.wait_records("TransientFailure")}
    waiting |= {record["id"] for record in running.records("Delayed")}
    assert sink.arrivals == []
    repair()
    deliveries = running.wait_records("Delivery", 3, seconds=40)
    assert len(sink.arrivals) == 3
    assert running.records("Bounce", "Expiration") == []
    assert waiting <= {record["id"] for record in deliveries}
    for record in deliveries:
        assert record["num_attempts"] <= 1, "waiting for a repair is no attempt"
        assert record["smtp_auth_user"] == "scott"
    for arrival in sink.arrivals:
        assert (arrival.user, arrival.tls) == ("scott", "TLSv1.3")
    return first


@pytest.fixture
def authority() -> Authority:
    return Authority()


def options(ca: Path, password: object) -> dict[str, object]:
    return {
        "enable_tls": "Required",
        "tls_ca": {"file": str(ca)},
        "smtp_auth_plain_username": "scott",
        "smtp_auth_plain_password": password,
        "hold_interval": "1s",
    }


def key_file(path: Path, secret: str) -> Path:
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return path


def test_a_wrong_password(tmp_path: Path, authority: Authority) -> None:
    password = key_file(tmp_path / "password.secret", WRONG)
    path = options(authority.write(tmp_path / "ca.pem"), {"file": str(password)})
    with run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink:
        with relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=[WRONG, RIGHT]) as running:
            record = held_then_delivered(
                running,
                sink,
                says=("login as 'scott' refused", "535"),
                cause="login-refused",
                repair=lambda: void(key_file(password, RIGHT)),
            )
            # This server repeats the password in its refusal; what is recorded has it masked.
            assert "wrong password" in record["response"]["content"]
        # A wrong password is not hammered: about one try per hold interval, never one per message.
        assert sink.logins_refused < 20


def test_a_ca_that_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    ca = Authority().write(tmp_path / "ca.pem")
    password = key_file(tmp_path / "password.secret", RIGHT)
    path = options(ca, {"file": str(password)})
    with (
        run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink,
        relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=[RIGHT]) as running,
    ):
        held_then_delivered(
            running,
            sink,
            says=("certificate",),
            cause="tls",
            repair=lambda: void(authority.write(ca)),
        )
        assert sink.logins_refused == 0


def test_a_next_hop_without_starttls(tmp_path: Path, authority: Authority) -> None:
    password = key_file(tmp_path / "password.secret", RIGHT)
    path = options(authority.write(tmp_path / "ca.pem"), {"file": str(password)})
    with run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink:
        sink.offer_starttls = False
        with relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=[RIGHT]) as running:
            held_then_delivered(
                running,
                sink,
                says=("does not offer STARTTLS",),
                cause="tls",
                repair=lambda: setattr(sink, "offer_starttls", True),
            )


def test_a_next_hop_that_does_not_offer_auth(tmp_path: Path, authority: Authority) -> None:
    password = key_file(tmp_path / "password.secret", RIGHT)
    path = options(authority.write(tmp_path / "ca.pem"), {"file": str(password)})
    with run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink:
        sink.offer_auth = False
        with relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=[RIGHT]) as running:
            held_then_delivered(
                running,
                sink,
                says=("needs AUTH as 'scott'", "offers no AUTH"),
                cause="auth-not-offered",
                repair=lambda: setattr(sink, "offer_auth", True),
            )


def test_a_vault_that_is_sealed(tmp_path: Path, authority: Authority) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    with (
        run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink,
        run_openbao(tmp_path) as bao,
    ):
        bao.put("smtp-auth/next-hop", {"key": RIGHT})
        bao.seal()
        path = options(ca, {"vault_mount": "secret", "vault_path": "smtp-auth/next-hop"})
        env = {"VAULT_ADDR": bao.address, "VAULT_TOKEN": bao.token}
        secrets = [RIGHT, bao.token]
        with relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=secrets, env=env) as running:
            held_then_delivered(
                running,
                sink,
                says=("sealed", "vault:secret/smtp-auth/next-hop#key"),
                cause="secret-unavailable",
                repair=bao.unseal,
            )


def test_a_start_while_vault_is_down(tmp_path: Path, authority: Authority) -> None:
    """Nobody listens there: the relay starts, accepts and holds (V5), and delivers once the server is up."""
    ca = authority.write(tmp_path / "ca.pem")
    port = free_port()
    path = options(ca, {"vault_mount": "secret", "vault_path": "smtp-auth/next-hop"})
    env = {"VAULT_ADDR": f"http://127.0.0.1:{port}", "VAULT_TOKEN": ROOT_TOKEN}
    with (
        ExitStack() as later,
        run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink,
        relay(
            tmp_path / "relay", next_hop=sink.port, path=path, secrets=[RIGHT, ROOT_TOKEN], env=env
        ) as running,
    ):
        held_then_delivered(
            running,
            sink,
            says=("held: vault:secret/smtp-auth/next-hop#key: cannot reach", "Connection refused"),
            cause="secret-unavailable",
            repair=lambda: later.enter_context(run_openbao(tmp_path, port=port)).put(
                "smtp-auth/next-hop", {"key": RIGHT}
            ),
        )


def test_a_missing_key_file(tmp_path: Path, authority: Authority) -> None:
    password = tmp_path / "password.secret"
    path = options(authority.write(tmp_path / "ca.pem"), {"file": str(password)})
    with (
        run_sink(tls=authority.server_context(), users={"scott": RIGHT}) as sink,
        relay(tmp_path / "relay", next_hop=sink.port, path=path, secrets=[RIGHT]) as running,
    ):

        def repair() -> None:
            running.wait_records("TransientFailure", 3)  # held again and again
            key_file(password, RIGHT)

        held_then_delivered(
            running,
            sink,
            says=(f"held: file:{password}: No such file or directory",),
            cause="secret-unavailable",
            repair=repair,
        )
        lines = [
            line for line in running.stderr.splitlines() if str(password) in line and " debug " not in line
        ]
        assert len(lines) == 2, lines
        assert " is held (secret-unavailable): file:" in lines[0]
        assert lines[1].endswith(f"keys: file:{password} can be read again")


def void(_: object) -> None:
    """Do nothing with a result."""
