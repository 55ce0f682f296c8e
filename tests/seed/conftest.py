"""The three configurations of the seed page, as docs/testing.md shows them, in files of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.openbao import openbao

__all__ = ["openbao"]

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A directory with the policies and the shaping file of the page, and nothing changed in them."""
    for name, text in BLOCK.findall(PAGE):
        if name.startswith("auth_") or name == "shaping.toml":
            (tmp_path / name).write_text(f"# {name}\n{text}")
    return tmp_path
