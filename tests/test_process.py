"""No core dumps, and no look into the memory of a process that holds secrets (reliability K5)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.posthorn import command, environment

LOOK = """
import ctypes, resource
seen = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE)
"""
POLICY = """
import policy
{look}
print(*seen, flush=True)
raise policy.PolicyError("that is all")
"""


def seen(directory: Path, *arguments: str) -> tuple[list[int], str]:
    """Whether the process can be dumped, and both limits, as a policy finds them."""
    (directory / "mail.py").write_text(POLICY.format(look=LOOK))
    run = subprocess.run(
        [*command(), *arguments], cwd=directory, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 2, run.stderr
    return [int(word) for word in run.stdout.split()], run.stderr


@pytest.mark.parametrize(
    "arguments", ["run mail.py", "check mail.py", "explain a@b.example --policy mail.py"]
)
def test_commands_that_read_secrets_keep_to_themselves(arguments: str, tmp_path: Path) -> None:
    found, said = seen(tmp_path, *arguments.split())
    assert found == [0, 0, 0] and "core" not in said


def test_who_wants_core_dumps_says_so_and_is_warned(tmp_path: Path) -> None:
    found, said = seen(tmp_path, "run", "mail.py", "--core-dumps")
    assert found[0] == 1 and said.count("reads every secret") == 1


OTHER = """
import ctypes, os, sys
from engine.process import keep_to_itself
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as in a process that began as that user
if sys.argv[1] == "keep":
    assert keep_to_itself() == ""
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root may")
@pytest.mark.parametrize("kept", [True, False])
def test_another_process_of_the_same_user_cannot_look(kept: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, "keep" if kept else "show"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment({"SECRET": "c4n4ry"}),
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        look = subprocess.run(
            ["/bin/cat", f"/proc/{process.pid}/environ"], user=65534, group=65534, capture_output=True
        )
        assert (b"c4n4ry" in look.stdout) is not kept
    finally:
        process.kill()
        process.communicate()
