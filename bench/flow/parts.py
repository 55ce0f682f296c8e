"""The sinks and the relays: started, waited for, stopped. Only processes started here are ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from .machine import ROOT, program, wait_port

__all__ = [
    "LOGIN",
    "PosthornSink",
    "Sink",
    "haraka",
    "postfix",
    "posthorn",
    "posthorn_shaped",
    "posthorn_sink",
    "posthorn_unwatched",
    "running",
    "smart_host",
    "smtp_sink",
    "tls_path",
    "write_policy",
]

LOGIN = "scott:tiger"

_POLICY = """\
import policy

@policy.on("init")
def init():
    policy.define_spool(path="{where}/spool")
    policy.configure_local_logs(log_dir="{where}/log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}", relay_hosts=["127.0.0.1"],
        max_messages_per_connection=10_000_000, max_connections_per_peer=20_000)

@policy.on("smtp_server_message_received")
def received(msg, conn_meta):
    msg.set_meta("x_seen", 1)

@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config({queue})

{egress}
"""

_EGRESS = """\
@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path({path})
"""

_SHAPED = """\
policy.configure_bounce_classifier([policy.BOUNCES])
policy.shaping.setup([policy.shaping.SHIPPED, "shaping.toml"])
"""

_SHAPED_BLOCKS = 5000
_SHAPED_RULES = 20


@contextmanager
def running(
    command: list[str], output: Path, port: int, limit: float = 60.0
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that listens on `port`; SIGTERM when the block is left, and waited for."""
    with output.open("wb") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
        )
    try:
        try:
            wait_port(port, child, limit)
        except SystemExit:
            sys.stderr.write(output.read_text(errors="replace")[-2000:])
            raise
        yield child
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not end."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(90)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class Sink(Protocol):
    """A next hop that counts."""

    name: str
    pid: int

    def arrived(self) -> int:
        """Messages so far; may be a little late."""

    def wait(self, number: int, limit: float) -> float:
        """Wait until `number` messages arrived; the Unix time of the last one. Raises: TimeoutError."""


class _SmtpSink:
    """Postfix's smtp-sink with its running display, which it rewrites at each message."""

    name = "smtp-sink"
    _COUNT = re.compile(rb"mesg=(\d+)")

    def __init__(self, child: subprocess.Popen[bytes], output: Path) -> None:
        self.pid = child.pid
        self._output = output

    def arrived(self) -> int:
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - 400))
            found = self._COUNT.findall(file.read())
        return int(found[-1]) if found else 0

    def wait(self, number: int, limit: float) -> float:
        deadline = time.monotonic() + limit
        while self.arrived() < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {self.arrived()} of {number} messages arrived")
            time.sleep(0.01)
        return time.time()


@contextmanager
def smtp_sink(where: Path, port: int) -> Iterator[Sink]:
    """smtp-sink, plain."""
    user = ["-u", "root"] if os.geteuid() == 0 else []
    output = where / "sink.txt"
    # -m: its own default lets in only 256 connections at a time.
    command = [program("smtp-sink"), *user, "-c", "-m", "2000", f"127.0.0.1:{port}", "1000"]
    with running(command, output, port) as child:
        yield _SmtpSink(child, output)


class PosthornSink:
    """``posthorn sink --json``: a status line a second, exact times in each."""

    name = "posthorn sink"

    def __init__(self, child: subprocess.Popen[bytes], output: Path) -> None:
        self.pid = child.pid
        self._output = output

    def status(self) -> dict[str, Any]:
        for line in reversed(self._output.read_bytes().splitlines()):
            if line.startswith(b"{") and line.endswith(b"}"):
                return dict(json.loads(line))
        return {"messages": 0, "sessions": 0, "last": 0.0}

    def arrived(self) -> int:
        return int(self.status()["messages"])

    def wait(self, number: int, limit: float) -> float:
        deadline = time.monotonic() + limit
        while self.arrived() < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {self.arrived()} of {number} messages arrived")
            time.sleep(0.05)
        return float(self.status()["last"])


@contextmanager
def posthorn_sink(
    where: Path, port: int, *, tls: bool = False, host: str = "127.0.0.1"
) -> Iterator[PosthornSink]:
    """Our own sink; with `tls` it offers STARTTLS and insists on AUTH, and its CA is in ``ca.pem``."""
    output = where / "sink.txt"
    command = [sys.executable, "-m", "engine", "sink", "--listen", f"{host}:{port}", "--json"]
    if tls:
        command += ["--tls", "--ca-out", str(where / "ca.pem"), "--auth", LOGIN]
    with running(command, output, port) as child:
        yield PosthornSink(child, output)


def write_policy(where: Path, port: int, *, queue: str, path: str) -> Path:
    """A policy file for a relay that listens on `port`; hooks and log records are on."""
    policy = where / "mail.py"
    policy.write_text(_POLICY.format(where=where, port=port, queue=queue, egress=_EGRESS.format(path=path)))
    return policy


def write_shaped_policy(where: Path, port: int, sink: int, *, tls: bool) -> Path:
    """The same mail by shaping files: many blocks, rules on replies, bounce classes, a bound credential."""
    policy = where / "mail.py"
    policy.write_text(_POLICY.format(where=where, port=port, queue=smart_host(sink), egress=_SHAPED))
    # The same limits as a path of its own has: what the shipped defaults set is not what is measured.
    lines = ['["127.0.0.1"]', "mx_rollup = false", "connection_limit = 32", "max_ready = 1024"]
    lines += ["max_deliveries_per_connection = 1024"]
    if tls:
        user, _, password = LOGIN.partition(":")
        lines += [
            'enable_tls = "Required"',
            f'tls_ca = {{ file = "{where}/ca.pem" }}',
            f'smtp_auth = {{ username = "{user}", password = {{ key_data = "{password}" }}, release_to = {{ '
            f'names = ["127.0.0.1"], addresses = ["127.0.0.0/8"], ports = [{sink}] }} }}',
        ]
    else:
        lines.append('enable_tls = "Disabled"')
    for number in range(_SHAPED_RULES):
        lines += [
            '[["127.0.0.1".automation]]',
            f'regex = "(?i)too many .*connections? from {number}"',
            'action = "Suspend"',
            'duration = "1h"',
        ]
    for number in range(_SHAPED_BLOCKS):
        lines += [f'["d{number}.example"]', "mx_rollup = false", f"connection_limit = {number % 50 + 1}"]
    (where / "shaping.toml").write_text("\n".join(lines) + "\n")
    return policy


def smart_host(port: int) -> str:
    """Arguments of make_queue_config: everything to 127.0.0.1."""
    return f'protocol={{"smtp": {{"mx_list": ["127.0.0.1:{port}"]}}}}'


def tls_path(where: Path, tls: bool) -> str:
    """Arguments of make_egress_path: plain, or STARTTLS and AUTH into our sink."""
    if not tls:
        return 'enable_tls="Disabled"'
    user, _, password = LOGIN.partition(":")
    return (
        f'enable_tls="Required", tls_ca={{"file": "{where}/ca.pem"}}, '
        f'smtp_auth_plain_username="{user}", smtp_auth_plain_password={{"key_data": "{password}"}}'
    )


@contextmanager
def posthorn(where: Path, port: int, sink: int, *, tls: bool, module: str = "engine") -> Iterator[int]:
    """``posthorn run``; the process id."""
    policy = write_policy(where, port, queue=smart_host(sink), path=tls_path(where, tls))
    command = [sys.executable, "-m", module, "run", str(policy)]
    with running(command, where / "relay.txt", port) as child:
        yield child.pid


def posthorn_unwatched(where: Path, port: int, sink: int, *, tls: bool) -> AbstractContextManager[int]:
    """The same without the search for live secrets."""
    return posthorn(where, port, sink, tls=tls, module="bench.flow.unwatched")


@contextmanager
def posthorn_shaped(where: Path, port: int, sink: int, *, tls: bool) -> Iterator[int]:
    """``posthorn run`` with all that shaping files can have; the process id."""
    policy = write_shaped_policy(where, port, sink, tls=tls)
    command = [sys.executable, "-m", "engine", "run", str(policy)]
    with running(command, where / "relay.txt", port) as child:
        yield child.pid


_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {where}/queue
data_directory = {where}/data
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.example
mydestination =
local_transport = error:no local mail here
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{sink}
smtpd_relay_restrictions = permit_mynetworks, reject
default_process_limit = 200
in_flow_delay = 0
smtp_connection_cache_on_demand = yes
smtp_connection_cache_destinations = 127.0.0.1
default_destination_concurrency_limit = 100
initial_destination_concurrency = 20
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_tls_security_level = none
maillog_file = {where}/mail.log
maillog_file_prefixes = {where}
"""

_MAIN_TLS = """\
smtp_tls_security_level = secure
smtp_tls_secure_cert_match = hostname
smtp_tls_CAfile = {where}/../ca.pem
smtp_tls_connection_reuse = yes
smtp_tls_loglevel = 0
# "localhost" is found in the hosts file, whatever the machine's name servers say.
smtp_host_lookup = native
smtp_sasl_auth_enable = yes
smtp_sasl_security_options = noanonymous
smtp_sasl_password_maps = inline:{{ {{ [127.0.0.1]:{sink} = {login} }} }}
"""


@contextmanager
def postfix(where: Path, port: int, sink: int, *, tls: bool) -> Iterator[int]:
    """A private Postfix, tuned: 200 processes, no in-flow delay, connection cache; master's process id.

    Configuration, queue and data are its own; the system's instance is neither started nor changed.
    Needs root, as Postfix does.
    """
    where = where / "postfix"
    config = where / "etc"
    for directory in (config, where / "queue", where / "data"):
        directory.mkdir(parents=True)
    shutil.chown(where / "data", "postfix")
    for parent in (where, where.parent):
        parent.chmod(0o755)
    text = _MAIN_CF + (_MAIN_TLS if tls else "smtp_tls_security_level = none\n")
    if tls:
        # Its verification knows names, not addresses, so the next hop is named.
        text = text.replace("[127.0.0.1]:{sink}", "[localhost]:{sink}").replace(
            "destinations = 127.0.0.1", "destinations = localhost"
        )
    (config / "main.cf").write_text(text.format(where=where, sink=sink, login=LOGIN))
    services = []
    for line in Path("/usr/share/postfix/master.cf.dist").read_text().splitlines():
        words = line.split()
        if line[:1].isspace() or line.startswith("#") or len(words) < 8:
            continue
        if words[1] == "inet":
            if words[0] != "smtp":
                continue
            words[0] = f"127.0.0.1:{port}"
        elif words[0] == "pickup":
            continue
        words[4] = "n"  # no chroot: that would need files copied into the queue directory
        services.append(" ".join(words))
    if tls:
        # Commented out in the shipped file; smtp_tls_connection_reuse works through it.
        services.append("tlsproxy unix - - n - 0 tlsproxy")
    (config / "master.cf").write_text("\n".join(services) + "\n")
    command = [program("postfix"), "-c", str(config)]
    done = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: Postfix does not start: {done.stderr}")
    try:
        wait_port(port)
        yield int((where / "queue" / "pid" / "master.pid").read_text())
    finally:
        subprocess.run([*command, "stop"], check=False, capture_output=True)


_HARAKA_PLUGIN = """\
exports.hook_get_mx = function (next, hmail, domain) {{
  next(OK, {{ priority: 0, exchange: '127.0.0.1', port: {sink} }});
}};
exports.hook_rcpt = function (next, connection, params) {{
  connection.relaying = true;
  next(OK);
}};
"""


@contextmanager
def haraka(where: Path, port: int, sink: int, *, tls: bool) -> Iterator[int]:
    """Haraka with its outbound queue, one process, if ``haraka`` is on the path; its process id."""
    if tls:
        raise SystemExit("bench: --tls-out is not set up for Haraka")
    command = [
        program("haraka", "none; bench/setup --haraka installs it from npm"),
        "-c",
        str(where / "haraka"),
    ]
    home = where / "haraka"
    # Its own defaults, then ours: without connection.ini it does not even greet.
    subprocess.run([command[0], "-i", str(home)], check=True, capture_output=True)
    settings = {
        "smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\n",
        "plugins": "bench\n",
        "me": "relay.example\n",
        "loglevel": "LOGERROR\n",
        "outbound.ini": "concurrency_max=100\nenable_tls=false\nreceived_header=Haraka outbound\n"
        "local_mx_ok=true\npool_concurrency_max=100\n",
        "outbound.local_mx_ok": "true\n",
    }
    for name, text in settings.items():
        (home / "config" / name).write_text(text)
    (home / "plugins" / "bench.js").write_text(_HARAKA_PLUGIN.format(sink=sink))
    with running(command, where / "relay.txt", port) as child:
        yield child.pid
