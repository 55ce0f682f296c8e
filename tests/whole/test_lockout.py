"""A relay that is killed in the middle of a login, again and again: its peer sees no more than the budget."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.ports import until
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

PASSWORD = "canary of an account that would be locked"
BUDGET = 3


class Counting:
    """A peer that is told passwords and takes its time to think. `told`: so many times so far."""

    def __init__(self, server: socket.socket) -> None:
        self.port: int = server.getsockname()[1]
        self.told = 0

    def has_been_told(self, times: int) -> bool:
        return self.told >= times

    def talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rwb", buffering=0) as lines:
            lines.write(b"220 peer.example ESMTP\r\n")
            while line := lines.readline():
                if line.startswith(b"EHLO"):
                    lines.write(b"250-peer.example\r\n250 AUTH PLAIN\r\n")
                elif line.startswith(b"AUTH"):
                    self.told += 1
                    lines.readline()
                else:
                    lines.write(b"250 ok\r\n")


@contextmanager
def counting() -> Iterator[Counting]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = Counting(server)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=peer.talk, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield peer
        finally:
            server.shutdown(socket.SHUT_RDWR)


def test_killed_in_every_login(tmp_path: Path) -> None:
    secret = tmp_path / "password.secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    path = {
        "smtp_auth": {"username": "scott", "password": str(secret), "failure_budget": f"{BUDGET}/h"},
        "allow_smtp_auth_plain_without_tls": True,
    }
    with counting() as peer:
        with relay(tmp_path / "relay", next_hop=peer.port, path=path, secrets=[PASSWORD]) as running:
            with RawClient(running.port) as client:
                assert (
                    client.deliver("a@sender.example", "b@example.com", b"Subject: x\r\n\r\nx\r\n")[0] == 250
                )
            for number in range(1, BUDGET + 1):
                until(partial(peer.has_been_told, number), seconds=30, what=f"login {number}")
                running.kill()
                running.start()
            (record, *_) = running.wait_records("TransientFailure")
            assert record["cause"] == "login-refused" and record["num_attempts"] == 0
            assert "broken off" in record["response"]["content"]
            assert peer.told == BUDGET
