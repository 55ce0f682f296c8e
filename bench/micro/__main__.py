"""``python -m bench.micro``: measure, print a table, keep the figures in ``bench/results``."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.micro import shaping as of_shaping
from bench.micro import tripwire as of_tripwire
from bench.micro.cases import CASES, TWINS
from bench.micro.measure import facts, nanoseconds

RESULTS = Path(__file__).parents[1] / "results"


def shown(time: float) -> str:
    """A time in ns, for people."""
    return f"{time:,.0f} ns" if time < 10_000 else f"{time / 1000:,.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="cases whose name holds TEXT; nothing is written")
    parser.add_argument("--seconds", type=float, default=0.03, help="length of one round (0.03)")
    arguments = parser.parse_args()

    row = "{:<15} {:<32} {:>11} {:>11} {:>7} {:>10}"
    print(row.format("function", "input", "compiled", "reference", "ratio", "MB/s"))
    results = []
    for case in CASES:
        if arguments.only and arguments.only not in f"{case.function} {case.input}":
            continue
        calls = [case.make(TWINS[twin]) for twin in ("compiled", "reference")]
        compiled, reference = nanoseconds(calls, seconds=arguments.seconds)
        speed = case.octets * 1000 / compiled
        print(
            row.format(
                case.function,
                case.input,
                shown(compiled),
                shown(reference),
                f"{reference / compiled:.1f}",
                f"{speed:,.0f}",
            ),
            flush=True,
        )
        results.append(
            {
                "function": case.function,
                "input": case.input,
                "octets": case.octets,
                "compiled_ns": round(compiled, 1),
                "reference_ns": round(reference, 1),
                "ratio": round(reference / compiled, 2),
                "compiled_mb_per_s": round(speed, 1),
            }
        )
    parts = {"shaping load look-up": of_shaping.measured, "tripwire": of_tripwire.measured}
    found: dict[str, list[dict[str, object]]] = {}
    for name, measured in parts.items():
        if not arguments.only or arguments.only in name:
            found[name.split()[0]] = figures = measured(seconds=arguments.seconds)
            for each in figures:
                print(row.format(each["function"], each["input"], shown(float(str(each["ns"]))), "", "", ""))
    if arguments.only:
        return
    now = datetime.now(UTC)
    path = RESULTS / f"micro-{now:%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True)
    command = " ".join(["python -m bench.micro", *sys.argv[1:]])
    path.write_text(
        json.dumps(
            {
                "date": now.isoformat(timespec="seconds"),
                **facts(command),
                "results": results,
                **found,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"kept in bench/results/{path.name}")


if __name__ == "__main__":
    main()
