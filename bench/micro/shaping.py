"""Shaping files: how long many blocks take to read, a path to be looked up, the first time and again, and a
reply to be judged by rules; and for how long a reload keeps the event loop waiting."""

from __future__ import annotations

import gc
import os
import tempfile
from itertools import count, cycle
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import trio

import policy
from bench.micro.measure import nanoseconds
from engine.app import _tuned_collector
from engine.shaping import open_shaping, service
from policy.shaping import Failure, Shaper

__all__ = ["measured"]

BLOCKS = 5000
RULES = 20

_RULE = """[["default".automation]]
regex = "(?i)too many .*connections? from {0}"
action = "Suspend"
duration = "1h"

"""


def measured(*, seconds: float) -> list[dict[str, Any]]:
    """One row per case: name, input, nanoseconds of one call."""
    text = "".join(_RULE.format(n) for n in range(RULES)) + "".join(
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
        pause = trio.run(_reload, file, text, shaper)
    names = cycle([f"d{n}.example" for n in range(1000)])

    asked = policy.shaping.asked_by_name("mx.d7.example")

    def first() -> None:
        shaper.table.find("d7.example", "ip-1", asked)

    def again() -> None:
        shaper(next(names), "ip-1", "mx.example.net")

    def busy(number: int) -> Failure:
        return Failure("d7.example", "ip-1", asked, 421, "4.7.0", f"421 4.7.0 busy, try again at {number}")

    same, numbers = busy(0), count()

    def judged() -> None:
        shaper.orders.judge(shaper.table, same, 0.0)

    def judged_first() -> None:
        shaper.orders._met.clear()
        shaper.orders.judge(shaper.table, busy(next(numbers)), 0.0)

    once, cached, heard, unheard = nanoseconds([first, again, judged, judged_first], seconds=seconds)
    rows = (
        ("shaping load", f"{BLOCKS} blocks, {len(text)} octets", float(loaded)),
        ("shaping look-up", "the first time", once),
        ("shaping look-up", "again", cached),
        ("reply by rules", f"{RULES} expressions, a reply heard before", heard),
        ("reply by rules", f"{RULES} expressions, a new reply", unheard),
        ("shaping reload", "longest pause of the event loop", float(pause)),
    )
    return [{"function": function, "input": what, "ns": round(time, 1)} for function, what, time in rows]


async def _reload(file: Path, text: str, shaper: Shaper) -> int:
    """Nanoseconds of the longest pause that a task feels while the file is replaced and read again."""

    async def hosts_of(domain: str) -> frozenset[str]:
        return frozenset({f"mx.{domain}"})

    longest = 0
    service.LOOK = 0.05
    with _tuned_collector():  # as the relay runs
        async with open_shaping([shaper], hosts_of):
            gc.freeze()
            changed = file.with_suffix(".new")
            changed.write_text(text + '["end.example"]\nmx_rollup = false\nmax_ready = 9\n')
            os.replace(changed, file)
            while "end.example" not in shaper.table.named:
                begun = perf_counter_ns()
                await trio.sleep(0.001)
                longest = max(longest, perf_counter_ns() - begun - 1_000_000)
            gc.unfreeze()
    return longest
