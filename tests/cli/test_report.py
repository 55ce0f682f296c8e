"""What a command says when it does not come to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.cli.report import guarded
from engine.errors import ConfigError, SpoolLocked
from tests.support.posthorn import command, environment


def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ConfigError("no"), 2, "posthorn x: no\n"),
        (ExceptionGroup("", [ConfigError("a"), SpoolLocked("b")]), 2, "posthorn x: a\nposthorn x: b\n"),
        (KeyboardInterrupt(), 130, "posthorn x: interrupted\n"),
        (
            BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()]), OSError("of it")]),
            130,
            "posthorn x: interrupted\n",
        ),
    ],
)
def test_each_in_a_line(
    error: BaseException, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: failing(error), command="x") == status
    assert capsys.readouterr().err == says


def test_what_is_said_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is not buffered: two writes may have another process's words between them."""
    written: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append))
    guarded(lambda: failing(ExceptionGroup("", [ConfigError("a"), SpoolLocked("b")])), command="x")
    assert written == ["posthorn x: a\nposthorn x: b\n"]


@pytest.mark.parametrize("error", [KeyError("defect"), ExceptionGroup("", [ConfigError("a"), KeyError("b")])])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(lambda: failing(error), command="x")


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    policy = tmp_path / "mail.py"
    policy.write_text(
        "import policy\n\n@policy.on('init')\ndef init():\n    policy.define_spool(path='spool')\n"
    )
    check = subprocess.Popen(
        [*command(), "check", str(policy)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert check.stdout is not None and check.stderr is not None
    check.stdout.close()
    assert check.stderr.read() == b""
    check.stderr.close()
    assert check.wait(60) == 141
