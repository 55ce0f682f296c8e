"""README.md: every test it names is there, and every line of the register it is about has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (Path(__file__).parent / "README.md").read_text()
ROWS = re.findall(r"^\| (\d+) \|.*\| `(\S+)::(\w+)` \|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize(("line", "file", "name"), ROWS)
def test_it_is_there(line: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in names, f"line {line}: {file}"


def test_every_line_has_one() -> None:
    assert {int(line) for line, _, _ in ROWS} >= {1, 2, 3, 5, 6, 9, 13, 14, 15, 16}


def test_every_statement_has_one() -> None:
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*statements.py"))
    found = {int(number) for number in re.findall(r"def test_S(\d\d)_", text)}
    assert found == set(range(1, 23))
