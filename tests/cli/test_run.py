"""``posthorn run``: what keeps it from starting is told in a line, and a start and a stop in plain words."""

from __future__ import annotations

import fcntl
import json
import logging
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import __version__, _fast
from engine.cli.run import run
from engine.errors import ConfigError
from policy.load import load_policy
from tests.support.ports import free_port, is_open, until
from tests.support.posthorn import command, environment

POLICY = """\
import policy


@policy.on("init")
def init():
    policy.define_spool(path="spool", min_free_space="1%", min_free_inodes="1%")
    policy.configure_local_logs(log_dir="log")
    policy.start_esmtp_listener(listen="127.0.0.1:0", relay_hosts=["127.0.0.1"])
"""


@pytest.fixture
def fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], str]]:
    """Runs a policy (in this process, its directory current) that is not to start; what it was told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("engine.app._raise_file_limit", lambda: None)
    handlers = list(logging.getLogger().handlers)

    def fails(text: str) -> str:
        (tmp_path / "mail.py").write_text(text)
        assert run(Path("mail.py"), log_format="plain") == 2
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        assert logging.getLogger().handlers == handlers
        # What the program says about itself comes from a thread of its own, perhaps in between.
        (told,) = re.sub(r"\d{4}-\d\d-\d\dT[^\n]*\n", "", err).splitlines()
        return told

    yield fails
    load_policy(None)  # the import path and the module table as they were


def test_a_policy_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Path("no/such.py")) == 2
    assert "posthorn run: no/such.py: cannot be read: No such file or directory" in capsys.readouterr().err


BAD = {
    "a syntax error": ("import policy\ndef (\n", "mail.py:2: SyntaxError: "),
    "an import that fails": ("import no_such_module\n", "mail.py:1: ModuleNotFoundError: "),
    "a misspelt option": (
        POLICY.replace("log_dir", "log_dri"),
        'mail.py:7: in init(): configure_local_logs: unknown option "log_dri"; did you mean "log_dir"?',
    ),
    "a misspelt event": (POLICY.replace('"init"', '"inti"'), 'mail.py:4: policy.on: unknown event "inti"'),
    "init that fails": (
        POLICY.replace("    policy.define", "    1 / 0\n    policy.define"),
        "mail.py:6: in init()",
    ),
    "init that ends the program": (
        POLICY.replace("    policy.define", "    raise SystemExit(0)\n    policy.define"),
        "SystemExit",
    ),
    "no init": ("import policy\n", 'mail.py: no function is registered with @policy.on("init")'),
    "no spool": (
        'import policy\n@policy.on("init")\ndef init(): pass\n',
        "mail.py: init defines no spool; call policy.define_spool(",
    ),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_a_policy_that_is_wrong_is_told_with_its_place(
    text: str, told: str, fails: Callable[[str], str], tmp_path: Path
) -> None:
    last = fails(text)
    assert last.startswith("posthorn run: ") and told in last
    assert not (tmp_path / "spool").exists() and not (tmp_path / "log").exists()


def test_a_port_in_use_is_named(fails: Callable[[str], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        last = fails(POLICY.replace("127.0.0.1:0", address))
        assert last == f"posthorn run: cannot listen on {address}: Address already in use"


def test_an_address_of_another_machine_is_named(fails: Callable[[str], str]) -> None:
    last = fails(POLICY.replace("127.0.0.1:0", "192.0.2.1:2525"))
    assert last == "posthorn run: cannot listen on 192.0.2.1:2525: Cannot assign requested address"


def test_a_second_listener_that_fails_takes_the_first_one_with_it(fails: Callable[[str], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = f"127.0.0.1:{free_port()}"
        in_use = f"127.0.0.1:{taken.getsockname()[1]}"
        both = POLICY.replace("127.0.0.1:0", free) + f'    policy.start_esmtp_listener(listen="{in_use}")\n'
        assert in_use in fails(both)
        assert not is_open(int(free.rpartition(":")[2]))


def test_a_locked_spool_is_named_with_its_owner_and_left_alone(
    fails: Callable[[str], str], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    with (spool / "lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        assert fails(POLICY) == "posthorn run: spool spool is in use by process 4711"
        assert [path.name for path in spool.iterdir()] == ["lock"]
        assert (spool / "lock").read_text() == "4711\n"


def test_a_spool_of_a_newer_version_is_left_alone(fails: Callable[[str], str], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    (spool / "format").write_text("posthorn-spool 99\n")
    assert "written by a newer version" in fails(POLICY)
    assert (spool / "format").read_text() == "posthorn-spool 99\n"
    assert not (spool / "segments").exists()


def test_a_spool_that_others_may_write_to_is_not_used(fails: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    assert "chmod go-w" in fails(POLICY)


@pytest.mark.parametrize("which", ["spool", "log"])
def test_a_directory_that_cannot_be_made_is_named(
    which: str, fails: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "file/inside" in fails(POLICY.replace(f'"{which}"', '"file/inside"'))


@pytest.mark.parametrize(
    "options", [{"log_level": "loud"}, {"log_level": "info,spool=much"}, {"log_format": "xml"}]
)
def test_a_wrong_option_starts_nothing(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"right would be one of"):
        run(Path("missing.py"), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_relay_without_a_listener_says_that_nothing_can_be_submitted(tmp_path: Path) -> None:
    (tmp_path / "mail.py").write_text(POLICY.partition("    policy.start_esmtp")[0])
    errors = tmp_path / "stderr.txt"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [*command(), "run", "mail.py"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=file,
        )
        try:
            says = "warning init starts no listener: no mail can be submitted"
            until(lambda: says in errors.read_text(), seconds=60, what=errors.read_text)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
    assert status == 0


def test_it_says_where_it_listens_and_ends_with_status_0_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "mail.py").write_text(POLICY)
    errors = tmp_path / "stderr.txt"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [*command(), "run", "mail.py", "--log-format", "json"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
        )
    with process:
        try:
            until(lambda: "listening on" in errors.read_text(), seconds=30, what=errors.read_text)
            (port,) = re.findall(r"listening on 127\.0\.0\.1:(\d+)", errors.read_text())
            assert is_open(int(port))
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
    assert (process.returncode, out) == (0, b"")
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["info"] * len(lines)
    assert lines[0]["message"] == f"Posthorn {__version__}, policy mail.py, {_fast.ACTIVE} hot path"
    assert lines[-1]["message"].startswith("stopped: 0 delivered, 0 bounced")
