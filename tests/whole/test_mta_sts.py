"""MTA-STS with real parts: an HTTPS server with a throw-away CA, a name server, next hops with STARTTLS.

The domains are the relay's routing domains, so that their hosts may be on this machine. Most are behind one
host, ``mx.bad.test``, whose certificate is for another name; each has its own policy.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.certificates import Authority
from tests.support.fakedns import run_dns
from tests.support.policyserver import PolicyServer, serve_policies, text
from tests.support.ports import free_port, until
from tests.support.posthorn import Relay, command, environment
from tests.support.rawclient import RawClient

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
    return policy.make_queue_config(retry_interval="1s", refresh_interval="1s")


@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path(
        smtp_port={hops},
        enable_tls="OpportunisticInsecure",
        enable_mta_sts=domain != "unasked.test",
        hold_interval="1s",
        refresh_interval="1s",
    )
"""

DEMAND = "the domain's MTA-STS policy demands verified TLS"


class World:
    """Hosts, names, policies and the relay. `bad`, `good`: what `mx.bad.test` and `mx.good.test` took."""

    def __init__(
        self, running: Relay, zones: dict[str, Any], policies: PolicyServer, env: dict[str, str]
    ) -> None:
        self.relay = running
        self.zones = zones
        self.env = env
        self.policies = policies
        self.good = ByteSink()
        self.bad = ByteSink()

    def announce(self, domain: str, mode: str, *mx: str, id: str = "1") -> None:
        self.policies.answers[domain] = text(mode, *mx)
        self.zones[f"_mta-sts.{domain}"] = {"TXT": [f'"v=STSv1; id={id}; "'], "ttl": 1}

    def send(self, domain: str) -> None:
        with RawClient(self.relay.port) as client:
            assert client.deliver("a@sender.test", f"b@{domain}", b"Subject: x\r\n\r\nbody\r\n")[0] == 250

    def explain(self, domain: str) -> str:
        """What ``posthorn explain`` prints."""
        words = [*command(), "explain", domain, "--routing-domain", domain, "--policy", "mail.py"]
        done = subprocess.run(
            words,
            cwd=self.relay.directory,
            env=environment(self.env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def records(self, domain: str, kind: str = "") -> list[dict[str, Any]]:
        return [
            record
            for record in self.relay.records(*([kind] if kind else []))
            if record["type"] != "Reception" and f"b@{domain}" in record["recipient"]
        ]

    def outcome(self, domain: str, kind: str) -> dict[str, Any]:
        """The first record of a kind for a domain, soon."""
        until(
            lambda: bool(self.records(domain, kind)),
            seconds=20,
            what=lambda: f"{kind} for {domain}: {self.records(domain)}\n{self.relay.stderr[-4000:]}",
        )
        return self.records(domain, kind)[0]


@contextmanager
def world(directory: Path) -> Iterator[World]:
    hops, authorities = Authority(), Authority()
    hops.write(directory / "hops.pem")
    authorities.write(directory / "policies.pem")
    zones: dict[str, Any] = {
        "mx.good.test": {"A": ["127.0.0.2"]},
        "mx.bad.test": {"A": ["127.0.0.1"]},
        "two.test": {"MX": ["5 mx.bad.test.", "10 mx.good.test."]},
    }
    for name in ("held", "left", "testing", "none", "cold", "changed", "unasked", "unsigned", "plain"):
        zones[f"{name}.test"] = {"MX": ["10 mx.bad.test."]}
    with ExitStack() as stack:
        # Real names of policy servers differ; here one certificate has them all.
        names = authorities.server_context("*.two.test")
        names.sni_callback = lambda connection, name, _: setattr(
            connection,
            "context",
            (hops if name == "mta-sts.unsigned.test" else authorities).server_context(name or "nobody.test"),
        )
        policies = stack.enter_context(serve_policies(names))
        bad = stack.enter_context(run_sink(tls=hops.server_context("elsewhere.test")))
        good = stack.enter_context(
            run_sink(tls=hops.server_context("mx.good.test"), host="127.0.0.2", port=bad.port)
        )
        servers = stack.enter_context(run_dns(zones))
        port = free_port()
        (directory / "mail.py").write_text(POLICY.format(port=port, gateway=policies.port, hops=bad.port))
        env = {"POSTHORN_DNS_SERVERS": servers, "SSL_CERT_FILE": str(directory / "hops.pem")}
        running = Relay(directory / "mail.py", port, [], env, "debug")
        there = World(running, zones, policies, env)
        there.good, there.bad = good, bad
        try:
            yield there
        finally:
            if running.process is not None and running.process.poll() is None:
                running.stop()
            print(running.stderr)  # shown if the test fails


def test_every_domain_has_its_own_policy_although_they_share_a_host(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        there.announce("two.test", "enforce", "*.good.test")
        there.announce("held.test", "enforce", "mx.bad.test")
        there.announce("left.test", "enforce", "mx.good.test")
        there.announce("testing.test", "testing", "mx.bad.test")
        there.announce("none.test", "none")
        there.announce("cold.test", "enforce", "mx.good.test")
        there.announce("unsigned.test", "enforce", "mx.good.test")
        there.announce("unasked.test", "enforce", "mx.good.test")
        del there.policies.answers["cold.test"]
        there.relay.start()
        # In this order, so that nobody can have inherited what the one before was told.
        for name in ("none", "held", "testing", "plain", "left", "cold", "unsigned", "two", "unasked"):
            there.send(f"{name}.test")

        record = there.outcome("two.test", "Delivery")
        assert record["tls_sts"] == "enforce: passed" and record["tls_verified"] is True
        assert record["peer_address"]["name"] == "mx.good.test"
        record = there.outcome("held.test", "TransientFailure")
        assert record["cause"] == "tls" and record["num_attempts"] == 0
        assert (
            DEMAND in record["response"]["content"] and "elsewhere.test" not in record["response"]["content"]
        )
        record = there.outcome("left.test", "TransientFailure")
        assert (record["response"]["code"], record["response"]["enhanced_code"]["subject"]) == (451, 4)
        assert "policy of left.test names none of its hosts: mx.bad.test" in record["response"]["content"]
        record = there.outcome("testing.test", "Delivery")
        assert record["tls_sts"].startswith("testing: would fail, the peer is not verified (")
        for name in ("none", "cold", "unsigned", "plain", "unasked"):
            record = there.outcome(f"{name}.test", "Delivery")
            assert "tls_sts" not in record and record["tls_verified"] is False, name
        assert [arrival.recipients for arrival in there.good.arrivals] == [["b@two.test"]]
        arrived = {recipient for arrival in there.bad.arrivals for recipient in arrival.recipients}
        assert arrived == {
            f"b@{name}.test" for name in ("testing", "none", "cold", "unsigned", "plain", "unasked")
        }


def test_a_new_id_changes_what_is_done_while_mail_flows(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        there.announce("changed.test", "testing", "mx.bad.test")
        there.relay.start()
        there.send("changed.test")
        assert there.outcome("changed.test", "Delivery")["tls_sts"].startswith("testing: would fail")
        there.announce("changed.test", "enforce", "mx.bad.test", id="2")

        def held() -> bool:
            there.send("changed.test")
            return bool(there.records("changed.test", "TransientFailure"))

        until(held, seconds=30, what=lambda: f"a held message: {there.records('changed.test')}")
        assert DEMAND in there.records("changed.test", "TransientFailure")[0]["response"]["content"]
        # And back: what was held goes out without a restart.
        there.announce("changed.test", "none", id="3")
        until(
            lambda: there.records("changed.test")[-1]["type"] == "Delivery",
            seconds=30,
            what=lambda: f"a delivery: {there.records('changed.test')[-3:]}",
        )
        assert "tls_sts" not in there.records("changed.test")[-1]


def test_what_was_known_is_in_force_after_a_restart_without_record_and_server(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        there.announce("two.test", "enforce", "mx.good.test")
        there.relay.start()
        there.send("two.test")
        there.outcome("two.test", "Delivery")
        there.relay.stop()
        assert (tmp_path / "spool.mta-sts").exists()
        del there.zones["_mta-sts.two.test"]
        there.policies.answers.clear()
        there.relay.start()
        there.send("two.test")
        until(
            lambda: len(there.records("two.test", "Delivery")) == 2,
            seconds=20,
            what=lambda: f"a second delivery: {there.records('two.test')}",
        )
        assert there.records("two.test", "Delivery")[1]["tls_sts"] == "enforce: passed"
        assert there.bad.arrivals == []


def test_no_tls_at_all_under_enforce(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        there.bad.offer_starttls = False
        there.announce("held.test", "enforce", "mx.bad.test")
        there.announce("testing.test", "testing", "mx.bad.test")
        there.relay.start()
        there.send("held.test")
        there.send("testing.test")
        record = there.outcome("held.test", "TransientFailure")
        assert f"{DEMAND} and the peer does not offer STARTTLS" in record["response"]["content"]
        record = there.outcome("testing.test", "Delivery")
        assert record["tls_sts"] == "testing: would fail, no TLS (not offered by the peer)"
        assert [arrival.recipients for arrival in there.bad.arrivals] == [["b@testing.test"]]


def test_a_ca_that_is_no_ca_keeps_the_relay_from_starting(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        (tmp_path / "policies.pem").write_text("nothing\n")
        assert there.relay.launch().wait(30) != 0
        assert 'configure_mta_sts: ca="policies.pem" cannot be used' in there.relay.stderr


def test_explain_says_what_the_policy_is_and_what_comes_of_it(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        there.announce("two.test", "enforce", "*.good.test")
        there.announce("left.test", "enforce", "mx.good.test")
        there.announce("testing.test", "testing", "mx.good.test")
        for domain, said, tls in (
            ("two.test", "enforce, id 1, max_age 604800 s, mx *.good.test\n", DEMAND),
            ("left.test", "mx mx.good.test; it does not name mx.bad.test; nothing can be sent\n", DEMAND),
            ("testing.test", "testing, id 1, max_age 604800 s, mx mx.good.test; it does not name mx.bad", ""),
            ("plain.test", "no policy: no record at _mta-sts.plain.test announces one\n", ""),
            ("unasked.test", "not looked at: enable_mta_sts is False\n", ""),
        ):
            text = there.explain(domain)
            assert said in text and (DEMAND in text) is bool(tls), text
        del there.policies.answers["two.test"]
        assert "no policy: mta-sts.two.test answers 404; right would be 200" in there.explain("two.test")
        assert not (tmp_path / "spool.mta-sts").exists()
