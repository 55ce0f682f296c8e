"""Who we are to a peer: by sender, by source, and for a crowd of credentials after a restart."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import policy
from policy.testing import MemoryStore, NextHop, open_relay, scenario

ROOT = Path(__file__).parents[2]
MESSAGES = 10
"""In the queue of each of 100 domains."""


def example(page: str, heading: str, directory: Path) -> Path:
    """The first Python block below a heading of the documentation, as a file."""
    _, _, below = (ROOT / "docs" / page).read_text().partition(f"\n{heading}\n")
    found = re.search(r"^```python\n(.*?)^```", below, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    file = directory / "policy_of_the_page.py"
    file.write_text(found[1])
    return file


@scenario
async def test_each_sender_has_its_own_login_and_connections_are_reused(tmp_path: Path) -> None:
    """The example of docs/auth.md as it stands: the sender decides, no session ever has mail of two."""
    file = example("auth.md", "### One login per destination, tenant or sender", tmp_path)
    file.write_text(
        file.read_text()
        + '@policy.on("init")\ndef init():\n    policy.define_spool(path="spool")\n'
        + '    policy.start_esmtp_listener(listen="127.0.0.1:2525")\n'
    )
    tenants = {"acme.example": "acme", "umbrella.example": "umbrella", "else.example": "shared"}
    hop = NextHop(tls=True, users={tenant: f"of {tenant}" for tenant in tenants.values()})
    hops = {"smtp.provider.example:587": hop}
    secrets = {f"file:/etc/posthorn/tenants/{tenant}": f"of {tenant}" for tenant in tenants.values()}
    async with open_relay(file, hops=hops, secrets=secrets) as relay:
        for turn in range(30):
            for domain in tenants:
                await relay.submit(f"bob@d{turn % 7}.example", sender=f"me@{domain}", client="127.0.0.1")
        records = await relay.wait_for("Delivery", 90)
    assert {(str(one.sender).partition("@")[2], one.smtp_auth_user) for one in records} == set(
        tenants.items()
    )
    sessions: dict[str, set[str | None]] = {}
    for one in records:
        sessions.setdefault(one.session_id, set()).add(one.smtp_auth_user)
    assert all(len(users) == 1 for users in sessions.values())
    assert hop.connections == len(hop.logins) == len(sessions) < 45, "several messages in each"
    assert len(hop.tried) == len(hop.logins)


@scenario
async def test_two_sources_to_one_host_are_two_identities() -> None:
    """By source, with the sources side by side in one pool."""
    pool = policy.make_egress_pool(name="both", entries=[{"name": "one"}, {"name": "two"}])

    def path(domain: str, egress_source: str, site_name: str) -> Any:
        return policy.make_egress_path(
            enable_tls="Required",
            smtp_auth={"username": egress_source, "password": {"key_data": f"of {egress_source}"}},
        )

    hooks = {
        "get_queue_config": lambda *names: policy.make_queue_config(egress_pool="both"),
        "get_egress_pool": lambda name: pool,
        "get_egress_source": lambda name: policy.make_egress_source(name=name),
        "get_egress_path_config": path,
    }
    hop = NextHop(tls=True, users={"one": "of one", "two": "of two"})
    dns = {"example.com": {"MX": ["10 mx.example.com."]}}
    async with open_relay(hooks, hops={"mx.example.com": hop}, dns=dns) as relay:
        for _ in range(20):
            await relay.submit("bob@example.com")
        records = await relay.wait_for("Delivery", 20)
    assert {(one.egress_source, one.smtp_auth_user) for one in records} == {("one", "one"), ("two", "two")}
    assert Counter(one.smtp_auth_user for one in records) == {"one": 10, "two": 10}


@scenario
async def test_a_crowd_of_mail_for_100_credentials_is_100_reads_after_a_restart() -> None:
    """Reliability V6: each domain has a password of its own, and all mail is due at the same moment. The key
    ring alone is asked 10,000 times in tests/keys."""
    domains = [f"d{number}.example" for number in range(100)]

    def path(domain: str, egress_source: str, site_name: str) -> Any:
        return policy.make_egress_path(
            enable_tls="Required",
            smtp_auth={"username": domain, "password": {"vault_mount": "secret", "vault_path": domain}},
        )

    store = MemoryStore()
    hop = NextHop(tls=True, users={domain: f"of {domain}" for domain in domains}, down="refused")
    hooks = {
        "get_queue_config": lambda *names: policy.make_queue_config(
            protocol={"smtp": {"mx_list": ["relay.example"]}}, retry_interval="1h"
        ),
        "get_egress_path_config": path,
    }
    secrets = {f"vault:secret/{domain}": f"of {domain}" for domain in domains}
    async with open_relay(hooks, hops={"relay.example": hop}, secrets=secrets, store=store) as relay:
        for _ in range(MESSAGES):
            answer = await relay.submit([f"bob@{domain}" for domain in domains])
            assert answer.ok
    hop.down = None
    async with open_relay(hooks, hops={"relay.example": hop}, secrets=secrets, store=store) as relay:
        # One message of each queue was tried before the restart, and is due later.
        await relay.until(lambda: relay.queued <= len(domains), within="4 minutes")
        assert relay.secrets.reads == dict.fromkeys(secrets, 1)
        await relay.until(lambda: not relay.queued, within="2 hours")
        assert relay.leaks() == []
    assert sum(len(one.recipients) for one in hop.arrived) == MESSAGES * len(domains)
