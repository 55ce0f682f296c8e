"""``python -m bench.flow``: direct, Posthorn and Postfix in turn, in the same run, with ratios.

Every figure is end to end: from the first submission until the last message has arrived at the
sink. Source and sink are Postfix's smtp-source and smtp-sink unless TLS, AUTH or an option asks for
our own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from . import machine, parts

RELAYS = {
    "posthorn": parts.posthorn,
    "posthorn-shaped": parts.posthorn_shaped,
    "posthorn-unwatched": parts.posthorn_unwatched,
    "postfix": parts.postfix,
    "haraka": parts.haraka,
}
OURS = ("posthorn", "posthorn-shaped", "posthorn-unwatched")
LIMIT = 900.0
"""Seconds a run may take."""


def one_run(relay: str, options: argparse.Namespace, sessions: int) -> dict[str, Any]:
    """One relay, one load; what came of it."""
    count = options.messages
    if relay in ("postfix", "haraka"):
        count = min(count, options.peer_messages)
    elif relay == "none" and options.size <= 10_000:
        count = max(count, 40_000)  # the tools are fast: a short run would measure their start
    base = Path(options.directory)
    base.mkdir(parents=True, exist_ok=True)
    where = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, where, ignore_errors=True)
        sink_port, port = machine.free_port(), machine.free_port()
        tls = options.tls_out and relay != "none"
        if options.sink == "posthorn" or options.tls_out:
            sink: parts.Sink = stack.enter_context(parts.posthorn_sink(where, sink_port, tls=options.tls_out))
        else:
            sink = stack.enter_context(parts.smtp_sink(where, sink_port))
        pid = 0
        if relay == "none":
            port = sink_port
        else:
            # The relay is stopped before its sink: left to itself it would report lost connections.
            inner = stack.enter_context(ExitStack())
            pid = inner.enter_context(RELAYS[relay](where, port, sink_port, tls=tls))
        before, _ = machine.cost(pid) if pid else (0.0, 0)
        sink_before, _ = machine.cost(sink.pid)
        begun = time.time()
        source = run_source(relay, options, sessions, count, port, where)
        submitted = time.time() - begun
        begun = source.pop("begun", begun)
        seconds = sink.wait(count, LIMIT) - begun
        facts = {
            "relay": relay,
            "sessions": sessions,
            "messages": count,
            "size": options.size,
            "source": source.pop("name"),
            "sink": sink.name,
            "seconds": round(seconds, 3),
            "per_second": round(count / seconds, 1),
            "submitted_per_second": round(count / submitted, 1),
            "sink_cpu_ms_per_1000": round((machine.cost(sink.pid)[0] - sink_before) * 1e6 / count, 1),
            **source,
        }
        if pid:
            cpu, peak = machine.cost(pid)
            facts["cpu_s_per_1000"] = round((cpu - before) * 1e3 / count, 4)
            facts["pss_kib"] = machine.pss(pid)
            if relay in OURS:
                facts["peak_rss_kib"] = peak
            inner.close()
        if relay in OURS:
            facts |= delays(where / "log")
    return facts


def run_source(
    relay: str, options: argparse.Namespace, sessions: int, count: int, port: int, where: Path
) -> dict[str, Any]:
    """Submit `count` messages; waits until the last one is accepted."""
    direct_tls = relay == "none" and options.tls_out
    if options.source == "posthorn" or direct_tls:
        command = [sys.executable, "-m", "bench.flow.source", "--to", f"127.0.0.1:{port}"]
        command += ["--sessions", str(sessions), "--messages", str(count), "--size", str(options.size)]
        command += ["--pipeline"] * options.pipeline + ["--across"] * options.across
        if direct_tls:
            command += ["--tls", "--ca", str(where / "ca.pem"), "--auth", parts.LOGIN]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise SystemExit(f"bench: {done.stderr.strip()}")
        facts = json.loads(done.stdout)
        return {
            "name": "bench.flow.source",
            "begun": facts["begun"],
            "source_cpu_us_per_message": facts["cpu_us_per_message"],
            "accept_p50_ms": facts["accept_p50_ms"],
            "accept_p99_ms": facts["accept_p99_ms"],
        }
    command = [machine.program("smtp-source"), "-d", "-s", str(sessions), "-m", str(count)]
    command += ["-l", str(options.size), "-f", "a@sender.example", "-t", "b@domain.example"]
    subprocess.run([*command, f"127.0.0.1:{port}"], check=True, timeout=LIMIT)
    return {"name": "smtp-source"}


def delays(log: Path) -> dict[str, Any]:
    """From the records: milliseconds from a message's Reception to its Delivery; what went wrong."""
    from engine.log import read_segment

    received: dict[str, datetime] = {}
    waits: list[float] = []
    others: dict[str, int] = {}
    for segment in sorted(log.iterdir()):
        for record in read_segment(segment):
            if record["type"] == "Reception":
                received[record["id"]] = datetime.fromisoformat(record["event_time"])
            elif record["type"] == "Delivery" and record["id"] in received:
                delivered = datetime.fromisoformat(record["event_time"])
                waits.append((delivered - received[record["id"]]).total_seconds() * 1e3)
            else:
                others[record["type"]] = others.get(record["type"], 0) + 1
    facts: dict[str, Any] = {}
    if len(waits) > 1:
        cuts = statistics.quantiles(waits, n=100, method="inclusive")
        facts = {"delivery_p50_ms": round(cuts[49], 2), "delivery_p99_ms": round(cuts[98], 2)}
    if others:
        facts["other_records"] = others
    return facts


def summarize(runs: list[dict[str, Any]], relays: list[str], counts: list[int]) -> list[dict[str, Any]]:
    """Medians, and ratios of rounds: each round's Posthorn to its own ceiling and Postfix."""
    summary = []
    for sessions in counts:
        rates = {
            relay: [run["per_second"] for run in runs if (run["relay"], run["sessions"]) == (relay, sessions)]
            for relay in relays
        }
        line: dict[str, Any] = {
            "sessions": sessions,
            "median_per_second": {relay: statistics.median(found) for relay, found in rates.items()},
        }
        for other in relays:
            if other != "posthorn" and "posthorn" in rates:
                pairs = zip(rates["posthorn"], rates[other], strict=True)
                line[f"posthorn_to_{other}"] = round(
                    statistics.median([ours / theirs for ours, theirs in pairs]), 3
                )
        summary.append(line)
    return summary


def result_name(relays: list[str], name: str | None) -> str:
    """How the result's file is called, without its time: whom it is about."""
    return f"flow-{name or '-'.join(relays)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow", description=__doc__)
    parser.add_argument(
        "--relay",
        action="append",
        choices=["none", *RELAYS],
        help="what stands in the middle (none: source straight into sink); may be repeated",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="none, posthorn, postfix (and haraka, if present) in turn; what no --relay means too",
    )
    parser.add_argument("--sessions", type=int, action="append", help="of the source (default 20 and 100)")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument(
        "--peer-messages",
        type=int,
        default=20_000,
        help="at most so many for the other relays: they are slower",
    )
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--runs", type=int, default=3, help="rounds; ratios are taken within a round")
    parser.add_argument("--tls-out", action="store_true", help="the way out is STARTTLS and AUTH")
    parser.add_argument("--source", choices=["postfix", "posthorn"], default="postfix")
    parser.add_argument("--sink", choices=["postfix", "posthorn"], default="postfix")
    parser.add_argument(
        "--pipeline", action="store_true", help="our source: MAIL, RCPT and DATA in one write"
    )
    parser.add_argument("--across", action="store_true", help="our source: pipelining across messages too")
    parser.add_argument(
        "--directory", default=machine.ROOT / "var", help="where spools lie (default ./var): a real disk"
    )
    parser.add_argument("--name", help="part of the result's file name (default: the relays measured)")
    parser.add_argument("--no-result", action="store_true", help="print only, write no result file")
    options = parser.parse_args()
    if (options.pipeline or options.across) and options.source != "posthorn":
        parser.error("--pipeline and --across are for --source posthorn")
    if options.compare and options.relay:
        parser.error("--compare runs its own relays; leave --relay out")
    everybody = ["none", "posthorn", "postfix"]
    if machine.present("haraka") and not options.tls_out:
        everybody.append("haraka")
    relays = list(dict.fromkeys(options.relay or everybody))
    counts = list(dict.fromkeys(options.sessions or [20, 100]))
    base = Path(options.directory)
    base.mkdir(parents=True, exist_ok=True)
    about = machine.facts(base)
    if about["disk"].startswith(("tmpfs", "ramfs")):
        print(f"warning: {base} is {about['disk']}: the relay's syncs cost nothing there", file=sys.stderr)
    runs: list[dict[str, Any]] = []
    for sessions in counts:
        for _ in range(options.runs):
            for relay in relays:
                facts = one_run(relay, options, sessions)
                runs.append(facts)
                shown = {name: value for name, value in facts.items() if name not in ("relay", "sessions")}
                print(f"{relay:16}{sessions:4} sessions {facts['per_second']:9,.0f}/s  {shown}", flush=True)
    summary = summarize(runs, relays, counts)
    for line in summary:
        print(json.dumps(line))
    if not options.no_result:
        machine.write_result(
            result_name(relays, options.name), {"machine": about, "summary": summary, "runs": runs}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
