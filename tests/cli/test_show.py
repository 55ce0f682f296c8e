"""engine/cli/show.py: what a person reads, with a terminal and without one."""

from __future__ import annotations

import pytest

from engine.cli.show import Screen

LONG = "word " * 40 + "end"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, and room for 60 characters."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "60")


def test_without_a_terminal_the_words_come_plain(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.title("Posthorn", "a title")
    screen.line("[bold]a line[/bold]")
    screen.done("something")
    with screen.progress("submitting", 2000) as show:
        show(10)
        show(1999)
    assert capsys.readouterr().out.splitlines() == [
        "Posthorn: a title",
        "[bold]a line[/bold]",
        "  ok something",
        "  ok submitting: 1,999 of 2,000",
    ]


def test_lines_are_not_broken_where_they_may_be_copied(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    screen.line(LONG)
    screen.done(LONG)
    screen.commands("Next", [("less a/very/long/path/" * 5, LONG), ("short", "x")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [LONG, f"  ok {LONG}"]
    assert lines[3:] == [
        "Next",
        f"  {'less a/very/long/path/' * 5}  # {LONG}",
        f"  {'short'.ljust(110)}  # x",
    ]


def test_a_table_stays_within_the_width_and_shows_a_peers_words_as_they_are(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Screen().table("One record", [("reply", "250 [red]Ok[/red]"), ("a long one", LONG)])
    out = capsys.readouterr().out
    assert "  reply       250 [red]Ok[/red]" in out
    assert max(map(len, out.splitlines())) <= 60 and out.split()[-1] == "end"


def test_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen()
    with screen.progress("submitting", 10) as show:
        show(10)
    out = capsys.readouterr().out
    assert "10/10" in out and "\x1b[" in out and "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in out
