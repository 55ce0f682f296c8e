"""Time per call, and the facts without which a time means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter_ns
from typing import Any

__all__ = ["facts", "nanoseconds"]

ROUNDS = 7
"""The best of these counts: everything else on the machine only makes a call slower."""


def nanoseconds(calls: list[Callable[[], object]], *, seconds: float) -> list[float]:
    """Time per call for each of `calls`, their rounds interleaved. `seconds`: length of one round."""
    counts = [_calibrate(call, seconds) for call in calls]
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for index, (call, count) in enumerate(zip(calls, counts, strict=True)):
            best[index] = min(best[index], _time(call, count) / count)
    return best


def _time(call: Callable[[], object], count: int) -> int:
    begin = perf_counter_ns()
    for _ in range(count):
        call()
    return perf_counter_ns() - begin


def _calibrate(call: Callable[[], object], seconds: float) -> int:
    count = 1
    while (taken := _time(call, count)) < seconds * 1e8:
        count *= 2
    return max(1, round(count * seconds * 1e9 / taken))


def facts(command: str) -> dict[str, Any]:
    """Machine, versions, commit and command line."""
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--", "engine/_fast", "bench/micro")),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": sys.version.split()[0],
            "compiler_of_python": platform.python_compiler(),
            "gcc": _first_line("gcc", "--version"),
            "cython": _version("Cython"),
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _first_line(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.partition("\n")[0].strip()


def _git(*arguments: str) -> str:
    return _first_line("git", "-C", str(Path(__file__).parent), *arguments)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
