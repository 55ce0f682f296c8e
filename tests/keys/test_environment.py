"""Secrets in the environment are read once and taken out of it (reliability K6)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.keys import open_keys
from engine.keys.command import CommandSource
from engine.keys.environment import put_back, said, take
from engine.keys.local import EnvSource
from policy.keysource import CommandKey, EnvKey
from policy.secret import Secret

CANARY = "c4n4ry=Env+1"
NAME = "POSTHORN_TEST_KEY"

TAKING = f"""
import os, subprocess, sys
from engine.keys.environment import take
assert take("{NAME}").reveal() == sys.argv[1].encode()
with open("/proc/self/environ", "rb") as file:
    sys.stdout.buffer.write(file.read() + b"\\n")
sys.stdout.flush()
subprocess.run(["/usr/bin/env"], check=True)
os.environ["{NAME}_2"] = sys.argv[1]
take("{NAME}_2")
subprocess.run(["/usr/bin/env"], check=True)
"""


def test_neither_a_child_nor_proc_shows_what_was_taken() -> None:
    environment = {**os.environ, NAME: CANARY, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", TAKING, CANARY], env=environment, capture_output=True, check=True, text=True
    )
    assert CANARY not in run.stdout
    assert f"{NAME}={'*' * len(CANARY)}\0" in run.stdout and "PATH=" in run.stdout


async def test_a_key_source_takes_it_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, CANARY)
    for _ in range(2):  # a second engine in the process finds it, too
        async with open_keys() as keys:
            assert (await keys.fetch(EnvKey(NAME))).secret == Secret(CANARY)
        assert NAME not in os.environ and os.getenv(NAME) is None


async def test_one_that_is_set_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, CANARY)
    source = EnvSource()
    await source.read(EnvKey(NAME))
    monkeypatch.setenv(NAME, f"{CANARY}2")
    assert await source.read(EnvKey(NAME)) == Secret(f"{CANARY}2")
    assert NAME not in os.environ


def test_one_without_a_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(NAME) is None and said(NAME) is None
    monkeypatch.setenv(NAME, "")
    assert take(NAME) == Secret("") and os.environ[NAME] == ""
    assert said(NAME) is None


async def test_a_program_that_is_to_have_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, CANARY)
    take(NAME)
    script = ("/bin/sh", "-c", f'printf %s "${NAME}"')
    assert await CommandSource().read(CommandKey(script, (NAME,))) == Secret(CANARY)


def test_an_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, CANARY)
    monkeypatch.setenv(f"{NAME}_2", CANARY)
    take(f"{NAME}_2")
    with put_back():
        take(NAME)
    assert os.environ[NAME] == CANARY and f"{NAME}_2" not in os.environ
    with put_back():
        take(NAME)
        monkeypatch.setenv(NAME, "of the block")
    assert os.environ[NAME] == "of the block"
