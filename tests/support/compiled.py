"""The compiled modules of ``engine._fast``, built once more so that they count their work."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tests.support.programs import need

__all__ = ["ROOT", "Counted", "build_counted"]

ROOT = Path(__file__).parents[2]


class Counted:
    """One counting module. `work` calls a function and tells how many octets were looked at or moved."""

    def __init__(self, name: str, path: Path) -> None:
        spec = importlib.util.spec_from_file_location(f"engine._fast.{name}", path)
        assert spec is not None and spec.loader is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._counter = ctypes.c_ulonglong.in_dll(ctypes.CDLL(str(path)), "posthorn_work_done")

    def work(self, call: Callable[[], object]) -> int:
        before = self._counter.value
        call()
        return self._counter.value - before


def build_counted(folder: Path) -> dict[str, Counted]:
    """Compile all modules with POSTHORN_COUNT_WORK into `folder`, if it is not there, and load them beside
    the real ones."""
    need("gcc", "gcc")
    if not folder.exists():
        made = folder.with_suffix(".part")  # of a build that fails nothing is taken for one that did not
        shutil.rmtree(made, ignore_errors=True)
        run = subprocess.run(
            [
                sys.executable,
                "setup.py",
                "-q",
                "build_ext",
                "--build-lib",
                made,
                "--build-temp",
                made / "temp",
            ],
            cwd=ROOT,
            env={**os.environ, "POSTHORN_CFLAGS": "-O0 -DPOSTHORN_COUNT_WORK"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        made.rename(folder)
    built = {path.name.split(".")[0]: path for path in sorted((folder / "engine" / "_fast").glob("*.so"))}
    for asking in ("sockets", "groups"):
        assert built.pop(asking), "it searches nothing: the kernel does the work"
    assert built, "nothing was built"
    return {name: Counted(name, path) for name, path in built.items()}
