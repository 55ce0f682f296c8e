"""Shaping files: how long many blocks take to read, and a path to be looked up, the first time and again."""

from __future__ import annotations

import tempfile
from itertools import cycle
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import policy
from bench.micro.measure import nanoseconds

__all__ = ["measured"]

BLOCKS = 5000


def measured(*, seconds: float) -> list[dict[str, Any]]:
    """One row per case: name, input, nanoseconds of one call."""
    text = "".join(
        f'["d{n}.example"]\nmx_rollup = {"true" if n % 2 else "false"}\nenable_tls = "Required"\n'
        f'connection_limit = {n % 50 + 1}\nmax_message_rate = "{n % 100 + 1}/s"\n\n'
        for n in range(BLOCKS)
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "shaping.toml"
        file.write_text(text)
        begun = perf_counter_ns()
        shaper = policy.shaping.load([policy.shaping.SHIPPED, file])
        loaded = perf_counter_ns() - begun
    names = cycle([f"d{n}.example" for n in range(1000)])

    asked = policy.shaping.asked_by_name("mx.d7.example")

    def first() -> None:
        shaper.table.find("d7.example", "ip-1", asked)

    def again() -> None:
        shaper(next(names), "ip-1", "mx.example.net")

    once, cached = nanoseconds([first, again], seconds=seconds)
    rows = (
        ("shaping load", f"{BLOCKS} blocks, {len(text)} octets", float(loaded)),
        ("shaping look-up", "the first time", once),
        ("shaping look-up", "again", cached),
    )
    return [{"function": function, "input": what, "ns": round(time, 1)} for function, what, time in rows]
