"""Vault sealed for an hour: with the secret at hand no mail fails, without it all is held and none is lost.

The real engine and the real OpenBao; the hour passes on the clock of `policy.testing`, which stands still
while a thread asks the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import policy
from policy.testing import CountsFailedLogins, MemoryStore, Relay, Secrets, open_relay, scenario
from tests.support.openbao import OpenBao, run_openbao

PATH = "smtp-auth/example.com"
DNS = {"example.com": {"MX": ["10 mx.example.com."]}}
MESSAGES = 60


def egress_path(domain: str, egress_source: str, site_name: str) -> Any:
    return policy.make_egress_path(
        enable_tls="Required",
        smtp_auth_plain_username="scott",
        smtp_auth_plain_password={"vault_mount": "secret", "vault_path": f"smtp-auth/{domain}"},
        idle_timeout="10 seconds",  # so that each message has a login of its own
    )


HOOKS = {"get_egress_path_config": egress_path}


class Table:
    """A table of secrets that is sealed."""

    def __init__(self) -> None:
        self.secrets: Secrets | None = Secrets({f"vault:secret/{PATH}": "tiger"})

    def seal(self) -> None:
        assert self.secrets is not None
        self.secrets.fail("vault:", "Vault is sealed (503)")

    def unseal(self) -> None:
        assert self.secrets is not None
        self.secrets.heal()


class Server:
    """A real one."""

    secrets = None

    def __init__(self, server: OpenBao) -> None:
        self.seal, self.unseal = server.seal, server.unseal


@pytest.fixture(params=["table", "openbao"])
def vault(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Table | Server]:
    if request.param == "table":
        yield Table()
        return
    with run_openbao(tmp_path) as server:
        server.put(PATH, {"key": "tiger"})
        monkeypatch.setenv("VAULT_ADDR", server.address)
        monkeypatch.setenv("VAULT_TOKEN", server.token)
        yield Server(server)


def relay(hop: CountsFailedLogins, vault: Table | Server, store: MemoryStore | None = None) -> Any:
    return open_relay(
        HOOKS,
        hops={"mx.example.com": hop},
        dns=DNS,
        secrets=vault.secrets,
        real_keys=vault.secrets is None,
        store=store,
    )


async def submit_for_an_hour(running: Relay) -> None:
    for number in range(MESSAGES):
        assert (await running.submit(f"u{number}@example.com")).ok
        await running.wait("1 minute")


def arrived(hop: CountsFailedLogins) -> list[str]:
    return sorted(message.recipients[0] for message in hop.arrived)


EVERYBODY = sorted(f"u{number}@example.com" for number in range(MESSAGES))


@pytest.mark.whole
@scenario
async def test_with_a_warm_cache_nothing_fails(vault: Table | Server) -> None:
    hop = CountsFailedLogins()
    async with relay(hop, vault) as running:
        await running.submit("first@example.com")
        await running.wait_for("Delivery")
        vault.seal()
        await submit_for_an_hour(running)
        vault.unseal()
        assert arrived(hop) == ["first@example.com", *EVERYBODY]
        assert {*running.journal.kinds()} == {"Reception", "Delivery"}
        assert len(hop.logins) >= MESSAGES and running.queued == 0


@pytest.mark.whole
@scenario
async def test_with_a_cold_cache_everything_is_held_and_nothing_lost(vault: Table | Server) -> None:
    hop, store = CountsFailedLogins(), MemoryStore()
    vault.seal()
    async with relay(hop, vault, store) as running:
        await submit_for_an_hour(running)
        assert running.queued == MESSAGES and hop.connections == 0
        assert "sealed" in str(running.held)
        held = running.records("TransientFailure") + running.records("Delayed")
        assert {(record.cause, record.num_attempts) for record in held} == {("secret-unavailable", 0)}
        assert {*running.journal.kinds()} <= {"Reception", "TransientFailure", "Delayed"}
    # A restart in the middle of it is cold, too.
    async with relay(hop, vault, store) as running:
        await running.wait("1 minute")
        assert running.queued == MESSAGES and hop.connections == 0
        vault.unseal()
        delivered = await running.wait_for("Delivery", MESSAGES, within="5 minutes")
        assert {record.num_attempts for record in delivered} == {0}
        assert arrived(hop) == EVERYBODY and running.queued == 0 and not hop.failed
