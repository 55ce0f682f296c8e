"""What an idle outbound session costs: ``python -m bench.flow.idle --sessions 10000``.

One message goes to each of N domains with a next hop address of its own (127.x.y.z), so each
session has a site, a ready queue and a scheduled queue; all sessions then sit idle at once. What is
reported is the growth of Posthorn's resident memory against the state after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import machine, parts


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Open that many sessions, wait until all idle, read the memory."""
    number = options.sessions
    base = Path(options.directory)
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as directory:
        where = Path(directory)
        sink_port, port = machine.free_port(), machine.free_port()
        # On every loopback address: Linux answers for all of 127/8.
        with parts.posthorn_sink(where, sink_port, tls=options.tls, host="0.0.0.0") as sink:
            path = parts.tls_path(where, options.tls) + ", idle_timeout=600"
            if options.tls:
                path += ', tls_server_name="localhost"'
            queue = f'protocol={{"smtp": {{"mx_list": [host(domain) + ":{sink_port}"]}}}}'
            policy = parts.write_policy(where, port, queue=queue, path=path)
            policy.write_text(
                policy.read_text()
                + "\n\ndef host(domain):\n"
                + '    number = int(domain[1 : domain.index(".")])\n'
                + '    return f"127.1.{number // 250 + 1}.{number % 250 + 1}"\n'
            )
            command = [sys.executable, "-m", "engine", "run", str(policy)]
            with parts.running(command, where / "relay.txt", port) as relay:
                warm = max(20, number // 100)
                _submit(port, warm, number)
                sink.wait(warm, 60)
                time.sleep(1.5)
                before, open_before = resident(relay.pid), sink.status()["sessions"]
                begun = time.monotonic()
                _submit(port, number - warm, number, skip=warm)
                sink.wait(number, 600)
                seconds = time.monotonic() - begun
                time.sleep(options.settle)
                after, open_after = resident(relay.pid), sink.status()["sessions"]
                cpu = machine.cost(relay.pid)[0]
                time.sleep(5.0)
                idle_cpu = (machine.cost(relay.pid)[0] - cpu) / 5.0
    opened = open_after - open_before
    return {
        "sessions_asked": number,
        "sessions_open": open_after,
        "tls": options.tls,
        "rss_kib_before": before,
        "rss_kib_after": after,
        "kib_per_session": round((after - before) / max(1, opened), 2),
        "seconds_to_open": round(seconds, 2),
        "idle_cpu_percent": round(idle_cpu * 100, 2),
    }


def _submit(port: int, count: int, domains: int, skip: int = 0) -> None:
    command = [sys.executable, "-m", "bench.flow.source", "--to", f"127.0.0.1:{port}", "--sessions", "10"]
    command += ["--messages", str(count), "--size", "500", "--domains", str(domains), "--skip", str(skip)]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"bench: {done.stderr.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow.idle", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--tls", action="store_true", help="with STARTTLS and AUTH")
    parser.add_argument(
        "--settle", type=float, default=5.0, help="seconds between the last delivery and the look"
    )
    parser.add_argument("--directory", default=machine.ROOT / "var")
    parser.add_argument("--no-result", action="store_true")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < options.sessions + 100:
        raise SystemExit(
            f"bench: the limit of open files ({hard}) is too low for {options.sessions} sessions"
        )
    about = machine.facts(Path(options.directory))
    facts = measure(options)
    print(json.dumps(facts))
    if not options.no_result:
        machine.write_result("flow-idle", {"machine": about, "runs": [facts]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
