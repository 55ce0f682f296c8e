"""Logins between programs: Cyrus SASL in Postfix, GNU SASL, smtplib, and Posthorn with itself."""

from __future__ import annotations

import base64
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.certificates import Authority
from tests.support.postfix import run_postfix
from tests.support.posthorn import Relay, relay
from tests.support.programs import need
from tests.support.rawclient import RawClient
from tests.support.tokens import Asked, run_endpoint

pytestmark = pytest.mark.whole

USER = "scott"
PASSWORD = "c4n4ry=Tiger+9/by another name"
TOKEN = "canary.Token-of~scott+1/2"
MESSAGE = b"Subject: who am I?\r\n\r\nbody\r\n"


def secret_file(directory: Path, name: str, value: str) -> str:
    file = directory / f"{name}.secret"
    file.write_text(value + "\n")
    file.chmod(0o600)
    return str(file)


def submit(running: Relay, recipient: str = "b@example.com") -> None:
    with RawClient(running.port) as client:
        assert client.deliver("a@sender.example", recipient, MESSAGE)[0] == 250


# Out: Postfix with Cyrus SASL


@pytest.mark.parametrize(
    ("offered", "allowed", "used"),
    [
        ("SCRAM-SHA-256 PLAIN LOGIN", None, "SCRAM-SHA-256"),
        ("SCRAM-SHA-1 LOGIN", None, "SCRAM-SHA-1"),
        ("CRAM-MD5 LOGIN", None, "LOGIN"),
        ("CRAM-MD5 LOGIN", ["CRAM-MD5"], "CRAM-MD5"),
    ],
)
def test_postfix_with_cyrus_sasl(offered: str, allowed: list[str] | None, used: str, tmp_path: Path) -> None:
    with run_postfix(user=USER, password=PASSWORD, mechanisms=offered) as postfix:
        login: dict[str, Any] = {"username": USER, "password": secret_file(tmp_path, "password", PASSWORD)}
        if allowed is not None:
            login["mechanisms"] = allowed
        ca = tmp_path / "ca.pem"
        ca.write_bytes(postfix.ca.read_bytes())
        path = {"enable_tls": "Required", "tls_ca": {"file": str(ca)}, "smtp_auth": login}
        with relay(tmp_path / "relay", next_hop=postfix.port, path=path, secrets=[PASSWORD]) as running:
            submit(running)
            (record,) = running.wait_records("Delivery")
            assert (record["smtp_auth_user"], record["smtp_auth_mechanism"]) == (USER, used)
            postfix.wait_for(1)
        assert f"sasl_method={used}, sasl_username={USER}@" in postfix.log


def test_postfix_that_offers_less_than_the_path_wants_holds_the_mail(tmp_path: Path) -> None:
    with run_postfix(user=USER, password=PASSWORD, mechanisms="PLAIN LOGIN") as postfix:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(postfix.ca.read_bytes())
        login = {
            "mechanisms": ["SCRAM-SHA-256", "SCRAM-SHA-1"],
            "username": USER,
            "password": secret_file(tmp_path, "password", PASSWORD),
        }
        path = {"enable_tls": "Required", "tls_ca": {"file": str(ca)}, "smtp_auth": login}
        with relay(tmp_path / "relay", next_hop=postfix.port, path=path, secrets=[PASSWORD]) as running:
            submit(running)
            (record, *_) = running.wait_records("TransientFailure")
            assert (record["cause"], record["num_attempts"]) == ("auth-not-offered", 0)
            assert "LOGIN PLAIN" in record["response"]["content"]
        assert "sasl_method" not in postfix.log and postfix.messages() == []


# In: foreign clients at our listener

HOOK = f"""\
STORED = policy.new_scram_keys({PASSWORD!r}, salt=b"sixteen octets 1", iterations=5000)


@policy.on("smtp_server_auth")
async def log_in(user, mechanism, token, conn_meta):
    if mechanism in ("OAUTHBEARER", "XOAUTH2"):
        return user == {USER!r} and token == policy.Secret({TOKEN!r})
    return {{{USER!r}: policy.Secret({PASSWORD!r}), "keys": STORED}}.get(user)
"""


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def submission(
    sink: ByteSink, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    """A relay for users who log in, by whatever mechanism."""
    directory = tmp_path_factory.mktemp("submission")
    chain, key = authority.write_pair(directory)
    options = {
        "relay_hosts": [],
        "relay_authenticated": True,
        "tls_certificate": {"file": str(chain)},
        "tls_private_key": {"file": str(key)},
        "auth_mechanisms": [
            *("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "OAUTHBEARER", "XOAUTH2"),
            *("CRAM-MD5", "PLAIN", "LOGIN"),
        ],
    }
    with relay(
        directory / "relay",
        next_hop=sink.port,
        listener=options,
        extra=HOOK,
        secrets=[PASSWORD, TOKEN],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def in_clear(sink: ByteSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """The same without TLS: what GNU SASL's command makes of STARTTLS depends on how it was built."""
    options = {
        "relay_hosts": [],
        "relay_authenticated": True,
        "allow_auth_without_tls": True,
        "auth_mechanisms": ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"],
    }
    directory = tmp_path_factory.mktemp("in-clear")
    with relay(
        directory / "relay", next_hop=sink.port, listener=options, extra=HOOK, secrets=[PASSWORD, TOKEN]
    ) as running:
        yield running


def gsasl(running: Relay, mechanism: str, user: str, password: str) -> str:
    """What GNU SASL's command says and hears."""
    result = subprocess.run(
        [
            *(need("gsasl", "gsasl"), "--smtp", "--no-starttls", "--connect", f"127.0.0.1:{running.port}"),
            *("--mechanism", mechanism, "--no-cb", "--authentication-id", user),
            *("--password", password),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"])
def test_gnu_sasl_logs_in(mechanism: str, in_clear: Relay) -> None:
    heard = gsasl(in_clear, mechanism, USER, PASSWORD)
    assert "235 2.7.0" in heard, heard
    heard = gsasl(in_clear, mechanism, USER, "wrong")
    assert "235 2.7.0" not in heard and "535 5.7.8" in heard, heard


def test_gnu_sasl_logs_in_against_stored_keys(in_clear: Relay) -> None:
    heard = gsasl(in_clear, "SCRAM-SHA-256", "keys", PASSWORD)
    assert "235 2.7.0" in heard, heard


def test_smtplib_takes_cram_md5(submission: Relay, authority: Authority, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority.write(tmp_path / "ca.pem")))
    with smtplib.SMTP("127.0.0.1", submission.port, timeout=30) as client:
        client.starttls(context=context)
        client.ehlo()
        client.user, client.password = USER, PASSWORD
        code, _ = client.auth("CRAM-MD5", client.auth_cram_md5)
        assert code == 235


# Posthorn with itself


def to_submission(submission: Relay, ca: Path, login: dict[str, Any]) -> dict[str, Any]:
    return {"enable_tls": "Required", "tls_ca": {"file": str(ca)}, "smtp_auth": login}


def test_a_login_bound_to_its_connection(submission: Relay, authority: Authority, tmp_path: Path) -> None:
    login = {"username": USER, "password": secret_file(tmp_path, "password", PASSWORD)}
    path = to_submission(submission, authority.write(tmp_path / "ca.pem"), login)
    with relay(tmp_path / "relay", next_hop=submission.port, path=path, secrets=[PASSWORD]) as running:
        submit(running, "plus@example.com")
        (record,) = running.wait_records("Delivery")
        assert record["smtp_auth_mechanism"] == "SCRAM-SHA-256-PLUS"
    (reception,) = [
        record for record in submission.records("Reception") if record["recipient"] == "plus@example.com"
    ]
    assert (reception["smtp_auth_user"], reception["smtp_auth_mechanism"]) == (USER, "SCRAM-SHA-256-PLUS")


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_tokens_of_an_endpoint_over_https(
    mechanism: str, submission: Relay, authority: Authority, tmp_path: Path
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    client_secret = "canary of the client"

    def answer(asked: Asked, number: int) -> tuple[int, Any, dict[str, str]]:
        right = base64.b64encode(b"posthorn:canary+of+the+client").decode()
        if asked.authorization != f"Basic {right}":
            return 401, {"error": "invalid_client"}, {}
        if number == 1:
            return 503, {}, {}
        return 200, {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 600}, {}

    with run_endpoint(authority.server_context()) as endpoint:
        endpoint.answer = answer
        login = {
            "mechanisms": [mechanism],
            "username": USER,
            "oauth2": {
                "token_endpoint": endpoint.url,
                "client_id": "posthorn",
                "client_secret": secret_file(tmp_path, "client", client_secret),
                "scope": "smtp",
                "ca": str(ca),
            },
        }
        path = to_submission(submission, ca, login)
        secrets = [TOKEN, client_secret]
        with relay(tmp_path / "relay", next_hop=submission.port, path=path, secrets=secrets) as running:
            for number in range(3):
                submit(running, f"{mechanism.lower()}-{number}@example.com")
            records = running.wait_records("Delivery", 3)
            assert {record["smtp_auth_mechanism"] for record in records} == {mechanism}
            held = running.records("TransientFailure")
            assert held and {record["cause"] for record in held} == {"secret-unavailable"}
            assert "(503): failed" in held[0]["response"]["content"]
            assert all(record["num_attempts"] == 0 for record in held)
        assert [asked.form for asked in endpoint.asked] == [
            {"grant_type": "client_credentials", "scope": "smtp"}
        ] * len(endpoint.asked)
        assert len(endpoint.asked) <= 3


def test_a_token_that_is_not_accepted_shows_nowhere(
    submission: Relay, authority: Authority, tmp_path: Path
) -> None:
    wrong = "canary.Token-that~is+not/right"
    login = {"username": USER, "token": secret_file(tmp_path, "token", wrong)}
    path = to_submission(submission, authority.write(tmp_path / "ca.pem"), login)
    with relay(tmp_path / "relay", next_hop=submission.port, path=path, secrets=[wrong]) as running:
        submit(running)
        (record, *_) = running.wait_records("TransientFailure")
        assert record["cause"] == "login-refused"
        assert "AUTH OAUTHBEARER" in record["response"]["content"]
        assert "(the token is not accepted: invalid_token)" in record["response"]["content"]
