"""Commands as key sources: real programs, made here."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
import trio

from engine.keys import command
from engine.keys.command import CommandSource
from engine.keys.source import MAX_SECRET, SourceFailure
from policy.keysource import CommandKey, read_key
from policy.secret import Secret
from tests.contract.key_source import CANARY, ChangingKeySourceContract, Subject, everything


def program(directory: Path, script: str) -> CommandKey:
    path = directory / "tool"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return CommandKey((str(path), "show", "a b;c"))


@pytest.mark.plants("store")
class TestCommand(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        store = tmp_path / "store"
        store.write_text(CANARY + "\n")

        async def put(value: str | None) -> None:
            if value is None:
                store.unlink()
            else:
                store.write_text(value)

        return Subject(CommandSource(), program(tmp_path, f"test -f {store} || exit 66; cat {store}"), put)


async def reason(ref: CommandKey, **options: float) -> SourceFailure:
    with pytest.raises(SourceFailure) as caught:
        await CommandSource(**options).read(ref)
    assert CANARY not in everything(caught.value)
    return caught.value


@pytest.mark.plants("tool")
@pytest.mark.parametrize(
    ("script", "says", "definite", "denied"),
    [
        ("exit 66", "no such secret (status 66)", True, False),
        ("exit 77", "permission is denied (status 77)", False, True),
        (f"echo {CANARY} >&2; exit 1", "failed with status 1", False, False),
        (f"echo {CANARY}; exit 75", "status 75", False, False),
        ("kill -9 $$", "ended by signal 9", False, False),
        ("", "the output of the program is empty", False, False),
        ("echo", "the output of the program is empty", False, False),
        ("cat /dev/zero", f"more than {MAX_SECRET} octets", False, False),
    ],
)
async def test_refusals(script: str, says: str, definite: bool, denied: bool, tmp_path: Path) -> None:
    failure = await reason(program(tmp_path, script))
    assert says in failure.reason
    assert (failure.definite, failure.denied) == (definite, denied)


async def test_a_program_that_is_not_there_or_may_not_be_run(tmp_path: Path) -> None:
    assert "cannot be started: No such file" in (await reason(CommandKey(("/none/tool",)))).reason
    (tmp_path / "data").write_text("x")
    failure = await reason(CommandKey((str(tmp_path / "data"),)))
    assert "Permission denied" in failure.reason and failure.denied


async def test_arguments_are_no_shell_text_and_the_environment_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", CANARY)
    monkeypatch.setenv("STORE_DIR", "/store")
    ref = program(tmp_path, 'printf "%s|%s|%s|" "$1" "$2" "$STORE_DIR"; pwd; cat; env')
    told = (await CommandSource().read(ref)).reveal().decode()
    assert told.startswith("show|a b;c||/\n") and CANARY not in told
    assert "PATH=/usr/local/bin:/usr/bin:/bin\n" in told + "\n"
    told = (await CommandSource().read(CommandKey(ref.argv, ("STORE_DIR",)))).reveal().decode()
    assert told.startswith("show|a b;c|/store|")


async def test_the_error_output_goes_nowhere_so_that_nothing_stands_still(tmp_path: Path) -> None:
    ref = program(tmp_path, "head -c 300000 /dev/zero >&2; echo tiger")
    assert await CommandSource().read(ref) == Secret("tiger")


def alive(pid: int) -> bool:
    """Not merely a corpse that nobody has buried yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["time-out", "cancelled"])
async def test_the_program_and_its_children_are_killed(how: str, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ref = program(tmp_path, f"sleep 60 & echo $! $$ > {ids}; wait")
    start = time.monotonic()
    if how == "time-out":
        assert "took longer than 2 s" in (await reason(ref, seconds=2.0)).reason
    else:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CommandSource().read, ref)
            with trio.fail_after(30):
                while not (ids.exists() and len(ids.read_text().split()) == 2):
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert time.monotonic() - start < 30
    processes = [int(each) for each in ids.read_text().split()]
    assert len(processes) == 2
    with trio.fail_after(30):
        while any(alive(each) for each in processes):
            await trio.sleep(0.02)


async def test_a_daemon_that_keeps_the_error_output_holds_nothing_up(tmp_path: Path) -> None:
    ref = program(tmp_path, "sleep 60 >/dev/null & echo tiger")
    with trio.fail_after(30):
        assert await CommandSource().read(ref) == Secret("tiger")


@pytest.mark.parametrize("script", ["echo tiger", "exit 3", "cat /dev/zero"])
async def test_only_a_group_that_is_still_its_own_is_killed(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its status is taken, the number may be that of another program by then."""
    killed: list[int] = []
    kill = os.killpg

    def look(group: int, number: int) -> None:
        assert Path(f"/proc/{group}/stat").exists(), "the number was given back before"
        killed.append(group)
        kill(group, number)

    monkeypatch.setattr(os, "killpg", look)
    with contextlib.suppress(SourceFailure):
        await CommandSource().read(program(tmp_path, script))
    assert len(killed) == 1 and not Path(f"/proc/{killed[0]}").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is left running
async def test_nobody_waits_for_a_program_that_must_not_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that changed its user."""
    kill = os.killpg
    groups: list[int] = []

    def refused(group: int, number: int) -> None:
        groups.append(group)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", refused)
    monkeypatch.setattr(command, "_REAP", 0.1)
    ref = program(tmp_path, "sleep 30")
    try:
        with trio.fail_after(15), pytest.raises(SourceFailure, match="took longer"):
            await CommandSource(seconds=0.2).read(ref)
        assert groups
    finally:
        for group in groups:
            kill(group, 9)


async def test_a_system_that_cannot_watch_programs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CommandSource()
    ref = program(tmp_path, "echo tiger")
    await source.read(ref)

    async def refuse(pid: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", lambda pid: (_ for _ in ()).throw(OSError(38, "x")))
            await ended(pid)

    ended = command._ended
    monkeypatch.setattr(command, "_ended", refuse)
    with pytest.raises(SourceFailure, match=r"cannot watch a program \(pidfd_open: Function not"):
        await source.read(ref)


def test_the_forms() -> None:
    ref = read_key({"exec": ["/usr/bin/pass", "show", "relay"], "exec_env": ["PASSWORD_STORE_DIR"]})
    assert ref == CommandKey(("/usr/bin/pass", "show", "relay"), ("PASSWORD_STORE_DIR",))
    assert ref.name == "exec:/usr/bin/pass show relay"
    assert len(read_key({"exec": ["/bin/x", "y" * 500]}).name) <= 85
    for wrong, says in [
        ({"exec": "/bin/x y"}, "list of texts"),
        ({"exec": []}, "absolute path"),
        ({"exec": ["pass"]}, "absolute path"),
        ({"exec": ["/bin/x", 1]}, "list of texts"),
        ({"exec": ["/bin/x", "a\0b"]}, "NUL"),
        ({"exec": ["/bin/x"], "exec_env": ["A=b"]}, "names of environment variables"),
        ({"exec": ["/bin/x"], "shell": True}, 'unknown key "shell"'),
    ]:
        with pytest.raises(ValueError, match=says):
            read_key(wrong)
