"""Vault: against a real OpenBao server, and against a server that misbehaves."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.errors import SecretUnavailable
from engine.keys import open_keys
from engine.keys.source import SourceFailure, Told
from engine.keys.vault import VaultSource
from policy.keysource import VaultKey, parse_key
from policy.secret import Secret
from tests.contract.key_source import CANARY, ChangingKeySourceContract, Subject, assert_no_canary, everything
from tests.support.canary import logged
from tests.support.openbao import ROOT_TOKEN, OpenBao, run_openbao

TOKEN_CANARY = "c4n4ry-0f-a-t0ken"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    for secret in (CANARY, TOKEN_CANARY, ROOT_TOKEN):
        assert secret not in logged(caplog)
        assert base64.b64encode(secret.encode()).decode() not in logged(caplog)


def key(server: OpenBao, path: str, **fields: Any) -> VaultKey:
    fields.setdefault("token", Secret(server.token))
    fields.setdefault("mount", "secret")
    return VaultKey(path=path, address=server.address, **fields)


async def reason(ref: VaultKey, source: VaultSource | None = None) -> SourceFailure:
    """Why it cannot be read; with nothing secret in it."""
    with pytest.raises(SourceFailure) as caught:
        await (source or VaultSource()).read(ref)
    failure = caught.value
    assert ref.token is None or ref.token.reveal().decode() not in everything(failure)
    assert_no_canary(failure)
    return failure


class TestVault2(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, openbao: OpenBao) -> Subject:
        async def put(value: str | None) -> None:
            if value is None:
                openbao.api("DELETE", "secret/metadata/contract/two")
            else:
                openbao.put("contract/two", {"key": value})

        openbao.put("contract/two", {"key": CANARY})
        return Subject(VaultSource(), key(openbao, "contract/two"), put)


@pytest.fixture(scope="session")
def old_mount(openbao: OpenBao) -> str:
    """A KV version 1 mount, and with a slash in its name."""
    openbao.api("POST", "sys/mounts/team/old", {"type": "kv", "options": {"version": "1"}})
    return "team/old"


class TestVault1(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, openbao: OpenBao, old_mount: str) -> Subject:
        async def put(value: str | None) -> None:
            if value is None:
                openbao.api("DELETE", f"{old_mount}/contract/one")
            else:
                openbao.api("POST", f"{old_mount}/contract/one", {"key": value})

        openbao.api("POST", f"{old_mount}/contract/one", {"key": CANARY})
        return Subject(VaultSource(), key(openbao, "contract/one", mount=old_mount), put)


# A real server


@pytest.mark.parametrize("version", [None, 1, 2])
async def test_both_versions(version: int | None, openbao: OpenBao, old_mount: str) -> None:
    openbao.put("versions", {"key": "two"})
    openbao.api("POST", f"{old_mount}/versions", {"key": "one"})
    source = VaultSource()
    refs = {2: key(openbao, "versions", kv_version=version)}
    refs[1] = key(openbao, "versions", mount=old_mount, kv_version=version)
    for right, ref in refs.items():
        if version in (None, right):
            assert (await source.read(ref)).reveal() == (b"two" if right == 2 else b"one")
        else:
            assert "(404 at" in (await reason(ref, source)).reason


@pytest.mark.parametrize("mount", ["secret", "team/old"])
async def test_a_token_that_may_read_only_the_secret(mount: str, openbao: OpenBao, old_mount: str) -> None:
    path = "secret/data/narrow/x" if mount == "secret" else "team/old/narrow/x"
    openbao.api("POST", path, {"data": {"key": "tiger"}} if mount == "secret" else {"key": "tiger"})
    token = openbao.token_for(f'path "{path}" {{ capabilities = ["read"] }}')
    ref = key(openbao, "narrow/x", mount=mount, token=Secret(token))
    assert (await VaultSource().read(ref)).reveal() == b"tiger"


async def test_other_field_and_the_environment(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    openbao.put("smtp-auth/example.com", {"key": "wrong", "password": "tiger\n"})
    ref = VaultKey(mount="secret", path="smtp-auth/example.com", key="password")
    assert "VAULT_ADDR" in (await reason(ref)).reason
    monkeypatch.setenv("VAULT_ADDR", openbao.address + "/")
    assert "VAULT_TOKEN" in (await reason(ref)).reason
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    for _ in range(2):
        assert (await VaultSource().read(ref)).reveal() == b"tiger\n"
        assert "VAULT_TOKEN" not in os.environ  # nobody but us needs it


async def test_the_seeds_form(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    openbao.put("smtp-auth/example.org", {"key": "tiger"})
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    ref = parse_key({"vault_mount": "secret", "vault_path": "smtp-auth/" + "example.org"})
    async with open_keys() as keys:
        assert (await keys.fetch(ref)).secret == Secret("tiger")


async def test_odd_but_legal_paths(openbao: OpenBao) -> None:
    openbao.put("smtp auth/bücher+x@y", {"key": "tiger"})
    assert (await VaultSource().read(key(openbao, "smtp auth/bücher+x@y"))).reveal() == b"tiger"


@pytest.mark.parametrize(
    ("path", "fields", "says", "definite"),
    [
        ("nowhere", {}, "nothing there: wrong mount, path or namespace, or no value (404 at", True),
        ("here", {"mount": "wrong"}, "permission denied|nothing there", None),
        ("here", {"key": "other"}, 'has no field "other" (200 at /v1/secret/data/here)', True),
        ("here", {"key": "number"}, 'the field "number" is not text', True),
        ("here", {"key": "none"}, 'the field "none" is not text', True),
        ("here", {"key": "blank"}, 'the field "blank" is empty', True),
        ("here", {"token": Secret(TOKEN_CANARY)}, "permission denied", False),
        ("deleted", {}, "the newest version is deleted (404 at", True),
        ("here", {"namespace": "unknown"}, "(404 at|(403 at", None),
        ("a/../here", {}, "not a plain path", False),
        ("here", {"token": Secret("line\nend")}, "a line end?", False),
    ],
)
async def test_refusals_say_which_they_are(
    path: str, fields: dict[str, Any], says: str, definite: bool | None, openbao: OpenBao
) -> None:
    openbao.put("here", {"key": CANARY, "number": 7, "none": None, "blank": ""})
    openbao.put("deleted", {"key": CANARY})
    openbao.api("DELETE", "secret/data/deleted")
    failure = await reason(key(openbao, path, **fields))
    assert any(each in failure.reason for each in says.split("|")), failure.reason
    assert definite is None or failure.definite is definite


async def test_a_policy_that_forbids_the_path(openbao: OpenBao) -> None:
    openbao.put("forbidden", {"key": CANARY})
    token = openbao.token_for('path "secret/data/allowed" { capabilities = ["read"] }')
    failure = await reason(key(openbao, "forbidden", token=Secret(token)))
    assert "its policy forbids this (403 at /v1/secret/data/forbidden)" in failure.reason


async def test_an_expired_and_a_used_up_token(openbao: OpenBao) -> None:
    openbao.put("brief", {"key": "tiger"})
    rules = 'path "secret/data/brief" { capabilities = ["read"] }'
    ref = key(openbao, "brief", token=Secret(openbao.token_for(rules, num_uses=2)), kv_version=2)
    for _ in range(2):
        await VaultSource().read(ref)
    assert "permission denied" in (await reason(ref)).reason


async def test_sealed_then_unsealed_then_killed(tmp_path: Path) -> None:
    with run_openbao(tmp_path) as server:
        server.put("x", {"key": "tiger"})
        ref = key(server, "x")
        async with open_keys(wait=10) as keys:
            server.seal()
            with pytest.raises(SecretUnavailable, match=r"vault:secret/x#key: Vault is sealed \(503 at"):
                await keys.fetch(ref)
            server.unseal()
            assert (await keys.fetch(ref, fresh=True)).secret == Secret("tiger")
            server.kill()
            assert (await keys.fetch(ref, fresh=True)).secret == Secret("tiger")
        failure = await reason(ref)
        assert "cannot reach 127.0.0.1:" in failure.reason and "Connection refused" in failure.reason
        assert not failure.definite


async def test_tls_is_verified_with_the_given_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_openbao(tmp_path, tls=True) as server:
        server.put("x", {"key": "tiger"})
        source = VaultSource()
        assert (await source.read(key(server, "x", ca=server.ca))).reveal() == b"tiger"
        failure = await reason(key(server, "x"))
        assert "TLS to 127.0.0.1:" in failure.reason and "unable to get local issuer" in failure.reason
        assert "cannot use CA file /none" in (await reason(key(server, "x", ca="/none"))).reason
        os.mkfifo(tmp_path / "fifo.pem")
        fifo = (await reason(key(server, "x", ca=str(tmp_path / "fifo.pem")))).reason
        assert fifo.endswith("fifo.pem: it is a FIFO; right would be a regular file")
        empty = tmp_path / "empty.pem"
        empty.write_text("no certificate\n")
        unusable = (await reason(key(server, "x", ca=str(empty)))).reason
        assert unusable.endswith(" failed: no certificate or crl found")
        monkeypatch.setenv("VAULT_CACERT", str(server.ca))
        assert (await source.read(key(server, "x"))).reveal() == b"tiger"
        address = server.address.replace("https", "http")
        plain = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY))
        assert "(400 at" in (await reason(plain)).reason


# A server that misbehaves

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def misbehaving(answer: Answer) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """An HTTP server on loopback; gives its address and what it was asked."""
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def code(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def nested(levels: int) -> bytes:
    """An answer with a list of so many levels two objects deep."""
    return b'{"data": {"data": null, "x": ' + b"[" * levels + b"]" * levels + b"}}"


CUT_OFF = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + CANARY.encode()
LEAK = CANARY.encode() + b" " + TOKEN_CANARY.encode()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (code(429, LEAK, Retry_After="7"), "rate limit is reached (429 at /v1/secret/data/x)"),
        (code(307, LEAK, Location="http://127.0.0.1:1/"), "redirects elsewhere"),
        (code(400, LEAK), "bad request (400 at"),
        (code(412, LEAK), "behind its cluster (412 at"),
        (code(472, LEAK), "disaster recovery standby"),
        (code(473, LEAK), "performance standby"),
        (code(500, LEAK), "the server failed (500 at"),
        (code(501, LEAK), "not initialised (501 at"),
        (code(502, LEAK), "the server failed (502 at"),
        (code(503, LEAK), "Vault is unavailable (503 at"),
        (code(418, LEAK), "refused (418 at"),
        (code(204), "has no value there (204 at"),
        (code(200, LEAK), "the answer is not what"),
        (code(200, b"[" * 100_000), "the answer is not what"),
        (code(200, nested(30)), 'has no field "key"'),
        (code(200, nested(31)), "the answer is not what"),
        (code(200, b'{"data": {"data": {"x": "\\"' + b"[" * 50 + b'"}}}'), 'has no field "key"'),
        (code(200, b'{"data": {"data": ["' + LEAK + b'"]}}'), "the answer is not what"),
        (code(200, b'{"data": null}'), 'has no field "key"'),
        (code(200, b'{"data": {"data": {"key": {"a": "' + LEAK + b'"}}}}'), "is not text"),
        (code(200, b'{"x": "' + b"x" * (2 << 20) + b'"}'), "is larger than"),
        (code(200, b'{"data": {"data": {"key": "\xff\xfe' + LEAK + b'"}}}'), "is not text"),
        (code(200, b'{"data": {"data": {"key": "\\ud800' + LEAK + b'"}}}'), "the answer is not what"),
        (code(200, b'{"data": {"data": {"\xff' + LEAK + b'": "x"}}}'), "the answer is not what"),
        (lambda handler: handler.wfile.write(LEAK), "is not HTTP"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + LEAK + b"\r\n\r\n{}"), "is not HTTP"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "is not HTTP"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000), "is larger than"),
        (lambda handler: handler.wfile.write(CUT_OFF), "closed the connection before"),
        (lambda handler: None, "closed the connection before"),
        (code(404, LEAK), "nothing there"),
    ],
)
async def test_every_answer_has_its_reason(answer: Answer, says: str) -> None:
    with misbehaving(answer) as (address, asked):
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        failure = await reason(ref)
        assert says in failure.reason
        async with open_keys() as keys:
            with pytest.raises(SecretUnavailable) as caught:
                await keys.fetch(ref)
    for shown in (everything(failure), everything(caught.value)):
        assert CANARY not in shown and TOKEN_CANARY not in shown
    assert asked[0][1]["x-vault-token"] == TOKEN_CANARY
    assert asked[0][1]["x-vault-request"] == "true"


async def test_retry_after_and_namespace() -> None:
    with misbehaving(code(429, Retry_After="7")) as (address, asked):
        token = Secret(TOKEN_CANARY)
        ref = VaultKey("m", "p", address=address, token=token, kv_version=2, namespace="team/a")
        assert (await reason(ref)).retry_after == 7
    assert asked[0][0] == "/v1/m/data/p"
    assert asked[0][1]["x-vault-namespace"] == "team/a"


async def test_the_token_does_not_follow_a_redirect() -> None:
    with (
        misbehaving(code(200, b"{}")) as (elsewhere, stolen),
        misbehaving(code(307, Location=elsewhere + "/v1/secret/data/x")) as (address, _),
    ):
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        assert "not followed" in (await reason(ref)).reason
    assert stolen == []


async def test_proxies_and_netrc_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    with misbehaving(code(200, b'{"data": {"data": {"key": "tiger"}}}')) as (address, _):
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        assert (await VaultSource().read(ref)).reveal() == b"tiger"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://vault.example.com:8200", "plain http to vault.example.com would show the token"),
        ("http://192.0.2.1:8200", "plain http to 192.0.2.1"),
        ("http://vault.localhost:8200", "plain http to vault.localhost"),
        ("ftp://vault.example.com", "no URL like"),
        ("vault.example.com:8200", "no URL like"),
        ("https://[bad", "no URL like"),
        (f"https://user:{CANARY}@vault.example.com", "holds a user"),
        (f"https://vault.example.com/?token={CANARY}", "holds a user"),
        ("https://vault.invalid:8200", "cannot reach vault.invalid:8200: the name cannot be resolved"),
    ],
)
async def test_addresses(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", address)
    assert says in (await reason(VaultKey("secret", "x", token=Secret(TOKEN_CANARY)))).reason


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(20)
    with contextlib.suppress(OSError):
        handler.connection.recv(1)  # until the client hangs up


def drip(first: bytes, *drops: bytes) -> Answer:
    """`first`, then a drop every 50 ms for 20 seconds or until the client hangs up."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        with contextlib.suppress(OSError):
            for drop in itertools.islice(itertools.cycle(drops), 400):
                handler.wfile.write(drop)
                time.sleep(0.05)

    return answer


SLOW: dict[str, Answer] = {
    "silence": silent,
    "status": drip(b"HTTP/1.1 200 O", b"K"),
    "interim answers": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
    "body without length": drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" "),
    "chunks": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "chunk size": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
}


@pytest.mark.parametrize("where", SLOW)
async def test_a_server_that_never_answers_or_drips_gives_its_thread_back(where: str) -> None:
    with misbehaving(SLOW[where]) as (address, _):
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        source = VaultSource(seconds=0.3)
        start = time.monotonic()
        # Not cancelled from outside: it comes back when the thread has ended.
        assert "no answer from 127.0.0.1:" in (await reason(ref, source)).reason
        assert time.monotonic() - start < 10  # they go on for 20 s


async def test_a_handshake_that_drips_gives_its_thread_back() -> None:
    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB
            for _ in range(400):
                connection.sendall(b"\x02")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        address = f"https://127.0.0.1:{server.getsockname()[1]}"
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        start = time.monotonic()
        assert "127.0.0.1:" in (await reason(ref, VaultSource(seconds=0.3))).reason
        assert time.monotonic() - start < 10  # they go on for 20 s
        thread.join()


async def test_a_refusal_at_the_mount_ends_the_read() -> None:
    """A server that is sealed or limits its rate is not asked for both versions' paths as well."""
    with misbehaving(code(429, Retry_After="7")) as (address, asked):
        failure = await reason(VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY)))
        assert failure.retry_after == 7
        assert "(429 at /v1/sys/internal/ui/mounts/secret)" in failure.reason
    assert len(asked) == 1


@pytest.mark.parametrize(("text", "seconds"), [("7", 7), ("99999999999999", 86400), ("x", 0), ("-1", 0)])
async def test_retry_after_of_any_refusal(text: str, seconds: float) -> None:
    with misbehaving(code(502, Retry_After=text)) as (address, _):
        ref = VaultKey("secret", "x", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        assert (await reason(ref)).retry_after == seconds


async def test_a_hanging_server_does_not_use_up_the_threads_of_another(openbao: OpenBao) -> None:
    openbao.put("beside", {"key": "tiger"})
    source = VaultSource(seconds=20)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        address = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            for i in range(10):
                ref = VaultKey("secret", f"p{i}", address=address, token=Secret(TOKEN_CANARY))
                nursery.start_soon(source.read, ref)
            await trio.sleep(0.05)
            with trio.fail_after(15):
                assert (await source.read(key(openbao, "beside"))).reveal() == b"tiger"
            nursery.cancel_scope.cancel()


async def test_the_number_and_the_date_of_a_version_are_known(openbao: OpenBao, old_mount: str) -> None:
    begun = time.time()
    for value in ("one", "two", "three"):
        openbao.put("dated", {"key": value})
    openbao.api("POST", f"{old_mount}/dated", {"key": "x"})
    newest, second = key(openbao, "dated"), key(openbao, "dated", version=2)
    source = VaultSource()
    assert source.told(newest) is None
    for ref, version in ((newest, "3"), (second, "2")):
        await source.read(ref)
        told = source.told(ref)
        assert told is not None and told.version == version
        assert told.since is not None and begun - 5 < told.since < time.time() + 5
    old = key(openbao, "dated", mount=old_mount)
    await source.read(old)
    assert source.told(old) == Told()


@pytest.mark.parametrize(
    "metadata",
    ["null", '{"version": "3"}', '{"version": [], "created_time": 7}', '{"created_time": "yesterday"}', "{}"],
)
async def test_odd_metadata_hinders_nobody(metadata: str) -> None:
    body = b'{"data": {"data": {"key": "tiger"}, "metadata": %b}}' % metadata.encode()
    with misbehaving(code(200, body)) as (address, _):
        ref = VaultKey("secret", "p", address=address, token=Secret(TOKEN_CANARY), kv_version=2)
        source = VaultSource()
        assert (await source.read(ref)).reveal() == b"tiger" and source.told(ref) == Told()


async def test_10000_messages_for_100_credentials_are_100_reads() -> None:
    answer = code(200, b'{"data": {"data": {"key": "tiger"}}}')
    with misbehaving(answer) as (address, asked):
        token = Secret(TOKEN_CANARY)
        refs = [VaultKey("secret", f"p{i}", address=address, token=token, kv_version=2) for i in range(100)]
        async with open_keys() as keys, trio.open_nursery() as nursery:
            for i in range(10_000):
                nursery.start_soon(keys.fetch, refs[i % 100])
    assert len([path for path, _ in asked if path.startswith("/v1/secret/data/")]) == 100
    assert len(asked) <= 101  # and one look at the token
