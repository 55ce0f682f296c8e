"""Logging in to Vault: against a real OpenBao server, and against one that counts and refuses."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from engine.errors import SecretUnavailable
from engine.keys import KeyRing, open_keys, vaultlogin
from engine.keys.source import SourceFailure
from engine.keys.vault import VaultSource
from policy.keysource import KeyRef, read_key
from tests.contract.key_source import everything
from tests.support.openbao import OpenBao, run_openbao

RULES = 'path "secret/data/login/*" { capabilities = ["read"] }'


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_CAPATH"):
        monkeypatch.delenv(name, raising=False)


class Role:
    """An AppRole whose tokens live for three seconds."""

    def __init__(self, bao: OpenBao, directory: Path, **options: Any) -> None:
        self.bao = bao
        name = self.name = f"role-{time.monotonic_ns()}"
        bao.put("login/x", {"key": "tiger"})
        if "approle/" not in bao.api("GET", "sys/auth")["data"]:
            bao.api("POST", "sys/auth/approle", {"type": "approle"})
        bao.api("PUT", "sys/policies/acl/login", {"policy": RULES})
        role = {"token_policies": ["login"], "token_ttl": "3s", "token_max_ttl": "1h", **options}
        bao.api("POST", f"auth/approle/role/{name}", role)
        self.role_id = bao.api("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        self.file = directory / "secret_id"
        self.renew_secret_id()

    def renew_secret_id(self) -> None:
        self.secret_id = self.bao.api("POST", f"auth/approle/role/{self.name}/secret-id")["data"]["secret_id"]
        self.file.write_text(self.secret_id)
        self.file.chmod(0o600)

    def ref(self, path: str = "login/x", **more: Any) -> KeyRef:
        return read_key(
            {
                "vault_mount": "secret",
                "vault_path": path,
                "vault_address": self.bao.address,
                "vault_auth": {
                    "method": "approle",
                    "role_id": {"key_data": self.role_id},
                    "secret_id": str(self.file),
                },
                "kv_version": 2,
                "ttl": "1s",
                **more,
            }
        )


async def say(keys: KeyRing, ref: KeyRef) -> str:
    """The value, read anew, or the reason there is none."""
    try:
        return (await keys.fetch(ref, fresh=True)).secret.reveal().decode()
    except SecretUnavailable as error:
        assert "tiger" not in everything(error)
        return str(error)


async def strict(ref: KeyRef, keys: KeyRing) -> str:
    """As `say`, without the ring's memory."""
    try:
        return (await VaultSource(keys.fetch).read(ref)).reveal().decode()  # type: ignore[arg-type]
    except SourceFailure as failure:
        return failure.reason


async def test_approle_with_tokens_of_three_seconds(openbao: OpenBao, tmp_path: Path) -> None:
    """They are renewed while nobody reads, so one login serves for more than two lives."""
    role = Role(openbao, tmp_path)
    source = VaultSource()
    async with open_keys() as keys:
        source = VaultSource(keys.fetch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.keep_tokens)
            ref: Any = role.ref()
            assert (await source.read(ref)).reveal() == b"tiger"
            (session,) = source._sessions._sessions.values()
            first = await session.token()
            await trio.sleep(7)
            again = await session.token()
            assert not isinstance(first, SourceFailure) and not isinstance(again, SourceFailure)
            assert again.secret == first.secret and again.expires > first.expires + 4
            assert (await source.read(ref)).reveal() == b"tiger"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options",
    [{"token_type": "batch"}, {"token_num_uses": 1}, {"token_max_ttl": "3s"}],
    ids=["batch", "used up", "maximum"],
)
async def test_what_cannot_be_renewed_logs_in_again(
    options: dict[str, Any], openbao: OpenBao, tmp_path: Path
) -> None:
    role = Role(openbao, tmp_path, **options)
    async with open_keys() as keys:
        for _ in range(3):
            assert await strict(role.ref(), keys) == "tiger"
        for _ in range(5):
            assert await say(keys, role.ref()) == "tiger"
            await trio.sleep(0.8)
        assert keys.statistics().failures == 0


def signed(key: rsa.RSAPrivateKey, **claims: Any) -> str:
    """A JWT (RFC 7519), RS256."""

    def coded(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    text = ".".join(coded(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims))
    return f"{text}.{coded(key.sign(text.encode(), PKCS1v15(), SHA256()))}"


async def test_a_jwt_that_the_server_checks(openbao: OpenBao, tmp_path: Path) -> None:
    """A good one, one of another audience, and a good one again as soon as the file has it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    openbao.put("login/x", {"key": "tiger"})
    openbao.api("PUT", "sys/policies/acl/login", {"policy": RULES})
    mount = f"jwt-{time.monotonic_ns()}"
    openbao.api("POST", f"sys/auth/{mount}", {"type": "jwt"})
    openbao.api("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [public]})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["mail"], "token_policies": ["login"]}
    openbao.api("POST", f"auth/{mount}/role/relay", role)
    file = tmp_path / "jwt"
    now = int(time.time())
    good = signed(key, sub="posthorn", aud="mail", iat=now, exp=now + 600)
    file.write_text(good)
    file.chmod(0o600)
    base = {"vault_mount": "secret", "vault_path": "login/x", "vault_address": openbao.address}
    auth = {"method": "jwt", "role": "relay", "jwt": str(file), "mount": mount}
    ref = read_key({**base, "vault_auth": auth})
    async with open_keys() as keys:
        assert await strict(ref, keys) == "tiger"
    async with open_keys() as keys:
        file.write_text(signed(key, sub="posthorn", aud="elsewhere", iat=now, exp=now + 600))
        refused = await strict(ref, keys)
        assert refused.startswith("login refused") and f"(400 at /v1/auth/{mount}/login)" in refused
        file.write_text(good)
        with trio.fail_after(15):
            while await say(keys, ref) != "tiger":
                await trio.sleep(0.3)


async def test_a_revoked_token_is_replaced_at_the_first_refusal(openbao: OpenBao, tmp_path: Path) -> None:
    role = Role(openbao, tmp_path, token_ttl="1h")
    async with open_keys() as keys:
        source = VaultSource(keys.fetch)
        ref: Any = role.ref()
        await source.read(ref)
        (session,) = source._sessions._sessions.values()
        token = await session.token()
        assert not isinstance(token, SourceFailure)
        openbao.api("POST", "auth/token/revoke", {"token": token.secret.reveal().decode()})
        assert (await source.read(ref)).reveal() == b"tiger"


async def test_a_refused_login_and_a_forbidden_path_are_told_apart(openbao: OpenBao, tmp_path: Path) -> None:
    role = Role(openbao, tmp_path)
    async with open_keys() as keys:
        assert await strict(role.ref(), keys) == "tiger"
        denied = await strict(role.ref("elsewhere"), keys)
        assert "permission denied" in denied and "(403 at /v1/secret/data/elsewhere)" in denied
        role.file.write_text("not-the-secret-id")
        await trio.sleep(1.5)  # a file's own `ttl`; then it is read behind the scenes
        await strict(role.ref(), keys)
        await trio.sleep(0.5)
        refused = await strict(role.ref(), keys)
        assert refused.startswith("login refused") and "(400 at /v1/auth/approle/login)" in refused
        assert "not-the-secret-id" not in refused


async def test_a_new_secret_id_is_used_without_a_restart(openbao: OpenBao, tmp_path: Path) -> None:
    role = Role(openbao, tmp_path)
    right = role.secret_id
    role.file.write_text("wrong")
    async with open_keys() as keys:
        assert "login refused" in await say(keys, role.ref())
        role.file.write_text(right)
        with trio.fail_after(15):
            while await say(keys, role.ref()) != "tiger":
                await trio.sleep(0.3)


async def test_a_token_file_that_changes(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.put("login/x", {"key": "tiger"})
    file = tmp_path / "token"
    file.write_text(openbao.token_for(RULES) + "\n")
    file.chmod(0o600)
    ref = read_key(
        {
            "vault_mount": "secret",
            "vault_path": "login/x",
            "vault_address": openbao.address,
            "vault_token": {"file": str(file)},
        }
    )
    async with open_keys() as keys:
        source: Any = VaultSource(keys.fetch)
        assert (await source.read(ref)).reveal() == b"tiger"
        old = file.read_text().strip()
        file.write_text(openbao.token_for(RULES) + "\n")
        openbao.api("POST", "auth/token/revoke", {"token": old})
        assert (await source.read(ref)).reveal() == b"tiger"


@pytest.mark.parametrize("periodic", [True, False])
async def test_a_given_token_is_renewed_as_long_as_it_may(
    periodic: bool, openbao: OpenBao, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    openbao.put("login/x", {"key": "tiger"})
    rules = RULES + 'path "auth/token/lookup-self" { capabilities = ["read"] }'
    rules += 'path "auth/token/renew-self" { capabilities = ["update"] }'
    life = {"period": "3s"} if periodic else {"ttl": "3s", "explicit_max_ttl": "3s"}
    ref = read_key(
        {
            "vault_mount": "secret",
            "vault_path": "login/x",
            "vault_address": openbao.address,
            "vault_token": openbao.token_for(rules, **life),
            "ttl": 1,
        }
    )
    async with open_keys() as keys:
        assert await say(keys, ref) == "tiger"
        await trio.sleep(6)
        assert await say(keys, ref) == "tiger"
        assert (keys.statistics().failures == 0) is periodic
    assert ("is not renewed and ends in" in caplog.text) is not periodic


async def test_a_pinned_version(openbao: OpenBao) -> None:
    for value in ("one", "two", "three"):
        openbao.put("login/pinned", {"key": value})
    openbao.api("POST", "secret/delete/login/pinned", {"versions": [2]})
    base = {"vault_mount": "secret", "vault_path": "login/pinned", "vault_address": openbao.address}
    base["vault_token"] = openbao.token
    source: Any = VaultSource()
    assert (await source.read(read_key(base))).reveal() == b"three"
    assert (await source.read(read_key({**base, "vault_version": 1}))).reveal() == b"one"
    with pytest.raises(SourceFailure, match=r"version 2 is deleted \(404") as caught:
        await source.read(read_key({**base, "vault_version": 2}))
    assert caught.value.definite


async def test_frozen_thawed_killed_sealed(tmp_path: Path) -> None:
    """With a value at hand nothing fails; without one the reason says which of these it is."""
    with run_openbao(tmp_path) as bao:
        role = Role(bao, tmp_path, token_ttl="1h")
        bao.put("login/cold", {"key": "cold"})
        async with open_keys() as keys:
            warm, cold = role.ref(), role.ref("login/cold")
            assert await say(keys, warm) == "tiger"
            bao.freeze()
            try:
                assert "no answer" in await say(keys, cold)
                assert await say(keys, warm) == "tiger"
            finally:
                bao.thaw()
            with trio.fail_after(20):
                while await say(keys, cold) != "cold":
                    await trio.sleep(0.2)
            bao.seal()
            assert await say(keys, warm) == "tiger"
            assert "Vault is sealed (503 at" in await say(keys, role.ref("login/never"))
            bao.kill()
            assert await say(keys, warm) == "tiger"
            assert "Connection refused" in await say(keys, role.ref("login/never-2"))


# One that counts


class Counting:
    """Logins and reads of a server made of functions."""

    def __init__(self) -> None:
        self.logins: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.namespaces: set[str | None] = set()
        self.login: Callable[[], tuple[int, Any]] = lambda: (
            200,
            {"auth": {"client_token": f"t{len(self.logins)}", "lease_duration": 3600, "renewable": True}},
        )
        self.read: Callable[[str], tuple[int, Any]] = lambda token: (
            200,
            {"data": {"data": {"key": "tiger"}}},
        )


@contextmanager
def counting() -> Iterator[tuple[str, Counting]]:
    seen = Counting()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, body: Any) -> None:
            octets = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        def do_GET(self) -> None:
            seen.paths.append(self.path)
            self.answer(*seen.read(self.headers["X-Vault-Token"]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.paths.append(self.path)
            seen.namespaces.add(self.headers["X-Vault-Namespace"])
            seen.logins.append(body)
            assert "X-Vault-Token" not in self.headers
            self.answer(*seen.login())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubernetes(address: str, jwt: Path, path: str = "x", **auth: Any) -> Any:
    return read_key(
        {
            "vault_mount": "secret",
            "vault_path": path,
            "vault_address": address,
            "vault_namespace": "team",
            "kv_version": 2,
            "vault_auth": {"method": "kubernetes", "role": "mail", "jwt": str(jwt), **auth},
        }
    )


@pytest.fixture
def jwt(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("e30.e30.c2ln")
    path.chmod(0o600)
    return path


async def test_kubernetes_and_jwt_show_the_token_of_the_file(jwt: Path) -> None:
    with counting() as (address, seen):
        async with open_keys() as keys:
            await keys.fetch(kubernetes(address, jwt))
            await keys.fetch(kubernetes(address, jwt, method="jwt", mount="oidc/a"))
    assert seen.logins == [{"role": "mail", "jwt": "e30.e30.c2ln"}] * 2
    assert [path for path in seen.paths if "login" in path] == [
        "/v1/auth/kubernetes/login",
        "/v1/auth/oidc/a/login",
    ]
    assert seen.namespaces == {"team"}


async def test_100_secrets_of_one_login_are_one_login(jwt: Path) -> None:
    with counting() as (address, seen):
        async with open_keys() as keys, trio.open_nursery() as nursery:
            for i in range(1000):
                nursery.start_soon(keys.fetch, kubernetes(address, jwt, f"p{i % 100}"))
    assert len(seen.logins) == 1
    assert len(seen.paths) == 101


@pytest.mark.parametrize("status", [400, 403, 500, 503])
async def test_a_login_that_fails_does_not_spin(status: int, jwt: Path) -> None:
    with counting() as (address, seen):
        seen.login = lambda: (status, {"errors": ["e30.e30.c2ln"]})
        async with open_keys() as keys:
            source = VaultSource(keys.fetch)
            reasons = set()
            for i in range(50):
                with pytest.raises(SourceFailure) as caught:
                    await source.read(kubernetes(address, jwt, f"p{i}"))
                reasons.add(caught.value.reason)
                assert caught.value.denied is (status < 500)
                assert "e30" not in everything(caught.value)
    assert len(reasons) == 1 and len(seen.logins) == 1
    assert f"({status} at /v1/auth/kubernetes/login)" in reasons.pop()


async def test_a_policy_that_forbids_does_not_log_in_for_each_read(jwt: Path) -> None:
    with counting() as (address, seen):
        seen.read = lambda token: (403, {})
        async with open_keys() as keys:
            source = VaultSource(keys.fetch)
            for i in range(50):
                with pytest.raises(SourceFailure, match="permission denied"):
                    await source.read(kubernetes(address, jwt, f"p{i}"))
    assert len(seen.logins) == 2


@pytest.mark.parametrize(
    "answer", [{}, {"auth": None}, {"auth": {"client_token": 7}}, {"auth": {"client_token": "a\nb"}}, []]
)
async def test_an_answer_that_is_no_login(answer: Any, jwt: Path) -> None:
    with counting() as (address, seen):
        seen.login = lambda: (200, answer)
        async with open_keys() as keys:
            with pytest.raises(SourceFailure, match="the answer is not what"):
                await VaultSource(keys.fetch).read(kubernetes(address, jwt))


async def test_a_missing_part_of_the_login_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with counting() as (address, seen), caplog.at_level(logging.DEBUG):
        async with open_keys() as keys:
            with pytest.raises(SecretUnavailable, match=r"jwt: file:.*: No such file"):
                await keys.fetch(kubernetes(address, tmp_path / "none"))
    assert not seen.logins


@pytest.mark.parametrize("life", [0.001, -1])
async def test_a_life_too_short_to_be_renewed_in_time_does_not_spin(life: float, jwt: Path) -> None:
    with counting() as (address, seen):
        seen.login = lambda: (200, {"auth": {"client_token": "t", "lease_duration": life}})
        async with open_keys() as keys:
            await keys.fetch(kubernetes(address, jwt))
            await trio.sleep(0.5)
    assert len(seen.logins) == 1


async def test_a_fault_of_a_renewal_ends_nothing_but_that(
    jwt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        tried.append(None)
        raise RuntimeError("e30.e30.c2ln")

    tried: list[None] = []
    with counting() as (address, seen):
        seen.login = lambda: (
            200,
            {"auth": {"client_token": "t", "lease_duration": 1.2, "renewable": True}},
        )
        async with open_keys() as keys:
            await keys.fetch(kubernetes(address, jwt))
            monkeypatch.setattr(vaultlogin, "_grant", broken)
            with trio.fail_after(5):
                while not tried:
                    await trio.sleep(0.05)
            await trio.sleep(0.2)
            assert (await keys.fetch(kubernetes(address, jwt))).secret.reveal() == b"tiger"
    assert "is not renewed" in caplog.text and "internal error (RuntimeError)" in caplog.text
    assert "e30" not in caplog.text


def test_secrets_of_a_login_are_not_shown() -> None:
    ref = read_key(
        {
            "vault_mount": "s",
            "vault_path": "p",
            "vault_auth": {
                "method": "approle",
                "role_id": {"key_data": "c4n4ry-1"},
                "secret_id": {"key_data": "c4n4ry-2"},
            },
        }
    )
    assert "c4n4ry" not in repr(ref) + ref.name
