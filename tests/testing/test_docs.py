"""docs/testing.md: its files are written down and its tests are run, by pytest, as a reader would."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.testing import personas, relay
from policy import testing
from policy.testing import NextHop, Questions, Relay

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_is_a_file() -> None:
    assert len(BLOCKS) == PAGE.count("```") // 2 == len(dict(BLOCKS))


def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    for name, text in BLOCKS:
        (tmp_path / name).write_text(f"# {name}\n{text}")
    wanted = sum(text.count("\ndef test_") + text.count("async def test_") for _, text in BLOCKS)
    each = sum(text.count("def test_") for _, text in BLOCKS if "params=CONFIGURATIONS" in text) - 1
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    assert f"{wanted + 2 * each} passed" in done.stdout


def test_every_persona_has_its_row_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE)
    listed = {name for name, _ in rows if name[0].isupper()}
    assert listed == set(personas.__all__)
    for name, arguments in rows:
        if name[0].isupper():
            fields = {field.name: field for field in dataclasses.fields(getattr(personas, name))}
            for argument, value in re.findall(r"(\w+)=([^,]+)", arguments):
                assert repr(fields[argument].default) == value.replace('"', "'").replace("_", ""), name


def test_what_the_tables_name_is_there() -> None:
    parameters = inspect.signature(relay.open_relay).parameters
    rows = re.findall(r"^\| (`.+?`) \| .+ \|$", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)(?:`|=)", row)]
    known = {
        *parameters,
        *dir(Relay),
        *dir(Questions),
        *(field.name for field in dataclasses.fields(NextHop)),
    }
    known |= {"queued", "held", "declared"}
    assert [name for name in named if name not in known] == []
    assert set(parameters) - {"policy"} <= set(named)


def test_the_public_names() -> None:
    from engine import testing as engine_testing

    assert testing.__all__ == engine_testing.__all__
    for name in testing.__all__:
        assert getattr(testing, name) is getattr(engine_testing, name)
        assert name.isupper() or inspect.getdoc(getattr(testing, name)), f"{name} has no docstring"


def test_policies_do_not_load_the_engine() -> None:
    said = "import policy, sys; print(any(name.partition('.')[0] == 'engine' for name in sys.modules))"
    for names, loaded in (("", "False"), ("import policy.testing; ", "True")):
        command = [sys.executable, "-c", names + said]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() == loaded


@pytest.mark.parametrize("name", personas.__all__)
def test_every_persona_says_what_is_observable(name: str) -> None:
    said = inspect.getdoc(getattr(personas, name)) or ""
    kind = getattr(personas, name)
    own = {field.name for field in dataclasses.fields(kind)} - {
        field.name for field in dataclasses.fields(NextHop)
    }
    for field in own:
        assert field.startswith("_") or f"`{field}`" in said, f"{name}: {field} is not explained"
