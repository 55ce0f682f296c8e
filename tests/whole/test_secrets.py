"""Passwords show nowhere: the search that every test of this folder ends with, and a run made for it."""

from __future__ import annotations

import base64
import http.server
import threading
import urllib.parse
from pathlib import Path

import pytest
from backports import zstd

from tests.support.bytesink import run_sink
from tests.support.canary import leaks
from tests.support.certificates import Authority
from tests.support.ports import until
from tests.support.posthorn import relay
from tests.support.rawclient import RawClient

pytestmark = [pytest.mark.whole, pytest.mark.plants("planted", "relay/mail.py")]

CANARY = "c4n4ry=S3cret/+ with all"


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
            [f"AUTH SCRAM-SHA-256 {plain}"],
            [f"AUTH OAUTHBEARER {plain}"],
            ["AUTH XOAUTH2", plain],
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


KEY_HOOKS = """\
@policy.on("raises", keysource=True)
def raises(text):
    local = text
    raise ValueError(f"{text} {text!r}")

@policy.on("group", keysource=True)
async def group(text):
    raise ExceptionGroup(text, [ValueError(text)])

@policy.on("of_no_type", keysource=True)
def of_no_type(text):
    return {"password": text}

@policy.on("no_text", keysource=True)
def no_text(text):
    return text + chr(0xD800)

@policy.on("other_arguments", keysource=True)
def other_arguments():
    return os.environ["CANARY"]
"""


class Code(str):
    """An expression that stands in the policy as it is."""

    __repr__ = str.__str__


def echo(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A server that repeats the token and adds a value, wherever an answer has room for them."""
    token = handler.headers["X-Vault-Token"].encode()
    both = token + b" " + CANARY.encode()
    place = handler.path.rpartition("/")[2]
    body = {"text": both, "other": b'{"data": {"data": {"other": "%s"}}}' % both}.get(
        place, b'{"x": "%s"}' % both
    )
    handler.wfile.write(
        {
            "status": b"HTTP/1.1 200 " + both + b"\r\n\r\n",
            "line": both + b"\r\n\r\n",
            "code": b"HTTP/1.1 " + both + b"\r\n\r\n",
            "header": b"HTTP/1.1 200 OK\r\n" + both + b"\r\nX: y\r\n\r\n",
            "redirect": b"HTTP/1.1 302 Found\r\nLocation: /" + token + b"\r\nContent-Length: 0\r\n\r\n",
            "length": b"HTTP/1.1 200 OK\r\nContent-Length: " + both + b"\r\n\r\n",
            "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + both + b"\r\n",
            "coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + both,
            "refusal": b"HTTP/1.1 400 No\r\n\r\n" + body,
        }.get(place, b"HTTP/1.1 200 OK\r\n\r\n" + body)
    )


def test_key_sources_that_fail_leave_no_trace(tmp_path: Path) -> None:
    """Each queue has a key source that fails in its own way, with a secret in its hands."""
    token = "c4n4ry=T0ken/+with-all"

    class Handler(http.server.BaseHTTPRequestHandler):
        do_GET = echo

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    places = (
        "status",
        "line",
        "code",
        "header",
        "redirect",
        "length",
        "chunk",
        "coding",
        "refusal",
        "text",
        "other",
    )
    vault = {place: {"vault_mount": "m", "vault_path": place, "vault_address": address} for place in places}
    names = ("raises", "group", "of_no_type", "no_text", "other_arguments", "nohook")
    # The secret is read from the environment: the lines of a policy may be quoted in a traceback.
    chosen = f"""
import os

def key_source(domain):
    name = domain.partition(".")[0].replace("-", "_")
    if name in {names!r}:
        return {{"event_name": name, "event_args": [os.environ["CANARY"]]}}
    return {{**{vault!r}[name], "kv_version": 2}}
"""
    every = (*names, *places)
    try:
        with (
            run_sink() as sink,
            relay(
                tmp_path / "relay",
                next_hop=sink.port,
                path={
                    "allow_smtp_auth_plain_without_tls": True,
                    "smtp_auth_plain_username": "scott",
                    "smtp_auth_plain_password": Code("key_source(domain)"),
                },
                extra=KEY_HOOKS + chosen,
                secrets=[CANARY, token],
                env={"CANARY": CANARY, "VAULT_TOKEN": token},
            ) as running,
        ):
            with RawClient(running.port) as client:
                for name in every:
                    recipient = f"c@{name.replace('_', '-')}.example"
                    assert client.deliver("a@b.example", recipient, b"Subject: s\r\n\r\n")[0] == 250

            def causes() -> dict[str, str]:
                found = running.records("TransientFailure")
                return {record["recipient"]: record["response"]["content"] for record in found}

            until(lambda: len(causes()) == len(every), seconds=30, what=lambda: str(causes()))
            assert sink.arrivals == []
            assert all("held: " in text for text in causes().values()), causes()
            shown = "\n".join(causes().values())
            assert 'no hook "nohook"' in shown and "takes 0 arguments, given 1" in shown
            assert "is not HTTP" in shown
            assert running.records("Bounce", "Expiration") == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
