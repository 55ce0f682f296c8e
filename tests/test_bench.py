"""The benchmarks' own promises: names of results, and commands in the README that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.flow.__main__ import result_name

ROOT = Path(__file__).parents[1]
README = (ROOT / "bench" / "README.md").read_text()
COMMANDS = re.findall(r"^(?:\.venv/bin/)?python (-m bench\S*)(.*?)(?:  #.*)?$", README, re.MULTILINE)
MAKE = re.findall(r"^make ([\w-]+)(?: ARGS=\"(.+?)\")?", README, re.MULTILINE)


@pytest.mark.parametrize(
    ("relays", "name", "file"),
    [
        (["posthorn"], None, "flow-posthorn"),
        (["none", "posthorn", "postfix"], None, "flow-none-posthorn-postfix"),
        (["posthorn"], "before", "flow-before"),
    ],
)
def test_a_result_is_called_after_what_was_measured(relays: list[str], name: str | None, file: str) -> None:
    assert result_name(relays, name) == file


def test_the_readme_names_commands_that_a_fresh_machine_has() -> None:
    assert COMMANDS and MAKE
    assert re.findall(r"^python ", README, re.MULTILINE) == []  # Debian has no `python`
    makefile = (ROOT / "Makefile").read_text()
    for target, _ in MAKE:
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("arguments", [arguments for _, arguments in COMMANDS + MAKE if arguments])
def test_the_readmes_options_exist(arguments: str) -> None:
    module = "bench.micro" if "--only" in arguments else "bench.flow"
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for option in re.findall(r"--[\w-]+", arguments):
        assert option in shown
