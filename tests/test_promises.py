"""README.md: every test it names is there, and every promise names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (Path(__file__).parent / "README.md").read_text()
ROWS = re.findall(r"^\| (.*?) ?\| `(tests/\S+\.py)::(\w+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), [(file, name) for _, file, name in ROWS])
def test_it_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_names_one() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    heads = [line for line in rows if line == "| promise | test |"]
    assert len(rows) - len(heads) == len(ROWS) > 50
    assert len({(file, name) for _, file, name in ROWS}) == len(ROWS), "one is named twice"
