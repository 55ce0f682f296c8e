"""The secret managers of AWS, Google and Azure: the real SDKs, against their HTTP API on loopback."""

from __future__ import annotations

import importlib.util
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engine.errors import SecretUnavailable
from engine.keys import key_sources, missing_sdk, open_keys
from engine.keys.aws import AwsSource
from engine.keys.azure import AzureSource
from engine.keys.cloud import CloudSource
from engine.keys.google import GoogleSource
from engine.keys.source import SourceFailure
from policy.keysource import AwsKey, read_key
from policy.secret import Secret
from tests.contract.key_source import CANARY, ChangingKeySourceContract, Subject, everything
from tests.support.canary import logged
from tests.support.cloud import Aws, Azure, Cloud, Google, need_sdk

SOURCES: dict[type[Cloud], type[CloudSource]] = {Aws: AwsSource, Google: GoogleSource, Azure: AzureSource}


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Also not by the SDKs, which at their debug level show whole answers."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert "c4n4ry" not in logged(caplog)


@pytest.fixture(params=SOURCES, ids=lambda kind: kind.__name__.lower())
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    need_sdk(request.param.module, request.param.extra)
    made: Cloud = request.param(tmp_path, monkeypatch)
    made.value = CANARY
    with made.run():
        yield made


def source_of(cloud: Cloud, **options: Any) -> CloudSource:
    return SOURCES[type(cloud)](**options)


class TestContract(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, cloud: Cloud) -> Subject:
        async def put(value: str | None) -> None:
            cloud.value = value

        return Subject(source_of(cloud), read_key(cloud.form()), put)


async def reason(cloud: Cloud, source: CloudSource | None = None, **more: Any) -> SourceFailure:
    with pytest.raises(SourceFailure) as caught:
        await (source or source_of(cloud)).read(read_key(cloud.form(**more)))
    assert "c4n4ry" not in everything(caught.value)
    return caught.value


LEAK = {"error": {"code": "c4n4ry x", "message": "c4n4ry", "status": "c4n4ry x"}, "__type": "c4n4ry x"}


@pytest.mark.parametrize(
    ("status", "says", "denied"),
    [
        (401, "permission denied (401", True),
        (403, "permission denied (403", True),
        (429, "rate limit is reached (429", False),
        (500, "the service failed (500", False),
        (503, "the service failed (503", False),
    ],
)
async def test_refusals_by_status(status: int, says: str, denied: bool, cloud: Cloud) -> None:
    cloud.answer = (status, LEAK, {"Retry-After": "7"})
    failure = await reason(cloud)
    assert says in failure.reason and (failure.denied, failure.definite) == (denied, False)
    if status == 429 and not isinstance(cloud, Aws):  # the API of AWS has no such header
        assert failure.retry_after == 7


@pytest.mark.parametrize("content", [b"", b"c4n4ry", b"[1]", b'{"x": 1}', b'{"value": null}'])
async def test_an_answer_that_is_none(content: bytes, cloud: Cloud) -> None:
    cloud.answer = (200, content, {})
    failure = await reason(cloud)
    assert not failure.denied


async def test_nobody_listens(cloud: Cloud) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        cloud.port = closed.getsockname()[1]
        assert "cannot be reached" in (await reason(cloud)).reason


async def test_a_service_that_hangs_is_waited_for_in_bounded_time(cloud: Cloud) -> None:
    source = source_of(cloud, seconds=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CloudSource, "_attempt", lambda self, ref, client: cloud.hang.wait(10))
        start = time.monotonic()
        assert (await reason(cloud, source)).reason == "no answer in 0.5 s"
        assert time.monotonic() - start < 3
        cloud.hang.set()


async def test_one_login_and_one_client_serve_many_reads(cloud: Cloud) -> None:
    source = source_of(cloud)
    for _ in range(3):
        await source.read(read_key(cloud.form()))
    assert len(source._clients) == 1
    assert len([one for one in cloud.asked if "token" in one]) <= 1


async def test_a_version(cloud: Cloud) -> None:
    """It is asked for; the one secret here has none of that name."""
    option = {Aws: "aws_version", Google: "google_version", Azure: "azure_version"}[type(cloud)]
    source = source_of(cloud)
    if isinstance(cloud, Aws):
        await source.read(read_key(cloud.form(aws_version="AWSPREVIOUS")))
        await source.read(read_key(cloud.form(aws_version="a" * 32)))
        assert '"VersionStage": "AWSPREVIOUS"' in cloud.asked[0]
        assert '"VersionId": "aaaa' in cloud.asked[1]
        return
    assert (await reason(cloud, source, **{option: "3"})).definite
    assert any("/3" in one for one in cloud.asked)


async def test_the_ring_reads_them(cloud: Cloud) -> None:
    async with open_keys() as keys:
        ref = read_key(cloud.form(ttl="1 minute"))
        assert (await keys.fetch(ref)).secret == Secret(CANARY)
        cloud.answer = (503, {}, {})
        assert (await keys.fetch(ref, fresh=True)).secret == Secret(CANARY)
        cold = read_key(cloud.form(ttl="2 minutes"))
        with pytest.raises(SecretUnavailable, match=r"the service failed \(503"):
            await keys.fetch(cold)


@pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.__name__.lower())
async def test_an_sdk_that_is_not_installed(
    kind: type[Cloud], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("boto3.session", "google.cloud.secretmanager", "azure.keyvault.secrets", "azure.identity"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SourceFailure) as caught:
        await SOURCES[kind]().read(read_key(kind(tmp_path, monkeypatch).form()))
    assert f'pip install "posthorn[{kind.extra}]"' in caught.value.reason
    assert not caught.value.definite


@pytest.mark.parametrize(("kind", "name"), [(Aws, "botocore"), (Google, "google"), (Azure, "azure.identity")])
def test_an_sdk_that_is_not_installed_is_known_without_reading(
    kind: type[Cloud], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_sdk(kind.module, kind.extra)
    ref = read_key(kind(tmp_path, monkeypatch).form())
    assert missing_sdk(ref) == ""
    find = importlib.util.find_spec

    def without(wanted: str, package: str | None = None) -> Any:
        if wanted == name:
            return None
        if wanted.startswith(f"{name}."):
            raise ModuleNotFoundError(name)
        return find(wanted, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert f'pip install "posthorn[{kind.extra}]"' in missing_sdk(ref)


# AWS


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    need_sdk(Aws.module, Aws.extra)
    made = Aws(tmp_path, monkeypatch)
    with made.run():
        yield made


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"password": "tiger", "user": "scott"}', ""),
        ('{"user": "c4n4ry"}', 'the secret has no field "password"'),
        ('{"password": 1}', 'the field "password" is not text'),
        ('{"password": ""}', "the value is empty"),
        ("c4n4ry", "no JSON object"),
        ("[" * 10_000, "no JSON object"),
    ],
)
async def test_a_field_of_a_json_object(value: str, says: str, aws: Aws) -> None:
    aws.value = value
    if not says:
        assert await AwsSource().read(read_key(aws.form(aws_key="password"))) == Secret("tiger")
        return
    failure = await reason(aws, aws_key="password")
    assert says in failure.reason and failure.definite


@pytest.mark.parametrize(
    ("kind", "says", "definite", "denied"),
    [
        ("AccessDeniedException", "permission denied (403 AccessDeniedException)", False, True),
        ("ExpiredTokenException", "permission denied", False, True),
        ("ThrottlingException", "rate limit is reached (429 ThrottlingException)", False, False),
        ("DecryptionFailure", "refused (400 DecryptionFailure)", False, False),
        ("InternalServiceError", "refused (400 InternalServiceError)", False, False),
        ("InvalidRequestException", "no such secret", True, False),
    ],
)
async def test_what_aws_says(kind: str, says: str, definite: bool, denied: bool, aws: Aws) -> None:
    message = "c4n4ry because it was marked for deletion."
    aws.answer = (400, {"__type": kind, "message": message}, {})
    failure = await reason(aws)
    assert says in failure.reason and (failure.definite, failure.denied) == (definite, denied)


async def test_binary_values(aws: Aws) -> None:
    aws.answer = (200, {"SecretBinary": "AP8="}, {})
    assert (await AwsSource().read(read_key(aws.form()))).reveal() == b"\x00\xff"


async def test_a_wrong_login_is_refused(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "InvalidSignatureException" in (await reason(aws)).reason


async def test_no_login_and_no_region(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = await reason(aws, aws_region=None)
    assert "no region" in failure.reason
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials" in (await reason(aws)).reason


async def test_clear_text_goes_to_this_machine_only(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the endpoint comes from."""
    assert "plain http" in (await reason(aws, aws_endpoint="http://192.0.2.1")).reason
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://192.0.2.1")
    assert "plain http to 192.0.2.1" in (await reason(aws, aws_endpoint=None)).reason


# Google


async def test_a_google_version_that_is_disabled_or_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_sdk(Google.module, Google.extra)
    cloud = Google(tmp_path, monkeypatch)
    said = {"error": {"code": 400, "message": "c4n4ry", "status": "FAILED_PRECONDITION"}}
    with cloud.run():
        cloud.answer = (400, said, {})
        assert (await reason(cloud)).definite
        assert "plain http" in (await reason(cloud, google_endpoint="http://192.0.2.1")).reason


async def test_no_google_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_sdk(Google.module, Google.extra)
    cloud = Google(tmp_path, monkeypatch)
    with cloud.run():
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none")
        assert "no credentials" in (await reason(cloud)).reason


async def test_a_server_that_hangs_takes_few_threads_and_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of secrets of one region are wanted while it is frozen; another region still answers."""
    frozen = threading.Event()
    stuck: set[int] = set()

    def ask(self: AwsSource, ref: AwsKey, client: Any) -> Secret:
        if ref.region == "eu-west-1":
            stuck.add(threading.get_ident())
            frozen.wait(30)
        return Secret("tiger")

    monkeypatch.setattr(AwsSource, "make", lambda self, ref: object())
    monkeypatch.setattr(AwsSource, "ask", ask)
    source = AwsSource(seconds=1.0)
    failures: list[str] = []

    async def want(number: int) -> None:
        with pytest.raises(SourceFailure) as caught:
            await source.read(AwsKey(f"relay{number}", region="eu-west-1"))
        failures.append(caught.value.reason)

    start = time.monotonic()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(want, number)
            await trio.testing.wait_all_tasks_blocked()
            assert await source.read(AwsKey("relay", region="us-east-1")) == Secret("tiger")
            assert not failures
    finally:
        frozen.set()
    assert failures == ["no answer in 1 s"] * 300 and time.monotonic() - start < 5
    assert len(stuck) <= 4


async def test_a_client_that_cannot_be_made_is_not_tried_for_each_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[AwsKey] = []

    def make(self: AwsSource, ref: AwsKey) -> Any:
        made.append(ref)
        raise RuntimeError("c4n4ry")

    monkeypatch.setattr(AwsSource, "make", make)
    source = AwsSource()
    for number in range(20):
        with pytest.raises(SourceFailure, match=r"the SDK failed \(RuntimeError\)"):
            await source.read(AwsKey(f"relay{number}"))
    assert len(made) == 1


async def test_the_sdk_does_not_try_again_by_itself(cloud: Cloud) -> None:
    """The ring does, with its own pauses."""
    for status in (429, 500, 503):
        cloud.answer = (status, {}, {})
        source = source_of(cloud)
        await reason(cloud, source)
        before = [one for one in cloud.asked if "token" not in one]
        await reason(cloud, source)
        assert len([one for one in cloud.asked if "token" not in one]) == len(before) + 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose login fails is replaced without a pause."""
    monkeypatch.setattr("engine.keys.cloud._LOGIN_PAUSE", 0.0)
    monkeypatch.setattr("engine.keys.cloud._MAKING_PAUSE", 0.0)


# AWS: the login


async def test_a_login_that_comes_later_or_changes_is_noticed(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    """The SDK looks for one when a client is made, and remembers also that there is none."""
    aws.value = "tiger"
    source = AwsSource()
    ref = read_key(aws.form())
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert not (await reason(aws, source)).denied
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert (await reason(aws, source)).denied
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws.key)
    assert await source.read(ref) == Secret("tiger")


async def test_a_client_whose_login_is_refused_is_not_replaced_all_the_time(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.answer = (400, {"__type": "AccessDeniedException"}, {})
    made: list[Any] = []
    make = AwsSource.make
    monkeypatch.setattr(AwsSource, "make", lambda self, ref: made.append(make(self, ref)) or made[-1])
    source = AwsSource()
    for _ in range(3):
        await reason(aws, source)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("status", "kind", "says", "denied"),
    [
        (403, "AccessDenied", "permission denied (403 AccessDenied)", True),
        (400, "InvalidIdentityToken", "permission denied (403 InvalidIdentityToken)", True),
        (400, "ResourceNotFoundException", "refused (400 ResourceNotFoundException)", False),
        (500, "InternalError", "the service failed (500 InternalError)", False),
    ],
)
async def test_a_login_by_web_identity(
    status: int, kind: str, says: str, denied: bool, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client has our limits, and asks once. What it says is never about the secret."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    token = aws.directory / "web.secret"
    token.write_text("c4n4ry-web-identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/posthorn")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{aws.port}")
    said = f"<ErrorResponse><Error><Code>{kind}</Code><Message>c4n4ry</Message></Error></ErrorResponse>"
    aws.answer = (status, said.encode(), {"Content-Type": "text/xml"})
    failure = await reason(aws)
    assert failure.reason == says and (failure.denied, failure.definite) == (denied, False)
    assert len(aws.asked) == 1


def test_the_login_in_the_environment_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Secret] = {}
    sources = [one for one in key_sources(watch=lambda _, name, secret: seen.update({name: secret})).values()]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "c4n4ry-aws-key")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "c4n4ry-azure-secret")

    async def read_all() -> None:
        for source in sources:
            if isinstance(source, CloudSource):
                with pytest.raises(SourceFailure), pytest.MonkeyPatch.context() as patch:
                    patch.setattr(type(source), "make", lambda self, ref: 1 / 0)
                    patch.setattr(type(source), "server", lambda self, ref: "")
                    await source.read(None)

    trio.run(read_all)
    assert seen["env:AWS_SECRET_ACCESS_KEY"] == Secret("c4n4ry-aws-key")
    assert seen["env:AZURE_CLIENT_SECRET"] == Secret("c4n4ry-azure-secret")


# Google and Azure: the login


def test_a_google_login_that_is_out_is_not_refused() -> None:
    need_sdk(Google.module, Google.extra)
    auth = pytest.importorskip("google.auth.exceptions")

    def raised(error: Exception, cause: Exception | None = None) -> SourceFailure:
        error.__cause__ = cause
        return GoogleSource().judge(error)

    assert raised(auth.RefreshError("c4n4ry")).denied
    assert not raised(auth.RefreshError("c4n4ry", retryable=True)).denied
    out = raised(auth.RefreshError("c4n4ry"), auth.TransportError("c4n4ry"))  # of the metadata server
    assert not out.denied and out.reason == "the login cannot be reached"


async def test_the_google_sdk_is_quiet_even_if_the_environment_wants_it_to_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """GOOGLE_SDK_PYTHON_LOGGING_SCOPE: requests and answers go to standard error by a handler of its own."""
    need_sdk(Google.module, Google.extra)
    from google.api_core.client_logging import setup_logging

    cloud = Google(tmp_path, monkeypatch)
    cloud.value = CANARY
    with cloud.run():
        source = GoogleSource()
        make = GoogleSource.make

        def talking(self: GoogleSource, ref: Any) -> Any:
            setup_logging("google.cloud.secretmanager_v1")  # as the import does, which was before
            return make(self, ref)

        monkeypatch.setattr(GoogleSource, "make", talking)
        assert await source.read(read_key(cloud.form())) == Secret(CANARY)
    assert "AccessSecretVersion" not in capfd.readouterr().err


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    need_sdk(Azure.module, Azure.extra)
    made = Azure(tmp_path, monkeypatch)
    with made.run():
        yield made


async def test_an_azure_login_that_is_out_is_not_refused(
    azure: Azure, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    """The chain of logins says both alike; mail must not be held for an outage where a refusal holds it."""
    azure.value = CANARY
    source = AzureSource()
    for status in (500, 503, 429):
        azure.token_answer = (status, {"statusCode": status, "message": "c4n4ry"}, {})
        assert not (await reason(azure, source)).denied
    azure.token_answer = None
    assert await source.read(read_key(azure.form())) == Secret(CANARY)


@pytest.mark.parametrize(("status", "denied"), [(400, True), (401, True), (500, False), (None, False)])
async def test_what_an_azure_login_says(
    status: int | None,
    denied: bool,
    azure: Azure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service principal, whose answers come from far away."""
    import azure.core.exceptions as errors  # type: ignore[import-untyped]
    import azure.identity as identity  # type: ignore[import-untyped]

    def refused(*_: Any, **__: Any) -> Any:
        if status is None:
            raise errors.ServiceRequestError("c4n4ry")
        response = type("Response", (), {"status_code": status, "reason": "c4n4ry", "headers": {}})()
        raise errors.ClientAuthenticationError("c4n4ry", response=response)

    for name, value in {"TENANT_ID": "t", "CLIENT_ID": "c", "CLIENT_SECRET": "c4n4ry-azure-secret"}.items():
        monkeypatch.setenv(f"AZURE_{name}", value)
    monkeypatch.setattr(identity.ClientSecretCredential, "get_token", refused)
    monkeypatch.setattr(identity.ClientSecretCredential, "get_token_info", refused)
    failure = await reason(azure)
    assert failure.denied == denied and "login" in failure.reason
    # The chain warns with all texts in it.
    assert not [record for record in caplog.records if record.name.startswith("azure")]
