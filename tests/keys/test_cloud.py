"""The secret managers of AWS, Google and Azure: the real SDKs, against their HTTP API on loopback."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SecretUnavailable
from engine.keys import key_sources, open_keys
from engine.keys.aws import AwsSource
from engine.keys.azure import AzureSource
from engine.keys.cloud import CloudSource
from engine.keys.google import GoogleSource
from engine.keys.source import SourceFailure
from policy.keysource import AwsKey, read_key
from policy.secret import Secret
from tests.contract.key_source import CANARY, KeySourceContract, Subject, everything
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


class TestContract(KeySourceContract):
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
        patch.setattr(CloudSource, "_attempt", lambda self, ref: cloud.hang.wait(10))
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


def test_each_has_its_threads() -> None:
    limiters = {id(source._limiter) for source in key_sources().values() if isinstance(source, CloudSource)}
    assert len(limiters) == 3 and AwsKey in key_sources()
