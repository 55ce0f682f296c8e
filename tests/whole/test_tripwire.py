"""A policy that tells its passwords to everybody, in every dress and every output: none of it is shown."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.bytesink import run_sink
from tests.support.canary import leaks, output_files
from tests.support.certificates import Authority
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

CANARY = "c4n4ry=S3cret/+ with all"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda s: s,
    "hex": lambda s: s.hex().encode(),
    "upper-hex": lambda s: s.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64-1": lambda s: base64.b64encode(b"x" + s + b"y"),
    "base64-2": lambda s: base64.urlsafe_b64encode(b"xx" + s + b"y"),
    "plain": lambda s: base64.b64encode(b"\0scott\0" + s),
    "percent": lambda s: urllib.parse.quote(s, safe="").encode(),
    "json": lambda s: json.dumps([s.decode() + '"']).encode(),
}

LEAKY = """
import json
import logging
import pathlib

FORMS = json.loads(pathlib.Path("forms.secret").read_text())

@policy.on("smtp_server_rcpt_to")
def tell(recipient, conn_meta):
    if recipient.user.startswith("tell-"):
        form = FORMS[recipient.user.removeprefix("tell-")]
        logging.getLogger("posthorn.policy").warning("diagnostic: %s", form)
        raise policy.Reject(550, "5.7.1 reply: " + form)
    if recipient.user.startswith("raise-"):
        raise RuntimeError("traceback: " + FORMS[recipient.user.removeprefix("raise-")])

@policy.on("smtp_server_message_received")
def keep(message):
    message.set_meta("leaky", message.get_first_named_header_value("X-Leaky") or "")
"""


@pytest.mark.parametrize("style", ["plain", "json"])
def test_what_a_leaky_policy_tells(tmp_path: Path, style: str) -> None:
    authority = Authority()
    secret = CANARY.encode()
    forms = {name: form(secret).decode() for name, form in FORMS.items()}
    directory = tmp_path / "relay"
    directory.mkdir()
    (directory / "forms.secret").write_text(json.dumps(forms))
    (directory / "pass.secret").write_text(CANARY)
    (directory / "pass.secret").chmod(0o600)
    path = {
        "enable_tls": "Required",
        "tls_ca": {"file": str(authority.write(tmp_path / "ca.pem"))},
        "smtp_auth_plain_username": "scott",
        "smtp_auth_plain_password": {"file": "pass.secret"},
    }
    with (
        run_sink(tls=authority.server_context(), users={"scott": CANARY}) as sink,
        relay(directory, next_hop=sink.port, path=path, extra=LEAKY, start=False) as running,
    ):
        source = running.policy.read_text()
        copying = source.replace('log_dir="log"', 'log_dir="log", headers=["X-Leaky"], meta=["leaky"]')
        assert copying != source
        running.policy.write_text(copying)
        running.style = style
        running.start()
        said: list[bytes] = []
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: s\r\n\r\n")[0] == 250
        running.wait_records("Delivery")  # the password is known from now on
        for name, form in forms.items():
            with RawClient(running.port) as client:
                client.command("MAIL FROM:<a@b.example>")
                said.append(repr(client.command(f"RCPT TO:<tell-{name}@d.example>")).encode())
                assert client.command(f"RCPT TO:<raise-{name}@d.example>")[0] == 451
            with RawClient(running.port) as client:
                content = f"X-Leaky: {form}\r\n\r\n".encode()
                assert client.deliver("a@b.example", "c@d.example", content)[0] == 250
        delivered = running.wait_records("Delivery", 1 + len(forms))
        rejected = running.wait_records("Rejection", 2 * len(forms))
        running.stop()

        # It was told, and nothing is left of it.
        assert len([line for line in running.stderr.splitlines() if "diagnostic: " in line]) == len(forms)
        assert running.stderr.count("traceback: ") >= len(forms)
        assert all(b"reply: " in line and b"********" in line for line in said)
        assert all("********" in record["response"]["content"] for record in rejected[::2])
        assert all("********" in record["meta"]["leaky"] for record in delivered[1:])
        assert all("********" in record["headers"]["X-Leaky"] for record in delivered[1:])
        for place in ("diagnostics", "log log", f"replies of 127.0.0.1:{running.port}"):
            assert f"was about to be shown in {place}; it was masked" in running.stderr
        assert "LEAK: the secret of file:pass.secret" in running.stderr
        if style == "json":
            assert all(json.loads(line) for line in running.stderr.splitlines())
        (tmp_path / "said").write_bytes(b"\n".join(said))
        outputs = [
            each for each in output_files(directory) if each.suffix in (".txt",) or "log" in each.parts
        ]
        assert leaks([CANARY], [*outputs, tmp_path / "said"]) == []
