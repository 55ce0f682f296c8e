"""Which twin is in use, and that both, the stubs and the package have one face."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

from engine import _fast
from engine._fast import (
    _reference,
    bodies,
    commands,
    data,
    groups,
    headers,
    patterns,
    replies,
    sockets,
)

MODULES = [bodies, commands, data, groups, headers, patterns, replies, sockets]
FOLDER = Path(_fast.__file__).parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "POSTHORN_PURE"}
    root = str(FOLDER.parents[1])
    return subprocess.run(
        [sys.executable, "-c", code], env={**env, **environment}, capture_output=True, text=True, cwd=root
    )


def test_compiled_is_active() -> None:
    run = python("from engine import _fast; print(_fast.ACTIVE, _fast.scan.__module__)")
    assert run.stdout.split() == ["compiled", "engine._fast.bodies"], run.stderr


@pytest.mark.parametrize("value", ["1", "yes"])
def test_reference_when_asked_for(value: str) -> None:
    run = python("from engine import _fast; print(_fast.ACTIVE, _fast.scan.__module__)", POSTHORN_PURE=value)
    assert run.stdout.split() == ["reference", "engine._fast._reference"], run.stderr


@pytest.mark.parametrize("value", ["0", ""])
def test_not_when_it_is_not_asked_for(value: str) -> None:
    assert python("from engine import _fast; print(_fast.ACTIVE)", POSTHORN_PURE=value).stdout == "compiled\n"


def test_no_silent_fall_back() -> None:
    run = python("import sys; sys.modules['engine._fast.data'] = None; import engine._fast")
    assert run.returncode != 0
    assert "make build" in run.stderr
    assert "POSTHORN_PURE=1" in run.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_is_an_extension(module: ModuleType) -> None:
    assert module.__file__ is not None
    assert module.__file__.endswith(tuple(EXTENSION_SUFFIXES))


def public(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
    } - {"cython"}


def members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_one_face() -> None:
    together = set().union(*(public(module) for module in MODULES))
    assert together == set(_reference.__all__)
    assert {*together, "ACTIVE"} == set(_fast.__all__)
    for module in MODULES:
        for name in public(module):
            mine, meant = getattr(module, name), getattr(_reference, name)
            if isinstance(meant, int):
                assert mine == meant
            elif isinstance(meant, type):
                assert members(mine) == members(meant)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_stubs_describe_all_of_it(module: ModuleType) -> None:
    """Every public name is in the stub with a docstring, and nothing else is."""
    tree = ast.parse((FOLDER / f"{module.__name__.rpartition('.')[2]}.pyi").read_text())
    assert ast.get_docstring(tree)
    names = set()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
            assert ast.get_docstring(node), node.name
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            assert ast.get_docstring(node), node.name
            told = set()
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    told.add(member.target.id)
                elif isinstance(member, ast.FunctionDef):
                    told.add(member.name)
                    assert member.name == "__init__" or ast.get_docstring(member), member.name
            assert told - {"__init__"} == members(getattr(module, node.name))
    assert names == public(module)
