"""What a message costs a processor: ``python -m bench.flow.work``.

The relay runs in Valgrind's cachegrind, which counts instructions in user mode and simulates first-level
caches of 32 and 48 KiB and a last level of 1 MiB. Two runs of different length are compared, so start and
end fall out. The counts scatter less than rates do; take them on a quiet machine all the same, because on a
busy one a wake-up finds less to do at once. They leave out the kernel, and the relay is some 40 times slower,
so its sessions and its peer are always ready first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from . import machine, parts

_EVENTS = {
    "instructions": ("Ir",),
    "l1_instruction_misses": ("I1mr",),
    "l1_data_misses": ("D1mr", "D1mw"),
    "last_level_misses": ("ILmr", "DLmr", "DLmw"),
}
_CACHES = ("--I1=32768,8,64", "--D1=49152,12,64", "--LL=1048576,16,64")
_LIMIT = 1800.0


def run(messages: int, options: argparse.Namespace, base: Path) -> Counter[tuple[str, str]]:
    """One relay's life with so many messages; (event, C function) to its count."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as directory:
        where = Path(directory)
        port, sink_port = machine.free_port(), machine.free_port()
        policy = parts.write_policy(
            where, port, queue=parts.smart_host(sink_port), path=parts.tls_path(where, False)
        )
        command = [machine.program("valgrind", "valgrind"), "--tool=cachegrind", "--cache-sim=yes", *_CACHES]
        command += [f"--cachegrind-out-file={where}/counts", f"--log-file={where}/valgrind.txt"]
        command += [sys.executable, "-m", "engine", "run", str(policy)]
        source = [machine.program("smtp-source"), "-d", "-s", str(options.sessions), "-m", str(messages)]
        source += ["-l", str(options.size), "-f", "a@sender.example", "-t", "b@domain.example"]
        with (
            parts.smtp_sink(where, sink_port) as sink,
            parts.running(command, where / "relay.txt", port, limit=300.0),
        ):
            subprocess.run([*source, f"127.0.0.1:{port}"], check=True, timeout=_LIMIT)
            sink.wait(messages, _LIMIT)
        return read(where / "counts")


def read(file: Path) -> Counter[tuple[str, str]]:
    """The sums of a cachegrind file by event and function."""
    counts: Counter[tuple[str, str]] = Counter()
    names: list[str] = []
    function = ""
    for line in file.read_text(errors="replace").splitlines():
        key, _, value = line.partition(": " if line.startswith("events") else "=")
        if key == "events":
            names = value.split()
        elif key == "fn":
            function = value
        elif line[:1].isdigit():
            for name, count in zip(names, line.split()[1:], strict=False):
                counts[name, function] += int(count)
    return counts


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The difference of two runs, per message."""
    base = Path(options.directory)
    base.mkdir(parents=True, exist_ok=True)
    short, long = options.messages, 3 * options.messages
    first, second = run(short, options, base), run(long, options, base)
    second.subtract(first)
    extra = long - short
    facts: dict[str, Any] = {"messages": extra, "size": options.size, "sessions": options.sessions}
    for what, events in _EVENTS.items():
        total = sum(count for (event, _), count in second.items() if event in events)
        facts[what] = round(total / extra)
    spent: Counter[str] = Counter()
    for (event, function), count in second.items():
        if event == "Ir":
            spent[function] += count
    facts["most_instructions"] = {name: round(count / extra) for name, count in spent.most_common(20)}
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow.work", description=__doc__)
    parser.add_argument(
        "--messages", type=int, default=500, help="of the short run; the long one has 3 times"
    )
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--sessions", type=int, default=20, help="of the source")
    parser.add_argument("--directory", default=machine.ROOT / "var", help="where spools lie (default ./var)")
    parser.add_argument("--no-result", action="store_true", help="print only, write no result file")
    options = parser.parse_args()
    facts = measure(options)
    print(json.dumps(facts, indent=1))
    if not options.no_result:
        about = machine.facts(Path(options.directory))
        machine.write_result("flow-work", {"machine": about, "runs": [facts]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
