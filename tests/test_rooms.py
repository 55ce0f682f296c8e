"""The house rules that a machine can check: who imports whom, what stays pure, how long a file may be.

A module imports from the rows below its own, from its own
room, and nothing else of ours. What it needs from a neighbour or from above is handed to
it as an argument. Imports that only type checkers see count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

ROWS = {
    "policy.testing": 8,
    "engine.__main__": 9,
    "engine.cli": 8,
    "engine.testing": 7,
    "engine.app": 6,
    "engine.ingress": 5,
    "engine.egress": 5,
    "engine.web": 5,
    "engine.spool": 4,
    "engine.queues": 4,
    "engine.keys": 4,
    "engine.log": 4,
    "engine.shaping": 4,
    "engine.hooks": 4,
    "engine.watchdog": 5,
    "engine.signals": 0,
    "engine.process": 0,
    "engine.memory": 3,
    "engine.ca": 0,
    "engine.certificates": 0,
    "engine.tripwire": 3,
    "engine.pressure": 3,
    "engine.statedir": 3,
    "engine.model": 3,
    "engine.net": 3,
    "engine.poller": 2,
    "engine.mail": 3,
    "engine.smtp": 2,
    "engine._fast": 1,
    "engine.errors": 0,
    "engine.compiled": -1,  # what the package itself stands on
    "policy": 0,
    "engine": 0,  # the package itself: its version
}

FAST_ROOMS = {
    "engine._fast",
    "engine.smtp",
    "engine.mail",
    "engine.tripwire",
    "engine.ingress",
    "engine.egress",
    "engine.app",  # logs which twin is active
    "engine.cli",  # the sink has a loop of its own
    "engine.net",
    "engine.spool",  # groups are written behind the loop's back
    "engine.poller",
}

IMPURE = {"asyncio", "logging", "os", "random", "select", "socket", "ssl", "threading", "time", "trio"}
"""What waits, has a clock, a socket, chance or an outside."""

PURE = {
    "policy": set[str](),
    "policy.files": {"os"},  # reads the files that a policy names, once
    "policy.load": {"os"},  # reads the policy file
    "policy.tlskinds": {"ssl"},  # asks it which ciphers there are
    "engine.smtp": set[str](),
    "engine._fast": {"os", "select"},  # what a descriptor has now
    "engine.mail": set[str](),
    "engine.model": {"os", "time"},  # message ids
    "engine.errors": set[str](),
    "engine.queues.retry": set[str](),
    "engine.queues.limits": set[str](),
    "engine.egress.outcome": set[str](),
}
"""Modules and rooms that stay pure, with what each may use all the same."""

POLICY_NEEDS = {"msgspec", "policy"}
POLICY_MAY = {"policy.shaping.patterns": {"re2"}}
"""See docs/decisions/0006-rules-on-replies.md."""

LINES = 600
"""A file is one idea: about 500 lines at most."""


class Import(NamedTuple):
    """`module` imports `what` (absolute, as deep as it names a module) at `line`."""

    module: str
    what: str
    line: int


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx"))


def imports_of(module: str, source: str, *, package: bool) -> Iterator[Import]:
    """All imports in a source, wherever they stand, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                ours = base.partition(".")[0] in ("engine", "policy")
                yield Import(module, deeper if ours and is_module(deeper) else base, node.lineno)


def sources() -> dict[str, Path]:
    """Module name to path, for both packages."""
    found = {}
    for top in ("engine", "policy"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


@cache
def imports(module: str) -> list[Import]:
    path = SOURCES[module]
    return list(imports_of(module, path.read_text(), package=path.name == "__init__.py"))


def room(module: str) -> str:
    """The room a module of ours is in: the longest key of ROWS that it is, or is below."""
    parts = module.split(".")
    while ".".join(parts) not in ROWS:
        parts.pop()
    name = ".".join(parts)
    assert name != "engine" or module == "engine", f"{module} has no row: put its room into the table"
    return name


def breaks_rows(found: Import) -> bool:
    if found.what.partition(".")[0] not in ("engine", "policy"):
        return False
    here, there = room(found.module), room(found.what)
    return here != there and ROWS[there] >= ROWS[here]


def breaks_purity(found: Import) -> bool:
    names = [found.module]
    while "." in names[-1]:
        names.append(names[-1].rpartition(".")[0])
    allowed = next((PURE[name] for name in names if name in PURE), None)
    return allowed is not None and found.what.partition(".")[0] in IMPURE - allowed


def told(found: list[Import]) -> list[str]:
    return [f"{module}, line {line}: imports {what}" for module, what, line in found]


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module: str) -> None:
    assert told([found for found in imports(module) if breaks_rows(found)]) == []


@pytest.mark.parametrize("module", SOURCES)
def test_pure_stays_pure(module: str) -> None:
    assert told([found for found in imports(module) if breaks_purity(found)]) == []


@pytest.mark.parametrize("module", [name for name in SOURCES if room(name) == "policy"])
def test_policy_needs_the_standard_library_and_msgspec(module: str) -> None:
    allowed = POLICY_NEEDS | POLICY_MAY.get(module, set()) | sys.stdlib_module_names
    assert told([found for found in imports(module) if found.what.partition(".")[0] not in allowed]) == []


def test_bytes_are_handled_where_bytes_are() -> None:
    using = {room(name) for name in SOURCES for found in imports(name) if room_of(found) == "engine._fast"}
    assert using <= FAST_ROOMS


def room_of(found: Import) -> str:
    return room(found.what) if found.what.partition(".")[0] in ("engine", "policy") else ""


def test_no_asyncio() -> None:
    everywhere = [found for name in SOURCES for found in imports(name)]
    assert told([found for found in everywhere if found.what.partition(".")[0] == "asyncio"]) == []


def runs_data(source: str, allowed: set[str]) -> list[str]:
    """What could make code of data in a source: an import, or a call of a built-in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
        elif isinstance(node, ast.Import):
            name = " ".join(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = (node.module or "").partition(".")[0]
        else:
            continue
        if set(name.split()) & (CODE_OF_DATA - allowed):
            found.append(f"line {node.lineno}: {name}")
    return found


CODE_OF_DATA = {"eval", "exec", "compile", "pickle", "marshal", "shelve"}
MAY_RUN = {"policy.load": {"exec", "compile"}}
"""A policy file is code, and the only data that is."""


@pytest.mark.parametrize("module", SOURCES)
def test_data_is_never_run(module: str) -> None:
    """What a peer sent lies in the spool and comes back from there (reliability D13, Y10)."""
    assert runs_data(SOURCES[module].read_text(), MAY_RUN.get(module, set())) == []


@pytest.mark.parametrize("source", ["import pickle", "from marshal import loads", "x = eval('1')"])
def test_running_data_is_noticed(source: str) -> None:
    assert runs_data(source, set()) != []


def test_every_package_says_what_it_is() -> None:
    for path in SOURCES.values():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
        assert (path.parent / "__init__.py").exists(), f"{path.parent.relative_to(ROOT)} is no package"


def files() -> Iterator[Path]:
    for top in ("engine", "policy", "tests", "bench"):
        for suffix in ("py", "pyx", "pxd", "pyi"):
            yield from sorted((ROOT / top).rglob(f"*.{suffix}"))


def test_a_file_is_one_idea() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert {name: lines for name, lines in long.items() if lines > LINES} == {}


# The checks themselves


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("engine.smtp.client", "from engine.spool import Spool", True),
        ("engine.smtp.client", "from engine import net", True),
        ("engine.smtp.client", "import engine.app", True),
        ("engine.smtp.client", "from .reply import Reply\nfrom engine import _fast\nimport policy", False),
        ("engine.spool.durable", "from engine.log import Log", True),
        ("engine.spool.durable", "if TYPE_CHECKING:\n    from engine.log import Log", True),
        ("engine.spool.durable", "def f():\n    from ..log import Log", True),
        ("engine.ingress.smtp", "from engine.egress import resolve", True),
        ("engine.ingress.smtp", "from engine.hooks import Hooks\nfrom . import accept", False),
        ("policy.load", "from engine.errors import ConfigError", True),
        ("policy.load", "from .testing import load", True),
        ("policy.testing", "from engine.testing import load", False),
        ("engine.app", "from engine.testing import NextHop", True),
        ("engine.app", "from engine.cli import run", True),
        ("engine.cli.run", "from engine.app import serve\nfrom engine import __version__", False),
    ],
)
def test_rows_are_checked(module: str, source: str, bad: bool) -> None:
    assert any(map(breaks_rows, imports_of(module, source, package=False))) is bad


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("engine.smtp.client", "import trio", True),
        ("engine.smtp.client", "import os.path", True),
        ("engine.smtp.client", "from time import monotonic", True),
        ("engine.queues.retry", "import random", True),
        ("engine.queues.ready", "import random", False),
        ("engine.egress.outcome", "import logging", True),
        ("engine.egress.dial", "import logging", False),
        ("engine.model", "import os", False),
        ("engine.model", "import random", True),
        ("policy.units", "import os", True),
        ("policy.load", "import os", False),
        ("policy.load", "import time", True),
    ],
)
def test_purity_is_checked(module: str, source: str, bad: bool) -> None:
    assert any(map(breaks_purity, imports_of(module, source, package=False))) is bad
