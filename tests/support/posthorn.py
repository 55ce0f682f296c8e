"""The relay as a user runs it: ``posthorn run POLICY`` as a child process, watched from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.log import read_segment
from tests.support.canary import leaks, output_files
from tests.support.ports import free_port, is_open, until

__all__ = ["POLICY", "Relay", "command", "relay", "write_policy"]

_PROJECT = Path(__file__).resolve().parents[2]

POLICY = '''\
"""Written by a test."""

import policy


@policy.on("init")
def init():
    policy.define_spool(path="spool", min_free_space="1%", min_free_inodes="1%")
    policy.configure_local_logs(log_dir="log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}", **{listener!r})


@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={{"smtp": {{"mx_list": ["127.0.0.1:{next_hop}"]}}}}, **{queue!r})


@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path(**{path!r})
'''


def command() -> list[str]:
    """How the command ``posthorn`` is started here: as installed, else from the checkout."""
    script = Path(sys.executable).parent / "posthorn"
    return [str(script)] if script.exists() else [sys.executable, "-m", "engine"]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment: ours, without what would change the relay's behaviour."""
    strange = ("VAULT_", "BAO_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "NO_COLOR": "1", **(extra or {})}


def write_policy(
    directory: Path,
    *,
    port: int,
    next_hop: int,
    path: Mapping[str, object] | None = None,
    queue: Mapping[str, object] | None = None,
    listener: Mapping[str, object] | None = None,
    extra: str = "",
    name: str = "mail.py",
) -> Path:
    """A policy that sends everything to a next hop on this machine. Options by name for the path, the
    queues and the listener; `extra` is more Python behind it."""
    file = directory / name
    text = POLICY.format(
        port=port,
        next_hop=next_hop,
        path={"enable_tls": "Disabled", "hold_interval": "1s", **(path or {})},
        queue={"retry_interval": "1s", **(queue or {})},
        listener={"relay_hosts": ["127.0.0.1"], **(listener or {})},
    )
    file.write_text(f"{text}\n\n{extra}" if extra else text)
    return file


class Relay:
    """One relay: its directory, its policy, and the process while there is one.

    `secrets` are never to be found in anything it writes; `relay` looks when the test is over.
    """

    def __init__(
        self, policy: Path, port: int, secrets: list[str], env: Mapping[str, str] | None, level: str
    ) -> None:
        self.policy = policy
        self.directory = policy.parent
        self.port = port
        self.secrets = secrets
        self.process: subprocess.Popen[bytes] | None = None
        self._env = env
        self._level = level
        self.style = "plain"
        """Of the diagnostics; to be set before the start."""
        self._starts = 0

    # -- life ------------------------------------------------------------------------------------

    def start(self, *, seconds: float = 30.0) -> None:
        """Start it and wait until it listens. Raises: AssertionError with what it said instead."""
        self.launch()

        def listening() -> bool:
            assert self.process is not None
            status = self.process.poll()
            assert status is None, f"posthorn run ended with {status}:\n{self.stderr}"
            return is_open(self.port)

        until(listening, seconds=seconds, what=lambda: f"posthorn listens on {self.port}:\n{self.stderr}")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it and wait for nothing."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self._starts += 1
        with self._output("stdout").open("wb") as out, self._output("stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [*command(), "run", str(self.policy), "--log-level", self._level, "--log-format", self.style],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=environment(self._env),
            )
        return self.process

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait(self, *, seconds: float = 60.0) -> int:
        """Wait for its end; the exit status."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"posthorn does not end within {seconds:g} s:\n{self.stderr}") from None

    def stop(self, *, seconds: float = 60.0) -> None:
        """SIGTERM, and demand a clean end."""
        self.terminate()
        status = self.wait(seconds=seconds)
        assert status == 0, f"posthorn ended with {status}:\n{self.stderr}"

    # -- what it says ----------------------------------------------------------------------------

    def _output(self, name: str) -> Path:
        return self.directory / f"{name}-{self._starts}.txt"

    @property
    def stderr(self) -> str:
        """Diagnostics since the last start."""
        path = self._output("stderr")
        return path.read_text(errors="replace") if path.exists() else ""

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """All log records of all runs so far, oldest first; of these kinds only, if any are given."""
        found: list[dict[str, Any]] = []
        for segment in sorted((self.directory / "log").glob("[0-9]*")):
            found += read_segment(segment)
        return [record for record in found if not kinds or record["type"] in kinds]

    def wait_records(self, kind: str, count: int = 1, *, seconds: float = 30.0) -> list[dict[str, Any]]:
        """The records of a kind, once there are `count` of them."""
        until(
            lambda: len(self.records(kind)) >= count, seconds=seconds, what=lambda: self._missing(kind, count)
        )
        return self.records(kind)

    def _missing(self, kind: str, count: int) -> str:
        counts: dict[str, int] = {}
        last: dict[str, str] = {}
        for record in self.records():
            counts[record["type"]] = counts.get(record["type"], 0) + 1
            last[record["type"]] = str(record["response"])
        return f"{count} x {kind}; there are {counts}, last replies {last}\n{self.stderr[-4000:]}"

    def leaks(self) -> list[str]:
        """Where a secret is found in what the relay wrote: records, spool, standard output and error."""
        files = [
            path for path in output_files(self.directory) if path.suffix not in (".py", ".pyc", ".secret")
        ]
        return leaks(self.secrets, files)


@contextmanager
def relay(
    directory: Path,
    *,
    next_hop: int,
    path: Mapping[str, object] | None = None,
    queue: Mapping[str, object] | None = None,
    listener: Mapping[str, object] | None = None,
    extra: str = "",
    name: str = "mail.py",
    secrets: list[str] | None = None,
    env: Mapping[str, str] | None = None,
    level: str = "debug",
    start: bool = True,
) -> Iterator[Relay]:
    """A relay that sends everything to 127.0.0.1:`next_hop`; see `write_policy` for the options.

    Files with a secret that a policy refers to end in ``.secret``. When the block is left the relay is
    stopped, and none of `secrets` may be in anything it wrote, at debug level.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    policy = write_policy(
        directory,
        port=port,
        next_hop=next_hop,
        path=path,
        queue=queue,
        listener=listener,
        extra=extra,
        name=name,
    )
    running = Relay(policy, port, secrets or [], env, level)
    try:
        if start:
            running.start()
        yield running
        if running.process is not None and running.process.poll() is None:
            running.stop()
        assert running.leaks() == []
    finally:
        process = running.process
        if process is not None and process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
