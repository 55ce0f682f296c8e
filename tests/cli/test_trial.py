"""The trial of docs/auth.md: its commands and its policy, as they stand but for the ports."""

from __future__ import annotations

import json
import re
import shlex
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port, is_open, until
from tests.support.posthorn import command, environment

PAGE = (Path(__file__).parents[2] / "docs" / "auth.md").read_text()
(SECTION,) = re.findall(r"^## A trial on this machine\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
SINK, ASK = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
(POLICY,) = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


@contextmanager
def started(words: str, directory: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A command of the page, until the block ends."""
    process = subprocess.Popen(
        [*command(), *shlex.split(words.removeprefix("posthorn ")), *more],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.parametrize("password", ["tiger", "lion"])
def test_the_trial_of_auth(tmp_path: Path, password: str) -> None:
    mail, log = ASK.splitlines()
    run = re.findall(r"`(posthorn run [\w.]+)`", SECTION)[0]
    port = free_port()
    with started(SINK, tmp_path, "--listen", "127.0.0.1:0", "--json") as sink:
        assert sink.stdout is not None
        address = json.loads(sink.stdout.readline())["listening"]
        text = POLICY.replace("127.0.0.1:2600", address).replace("127.0.0.1:2525", f"127.0.0.1:{port}")
        (tmp_path / run.split()[-1]).write_text(text.replace("tiger", password))
        with started(run, tmp_path):
            until(lambda: is_open(port), seconds=60, what="the relay does not listen")
            sender, recipient = re.findall(r"\S+@\S+", mail)
            with smtplib.SMTP("127.0.0.1", port) as client:
                client.sendmail(sender, [recipient], "Subject: a trial\r\n\r\nhello\r\n")
            kind = "Delivery" if password == "tiger" else "TransientFailure"
            words = shlex.split(log.replace("Delivery", kind).removeprefix("posthorn "))

            def records() -> str:
                done = subprocess.run(
                    [*command(), *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
                )
                return done.stdout

            (record,) = until(records, seconds=60, what="no record").splitlines()
    if password == "tiger":
        for said in re.findall(r'`("\w+":[^`]+)`', SECTION):
            assert said in record
    else:
        assert '"cause":"login-refused"' in record and '"num_attempts":0' in record


def test_the_ways_to_misbehave_that_the_page_shows_are_known() -> None:
    from engine.cli.sink_rules import parse_rule

    shown = re.findall(r'`--reply "(.+?)"`', SECTION)
    assert [parse_rule(text).code for text in shown] == [454, 535]
