"""The command line itself: mistakes in it, and the help."""

from __future__ import annotations

import pytest

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
