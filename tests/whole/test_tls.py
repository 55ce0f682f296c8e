"""TLS with programs that others wrote: Postfix with smtps and client certificates, and OpenSSL's s_server."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.net import key_pin
from tests.support.pki import Pki
from tests.support.ports import until
from tests.support.postfix import Postfix, run_postfix
from tests.support.posthorn import Relay, relay
from tests.support.programs import need
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

MESSAGE = b"Subject: sealed\r\n\r\nbody\r\n"
CLIENT = "a relay of ours"


@pytest.fixture(scope="module")
def clients() -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def postfix(clients: Pki) -> Iterator[Postfix]:
    with run_postfix(user="scott", password="canary=Tiger", clients=clients.pem) as running:
        yield running


def submit(running: Relay, number: int = 1) -> None:
    for _ in range(number):
        with RawClient(running.port) as client:
            assert client.deliver("a@sender.example", "b@example.com", MESSAGE)[0] == 250


def pem(directory: Path, name: str, content: bytes) -> str:
    file = directory / name
    file.write_bytes(content)
    file.chmod(0o600)
    return str(file)


def pair(directory: Path, issued: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "tls_certificate": pem(directory, "client.pem", issued[0]),
        "tls_private_key": pem(directory, "client.key.secret", issued[1]),
    }


def strict(directory: Path, ca: bytes, **more: Any) -> dict[str, Any]:
    return {"enable_tls": "Required", "tls_ca": pem(directory, "ca.pem", ca), "hold_interval": 0.2, **more}


def pin_of(certificate: bytes) -> str:
    first = certificate.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    pin = key_pin(ssl.PEM_cert_to_DER_cert(first))
    assert pin is not None
    return pin


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "smtps"])
@pytest.mark.parametrize("least", ["1.2", "1.3"])
def test_postfix_knows_us_by_our_certificate(
    implicit: bool, least: str, postfix: Postfix, clients: Pki, tmp_path: Path
) -> None:
    before = len(postfix.messages())
    path = strict(
        tmp_path,
        postfix.ca.read_bytes(),
        tls_implicit=implicit,
        tls_minimum_version=least,
        tls_pins=[pin_of(postfix.certificate.read_bytes())],
        max_deliveries_per_connection=1,
        connection_limit=1,
        **pair(tmp_path, clients.client(CLIENT)),
    )
    port = postfix.smtps if implicit else postfix.port
    with relay(tmp_path / "relay", next_hop=port, path=path) as running:
        submit(running, 3)
        records = running.wait_records("Delivery", 3)
    for record in records:
        assert record["tls_client_certificate"] == f"CN={CLIENT}" and record["tls_pin"] == "leaf"
        assert record["tls_verified"] is True and record["tls_protocol_version"] == "TLSv1.3"
    # A session is resumed from the second connection on.
    assert [record.get("tls_resumed", False) for record in records] == [False, True, True]
    assert len(postfix.wait_for(before + 3)) == before + 3
    assert "Trusted TLS connection established from" in postfix.log


@pytest.mark.parametrize("what", ["no certificate", "a stranger's"])
def test_postfix_takes_nothing_from_strangers(what: str, postfix: Postfix, tmp_path: Path) -> None:
    shown = pair(tmp_path, Pki().client()) if what == "a stranger's" else {}
    path = strict(tmp_path, postfix.ca.read_bytes(), tls_implicit=True, **shown)
    with relay(tmp_path / "relay", next_hop=postfix.smtps, path=path) as running:
        submit(running)
        (record, *_) = running.wait_records("Bounce")
        assert "Relay access denied" in record["response"]["content"] or record["response"]["code"] == 554


def test_a_pin_that_postfix_has_not_holds_the_mail(postfix: Postfix, clients: Pki, tmp_path: Path) -> None:
    pin = pin_of(postfix.certificate.read_bytes())
    path = strict(tmp_path, postfix.ca.read_bytes(), tls_implicit=True, tls_pins=["ab" * 32])
    with relay(tmp_path / "relay", next_hop=postfix.smtps, path=path) as running:
        submit(running)
        (record, *_) = running.wait_records("TransientFailure")
        assert (record["cause"], record["num_attempts"]) == ("tls", 0)
        assert f"among tls_pins; its own is {pin}" in record["response"]["content"]


def test_a_certificate_is_renewed_while_we_run(postfix: Postfix, clients: Pki, tmp_path: Path) -> None:
    options = pair(tmp_path, clients.client("the first"))
    path = strict(tmp_path, postfix.ca.read_bytes(), connection_limit=1, **options)
    with relay(tmp_path / "relay", next_hop=postfix.port, path=path) as running:
        submit(running)
        running.wait_records("Delivery", 1)
        pair(tmp_path, clients.client("the second"))
        shown: list[str] = []

        def renewed() -> bool:
            submit(running)
            records = running.wait_records("Delivery", len(shown) + 2)
            shown.append(records[-1]["tls_client_certificate"])
            return shown[-1] == "CN=the second"

        until(renewed, seconds=20, what=lambda: f"the second certificate is shown: {shown}")


# -- OpenSSL ------------------------------------------------------------------------------------------


class Server:
    """`openssl s_server` that speaks SMTP through its standard input and output, for one client at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.port = 0
        self.output = bytearray()
        self.ready = threading.Event()

    def run(self) -> None:
        """Answer what clients say; told are only lines of SMTP, the rest is s_server's own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith(b"ACCEPT ") and not self.ready.is_set():  # "ACCEPT 127.0.0.1:34567"
                self.port = int(line.rpartition(b":")[2])
                self.ready.set()
            elif line.startswith(b"CIPHER is"):  # the last but one line of what it says of a handshake
                self.say(b"220 openssl.example ESMTP")
            elif line.startswith(b"EHLO"):
                self.say(b"250 openssl.example")
            elif line.startswith((b"MAIL", b"RCPT", b"RSET")):
                self.say(b"250 2.0.0 ok")
            elif line.startswith(b"DATA"):
                self.say(b"354 go ahead")
            elif line.strip() == b".":
                self.say(b"250 2.0.0 taken")
            elif line.startswith(b"QUIT"):
                self.say(b"221 bye")

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()


@contextmanager
def run_s_server(directory: Path, pki: Pki, *options: str) -> Iterator[Server]:
    openssl = need("openssl", "openssl")
    chain, key = pki.pair("127.0.0.1")
    shown = pem(directory, "s.pem", chain)
    options = ("-cert", shown, "-key", pem(directory, "s.key", key), "-crlf", *options)
    process = subprocess.Popen(
        [openssl, "s_server", "-accept", "127.0.0.1:0", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    server = Server(process)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert server.ready.wait(10), bytes(server.output)
        yield server
    finally:
        process.kill()
        thread.join(10)
        process.communicate(timeout=10)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_sees_a_session_resumed_and_the_certificate(
    version: str, clients: Pki, tmp_path: Path
) -> None:
    pki = Pki()
    asks = ("-verify", "2", "-CAfile", pem(tmp_path, "clients.pem", clients.pem))
    path = strict(
        tmp_path,
        pki.pem,
        tls_implicit=True,
        max_deliveries_per_connection=1,
        connection_limit=1,
        **pair(tmp_path, clients.client(CLIENT)),
    )
    with run_s_server(tmp_path, pki, version, *asks) as server:
        with relay(tmp_path / "relay", next_hop=server.port, path=path) as running:
            for number in (1, 2):
                submit(running)
                records = running.wait_records("Delivery", number)
        assert [record.get("tls_resumed", False) for record in records] == [False, True]
        assert all(record["tls_client_certificate"] == f"CN={CLIENT}" for record in records)
        told = bytes(server.output)
        assert told.count(b"CIPHER is") == 2 and told.count(b"Reused session-id") == 1
        assert CLIENT.encode() in told


@pytest.mark.parametrize(
    ("server", "options", "words"),
    [
        ("-tls1_2", {"tls_minimum_version": "1.3"}, "protocol version"),
        ("-tls1_2 -cipher AES128-SHA256", {"openssl_cipher_list": "ECDHE+AESGCM"}, "handshake fail"),
    ],
)
def test_openssl_that_offers_less_holds_the_mail(
    server: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pki = Pki()
    with run_s_server(tmp_path, pki, *server.split()) as running_server:
        path = strict(tmp_path, pki.pem, tls_implicit=True, **options)
        with relay(tmp_path / "relay", next_hop=running_server.port, path=path) as running:
            submit(running)
            (record, *_) = running.wait_records("TransientFailure")
            assert record["cause"] == "tls" and words in record["response"]["content"]


def test_a_plain_server_behind_the_implicit_option_hears_no_smtp(tmp_path: Path) -> None:
    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(b"220 plain.example ESMTP\r\n")
                peer.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    while data := peer.recv(4096):
                        heard.extend(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        path = strict(tmp_path, Pki().pem, tls_implicit=True)
        path["hold_interval"] = 60
        with relay(tmp_path / "relay", next_hop=listener.getsockname()[1], path=path) as running:
            submit(running)
            (record, *_) = running.wait_records("TransientFailure")
            assert record["cause"] == "tls" and "begin in clear text" in record["response"]["content"]
        thread.join(10)
    assert heard[:2] == b"\x16\x03" and b"EHLO" not in heard
