"""The command ``posthorn sink``: what it counts, when it ends, and what it says of a wrong command line."""

from __future__ import annotations

import json
import signal
import smtplib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine.ingress.tls import self_signed
from tests.support.ports import free_port


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "sink", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def deliver(address: str, number: int = 1) -> None:
    host, _, port = address.rpartition(":")
    with smtplib.SMTP(host, int(port), local_hostname="me.example", timeout=10) as client:
        for _ in range(number):
            client.sendmail("a@x.example", ["b@y.example"], b"hello\r\n")


def test_the_command_counts_in_json_and_ends_on_a_signal(tmp_path: Path) -> None:
    process = command("--listen", "127.0.0.1:0", "--json", "--tls", "--ca-out", str(tmp_path / "ca.pem"))
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        assert (tmp_path / "ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
        deliver(first["listening"], 3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    last = json.loads(out.splitlines()[-1])
    assert last["final"] is True and last["messages"] == 3 and last["connections"] == 1
    assert last["begun"] <= last["last"] and last["rate"] > 0
    assert process.returncode == 0 and err == ""


def test_the_command_ends_after_enough_messages() -> None:
    process = command("--listen", "127.0.0.1:0", "--stop-after", "2")
    assert process.stderr is not None
    try:
        deliver(process.stderr.readline().split()[2].rstrip(";"), 2)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err.startswith("2 messages, ")


def test_one_message_has_no_rate() -> None:
    process = command("--listen", "127.0.0.1:0", "--stop-after", "1")
    assert process.stderr is not None
    try:
        deliver(process.stderr.readline().split()[2].rstrip(";"))
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert err.startswith("1 message, ") and "messages/s" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--listen", "nowhere"], "--listen nowhere: has no port; right would be 127.0.0.1:2600"),
        (["--auth", "scott"], "USER:PASSWORD"),
        (["--auth", "scott:tiger"], "--auth needs --tls"),
        (["--ca-out", "x"], "--ca-out"),
        (["--cert", "x"], "belong together"),
        (["--reply", "rcpt=hello"], "reply rule"),
        (["--reply", "starttls=454 later"], "nothing comes to starttls without --tls"),
        (["--reply", "auth=535 no"], "nothing comes to auth without --auth"),
        (["--tls-name", "mx.example.com"], "--tls-name is for the certificate that --tls makes"),
        (["--tls", "--tls-name", "not a name"], "--tls-name not a name: is no host name"),
        (["--auth-without-tls"], "--auth-without-tls needs --auth"),
        (["--without", "PIPELINE"], 'did you mean "PIPELINING"?'),
        (["--store", __file__], f"no maildir can be made at {__file__}"),
        (["--tls", "--ca-out", "/no/such/directory"], "--ca-out /no/such/directory: No such file"),
        (["--stop-after", "0"], "--stop-after"),
    ],
)
def test_a_wrong_command_line_says_what_is_right(arguments: list[str], word: str, capfd: Any) -> None:
    from engine.cli import main

    with pytest.raises(SystemExit) as end:
        main(["sink", *arguments])
    assert end.value.code == 2
    said = capfd.readouterr().err
    assert word in said and "Traceback" not in said
    assert "tiger" not in said


def mistake(arguments: list[str], capfd: Any) -> str:
    """What the command says of a mistake, behind its name."""
    from engine.cli import main

    with pytest.raises(SystemExit) as end:
        main(["sink", *arguments])
    assert end.value.code == 2
    return str(capfd.readouterr().err).removeprefix("posthorn sink: ").rstrip("\n")


def test_an_address_in_use_is_named(capfd: Any) -> None:
    port = free_port()
    process = command("--listen", f"127.0.0.1:{port}")
    assert process.stderr is not None
    try:
        process.stderr.readline()
        said = mistake(["--listen", f"127.0.0.1:{port}"], capfd)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert said == f"cannot listen on 127.0.0.1:{port}: Address already in use"


def test_files_that_cannot_be_used_are_named(tmp_path: Path, capfd: Any) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    files = ["--cert", str(certificate), "--key", str(key)]
    assert mistake(files, capfd) == f"--cert {certificate}: No such file or directory"
    content, private = self_signed("mx.example", datetime.now(UTC))
    certificate.write_bytes(content)
    assert mistake(files, capfd) == f"--key {key}: No such file or directory"
    key.write_bytes(b"no PEM")
    assert mistake(files, capfd).startswith(f"--cert {certificate} and --key {key} are no PEM")
    key.write_bytes(self_signed("mx.example", datetime.now(UTC))[1])
    assert mistake(files, capfd) == f"--cert {certificate} and --key {key} do not belong together"
    assert private
