"""How long a start takes with mail in the spool: ``python -m bench.flow.start --messages 100000``.

The spool is filled through a real relay whose next hop refuses connections, so every message has
been tried once and waits for its next attempt. Then the relay is started again, several times; a
start ends when its listener accepts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import machine, parts


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fill, stop, and start again `options.runs` times."""
    base = Path(options.directory)
    base.mkdir(parents=True, exist_ok=True)
    starts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as directory:
        where = Path(directory)
        port, nobody = machine.free_port(), machine.free_port()
        queue = parts.smart_host(nobody) + ', retry_interval="2h"'
        policy = parts.write_policy(where, port, queue=queue, path='enable_tls="Disabled"')
        command = [sys.executable, "-m", "engine", "run", str(policy)]
        begun = time.monotonic()
        with parts.running(command, where / "relay.txt", port) as relay:
            fill = [
                sys.executable,
                "-m",
                "bench.flow.source",
                "--to",
                f"127.0.0.1:{port}",
                "--sessions",
                "50",
            ]
            fill += ["--messages", str(options.messages), "--size", str(options.size), "--domains", "100"]
            done = subprocess.run(fill, cwd=machine.ROOT, capture_output=True, text=True, timeout=1800)
            if done.returncode:
                raise SystemExit(f"bench: {done.stderr.strip()}")
            filling_peak = machine.cost(relay.pid)[1]
        filled = time.monotonic() - begun
        for _ in range(options.runs):
            begun = time.monotonic()
            with parts.running(command, where / "relay.txt", port, limit=300) as relay:
                seconds = time.monotonic() - begun
                cpu, peak = machine.cost(relay.pid)
                found = _found(where / "relay.txt")
                starts.append(
                    {
                        "seconds": round(seconds, 3),
                        "found": found,
                        "cpu_s": round(cpu, 2),
                        "peak_rss_kib": peak,
                    }
                )
            print(starts[-1], flush=True)
        size = sum(file.stat().st_size for file in (where / "spool").rglob("*") if file.is_file())
    return {
        "messages": options.messages,
        "size": options.size,
        "fill_seconds": round(filled, 1),
        "filling_peak_rss_kib": filling_peak,
        "spool_mib": round(size / 2**20, 1),
        "starts": starts,
    }


def _found(output: Path) -> int:
    """What the relay says it found; diagnostics are written off its loop, so a moment later."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        if found := re.search(r"(\d+) messages found", output.read_text(errors="replace")):
            return int(found[1])
        time.sleep(0.02)
    raise SystemExit("bench: the relay says nothing of messages found")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow.start", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--directory", default=machine.ROOT / "var")
    parser.add_argument("--no-result", action="store_true")
    options = parser.parse_args()
    about = machine.facts(Path(options.directory))
    facts = measure(options)
    print(json.dumps(facts))
    if not options.no_result:
        machine.write_result("flow-start", {"machine": about, "runs": [facts]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
