"""``python -m bench.flow``: direct, Posthorn and Postfix in turn, in the same run, with ratios.

Source and plain sink are Postfix's smtp-source and smtp-sink; where the way out is TLS with AUTH
the sink is ``posthorn sink``. Every figure is end to end: from the first submission until the sink
has counted the last message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

POLICY = """\
import policy

@policy.on("init")
def init():
    policy.define_spool(path="{where}/spool")
    policy.configure_local_logs(log_dir="{where}/log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}", relay_hosts=["127.0.0.1"],
        max_messages_per_connection=10_000_000, max_connections_per_peer=10_000)

@policy.on("smtp_server_message_received")
def received(msg, conn_meta):
    msg.set_meta("x_seen", 1)

@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={{"smtp": {{"mx_list": ["127.0.0.1:{sink}"]}}}})

@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path({path})
"""
TLS_PATH = (
    'enable_tls="Required", tls_ca={{"file": "{where}/ca.pem"}}, smtp_auth_plain_username="scott", '
    'smtp_auth_plain_password={{"key_data": "tiger"}}'
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise SystemExit(f"bench.flow: {name} is missing; on Debian: apt-get install postfix")
    return found


@contextmanager
def running(command: list[str], output: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as file:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_port(port, child)
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(90)
            except subprocess.TimeoutExpired:
                child.kill()


def wait_port(port: int, child: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if child is not None and child.poll() is not None:
            raise SystemExit(f"bench.flow: {child.args} ended with {child.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"bench.flow: nothing listens on port {port}")


class Counter:
    """How many messages the sink has: smtp-sink's own display, or the deliveries of our sink."""

    def __init__(self, output: Path, pattern: str) -> None:
        self._output = output
        self._pattern = re.compile(pattern.encode())

    def read(self) -> int:
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - 400))
            found = self._pattern.findall(file.read())
        return int(found[-1].replace(b",", b"")) if found else 0


def cpu_and_memory(pids: list[int]) -> tuple[float, int]:
    seconds, peak = 0.0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found = re.search(r"VmHWM:\s+(\d+)", status)
        peak += int(found[1]) if found else 0
    return seconds, peak


@contextmanager
def postfix(where: Path, port: int, sink: int) -> Iterator[None]:
    """A private Postfix, tuned: 200 processes, no in-flow delay, connection cache."""
    config, queue, data = where / "etc", where / "queue", where / "data"
    for directory in (config, queue, data):
        directory.mkdir(parents=True)
    shutil.chown(data, "postfix")
    for parent in (where, where.parent):
        parent.chmod(0o755)
    (config / "main.cf").write_text(
        f"""compatibility_level = 3.6
queue_directory = {queue}
data_directory = {data}
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.example
mydestination =
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
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_timeout = 300
smtp_tls_security_level = none
smtpd_tls_security_level = none
maillog_file = {where}/mail.log
maillog_file_prefixes = {where}
"""
    )
    default = Path("/etc/postfix/master.cf").read_text()
    services = []
    for line in default.splitlines():
        if line[:1].isspace() or line.startswith("#") or not line.strip():
            continue
        words = line.split()
        if words[1] == "inet" and words[0] == "smtp":
            words[0] = f"127.0.0.1:{port}"
        elif words[1] == "inet" or words[0] == "pickup":
            continue
        if len(words) >= 8:
            words[4] = "n"
            services.append(" ".join(words))
    (config / "master.cf").write_text("\n".join(services) + "\n")
    command = [program("postfix"), "-c", str(config)]
    subprocess.run([*command, "start"], check=True, capture_output=True)
    try:
        wait_port(port)
        yield
    finally:
        subprocess.run([*command, "stop"], check=False, capture_output=True)


def one_run(relay: str, arguments: argparse.Namespace, sessions: int) -> dict[str, Any]:
    count, size = arguments.messages, arguments.size
    if relay == "postfix":
        count = min(count, arguments.postfix_messages)
    elif relay == "none":
        count = max(count, 4 * arguments.messages if size <= 10_000 else count)
    base = Path(arguments.directory or ROOT / "var")
    base.mkdir(parents=True, exist_ok=True)
    where = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, where, True)
        sink_port, port = free_port(), free_port()
        output = where / "sink.txt"
        if arguments.tls_out and relay == "posthorn":
            command = [sys.executable, "-m", "engine", "sink", "--listen", f"127.0.0.1:{sink_port}", "--tls",
                       "--ca-out", str(where / "ca.pem"), "--auth", "scott:tiger", "--json"]  # fmt: skip
            counter = Counter(output, r'"messages":(\d+)')
        else:
            user = ["-u", "root"] if os.geteuid() == 0 else []
            command = [program("smtp-sink"), *user, "-c", f"127.0.0.1:{sink_port}", "1000"]
            counter = Counter(output, r"mesg=(\d+)")
        stack.enter_context(running(command, output, sink_port))
        pids: list[int] = []
        if relay == "posthorn":
            path = TLS_PATH.format(where=where) if arguments.tls_out else 'enable_tls="Disabled"'
            policy = where / "mail.py"
            policy.write_text(POLICY.format(where=where, port=port, sink=sink_port, path=path))
            child = stack.enter_context(
                running([sys.executable, "-m", "engine", "run", str(policy)], where / "relay.txt", port)
            )
            pids = [child.pid]
        elif relay == "postfix":
            stack.enter_context(postfix(where / "postfix", port, sink_port))
        else:
            port = sink_port
        cpu_before, _ = cpu_and_memory(pids)
        before = counter.read()
        begun = time.monotonic()
        subprocess.run(
            [program("smtp-source"), "-d", "-s", str(sessions), "-m", str(count), "-l", str(size),
             "-f", "a@sender.example", "-t", "b@domain.example", f"127.0.0.1:{port}"],
            check=True, timeout=600,
        )  # fmt: skip
        submitted = time.monotonic() - begun
        # The displays are updated once a second or faster; what is read is never more than arrived.
        while counter.read() - before < count and time.monotonic() - begun < 600:
            time.sleep(0.02)
        seconds = time.monotonic() - begun
        arrived = counter.read() - before
        cpu, peak = cpu_and_memory(pids)
    facts = {
        "relay": relay, "sessions": sessions, "messages": count, "size": size, "arrived": arrived,
        "seconds": round(seconds, 3), "per_second": round(count / seconds, 1),
        "submitted_per_second": round(count / submitted, 1),
    }  # fmt: skip
    if pids:
        facts["cpu_ms_per_1000"] = round((cpu - cpu_before) * 1e6 / count, 1)
        facts["peak_rss_kib"] = peak
    return facts


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    return {
        "cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
        "python": platform.python_version(), "commit": commit.strip(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow", description=__doc__)
    parser.add_argument("--relay", action="append", choices=["none", "posthorn", "postfix"],
                        help="what stands in the middle; several: compared (default: all)")  # fmt: skip
    parser.add_argument("--sessions", type=int, action="append", help="of the source (default 20 and 100)")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--postfix-messages", type=int, default=3_000, help="Postfix is slower: fewer")
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tls-out", action="store_true", help="Posthorn's way out is STARTTLS and AUTH")
    parser.add_argument("--directory", help="where spools lie (default ./var): a real disk, not tmpfs")
    parser.add_argument("--name", default="compare", help="part of the result's file name")
    arguments = parser.parse_args()
    relays = arguments.relay or ["none", "posthorn", "postfix"]
    runs: list[dict[str, Any]] = []
    for sessions in arguments.sessions or [20, 100]:
        for _ in range(arguments.runs):
            for relay in relays:
                facts = one_run(relay, arguments, sessions)
                runs.append(facts)
                print(f"{relay:9} {sessions:4} sessions  {facts['per_second']:10,.0f}/s  {facts}", flush=True)
    summary: list[dict[str, Any]] = []
    for sessions in arguments.sessions or [20, 100]:
        rates = {
            relay: statistics.median(
                r["per_second"] for r in runs if r["relay"] == relay and r["sessions"] == sessions
            )
            for relay in relays
        }
        line: dict[str, Any] = {"sessions": sessions, "median_per_second": rates}
        for other in ("none", "postfix"):
            if other in rates and "posthorn" in rates:
                line[f"posthorn_to_{other}"] = round(rates["posthorn"] / rates[other], 3)
        summary.append(line)
        print(json.dumps(line))
    result = {"command": " ".join(["python", "-m", "bench.flow", *sys.argv[1:]]), "machine": machine(),
              "summary": summary, "runs": runs}  # fmt: skip
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    file = results / f"flow-{arguments.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
