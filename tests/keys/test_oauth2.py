"""engine/keys/oauth2.py: access tokens, against an endpoint that does what the test says."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.errors import SecretUnavailable
from engine.keys import Credential, Dated, KeyRing, KeySource, open_keys
from engine.keys.oauth2 import OAuth2Source
from engine.keys.source import SourceFailure
from policy.keysource import KeyRef, OAuth2Key, read_key
from policy.secret import Secret
from tests.contract.key_source import CANARY, KeySourceContract, Subject, everything
from tests.support.canary import logged
from tests.support.certificates import Authority
from tests.support.tokens import TokenEndpoint, run_endpoint

CLIENT_SECRET = "c4n4ry client+secret/ü"
REFRESH = "c4n4ry-refresh-1"


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    assert "c4n4ry" not in logged(caplog)


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with run_endpoint(None) as running:
        yield running


def key(endpoint: TokenEndpoint, **options: Any) -> OAuth2Key:
    options.setdefault("client_secret", {"key_data": CLIENT_SECRET})
    made = read_key({"token_endpoint": endpoint.url, "client_id": "post:horn", **options})
    assert isinstance(made, OAuth2Key)
    return made


async def token(ring: KeyRing, ref: OAuth2Key) -> str:
    return (await ring.fetch(ref)).secret.reveal().decode()


class _Bare:
    """The source as the contract wants it: a secret without its dates."""

    fresh_for: float | None = None

    def __init__(self, source: KeySource) -> None:
        self._source = source

    async def read(self, ref: OAuth2Key) -> Secret:
        found = await self._source.read(ref)
        assert isinstance(found, Dated)
        return found.secret


class TestContract(KeySourceContract):
    @pytest.fixture
    def subject(self, endpoint: TokenEndpoint) -> Subject:
        async def fetch(ref: KeyRef) -> Credential:
            return Credential(Secret(CLIENT_SECRET), "1", 0.0)

        endpoint.answer = lambda asked, number: (200, {"access_token": CANARY}, {})
        return Subject(_Bare(OAuth2Source(fetch)), key(endpoint))


@pytest.fixture
async def keys() -> Any:
    async with open_keys() as ring:
        yield ring


async def test_a_client_asks_with_its_own_credentials(endpoint: TokenEndpoint, keys: KeyRing) -> None:
    assert await token(keys, key(endpoint, scope="smtp.send mail")) == "c4n4ry-token-1"
    (asked,) = endpoint.asked
    assert asked.form == {"grant_type": "client_credentials", "scope": "smtp.send mail"}
    kind, _, coded = asked.authorization.partition(" ")
    # RFC 6749 2.3.1: both parts are form-encoded first.
    assert kind == "Basic"
    assert base64.b64decode(coded) == b"post%3Ahorn:c4n4ry+client%2Bsecret%2F%C3%BC"


async def test_a_refresh_token_and_no_client_secret(endpoint: TokenEndpoint, keys: KeyRing) -> None:
    ref = key(endpoint, client_secret=None, refresh_token={"key_data": REFRESH})
    assert await token(keys, ref) == "c4n4ry-token-1"
    (asked,) = endpoint.asked
    assert asked.form == {"grant_type": "refresh_token", "refresh_token": REFRESH, "client_id": "post:horn"}
    assert asked.authorization == ""


async def test_many_who_want_it_ask_once(endpoint: TokenEndpoint, keys: KeyRing) -> None:
    ref = key(endpoint)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(keys.fetch, ref)
    assert len(endpoint.asked) == 1


@pytest.mark.plants("refresh")
async def test_a_rotated_refresh_token_is_used_until_the_configured_one_changes(
    endpoint: TokenEndpoint, tmp_path: Path
) -> None:
    endpoint.answer = lambda asked, number: (
        200,
        {"access_token": f"c4n4ry-{number}", "refresh_token": f"c4n4ry-refresh-{number + 1}"},
        {},
    )
    file = tmp_path / "refresh"
    file.write_text(REFRESH)
    file.chmod(0o600)
    ref = key(endpoint, refresh_token=str(file))
    async with open_keys() as ring:
        source = OAuth2Source(ring.fetch)
        for _ in range(3):
            await source.read(ref)
        assert [asked.form["refresh_token"] for asked in endpoint.asked] == [
            "c4n4ry-refresh-1",
            "c4n4ry-refresh-2",
            "c4n4ry-refresh-3",
        ]
        replacement = tmp_path / "new"
        replacement.write_text("c4n4ry-of-the-operator")
        replacement.chmod(0o600)
        replacement.rename(file)
        with trio.fail_after(10):
            while endpoint.asked[-1].form["refresh_token"] != "c4n4ry-of-the-operator":
                await trio.sleep(0.3)
                await source.read(ref)


async def test_a_token_is_refreshed_before_it_expires_and_used_until_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Source:
        fresh_for: float | None = None
        reads = 0
        down = False

        async def read(self, ref: OAuth2Key) -> Dated:
            self.reads += 1
            await trio.sleep(0.01)
            if self.down:
                raise SourceFailure("the endpoint is down")
            return Dated(Secret(f"token-{self.reads}"), 75.0, 90.0)

    source = Source()
    ref = read_key({"token_endpoint": "https://h.example/t", "client_id": "c", "client_secret": "/x"})
    async with open_keys(sources={OAuth2Key: source}) as ring:
        assert (await ring.fetch(ref)).secret == Secret("token-1")
        await trio.sleep(70)
        assert (await ring.fetch(ref)).secret == Secret("token-1") and source.reads == 1
        await trio.sleep(10)
        assert (await ring.fetch(ref)).secret == Secret("token-1"), "used while it is read again"
        await trio.sleep(1)
        assert (await ring.fetch(ref)).secret == Secret("token-2")
        source.down = True
        await trio.sleep(80)
        assert (await ring.fetch(ref)).secret == Secret("token-2"), "an outage changes nothing yet"
        await trio.sleep(15)
        assert ring.cached(ref) is None
        with pytest.raises(SecretUnavailable, match="the endpoint is down; the last value is"):
            await ring.fetch(ref)
        source.down = False
        await trio.sleep(60)
        assert (await ring.fetch(ref)).secret.reveal().startswith(b"token-")


@pytest.mark.parametrize(
    ("said", "fresh", "lasts"),
    [
        ({"expires_in": 3600}, 2700, 3590),
        ({"expires_in": "3600"}, 2700, 3590),
        ({}, 225, 290),
        ({"expires_in": 5}, 1, 1),
        ({"expires_in": -1}, 225, 290),
        ({"expires_in": "soon"}, 225, 290),
        ({"expires_in": 1e300}, 0.75 * 30 * 86400, 30 * 86400 - 10),
    ],
)
async def test_how_long_a_token_lasts(
    said: dict[str, Any], fresh: float, lasts: float, endpoint: TokenEndpoint, keys: KeyRing
) -> None:
    endpoint.answer = lambda asked, number: (200, {"access_token": "c4n4ry", **said}, {})
    found = await OAuth2Source(keys.fetch).read(key(endpoint))
    assert (found.fresh_for, found.lasts) == (fresh, lasts)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"error": "invalid_grant", "error_description": "c4n4ry"}, "(400): the refresh token is wrong"),
        (401, {"error": "invalid_client"}, "(401): client_id or client_secret is wrong"),
        (400, {"error": "c4n4ry"}, "(400): refused"),
        (400, b"c4n4ry", "(400): refused"),
        (429, {}, "(429): its rate limit is reached"),
        (503, {}, "(503): failed"),
        (307, {}, "redirects (307); not followed"),
        (200, b"c4n4ry", "not what a token endpoint says"),
        (200, {}, "holds no access token"),
        (200, {"access_token": "c4n4ry with\nlines"}, "holds no access token"),
        (200, {"access_token": "c4n4ry", "token_type": "mac"}, "is no bearer token"),
        (200, {"access_token": 5}, "not what a token endpoint says"),
        (200, b'{"access_token": "' + b"c4n4ry" * 100_000 + b'"}', "is larger than"),
        (200, b"[" * 100_000, "not what a token endpoint says"),
    ],
)
async def test_answers_that_give_no_token(
    status: int, body: Any, reason: str, endpoint: TokenEndpoint, keys: KeyRing
) -> None:
    headers = {"Location": "http://127.0.0.1:1/"} if status == 307 else {"Retry-After": "7"}
    endpoint.answer = lambda asked, number: (status, body, headers)
    with pytest.raises(SourceFailure) as caught:
        await OAuth2Source(keys.fetch).read(key(endpoint))
    assert reason in caught.value.reason
    assert not caught.value.definite and "c4n4ry" not in everything(caught.value)
    assert caught.value.retry_after == (7.0 if status in (400, 401, 429, 503) else 0.0)
    assert len(endpoint.asked) == 1


async def test_tls_is_verified(tmp_path: Path, keys: KeyRing) -> None:
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    with run_endpoint(authority.server_context()) as endpoint:
        source = OAuth2Source(keys.fetch)
        assert await source.read(key(endpoint, ca=str(ca)))
        with pytest.raises(SourceFailure, match=r"TLS to 127.0.0.1:.* failed: "):
            await source.read(key(endpoint))
        with pytest.raises(SourceFailure, match=r"cannot use the CA file .*: No such file"):
            await source.read(key(endpoint, ca=str(tmp_path / "none.pem")))
        os.mkfifo(tmp_path / "fifo.pem")
        with (
            trio.fail_after(5),
            pytest.raises(SourceFailure, match=r"cannot use the CA file .*: it is a FIFO"),
        ):
            await source.read(key(endpoint, ca=str(tmp_path / "fifo.pem")))
        assert len(endpoint.asked) == 1
    with run_endpoint(authority.server_context("elsewhere.example")) as endpoint:
        with pytest.raises(SourceFailure, match=r"TLS to .* failed: "):
            await OAuth2Source(keys.fetch).read(key(endpoint, ca=str(ca)))


async def test_nothing_of_the_environment_is_obeyed(
    endpoint: TokenEndpoint, keys: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await token(keys, key(endpoint)) == "c4n4ry-token-1"


async def test_clear_text_goes_to_this_machine_only(keys: KeyRing) -> None:
    ref = read_key({"token_endpoint": "http://login.example/t", "client_id": "c", "client_secret": "/x"})
    with pytest.raises(SourceFailure, match=r"plain http to login.example"):
        await OAuth2Source(keys.fetch).read(ref)  # type: ignore[arg-type]


async def test_a_secret_of_the_client_that_is_missing_says_which(
    endpoint: TokenEndpoint, keys: KeyRing
) -> None:
    with pytest.raises(SourceFailure, match=r"client_secret: env:NO_SUCH_VARIABLE: "):
        await OAuth2Source(keys.fetch).read(key(endpoint, client_secret={"env": "NO_SUCH_VARIABLE"}))


async def test_an_endpoint_that_hangs_is_given_up(keys: KeyRing) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        silent = TokenEndpoint(url=f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/token")

        async def say_nothing(stream: trio.SocketStream) -> None:
            while True:  # a little now and then, for ever
                await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                await trio.sleep(0.05)

        async def serve(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await say_nothing(stream)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        with trio.fail_after(5):
            with pytest.raises(SourceFailure, match=r"no answer from .* in time"):
                await OAuth2Source(keys.fetch, seconds=0.3).read(key(silent))
        nursery.cancel_scope.cancel()


async def test_nobody_listens(keys: KeyRing) -> None:
    with pytest.raises(SourceFailure, match=r"cannot reach 127.0.0.1:1"):
        await OAuth2Source(keys.fetch).read(key(TokenEndpoint(url="http://127.0.0.1:1/token")))


def test_references_are_told_apart_by_every_part(endpoint: TokenEndpoint) -> None:
    refs = [
        key(endpoint),
        key(endpoint, scope="1"),
        key(endpoint, client_secret={"key_data": "other"}),
        key(endpoint, client_secret="/other"),
        key(endpoint, refresh_token="/other"),
        key(endpoint, ca="/other"),
    ]
    assert len(set(refs)) == len(refs)
    assert "c4n4ry" not in repr(refs)
    assert refs[0].name == "oauth2:post:horn@127.0.0.1"
