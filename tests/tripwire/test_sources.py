"""Who tells the tripwire of what: key sources of all they hold, sessions of what is said in them."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

import policy
from engine.keys import SourceFailure, open_keys
from engine.keys.vault import VaultSource
from engine.log.diagnostics import diagnostics
from engine.tripwire import Tripwire, keep_private
from policy.keysource import read_key
from policy.secret import Secret
from policy.testing import Relay, open_relay, scenario
from tests.support.openbao import OpenBao, openbao
from tests.support.tokens import TokenEndpoint, run_endpoint

__all__ = ["openbao"]

SAID = "canary=said/+1"
STORED = "canary=stored/+2"


def finds(tripwire: Tripwire, secret: str) -> bool:
    return tripwire.text(f"<{secret}>", "x") == "<********>"


async def test_a_vault_token_and_what_was_read_with_it(openbao: OpenBao) -> None:
    openbao.put("tripwire", {"key": SAID})
    token = openbao.token_for('path "secret/data/tripwire" { capabilities = ["read"] }')
    given = {"vault_mount": "secret", "vault_path": "tripwire", "vault_address": openbao.address}
    tripwire = Tripwire()
    async with open_keys(tripwire=tripwire) as keys:
        assert not finds(tripwire, SAID) and not finds(tripwire, token)
        await keys.fetch(read_key({**given, "vault_token": token}))
    assert finds(tripwire, SAID) and finds(tripwire, token)


async def test_what_a_login_to_vault_needs() -> None:
    auth = {"method": "approle", "role_id": "the-role-of-the-relay", "secret_id": {"key_data": STORED}}
    given = {"vault_mount": "secret", "vault_path": "x", "vault_address": "http://127.0.0.1:1"}
    auth["role_id"] = {"key_data": "the-role-of-the-relay"}  # type: ignore[assignment]
    tripwire = Tripwire()
    with pytest.raises(SourceFailure):
        await VaultSource(watch=tripwire.watch).read(read_key({**given, "vault_auth": auth}))  # type: ignore[arg-type]
    assert finds(tripwire, STORED) and not finds(tripwire, "the-role-of-the-relay")


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with run_endpoint(None) as found:
        yield found


async def test_access_tokens_and_refresh_tokens(endpoint: TokenEndpoint) -> None:
    endpoint.answer = lambda asked, number: (
        200,
        {"access_token": "canary-of-access", "refresh_token": "canary-of-refresh", "token_type": "Bearer"},
        {},
    )
    ref = read_key(
        {"token_endpoint": endpoint.url, "client_id": "me", "refresh_token": {"key_data": "canary-of-config"}}
    )
    tripwire = Tripwire()
    async with open_keys(tripwire=tripwire) as keys:
        await keys.fetch(ref)
    for secret in ("canary-of-access", "canary-of-refresh", "canary-of-config"):
        assert finds(tripwire, secret), secret


async def test_the_ring_tidies_and_lets_go(tmp_path: Any) -> None:
    tripwire = Tripwire()
    async with open_keys(tripwire=tripwire) as keys:
        keys._capacity = 80
        for number in range(100):
            await keys.fetch(read_key({"key_data": f"password number {number:03}!"}))
        with trio.fail_after(5):
            while tripwire.untidy:
                await trio.sleep(0.01)
    assert len(tripwire._layers) <= 5
    assert len(tripwire._current) == 80 and finds(tripwire, "password number 000!")


# -- sessions of a listener


def plain(password: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(b"\0scott\0" + password.encode()).decode()


def listener() -> None:
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(
        listen="127.0.0.1:25", allow_auth_without_tls=True, auth_mechanisms=["PLAIN", "SCRAM-SHA-256"]
    )


def hooks(**more: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    def refuse(sender: Any, conn_meta: Any) -> None:
        raise policy.Reject(550, f"5.7.1 not {SAID} and not {STORED}")

    return {
        "init": listener,
        "smtp_server_auth": lambda user, mechanism, token, conn_meta: policy.Secret(STORED),
        "smtp_server_mail_from": refuse,
    } | more


async def refused_mail(relay: Relay, *login: str) -> tuple[str, Any]:
    """The reply to a MAIL that holds both secrets, and its record."""
    async with relay.client() as client:
        await client.ask("EHLO x.example")
        for line in login:
            await client.ask(line)
        said = await client.ask(f'MAIL FROM:<"{SAID} {STORED}"@x.example>')
    return said.text, relay.records("Rejection")[-1]


@scenario
async def test_what_a_client_says_and_what_is_stored_of_it() -> None:
    async with open_relay(hooks()) as relay:
        for login, hidden in {
            (plain(SAID),): (SAID, STORED),
            ("AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=scott,r=abcdef").decode(), "*"): (STORED,),
            (): (),
        }.items():
            reply, record = await refused_mail(relay, *login)
            for secret in (SAID, STORED):
                assert (secret in reply) == (secret not in hidden), login
                assert (secret in record.command) == (secret not in hidden), login
                assert (secret in record.content) == (secret not in hidden), login


def test_diagnostics_of_a_session() -> None:
    out = io.StringIO()
    logger = logging.getLogger("posthorn.ingress")

    async def session(said: str | None) -> None:
        if said is not None:
            keep_private(Secret(said))
        logger.info("said %s", SAID)
        try:
            raise ValueError(SAID)
        except ValueError:
            logger.exception("failed")

    with diagnostics(stream=out):
        trio.run(session, SAID)
    assert SAID not in out.getvalue() and out.getvalue().count("********") == 2
    with diagnostics(stream=out):
        trio.run(session, None)
    assert out.getvalue().count(SAID) >= 2
