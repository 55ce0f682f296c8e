"""engine/testing/relay.py and what is around it: the engine in a world that a test made."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import trio

import policy
from engine.errors import ConfigError
from policy.testing import (
    DROP,
    SERVFAIL,
    CountsFailedLogins,
    MemoryStore,
    NextHop,
    Secrets,
    ThrowAwayCa,
    open_relay,
    scenario,
)
from tests.support.pki import Pki
from tests.support.programs import need

Hooks = dict[str, Any]


def path(**options: Any) -> Hooks:
    made = policy.make_egress_path(**options)
    return {"get_egress_path_config": lambda domain, egress_source, site_name: made}


# Who is where


@scenario
async def test_hops_by_name_address_and_port() -> None:
    mx, literal, v6, special = NextHop(), NextHop(), NextHop(), NextHop()
    queues = {
        "literal.example": ["192.168.1.10"],
        "v6.example": ["[2001:db8::1]:2525"],
        "special.example": ["192.168.1.10:587"],
    }
    hooks = path(enable_tls="Disabled") | {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: (
            policy.make_queue_config(protocol={"smtp": {"mx_list": queues[domain]}})
            if domain in queues
            else None
        )
    }
    hops = {
        "mx.example.com": mx,
        "192.168.1.10": literal,
        "[2001:DB8::1]:2525": v6,
        "192.168.1.10:587": special,
    }
    dns = {"example.com": {"MX": ["10 mx.example.com."]}}
    async with open_relay(hooks, hops=hops, dns=dns) as relay:
        for domain in ("example.com", *queues):
            await relay.submit(f"bob@{domain}")
        await relay.wait_for("Delivery", 4)
        for hop, domain in zip((mx, literal, v6, special), ("example.com", *queues), strict=True):
            assert [message.recipients for message in hop.arrived] == [[f"bob@{domain}"]]


@scenario
async def test_where_nobody_is_and_where_nobody_answers() -> None:
    hop = NextHop(down="silent")
    async with open_relay(path(connect_timeout="7 seconds"), hops={"silent.example": hop}) as relay:
        begun = trio.current_time()
        await relay.submit("bob@silent.example")
        (record,) = await relay.wait_for("TransientFailure")
        assert "no connection within 7 s" in record.content and trio.current_time() - begun == 7.0
        relay.dns.zones["gone.example"] = {"A": ["192.0.2.200"]}  # type: ignore[index]
        await relay.submit("bob@gone.example")
        record = (await relay.wait_for("TransientFailure", 2))[-1]
        assert "connection refused" in record.content
        hop.down = None
        await relay.wait_for("Delivery")


@scenario
async def test_sources_are_seen_by_the_hop() -> None:
    hop = NextHop()
    hooks = path() | {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: policy.make_queue_config(
            egress_pool="pool"
        ),
        "get_egress_pool": lambda name: policy.make_egress_pool(name=name, entries=[{"name": "ip-1"}]),
        "get_egress_source": lambda name: policy.make_egress_source(name=name, source_address="192.0.2.77"),
    }
    async with open_relay(hooks, hops={"example.com": hop}) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
    assert hop.sources == ["192.0.2.77"]


@scenario
async def test_what_is_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hops: 'mx example' is neither a host name nor an address"):
        async with open_relay({}, hops={"mx example": NextHop()}):
            pass


# TLS


@scenario
async def test_only_the_relays_own_authority_is_trusted_and_only_meanwhile() -> None:
    before = os.environ.get("SSL_CERT_FILE")
    stranger = NextHop(tls=ThrowAwayCa().server_context("stranger.example"))
    friend = NextHop(tls=True)
    hops = {"stranger.example": stranger, "friend.example": friend}
    async with open_relay(path(enable_tls="Required"), hops=hops) as relay:
        await relay.submit("bob@stranger.example")
        (held,) = await relay.wait_for("TransientFailure")
        assert held.cause == "tls" and "unable to get local issuer certificate" in held.content
        await relay.submit("bob@friend.example")
        (record,) = await relay.wait_for("Delivery")
        assert record.tls_verified
    assert os.environ.get("SSL_CERT_FILE") == before


@scenario
async def test_tls_before_the_greeting() -> None:
    hop = NextHop(tls=True, implicit=True)
    given = path(enable_tls="Required", tls_implicit=True)
    async with open_relay(given, hops={"example.com:465": hop}) as relay:
        await relay.submit()
        (record,) = await relay.wait_for("Delivery")
        assert record.tls_verified and hop.commands[0] == "(tls)"


@scenario
async def test_the_systems_certificates_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = Pki()  # of another name
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    await trio.run_process([need("openssl", "openssl"), "rehash", str(tmp_path)])
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    hop = NextHop(tls=ca.server("example.com"))
    async with open_relay(path(enable_tls="Required"), hops={"example.com": hop}) as relay:
        await relay.submit()
        (held,) = await relay.wait_for("TransientFailure")
        assert held.cause == "tls"


@scenario
async def test_a_private_ca_as_a_secret() -> None:
    ca = ThrowAwayCa()
    hop = NextHop(tls=ca.server_context("example.com"))
    hooks = path(enable_tls="Required", tls_ca={"file": "/etc/posthorn/ca.pem"})
    async with open_relay(
        hooks, hops={"example.com": hop}, secrets={"file:/etc/posthorn/ca.pem": ca.pem}
    ) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
        assert relay.secrets.reads == {"file:/etc/posthorn/ca.pem": 1}


@scenario
async def test_tls_without_a_relay_says_what_is_missing() -> None:
    here, there = trio.testing.memory_stream_pair()
    await here.send_all(b"EHLO me\r\n")
    with pytest.raises(ValueError, match=r"tls=True is for a relay of open_relay"):
        await NextHop(tls=True).serve(there)  # type: ignore[arg-type]


# Secrets


def login(**key: Any) -> Hooks:
    return path(
        smtp_auth_plain_username="scott",
        smtp_auth_plain_password=key,
        allow_smtp_auth_plain_without_tls=True,
    )


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ({"vault_mount": "secret", "vault_path": "relay"}, "vault:secret/relay"),
        ({"vault_mount": "secret", "vault_path": "relay", "vault_key": "pw"}, "vault:secret/relay#pw"),
        ({"file": "/etc/posthorn/relay"}, "file:/etc/posthorn/relay"),
        ({"env": "RELAY"}, "env:RELAY"),
        ({"credential": "relay"}, "credential:relay"),
        ({"aws_secret": "mail/relay", "aws_key": "password"}, "aws:mail/relay#password"),
        ({"exec": ["/usr/bin/pass", "show", "relay"]}, "exec:/usr/bin/pass show relay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_secret_by_its_name(key: dict[str, Any], name: str) -> None:
    @scenario
    async def test() -> None:
        hop = NextHop(users={"scott": "tiger"})
        async with open_relay(login(**key), hops={"example.com": hop}, secrets={name: "tiger"}) as relay:
            await relay.submit()
            (record,) = await relay.wait_for("Delivery")
            assert record.smtp_auth_user == "scott" and relay.secrets.reads[name] == 1
            assert "tiger" not in relay.journal.text()

    test()


@scenario
async def test_a_secret_that_the_test_does_not_give_is_named() -> None:
    async with open_relay(login(env="RELAY"), hops={"example.com": NextHop()}) as relay:
        await relay.submit()
        (record,) = await relay.wait_for("TransientFailure")
        assert record.cause == "secret-unavailable"
        assert "env:RELAY: the test gives it no value: secrets={...} of open_relay" in record.content


@scenario
async def test_outages_by_the_beginning_of_the_name() -> None:
    secrets = Secrets({"env:A": "tiger", "vault:secret/relay": "tiger"})
    secrets.fail("vault:", "Vault is sealed")
    hop = NextHop(users={"scott": "tiger"})
    async with open_relay(login(env="A"), hops={"example.com": hop}, secrets=secrets) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
    key = {"vault_mount": "secret", "vault_path": "relay"}
    async with open_relay(login(**key), hops={"example.com": hop}, secrets=secrets) as relay:
        await relay.submit()
        (record,) = await relay.wait_for("TransientFailure")
        assert "Vault is sealed" in record.content
        secrets.heal()
        secrets.fail("", silent=True)
        await relay.wait("10 minutes")
        assert any("no answer" in why for why in relay.held.values())
        secrets.heal()
        await relay.wait_for("Delivery")


# Mail in


INBOUND = """
import policy

@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.configure_local_logs(log_dir="log", meta=["colour"])
    policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["10.0.0.0/8"])
    policy.start_esmtp_listener(listen="0.0.0.0:0", relay_hosts=["192.0.2.1"], max_message_size="1 KiB")

@policy.on("smtp_server_mail_from")
async def mail_from(sender, conn_meta):
    if str(sender).startswith("evil"):
        raise policy.Reject(550, "5.7.1 not you")

@policy.on("smtp_server_message_received")
def received(msg, conn_meta):
    msg.set_meta("colour", "red")

policy.shaping.setup(["https://shaping.example.com/more.toml"])
"""


@pytest.fixture
def inbound(tmp_path: Path) -> Path:
    (tmp_path / "mypolicy.py").write_text(INBOUND)
    return tmp_path / "mypolicy.py"


URLS = {"https://shaping.example.com/more.toml": '["example.com"]\nenable_tls = "Disabled"\n'}


@scenario
async def test_submission_goes_through_listener_and_hooks(inbound: Path) -> None:
    hop = NextHop(tls=True)
    async with open_relay(inbound, hops={"example.com": hop}, urls=URLS) as relay:
        ok = await relay.submit(["a@example.com", "b@example.com"], client="10.0.0.1", content="ä\n.\n..x")
        assert ok.ok and ok.accepted == ("a@example.com", "b@example.com") and ok.reply.code == 250
        evil = await relay.submit(sender="evil@example.com", client="10.0.0.1")
        assert not evil.ok and str(evil.reply) == "550 5.7.1 not you"
        other = await relay.submit(client="192.0.2.1")
        assert not other.ok and other.refused["bob@example.com"].code == 550 and not other.accepted
        assert (await relay.submit(client="192.0.2.1", listener=1)).ok
        large = await relay.submit(client="192.0.2.1", listener=1, content="x" * 2000)
        assert large.reply.code == 552 and not large.accepted
        records = await relay.wait_for("Delivery", 3)
        assert all(record.meta == {"colour": "red"} and record.tls_cipher is None for record in records)
        assert any(message.data.endswith("ä\r\n.\r\n..x\r\n".encode()) for message in hop.arrived)
        assert not inbound.with_name("spool").exists() and not inbound.with_name("log").exists()


@scenario
async def test_a_session_of_ones_own(inbound: Path) -> None:
    async with open_relay(inbound, urls=URLS) as relay:
        async with relay.client("10.0.0.1") as smtp:
            assert smtp.greeting.code == 220
            assert "PIPELINING" in (await smtp.ask("EHLO me")).text.split("\n")
            assert (await smtp.ask("QUIT")).code == 221
            with pytest.raises(EOFError):
                await smtp.ask("NOOP")


@scenario
async def test_a_url_without_content_is_an_outage(inbound: Path) -> None:
    async with open_relay(inbound, hops={"example.com": NextHop()}) as relay:
        await relay.submit(client="10.0.0.1")
        await relay.wait("1 minute")
        assert relay.queued == 1
        relay.urls.update(URLS)
        await relay.wait_for("Delivery", within="1 hour")


@scenario
async def test_a_policy_that_cannot_start_does_not(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text('import policy\npolicy.on("init")(lambda: None)\n')
    with pytest.raises(ConfigError, match=r"init defines no spool"):
        async with open_relay(tmp_path / "bad.py"):
            pass


# What becomes of it


@scenario
async def test_a_restart_finds_the_mail() -> None:
    store = MemoryStore()
    async with open_relay({}, store=store, dns={"example.com": {"MX": SERVFAIL}}) as relay:
        await relay.submit()
        await relay.wait("1 hour")
        assert relay.queued == 1
    hop = NextHop()
    async with open_relay({}, store=store, hops={"example.com": hop}) as relay:
        await relay.wait_for("Delivery", within="1 day")
    assert len(hop.arrived) == 1


@scenario
async def test_a_restart_does_not_forget_a_login_that_was_refused() -> None:
    store, hop = MemoryStore(), CountsFailedLogins(limit=3)

    def path(domain: str, egress_source: str, site_name: str) -> policy.EgressPath:
        login = {"username": "scott", "password": {"key_data": "wrong"}, "failure_budget": "2/h"}
        return policy.make_egress_path(enable_tls="Required", smtp_auth=login)

    for number in range(6):
        async with open_relay(
            {"get_egress_path_config": path}, store=store, hops={"example.com": hop}
        ) as relay:
            if not number:
                await relay.submit()
            await relay.wait("5 minutes")
            assert relay.queued == 1
    assert hop.failed == {"scott": 2} and not hop.locked


@scenario
async def test_waiting_in_vain_says_what_there_was() -> None:
    async with open_relay({}, hops={"example.com": NextHop(replies={"RCPT": "450 4.2.0 later"})}) as relay:
        await relay.submit()
        with pytest.raises(AssertionError, match=r"0 records of type Delivery, not 1; .*450 later"):
            await relay.wait_for("Delivery", within="1 hour")
        with pytest.raises(AssertionError, match=r"within 1 hour it did not become true"):
            await relay.until(lambda: False, within="1 hour")
        await relay.until(lambda: relay.queued == 1)


@scenario
async def test_a_lost_reply_to_the_final_dot_may_double_a_message_and_says_so() -> None:
    hop = NextHop(replies={".": [DROP, "250 2.0.0 taken"]})
    async with open_relay({}, hops={"example.com": hop}) as relay:
        await relay.submit()
        await relay.wait_for("Delivery", within="1 day")
        assert len(hop.arrived) == 2 and len(relay.records("TransientFailure")) == 1


@scenario
async def test_a_fault_in_a_script_ends_the_test() -> None:
    async def script(wire: Any) -> None:
        raise KeyError("the script is wrong")

    with pytest.raises(KeyError, match=r"the script is wrong"):
        async with open_relay({}, hops={"example.com": NextHop(script=script)}) as relay:
            await relay.submit()
            await relay.wait("1 hour")


@scenario
async def test_a_secret_in_a_record_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = "nothing"

    def init() -> None:
        policy.define_spool(path="spool")
        policy.configure_local_logs(log_dir="log", meta=["note"])
        policy.start_esmtp_listener(listen="127.0.0.1:25")

    def received(msg: policy.Message, conn_meta: policy.ConnectionMeta) -> None:
        msg.set_meta("note", told)

    hooks = login(env="RELAY") | {"init": init, "smtp_server_message_received": received}
    hop = NextHop(users={"scott": "tiger in a cage"})
    async with open_relay(
        hooks, hops={"example.com": hop}, secrets={"env:RELAY": "tiger in a cage"}
    ) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
        assert relay.leaks() == []
        told = "password=" + base64.b64encode(b"tiger in a cage").decode()
        await relay.submit()
        await relay.wait_for("Delivery", 2)
        assert [record.type for record in relay.leaks()] == ["Reception", "Delivery"]
    assert list(tmp_path.iterdir()) == []
