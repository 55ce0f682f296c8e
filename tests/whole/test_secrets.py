"""Passwords show nowhere: the search that every test of this folder ends with, and a run made for it."""

from __future__ import annotations

import base64
import urllib.parse
from pathlib import Path

import pytest
from backports import zstd

from tests.support.bytesink import run_sink
from tests.support.canary import leaks
from tests.support.certificates import Authority
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

CANARY = "canary=S3cret/+ with all"


@pytest.mark.parametrize(
    "text",
    [
        CANARY.encode(),
        b"AUTH PLAIN " + base64.b64encode(b"\0user\0" + CANARY.encode()),
        base64.b64encode(b"\0longer-user\0" + CANARY.encode()),
        base64.b64encode(CANARY.encode()),
        urllib.parse.quote(CANARY, safe="").encode(),
        CANARY.encode().hex().encode(),
        zstd.compress(b"x" * 1000 + CANARY.encode() + b"y" * 1000),
        zstd.compress(CANARY.encode() * 100)[:-4],
    ],
)
def test_the_search_finds_a_planted_secret(text: bytes, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.write_bytes(text if text[:4] == b"\x28\xb5\x2f\xfd" else b"before " + text + b" after")
    assert leaks([CANARY], [planted])
    assert not leaks(["another secret"], [planted])


HOOK = f"""\
@policy.on("smtp_server_auth_plain")
def log_in(authz, authc, password, conn_meta):
    if authc == "crash":
        raise RuntimeError(f"{{password}} {{password!r}} {{[password]}}")
    return policy.Secret({CANARY!r}) == password
"""


def test_logins_of_every_kind_leave_no_trace(tmp_path: Path) -> None:
    """Right, wrong, malformed, crashing: the client's password is in no output at debug level."""
    authority = Authority()
    plain = base64.b64encode(f"\0user\0{CANARY}".encode()).decode()
    login = base64.b64encode(CANARY.encode()).decode()
    user = base64.b64encode(b"user").decode()
    crash = base64.b64encode(f"\0crash\0{CANARY}".encode()).decode()
    path = {
        "enable_tls": "Required",
        "tls_ca": {"file": str(authority.write(tmp_path / "ca.pem"))},
        "smtp_auth_plain_username": "scott",
        "smtp_auth_plain_password": {"key_data": CANARY + "-out"},
    }
    with (
        run_sink(tls=authority.server_context(), users={"scott": CANARY + "-else"}) as sink,
        relay(
            tmp_path / "relay",
            next_hop=sink.port,
            path=path,
            listener={"allow_auth_without_tls": True},
            extra=HOOK,
            secrets=[CANARY],
        ) as running,
    ):
        for lines in (
            [f"AUTH PLAIN {plain}"],
            ["AUTH PLAIN", plain],
            ["AUTH LOGIN", user, login],
            [f"AUTH LOGIN {user}", login],
            [f"AUTH PLAIN {plain[:-3]}"],
            [f"AUTH PLAIN {plain}{plain}"],
            [f"AUTH  PLAIN   {plain}"],
            [f"AUTH CRAM-MD5 {plain}"],
            [f"AUTH {plain}"],
            [f"AUTH PLAIN {crash}"],
            [f"AUTHPLAIN {plain}"],
            [plain],
            [f"AUTH PLAIN {plain}", f"AUTH PLAIN {plain}"],
            ["MAIL FROM:<a@b.example>", f"AUTH PLAIN {plain}"],
            [f"AUTH PLAIN {plain} extra words"],
            ["AUTH PLAIN", "*", plain],
        ):
            with RawClient(running.port) as client:
                for line in lines:
                    client.command(line)
        # And on the way out: a refused login whose reply repeats what was sent.
        with RawClient(running.port) as client:
            assert client.deliver("a@b.example", "c@d.example", b"Subject: s\r\n\r\n")[0] == 250
        running.wait_records("TransientFailure")
        assert running.wait_records("Rejection", 5)
