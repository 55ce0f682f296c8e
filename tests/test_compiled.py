"""Modules that are compiled as they stand: which form is imported, and what is refused."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import engine
from engine.compiled import Finder

from .fast.test_choice import python

ROOT = Path(engine.__file__).parent
TYPED = [path for path in sorted(ROOT.rglob("*.pxd")) if path.with_suffix(".py").exists()]
NAMES = [".".join(("engine", *path.relative_to(ROOT).with_suffix("").parts)) for path in TYPED]


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_form_is_used(name: str) -> None:
    if engine.PURE:
        pytest.skip("this run is on plain Python")
    file = import_module(name).__file__
    assert file is not None and file.endswith(tuple(EXTENSION_SUFFIXES))


def test_all_of_them_are_importable_as_plain_python() -> None:
    code = f"from importlib import import_module as m; print(*(m(n).__file__ for n in {NAMES}), sep='\\n')"
    run = python(code, POSTHORN_PURE="1")
    assert run.stdout.split() == [str(path.with_suffix(".py")) for path in TYPED], run.stderr


@pytest.mark.parametrize("source", [path.with_suffix(".py") for path in TYPED], ids=lambda path: path.stem)
def test_none_of_them_shifts_by_what_it_does_not_know(source: Path) -> None:
    """``1 << count`` may be a shift of C there, of 32 bits (see `engine.model.bits_up_to`)."""
    shifts = [
        f"{source.name}:{node.lineno}"
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.BinOp | ast.AugAssign)
        and isinstance(node.op, ast.LShift)
        and not isinstance(node.right if isinstance(node, ast.BinOp) else node.value, ast.Constant)
    ]
    assert shifts == []


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A checkout with one module that is to be compiled, and what pretends to be its extension."""
    folder = tmp_path / "parcels"
    folder.mkdir()
    (tmp_path / "setup.py").touch()
    for name in ("post.py", "post.pxd", f"post{EXTENSION_SUFFIXES[0]}", "plain.py"):
        (folder / name).touch()
        os.utime(folder / name, (1000, 1000))
    yield folder


def find(package: Path, name: str = "post", *, pure: bool = False) -> str | None:
    spec = Finder("parcels", str(package.parent), pure=pure).find_spec(f"parcels.{name}", [str(package)])
    return spec.origin if spec is not None else None


def test_what_is_found(package: Path) -> None:
    assert find(package) == str(package / f"post{EXTENSION_SUFFIXES[0]}")
    assert find(package, pure=True) == str(package / "post.py")
    assert find(package, "plain") is None
    other = Finder("letters", str(package.parent), pure=False)
    assert other.find_spec("parcels.post", [str(package)]) is None


def test_never_built_is_an_error(package: Path) -> None:
    (package / f"post{EXTENSION_SUFFIXES[0]}").unlink()
    with pytest.raises(
        ImportError, match=r"post\.py is not compiled for this Python: build it with `make build`"
    ):
        find(package)
    assert find(package, pure=True) == str(package / "post.py")


@pytest.mark.parametrize("changed", ["post.py", "post.pxd"])
def test_older_than_its_source_is_an_error_in_a_checkout(package: Path, changed: str) -> None:
    os.utime(package / changed, (1001, 1001))
    with pytest.raises(ImportError, match=rf"{changed} is newer than its compiled form: .*POSTHORN_PURE=1"):
        find(package)
    (package.parent / "setup.py").unlink()  # installed: times say nothing
    assert find(package) is not None


def test_it_comes_before_python_s_own() -> None:
    first = next(finder for finder in sys.meta_path if isinstance(finder, Finder))
    assert first.find_spec("engine.smtp.server", [str(ROOT / "smtp")]) is not None
