"""``posthorn demo`` in this process: what it leaves behind, and what it makes of what it finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.cli import demo as module
from engine.cli.check import check
from engine.cli.demo import demo
from engine.cli.show import Screen
from engine.log import read_segment
from policy.load import load_policy
from tests.support.ports import is_open


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal; lines wide enough for any path."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "300")


def ports(shown: str) -> list[int]:
    return [int(port) for port in re.findall(r"on 127\.0\.0\.1:(\d+)[:,]", shown)]


@pytest.mark.whole
def test_what_it_leaves_is_what_it_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(messages=25, sessions=3, directory=tmp_path) == 0
    shown = capsys.readouterr().out
    assert "ok submitting: 25 of 25" in shown and "ok delivering: 25 of 25" in shown
    assert re.search(r"reply +250 ", shown) and re.search(r"TLS +TLSv1\.3, .*, verified", shown)
    assert "PLAIN as scott, password ********" in shown and "tiger" not in shown
    _, _, then = shown.partition("Next")
    for words in (f"check {tmp_path / 'policy.py'}", f"log {tmp_path / 'log'}", "run", "sink --help"):
        assert re.search(rf"(posthorn|-m engine) {re.escape(words)}", then), "what to type next"
    assert len(ports(shown)) == 2 and not any(map(is_open, ports(shown)))
    records = [r for segment in sorted((tmp_path / "log").glob("[0-9]*")) for r in read_segment(segment)]
    deliveries = [r for r in records if r["type"] == "Delivery"]
    assert len({r["id"] for r in deliveries}) == 25
    assert all(r["tls_verified"] and r["smtp_auth_user"] == "scott" for r in deliveries)
    sink = json.loads((tmp_path / "next-hop.txt").read_text().splitlines()[-1])
    assert sink["final"] and sink["messages"] == 25
    # The policy of the run is a good example.
    assert check(tmp_path / "policy.py") == 0
    load_policy(None)
    # A second run does not touch the first one.
    assert demo(messages=2, sessions=5, directory=tmp_path) == 0
    (again,) = (path for path in tmp_path.iterdir() if re.fullmatch(r"\d{8}-\d{6}", path.name))
    assert (again / "spool").is_dir()


@pytest.mark.whole
def test_a_relay_that_does_not_start_is_quoted_and_nothing_is_left_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("where a directory should be")
    assert demo(messages=2, directory=tmp_path) == 2
    out, err = capsys.readouterr()
    assert "posthorn demo: nothing listens on 127.0.0.1:" in err and "log_dir" in err
    assert len(ports(out)) == 1 and not any(map(is_open, ports(out)))
    # The next hop was asked to end: it still could say its last word.
    assert json.loads((tmp_path / "next-hop.txt").read_text().splitlines()[-1])["final"]


@pytest.mark.parametrize("options", [{"messages": 0}, {"sessions": 0}, {"messages": -1}])
def test_less_than_one_is_refused(
    options: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(**options, directory=tmp_path / "demo") == 2
    assert "must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_says_whether_everything_arrived(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def done(*arguments: Any) -> int:
        return status

    monkeypatch.setattr(module, "_demo", done)
    assert demo(directory=tmp_path) == status


# -- what it makes of the records ------------------------------------------------------------------


def record(kind: str, name: str, milliseconds: int, **more: Any) -> dict[str, Any]:
    stamp = f"2027-01-15T08:00:00.{milliseconds:03d}Z"
    return {"type": kind, "id": name, "event_time": stamp, "recipient": "reader@example.com", **more}


DELIVERY: dict[str, Any] = {
    "site": "unspecified->mx_list:127.0.0.1:25@smtp_client",
    "response": {"code": 250, "content": "[bold]Ok[/bold]"},
    "peer_address": {"name": "127.0.0.1", "addr": "127.0.0.1"},
    "tls_protocol_version": "TLSv1.3",
    "tls_cipher": "TLS_AES_256_GCM_SHA384",
    "tls_verified": True,
    "tls_why": "chain and name verified",
    "smtp_auth_mechanism": "PLAIN",
    "smtp_auth_user": "scott",
}


def summary(records: list[dict[str, Any]], accepted: int, where: Path) -> int:
    return module._summary(records, accepted, 0.5, where, Screen())


def test_delays_and_rate_are_those_of_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record("Reception", str(i), i) for i in range(101)]
    records += [record("Delivery", str(i), 2 * i + 2, **DELIVERY) for i in range(101)]
    assert summary(records, 101, tmp_path) == 0
    shown = capsys.readouterr().out
    assert re.search(r"delivered +101 *\n", shown)
    assert "p50 52.0 ms, p99 101.0 ms" in shown
    assert "500 messages/s" in shown  # 101 of them from 0 to 202 ms
    assert "250 [bold]Ok[/bold]" in shown


def test_a_delivery_that_was_not_verified_is_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record("Reception", "a", 0), record("Delivery", "a", 1, **{**DELIVERY, "tls_verified": False})]
    assert summary(records, 1, tmp_path) == 0
    assert "NOT verified" in capsys.readouterr().out


def test_fewer_deliveries_than_accepted_messages_are_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record("Reception", name, 0) for name in "ab"]
    records += [record("Delivery", "a", 1, **DELIVERY), record("TransientFailure", "b", 1)]
    assert summary(records, 2, tmp_path) == 1
    assert "1; 1 failures" in capsys.readouterr().out


def test_without_a_delivery_it_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary([record("Reception", "a", 0)], 1, tmp_path) == 1
    assert f"Nothing was delivered; look at {tmp_path}/relay.txt" in capsys.readouterr().out
