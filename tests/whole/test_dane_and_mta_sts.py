"""DANE and MTA-STS at once, with real parts: a signed zone in NSD, a validating Unbound, an HTTPS server of
policies, next hops with STARTTLS.

RFC 8461 section 2: a policy never overrides a TLSA record that does not match, and leaves alone what one
authenticates. Each domain has a host of its own name and a way of its own that things can be.
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from cryptography import x509

from tests.support.bytesink import ByteSink, run_sink
from tests.support.certificates import Authority
from tests.support.policyserver import PolicyServer, serve_policies, text
from tests.support.ports import free_port
from tests.support.posthorn import Relay, command, environment
from tests.support.rawclient import RawClient
from tests.support.signed import SIGNED, UNSIGNED, run_signed_dns
from tests.support.tlsa import tlsa

pytestmark = pytest.mark.whole

POLICY = """\
import policy


@policy.on("init")
def init():
    policy.define_spool(path="spool", min_free_space="1%", min_free_inodes="1%")
    policy.configure_local_logs(log_dir="log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}")
    policy.configure_mta_sts(ca="policies.pem", gateway="127.0.0.1:{gateway}")


@policy.on("smtp_server_message_received")
def received(msg, conn_meta):
    msg.set_meta("routing_domain", msg.recipient().domain)


@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(retry_interval="1h")


@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path(smtp_port={hops}, enable_tls="OpportunisticInsecure", enable_dane=True)
"""

WRONG = "3 1 1 " + "ab" * 32
USELESS = "0 0 1 " + "ab" * 32
FORGED = "3 1 1 " + "cd" * 32
DEMAND = "the domain's MTA-STS policy demands verified TLS"


class Case(NamedTuple):
    """A domain. `trusted`: its host has a certificate of a known authority for its name. `tlsa`: "match", or
    a record. `mode`, `mx`: of its policy; the host is ``mx.DOMAIN``. `said`: `tls_sts` of the delivery, or a
    part of the reply. `cause` None: delivered."""

    trusted: bool
    tlsa: str
    mode: str
    mx: str
    dane: str
    said: str
    cause: str | None = None
    zone: str = SIGNED


CASES = {
    # Both hold.
    "both": Case(True, "match", "enforce", "mx", "ok", "enforce: left to DANE"),
    "try": Case(True, "match", "testing", "mx", "ok", "testing: left to DANE"),
    # DANE holds, the policy does not: by the certificate, by the name.
    "selfmade": Case(False, "match", "enforce", "mx", "ok", "enforce: left to DANE"),
    "unnamed": Case(
        True, "match", "enforce", "other", "ok", "enforce: left to DANE, the policy does not name "
    ),
    # DANE fails, the policy does not.
    "strange": Case(True, WRONG, "enforce", "mx", "", "none of the TLSA records of mx.strange.", "tls"),
    "forged": Case(True, FORGED, "enforce", "mx", "", "_tcp.mx.forged.signed.example TLSA failed", ""),
    # No word of DANE about who the host is: the policy's demand stays.
    "useless": Case(True, USELESS, "enforce", "mx", "unusable", "enforce: passed"),
    "useless-bad": Case(False, USELESS, "enforce", "mx", "", f"({DEMAND})", "tls"),
    "useless-unnamed": Case(
        True, USELESS, "enforce", "other", "", "policy does not name it, and no TLSA", ""
    ),
    "none": Case(True, "", "enforce", "mx", "not_applicable", "enforce: passed"),
    "none-bad": Case(False, "", "enforce", "mx", "", f"({DEMAND})", "tls"),
    "none-unnamed": Case(True, "", "enforce", "other", "", "policy does not name it, and no TLSA", ""),
    # Nobody signed which hosts these are: a record of one of them is not looked at.
    "half": Case(True, "match", "enforce", "other", "", "names none of its hosts: mx.half.", "", UNSIGNED),
    "whole": Case(False, "match", "enforce", "mx", "", f"({DEMAND})", "tls", UNSIGNED),
}


class World(NamedTuple):
    relay: Relay
    hop: ByteSink
    env: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("both")
    hops, authorities = Authority(), Authority()
    hops.write(directory / "hops.pem")
    authorities.write(directory / "policies.pem")
    shown: dict[str | None, ssl.SSLContext] = {}
    zones: dict[str, list[str]] = {SIGNED: [], UNSIGNED: []}
    port = free_port()
    for name, case in CASES.items():
        host = f"mx.{name}.{case.zone}"
        shown[host] = hops.server_context(host if case.trusted else "elsewhere.test")
        leaf = x509.load_pem_x509_certificate(hops.last_certificate)
        record = tlsa(leaf, 3, 1, 1) if case.tlsa == "match" else case.tlsa
        zones[case.zone] += [
            f"{name} MX 10 mx.{name}",
            f"mx.{name} A 127.0.0.1",
            f'_mta-sts.{name} TXT "v=STSv1; id=1;"',
            *([f"_{port}._tcp.mx.{name} TLSA {record}"] if record else []),
        ]
    with ExitStack() as stack:
        names = authorities.server_context("nobody.test")
        names.sni_callback = lambda connection, name, _: setattr(
            connection, "context", authorities.server_context(name)
        )
        policies: PolicyServer = stack.enter_context(serve_policies(names))
        for name, case in CASES.items():
            policies.answers[f"{name}.{case.zone}"] = text(case.mode, f"{case.mx}.{name}.{case.zone}")
        by_name = hops.server_context("elsewhere.test")
        by_name.sni_callback = lambda connection, name, _: setattr(connection, "context", shown[name])
        hop = stack.enter_context(run_sink(tls=by_name, port=port))
        servers = stack.enter_context(
            run_signed_dns(zones[SIGNED], zones[UNSIGNED], forged={"cd" * 32: "ce" * 32})
        )
        listen = free_port()
        (directory / "mail.py").write_text(POLICY.format(port=listen, gateway=policies.port, hops=port))
        env = {"POSTHORN_DNS_SERVERS": servers.validating, "SSL_CERT_FILE": str(directory / "hops.pem")}
        running = Relay(directory / "mail.py", listen, [], env, "debug")
        running.start()
        try:
            with RawClient(listen) as client:
                for name, case in CASES.items():
                    assert (
                        client.deliver("a@s.test", f"b@{name}.{case.zone}", b"Subject: x\r\n\r\nx\r\n")[0]
                        == 250
                    )
            delivered = sum(case.cause is None for case in CASES.values())
            running.wait_records("Delivery", delivered)
            running.wait_records("TransientFailure", len(CASES) - delivered)
            yield World(running, hop, env)
        finally:
            running.stop()
            print(running.stderr)  # shown if a test fails


@pytest.mark.parametrize("name", CASES)
def test_each_domain_is_treated_by_both(world: World, name: str) -> None:
    case = CASES[name]
    recipient = f"b@{name}.{case.zone}"
    (record,) = (
        one for one in world.relay.records() if one["type"] != "Reception" and one["recipient"] == recipient
    )
    arrived = [arrival.tls for arrival in world.hop.arrivals if arrival.recipients == [recipient]]
    if case.cause is None:
        said: dict[str, Any] = {key: record.get(key) for key in ("type", "dane_result", "tls_verified")}
        assert said == {"type": "Delivery", "dane_result": case.dane, "tls_verified": True}
        assert record["tls_sts"].startswith(case.said) and arrived == ["TLSv1.3"]
        assert ("TLSA 3 1 1" in record["tls_why"]) is (case.dane == "ok")
    else:
        assert record["type"] == "TransientFailure" and case.said in record["response"]["content"], record
        assert record.get("cause", "") == case.cause and arrived == []
        assert record["num_attempts"] == (0 if case.cause else 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("both", ("enforce, id 1", " ok: 1 usable record of ")),
        ("unnamed", ("; it does not name mx.unnamed.signed.example, used only if a TLSA record matches\n",)),
        ("half", ("; it does not name mx.half.unsigned.example; nothing can be sent\n",)),
    ],
)
def test_explain_says_what_both_come_to(world: World, name: str, said: tuple[str, ...]) -> None:
    domain = f"{name}.{CASES[name].zone}"
    done = subprocess.run(
        [*command(), "explain", domain, "--routing-domain", domain, "--policy", "mail.py"],
        cwd=world.relay.directory,
        env=environment(world.env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in said:
        assert words in done.stdout
