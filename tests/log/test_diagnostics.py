"""The diagnostic log: readable, harmless, and never in the way."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import warnings
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.log import diagnostics as module
from engine.log.diagnostics import ROOMS, diagnostics, parse_levels
from engine.tripwire import Tripwire
from policy.secret import Secret

logger = logging.getLogger("posthorn.egress")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_with_time_level_and_place() -> None:
    out = io.StringIO()
    with diagnostics(stream=out):
        logger.info("held: %s", "no TLS")
        logging.getLogger("posthorn").warning("stopping")
        logger.debug("not shown")
    first, second = out.getvalue().splitlines()
    stamp, rest = first.split(" ", 1)
    assert stamp.endswith("Z") and stamp[10] == "T"
    assert rest == "info    egress: held: no TLS"
    assert second.endswith("warning stopping")


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def shown(style: str = "auto") -> str:
        out = Terminal()
        with diagnostics(stream=out, style=style):
            logger.error("bad")
        return out.getvalue()

    assert "\x1b[31m" in shown()
    assert "\x1b" not in shown("plain")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown()


def test_a_peers_text_cannot_forge_a_line_or_move_the_cursor() -> None:
    evil = "250 ok\r\n2026-01-01T00:00:00.000Z info forged\x1b[2J\x9b2J\x7f\u2028end"
    for style in ("plain", "json"):
        out = io.StringIO()
        with diagnostics(stream=out, style=style):
            logger.warning("peer said: %s", evil)
        text = out.getvalue()
        assert len(text.splitlines()) == 1 or style == "json"
        assert text.count("\n") == 1
        assert not [c for c in text.rstrip("\n") if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0]


def test_a_traceback_is_indented_below_its_line() -> None:
    out = io.StringIO()
    with diagnostics(stream=out):
        try:
            raise ValueError("line one\nline two\x1b[0m")
        except ValueError:
            logger.exception("session failed")
    lines = out.getvalue().splitlines()
    assert "session failed" in lines[0]
    assert all(line.startswith("    ") for line in lines[1:])
    assert any("line two\\x1b[0m" in line for line in lines)


def test_json_lines() -> None:
    out = io.StringIO()
    with diagnostics(stream=out, style="json"):
        logger.info("one %d", 1)
        try:
            raise ValueError("lone \ud800")
        except ValueError:
            logger.exception("two")
    one, two = map(json.loads, out.getvalue().splitlines())
    assert (one["level"], one["logger"], one["message"]) == ("info", "posthorn.egress", "one 1")
    assert "traceback" not in one
    assert "ValueError" in two["traceback"]


def test_levels_by_name_and_back_again() -> None:
    before = (logging.getLogger("posthorn").level, logger.level, list(logging.getLogger().handlers))
    out = io.StringIO()
    with diagnostics(stream=out, level="warning,egress=debug"):
        logger.debug("seen")
        logging.getLogger("posthorn.spool").info("not seen")
    assert "seen" in out.getvalue() and "not seen" not in out.getvalue()
    assert (logging.getLogger("posthorn").level, logger.level, list(logging.getLogger().handlers)) == before


@pytest.mark.parametrize("text", ["loud", "info,=debug", "egress=loud", ""])
def test_a_wrong_level_says_what_is_right(text: str) -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error"):
        parse_levels(text)


def test_a_room_that_there_is_not_is_refused_and_all_are_known() -> None:
    with pytest.raises(ConfigError, match='there is no room "egrss"; did you mean "egress"'):
        parse_levels("info,egrss=debug")
    sources = (Path(__file__).parents[2] / "engine").rglob("*.py")
    named = {
        name for file in sources for name in re.findall(r'getLogger\("posthorn\.(\w+)"', file.read_text())
    }
    assert named == set(ROOMS)


def test_a_wrong_style_says_what_is_right() -> None:
    with pytest.raises(ConfigError, match="auto, plain, json"), diagnostics(style="xml"):
        pass


class Stuck(io.StringIO):
    """A standard error nobody reads, until somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.patient = True
        """Nobody gave up waiting for the gate."""

    def write(self, text: str) -> int:
        self.entered.set()
        self.patient = self.gate.wait(10)
        return super().write(text)


def test_a_stream_nobody_reads_holds_up_nobody_and_drops_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BOUND", 50)
    out = Stuck()
    with diagnostics(stream=out):
        logger.info("first")
        assert out.entered.wait(5)
        for number in range(80):
            logger.info("line %d", number)
        out.gate.set()
        # The queue is drained at the end.
    text = out.getvalue()
    assert "line 49" in text and "line 50" not in text
    assert "30 diagnostic lines were dropped" in text


def test_a_stuck_stream_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_WORDS", 0.05)
    out = Stuck()
    with diagnostics(stream=out):
        logger.info("first")
    assert out.entered.is_set() and out.getvalue() == "" and out.patient, "it is stuck still"
    out.gate.set()


def test_a_line_that_cannot_be_formatted_is_no_trouble(capfd: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with diagnostics(stream=out):
        logger.info("%d things", "many")
        logger.info("next")
    assert "next" in out.getvalue()
    assert capfd.readouterr().err == ""


def test_a_library_that_warns_is_heard() -> None:
    out = io.StringIO()
    with diagnostics(stream=out):
        logging.getLogger("some.library").warning("careful")
    assert "some.library: careful" in out.getvalue()


def test_what_python_says_itself_becomes_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """Warnings, exceptions of threads and of what is collected, which nobody would search."""
    out = io.StringIO()
    tripwire = Tripwire()
    tripwire.watch("a", "file:pass", Secret("tell+nobody/1"))

    class Careless:
        def __del__(self) -> None:
            raise ValueError("in __del__ tell+nobody/1")

    def crash() -> None:
        raise ValueError("in a thread tell+nobody/1")

    hooks = sys.unraisablehook, threading.excepthook, warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with diagnostics(stream=out, tripwire=tripwire):
            warnings.warn("of a library tell+nobody/1", RuntimeWarning, stacklevel=1)
            careless = Careless()
            del careless
            thread = threading.Thread(target=crash, name="worker 7")
            thread.start()
            thread.join()
    assert (sys.unraisablehook, threading.excepthook) == hooks[:2]
    text = out.getvalue()
    assert "RuntimeWarning: of a library ********" in text
    assert "Careless.__del__" in text or "builtins.function: ValueError" in text
    assert "ValueError: in __del__ ********" in text
    assert "exception in thread worker 7: ValueError" in text and "in a thread ********" in text
    assert "tell+nobody" not in text
    assert capfd.readouterr().err == ""
