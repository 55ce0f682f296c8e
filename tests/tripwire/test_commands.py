"""What the commands print passes the tripwire: a policy that uses its password as a name."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli import main
from engine.cli.report import guarded
from engine.errors import ConfigError
from engine.tripwire import Tripwire
from policy.secret import Secret

CANARY = "c4n4ry-of-commands-1.example"
POLICY = """
import pathlib
import policy

@policy.on("init")
def init():
    policy.define_spool(path="spool")

@policy.on("get_queue_config")
def queue(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={"smtp": {"mx_list": ["192.168.1.10:587"]}})

@policy.on("get_egress_path_config")
def path(domain, egress_source, site_name):
    return policy.make_egress_path(
        enable_tls="Required",
        smtp_auth_plain_username=pathlib.Path("pass.secret").read_text(),
        smtp_auth_plain_password={"file": "pass.secret"},
    )
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass.secret").write_text(CANARY)
    (tmp_path / "pass.secret").chmod(0o600)
    (tmp_path / "mail.py").write_text(POLICY)
    yield tmp_path


def said(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capfd.readouterr()
    assert ended.value.code == 0, out + err
    return out, err


def test_explain(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    out, _ = said(capfd, "explain", "user@d.example", "--policy", "mail.py")
    assert "********" in out and CANARY not in out
    assert "LEAK: the secret of file:pass.secret was about to be shown in standard output" in caplog.text


def test_explain_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capfd, "explain", "user@d.example", "--policy", "mail.py", "--json")
    assert "********" in json.dumps(json.loads(out)) and CANARY not in out


def test_check(capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capfd, "check", "mail.py", "--secrets", "--offline", "--domain", CANARY)
    assert "********" in out and CANARY not in out


def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError(f"wrong: {CANARY}"), 2), (KeyError(f"defect: {CANARY}"), 1)]
)
def test_last_words(error: Exception, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    tripwire = Tripwire()
    tripwire.watch("x", "file:pass.secret", Secret(CANARY))
    assert guarded(lambda: failing(error), command="run", tripwire=tripwire) == status
    err = capfd.readouterr().err
    assert "********" in err and CANARY not in err
    assert ("Traceback" in err) == (status == 1)


def test_what_is_logged_by_a_command_is_searched(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither `check` nor `explain` opens the diagnostics: a library's warning goes to standard error."""
    tripwire = Tripwire()
    tripwire.watch("a", "file:pass", Secret(CANARY))
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers.clear()  # those of pytest
    try:
        guarded(
            lambda: logging.getLogger("some.library").warning("refused: %s", CANARY),
            command="x",
            tripwire=tripwire,
        )
    finally:
        root.handlers[:] = handlers
    alarm = "LEAK: the secret of file:pass was about to be shown in standard error; it was masked"
    assert capfd.readouterr().err.splitlines() == [alarm, "refused: ********"]
