"""DANE with real parts: a signed zone in NSD, a validating Unbound, a Postfix with STARTTLS as next hop."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.support.postfix import Postfix, run_postfix
from tests.support.posthorn import Relay, command, environment, relay
from tests.support.rawclient import RawClient
from tests.support.signed import SIGNED, UNSIGNED, SignedDns, run_signed_dns
from tests.support.tlsa import tlsa

pytestmark = pytest.mark.whole

WRONG = "3 1 1 " + "ab" * 32
FORGED = "3 1 1 " + "cd" * 32

ROUTING = """
@policy.on("smtp_server_message_received")
def received(msg):
    msg.set_meta("routing_domain", msg.recipient().user.replace("_", "."))

"""


@pytest.fixture(scope="module")
def next_hop() -> Iterator[Postfix]:
    with run_postfix(user="scott", password="tiger", anybody=True) as postfix:
        yield postfix


@pytest.fixture(scope="module")
def names(next_hop: Postfix) -> Iterator[SignedDns]:
    """One name for each way that things can be, all at the one next hop."""
    port = next_hop.port
    leaf = x509.load_pem_x509_certificate((next_hop.directory / "certificate.pem").read_bytes())
    root = x509.load_pem_x509_certificate(next_hop.ca.read_bytes())
    records = {
        "ok": [tlsa(leaf, 3, 1, 1)],
        "whole": [WRONG, tlsa(leaf, 3, 0, 2)],
        "issuer": [tlsa(root, 2, 0, 0)],
        "wrong": [WRONG],
        "bogus": [FORGED],
        "useless": ["0 0 1 " + "ab" * 32],
        "none": [],
    }
    signed: list[str] = []
    for name, texts in records.items():
        # Nobody listens at the address of the one whose records cannot be had.
        address = "127.0.0.2" if name == "bogus" else "127.0.0.1"
        signed += [f"{name} MX 10 mx.{name}", f"mx.{name} A {address}"]
        signed += [f"_{port}._tcp.mx.{name} TLSA {text}" for text in texts]
    # Two hosts, of which the better one's records cannot be had.
    signed += ["two MX 10 mx.bogus", "two MX 20 mx.ok"]
    signed += ["implicit A 127.0.0.1", f"_{port}._tcp.implicit TLSA {tlsa(leaf, 3, 1, 2)}"]
    unsigned = [
        "@ MX 10 mx",
        "mx A 127.0.0.1",
        f"_{port}._tcp.mx TLSA {WRONG}",
        f"half MX 10 mx.wrong.{SIGNED}.",
    ]
    with run_signed_dns(signed, unsigned, forged={"cd" * 32: "ce" * 32}) as servers:
        yield servers


@contextmanager
def to(*, server: str, directory: Path, next_hop: Postfix, **path: Any) -> Iterator[Relay]:
    """A relay that finds its hosts by the MX records that this name server gives."""
    options = {"enable_tls": "OpportunisticInsecure", "smtp_port": next_hop.port, "enable_dane": True, **path}
    env = {"POSTHORN_DNS_SERVERS": server}
    with relay(directory, next_hop=1, path=options, extra=ROUTING, env=env, start=False) as running:
        text = running.policy.read_text()
        listed = 'protocol={"smtp": {"mx_list": ["127.0.0.1:1"]}}, '
        assert listed in text
        running.policy.write_text(text.replace(listed, ""))
        running.start()
        yield running


def send(running: Relay, domain: str) -> None:
    with RawClient(running.port) as client:
        reply = client.deliver(
            "a@sender.example", f"{domain.replace('.', '_')}@example.com", b"Subject: x\r\n\r\nx\r\n"
        )
        assert reply[0] == 250


def answer(running: Relay, kind: str, domain: str) -> dict[str, Any]:
    """The record of this kind about mail for this domain."""
    user = domain.replace(".", "_")
    found = [record for record in running.records(kind) if record["recipient"].startswith(f"{user}@")]
    return found[0]


DELIVERED = {
    f"ok.{SIGNED}": ("ok", True, "3 1 1"),
    f"whole.{SIGNED}": ("ok", True, "3 0 2"),
    f"two.{SIGNED}": ("ok", True, "3 1 1"),
    f"implicit.{SIGNED}": ("ok", True, "3 1 2"),
    f"useless.{SIGNED}": ("unusable", False, ""),
    f"none.{SIGNED}": ("not_applicable", False, ""),
    UNSIGNED: ("insecure_chain", False, ""),
    # The host is signed, and has a record that does not match; that it is the domain's host is not signed.
    f"half.{UNSIGNED}": ("insecure_chain", False, ""),
}
FAILED = {
    f"wrong.{SIGNED}": "none of the TLSA records of mx.wrong.signed.example (3 1 1 abababababababab...)",
    # A sound issuer, and a certificate for another name.
    f"issuer.{SIGNED}": "matches an issuer, but for mx.issuer.signed.example",
    f"bogus.{SIGNED}": "_tcp.mx.bogus.signed.example TLSA failed: ",
}


def test_signed_records_decide(next_hop: Postfix, names: SignedDns, tmp_path: Path) -> None:
    with to(server=names.validating, directory=tmp_path, next_hop=next_hop) as running:
        for domain in (*DELIVERED, *FAILED):
            send(running, domain)
        running.wait_records("Delivery", len(DELIVERED))
        running.wait_records("TransientFailure", len(FAILED))
        for domain, (result, verified, record) in DELIVERED.items():
            found = answer(running, "Delivery", domain)
            assert (found["dane_result"], found["tls_verified"]) == (result, verified), domain
            assert record in found["tls_why"]
            assert found["tls_protocol_version"] == "TLSv1.3"
        for domain, text in FAILED.items():
            assert text in answer(running, "TransientFailure", domain)["response"]["content"]
        held = answer(running, "TransientFailure", f"wrong.{SIGNED}")
        assert (held["cause"], held["num_attempts"]) == ("tls", 0)
        assert answer(running, "TransientFailure", f"bogus.{SIGNED}")["num_attempts"] == 1
        assert len(running.records("Delivery")) == len(DELIVERED)
    assert len(next_hop.messages()) == len(DELIVERED)


def test_a_match_is_enough_to_log_in(next_hop: Postfix, names: SignedDns, tmp_path: Path) -> None:
    login = {"smtp_auth_plain_username": "scott", "smtp_auth_plain_password": {"key_data": "tiger"}}
    with to(server=names.validating, directory=tmp_path, next_hop=next_hop, **login) as running:
        send(running, f"ok.{SIGNED}")
        (record,) = running.wait_records("Delivery")
        assert (record["smtp_auth_user"], record["dane_result"]) == ("scott", "ok")
        send(running, f"none.{SIGNED}")
        (record,) = running.wait_records("TransientFailure")
        assert "was not verified" in record["response"]["content"]


def test_a_server_that_does_not_validate_holds_the_mail(
    next_hop: Postfix, names: SignedDns, tmp_path: Path
) -> None:
    with to(server=names.trusting, directory=tmp_path, next_hop=next_hop) as running:
        send(running, f"ok.{SIGNED}")
        (record,) = running.wait_records("TransientFailure")
        assert (record["cause"], record["num_attempts"]) == ("dane", 0)
        assert f"{names.trusting} does not validate" in record["response"]["content"]
        said = posthorn(running, names.trusting, "check", str(running.policy))
        assert "enable_dane needs a validating name server on loopback" in said


def test_explain_shows_the_records_of_each_host(next_hop: Postfix, names: SignedDns, tmp_path: Path) -> None:
    port = next_hop.port
    with to(server=names.validating, directory=tmp_path, next_hop=next_hop) as running:
        said = posthorn(
            running,
            names.validating,
            *("explain", "x@example.com", "--policy", str(running.policy)),
            *("--routing-domain", f"two.{SIGNED}"),
        )
    assert f"  DANE          mx.bogus.{SIGNED}:{port} no mail now: DANE: DNS lookup of " in said
    assert (
        f"  DANE          mx.ok.{SIGNED}:{port} ok: 1 usable record of _{port}._tcp.mx.ok.{SIGNED} TLSA"
        in said
    )


def posthorn(running: Relay, server: str, *arguments: str) -> str:
    done = subprocess.run(
        [*command(), *arguments],
        cwd=running.directory,
        env=environment({"POSTHORN_DNS_SERVERS": server}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr
