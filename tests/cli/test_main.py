"""The command line itself: mistakes in it, and the help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import __version__
from engine.cli import main


def ended(*words: str) -> object:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "a.py", "b.py"], "posthorn check: too many arguments: b.py; see posthorn check --help"),
        (
            ["run", "a.py", "b.py", "c.py"],
            "posthorn run: too many arguments: b.py c.py; see posthorn run --help",
        ),
        (["check", "--nix"], "posthorn check: Unknown option: --nix; see posthorn check --help"),
        (["demo", "--messages", "x"], "posthorn demo: Invalid value "),
        (["chek"], 'posthorn: Unknown command "chek"'),
    ],
)
def test_a_mistake_is_told_in_a_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(says)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert ended(command, "--help") == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_help_says_what_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    demo = help_of("demo", capsys)
    assert "clean up" not in demo and "stay for a look" in demo
    assert "info,egress=debug" in help_of("run", capsys)


def test_levels_by_room_work(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", "--log-level", "info,egress=debug", f"{tmp_path}/none.py") == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--log-level", "loud"], '"loud"'),
        (["--log-level", "info,spool=chatty"], '"spool=chatty"'),
        (["--log-format", "xml"], '"xml"'),
    ],
)
def test_a_wrong_value_is_told_before_a_policy_is_read(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("run", "no/such.py", *words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert named in err and "right would be one of" in err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_policy_may_be_called_like_the_package(tmp_path: Path) -> None:
    """``python -m`` puts the current directory first on the import path."""
    (tmp_path / "policy.py").write_text(
        "import policy\n\n@policy.on('init')\ndef init():\n    policy.define_spool(path='spool')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "engine", "check", "policy.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("policy.py: ok")
