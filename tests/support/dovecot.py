"""A private Dovecot: a submission server as people have it, on a loopback port, that knows its users by the
certificates they show.

Configuration, sockets, logs and mail live in a directory of their own; the system's instance is neither
read nor touched. It runs in the foreground as a child of the test in its own process group. Needs root, as
Dovecot does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port, is_open, until
from tests.support.programs import missing, need

__all__ = ["Dovecot", "run_dovecot"]

_CONFIGURATION = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/dovecot.log
auth_verbose = yes
protocols = submission
listen = 127.0.0.1
hostname = submission.example
service stats {{
  # It would be the only one to want a world-writable socket
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
service submission-login {{
  inet_listener submission {{
    port = {port}
  }}
  inet_listener submissions {{
    port = 0
  }}
}}
mail_location = maildir:{directory}/mail/%u
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={directory}/home
}}
passdb {{
  driver = passwd-file
  args = {directory}/users
}}
auth_mechanisms = external plain
ssl = required
ssl_cert = <{directory}/chain.pem
ssl_key = <{directory}/key.pem
ssl_ca = <{directory}/clients.pem
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
ssl_cert_username_field = commonName
submission_relay_host = 127.0.0.1
submission_relay_port = {relay}
submission_relay_trusted = no
"""


class Dovecot:
    """A running instance. `port`: submission with STARTTLS."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    @property
    def log(self) -> str:
        """What it logged so far."""
        path = self.directory / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def run_dovecot(
    *,
    relay: int,
    pair: tuple[bytes, bytes],
    clients: bytes,
    users: Sequence[str],
) -> Iterator[Dovecot]:
    """An instance that hands mail on to 127.0.0.1:`relay`; stopped at the end.

    `pair`: its certificate and key. `clients`: the authority (PEM) of those who may show a certificate; the
    common name is the user. `users`: these may send.
    """
    program = need("dovecot", "dovecot-core")
    if not Path("/usr/lib/dovecot/submission-login").exists():
        missing("needs submission-login of the Debian package dovecot-submissiond")
    if os.geteuid() != 0:
        pytest.skip("a Dovecot of one's own needs root")
    # Not below pytest's tmp_path: Dovecot's processes drop their rights and must still get there.
    directory = Path(tempfile.mkdtemp(prefix="posthorn-dovecot-"))
    try:
        directory.chmod(0o755)
        port = free_port()
        for name in ("home", "mail"):
            (directory / name).mkdir()
            (directory / name).chmod(0o777)
        (directory / "chain.pem").write_bytes(pair[0])
        (directory / "key.pem").write_bytes(pair[1])
        (directory / "key.pem").chmod(0o600)
        (directory / "clients.pem").write_bytes(clients)
        accounts = directory / "users"
        accounts.write_text("".join(f"{name}:::::::nopassword\n" for name in users))
        shutil.chown(accounts, "root", "dovecot")
        accounts.chmod(0o640)
        configuration = directory / "dovecot.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory, port=port, relay=relay))
        with _running(program, directory, port):
            yield Dovecot(directory, port)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _running(program: str, directory: Path, port: int) -> Iterator[None]:
    output = directory / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [program, "-F", "-c", directory / "dovecot.conf"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            start_new_session=True,
        )

    def told() -> str:
        log = directory / "dovecot.log"
        return output.read_text() + (log.read_text() if log.exists() else "")

    def ready() -> bool:
        assert process.poll() is None, f"Dovecot did not start:\n{told()}"
        return is_open(port)

    try:
        until(ready, seconds=20, what=lambda: f"Dovecot listens on {port}\n{told()}")
        yield
    finally:
        # Its own group: the master and the processes it started, nobody else.
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
            break
