"""Foreign peers: Postfix and aiosmtpd as next hops with STARTTLS and AUTH; swaks and smtplib submit."""

from __future__ import annotations

import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.aiosmtpd_hop import run_aiosmtpd
from tests.support.bytesink import ByteSink, run_sink
from tests.support.certificates import Authority
from tests.support.corpus import email_corpus, without_received
from tests.support.ports import until
from tests.support.postfix import run_postfix
from tests.support.posthorn import Relay, relay
from tests.support.programs import need
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

USER = "scott"
PASSWORD = "c4n4ry=Tiger+9/on the way out"
SUBMITTER = "c4n4ry=Lion+7/on the way in"


def secured(ca: Path) -> dict[str, object]:
    """The options of a path that logs in over verified TLS. The password is a file beside the policy."""
    ca.with_name("password.secret").write_text(PASSWORD + "\n")
    ca.with_name("password.secret").chmod(0o600)
    return {
        "enable_tls": "Required",
        "tls_ca": {"file": str(ca)},
        "smtp_auth_plain_username": USER,
        "smtp_auth_plain_password": {"file": str(ca.with_name("password.secret"))},
    }


def check_record(record: dict[str, Any], mechanism: str) -> None:
    """What a delivery over verified TLS with AUTH must say about itself."""
    assert record["response"]["code"] == 250
    assert record["tls_protocol_version"] == "TLSv1.3"
    assert record["tls_verified"] is True
    assert record["smtp_auth_user"] == USER
    assert record["smtp_auth_mechanism"] == mechanism
    assert record["peer_address"]["addr"] == "127.0.0.1"


@pytest.mark.parametrize(("offered", "used"), [("PLAIN LOGIN", "PLAIN"), ("LOGIN", "LOGIN")])
def test_postfix_takes_real_messages_with_starttls_and_auth(offered: str, used: str, tmp_path: Path) -> None:
    messages = [content for name, content in email_corpus() if _keeps(content)]
    assert len(messages) > 20
    with run_postfix(user=USER, password=PASSWORD, mechanisms=offered) as postfix:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(postfix.ca.read_bytes())
        path = {**secured(ca), "connection_limit": 5}
        with relay(tmp_path / "relay", next_hop=postfix.port, path=path, secrets=[PASSWORD]) as running:
            with RawClient(running.port) as client:
                for number, content in enumerate(messages):
                    reply = client.deliver("a@sender.example", f"n{number}@example.com", content)
                    assert reply[0] == 250
            for record in running.wait_records("Delivery", len(messages)):
                check_record(record, used)
            assert running.records("TransientFailure", "Bounce", "Delayed") == []
            arrived = [_as_relayed(content) for content in postfix.wait_for(len(messages))]
        assert f"sasl_method={used}, sasl_username={USER}@" in postfix.log
    assert sorted(arrived) == sorted(
        content if content.endswith(b"\r\n") else content + b"\r\n" for content in messages
    )


def _keeps(content: bytes) -> bool:
    """Postfix ends the header at the first line that is none, and puts an empty line there; such
    messages do not leave it as they came."""
    header, _, _ = content.partition(b"\r\n\r\n")
    lines = header.split(b"\r\n")
    return lines[0][:1].isalpha() and all(
        line[:1] in (b" ", b"\t") or (b" " not in line.partition(b":")[0] and b":" in line) for line in lines
    )


def _as_relayed(content: bytes) -> bytes:
    """A message of the maildir as it left the relay: without Postfix's fields, with CRLF line ends."""
    _, mark, rest = content.partition(b"\nReceived: from client.example ")
    assert mark, content[:1000]
    whole = mark[1:] + rest
    return without_received(whole.replace(b"\n", b"\r\n"))


def test_aiosmtpd_takes_a_message_with_starttls_and_auth(tmp_path: Path) -> None:
    authority = Authority()
    path = secured(authority.write(tmp_path / "ca.pem"))
    content = b"Subject: to aiosmtpd\r\n\r\n.\r\n..\r\nGr\xc3\xbc\xc3\x9fe\r\n"
    with (
        run_aiosmtpd(authority.server_context(), user=USER, password=PASSWORD) as hop,
        relay(tmp_path / "relay", next_hop=hop.port, path=path, secrets=[PASSWORD]) as running,
    ):
        with RawClient(running.port) as client:
            for number in range(5):
                assert client.deliver("a@b.example", f"n{number}@c.example", content)[0] == 250
        for record in running.wait_records("Delivery", 5):
            check_record(record, "PLAIN")
    assert sorted(recipients[0] for _, recipients, _, _ in hop.messages) == [
        f"n{n}@c.example" for n in range(5)
    ]
    for sender, _, arrived, version in hop.messages:
        assert (sender, without_received(arrived), version) == ("a@b.example", content, "TLSv1.3")


AUTH_HOOK = f"""\
USERS = {{"lion": policy.Secret({SUBMITTER!r})}}


@policy.on("smtp_server_auth_plain")
async def log_in(authz, authc, password, conn_meta):
    return authc in USERS and USERS[authc] == password
"""


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module")
def open_to_users(sink: ByteSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay that trusts no address and takes mail from users who log in."""
    with relay(
        tmp_path_factory.mktemp("submission") / "relay",
        next_hop=sink.port,
        listener={"relay_hosts": [], "relay_authenticated": True},
        extra=AUTH_HOOK,
        secrets=[SUBMITTER],
    ) as running:
        yield running


def arrived(sink: ByteSink, recipient: str) -> bytes:
    """The message for `recipient`."""

    def look() -> list[bytes]:
        return [arrival.content for arrival in sink.arrivals if arrival.recipients == [recipient]]

    return until(look, seconds=30, what=f"a message for {recipient}")[0]


def swaks(port: int, recipient: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run swaks; its transcript is in `stdout`."""
    program = need("swaks", "swaks")
    return subprocess.run(
        [
            *(program, "--server", f"127.0.0.1:{port}", "--ehlo", "swaks.example"),
            *("--from", "s@swaks.example", "--to", recipient, "--header", "Subject: by swaks"),
            *("--body", "a line\n.\nthe end", *options),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_swaks_submits_in_clear_text(tmp_path: Path, sink: ByteSink) -> None:
    with relay(tmp_path / "relay", next_hop=sink.port) as running:
        result = swaks(running.port, "clear@swaks-test.example")
        assert result.returncode == 0, result.stdout + result.stderr
        content = arrived(sink, "clear@swaks-test.example")
        (record,) = running.wait_records("Reception")
    assert b"Subject: by swaks\r\n" in content
    assert b"\r\n\r\na line\r\n.\r\nthe end\r\n" in content
    assert b" with ESMTP\r\n" in content.partition(b"\r\n\tid ")[0] + b"\r\n"
    assert "tls_protocol_version" not in record


def test_swaks_submits_over_tls_with_auth(open_to_users: Relay, sink: ByteSink) -> None:
    login = ["--tls", "--auth", "PLAIN", "--auth-user", "lion", "--auth-password", SUBMITTER]
    result = swaks(open_to_users.port, "plain@swaks-test.example", *login)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " with ESMTPSA (TLSv1.3 " in arrived(sink, "plain@swaks-test.example").decode()


def test_swaks_logs_in_with_the_login_mechanism(open_to_users: Relay, sink: ByteSink) -> None:
    login = ["--tls", "--auth", "LOGIN", "--auth-user", "lion", "--auth-password", SUBMITTER]
    result = swaks(open_to_users.port, "login@swaks-test.example", *login)
    assert result.returncode == 0, result.stdout + result.stderr
    arrived(sink, "login@swaks-test.example")


@pytest.mark.parametrize("options", [[], ["--tls"]], ids=["clear", "tls"])
def test_swaks_without_a_login_may_not_relay(open_to_users: Relay, options: list[str]) -> None:
    result = swaks(open_to_users.port, "stranger@swaks-test.example", *options)
    assert result.returncode == 24, result.stdout + result.stderr  # all recipients refused
    assert "550 5.7.1" in result.stdout


def test_swaks_with_a_wrong_password_is_refused(open_to_users: Relay) -> None:
    login = ["--tls", "--auth", "PLAIN", "--auth-user", "lion", "--auth-password", "wrong"]
    result = swaks(open_to_users.port, "wrong@swaks-test.example", *login)
    assert result.returncode == 28, result.stdout + result.stderr  # authentication failed
    assert "535 5.7.8" in result.stdout


def test_a_password_is_not_taken_in_clear_text(open_to_users: Relay) -> None:
    with RawClient(open_to_users.port) as client:
        assert b"AUTH" not in client.capabilities[1]
        code, text = client.command("AUTH PLAIN AGxpb24AeA==")
        assert code >= 500
        assert b"5.7.11" in text


def test_smtplib_submits_over_tls_with_auth(open_to_users: Relay, sink: ByteSink) -> None:
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE  # the listener shows a certificate it made itself
    content = "Subject: by smtplib\r\n\r\nGr\u00fc\u00dfe\r\n.\r\n".encode()
    with smtplib.SMTP(
        "127.0.0.1", open_to_users.port, local_hostname="smtplib.example", timeout=30
    ) as client:
        client.starttls(context=unverified)
        client.login("lion", SUBMITTER)
        refused = client.sendmail(
            "a@smtplib.example",
            ["one@smtplib-test.example", "two@smtplib-test.example"],
            content,
            mail_options=["BODY=8BITMIME"],
        )
    assert refused == {}
    for recipient in ("one@smtplib-test.example", "two@smtplib-test.example"):
        assert arrived(sink, recipient).endswith(content)


def test_smtplib_sends_an_internationalized_address(tmp_path: Path, sink: ByteSink) -> None:
    with relay(tmp_path / "relay", next_hop=sink.port) as running:
        with smtplib.SMTP("127.0.0.1", running.port, timeout=30) as client:
            client.ehlo("smtplib.example")
            client.sendmail(
                "postillon@smtplib.example",
                ["gr\u00fc\u00dfe@smtplib-test.example"],
                "Subject: \N{POSTAL HORN}\r\n\r\nbody\r\n".encode(),
                mail_options=["SMTPUTF8", "BODY=8BITMIME"],
            )
        content = arrived(sink, "gr\u00fc\u00dfe@smtplib-test.example")
    assert content.endswith("Subject: \N{POSTAL HORN}\r\n\r\nbody\r\n".encode())
