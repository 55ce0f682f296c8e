"""engine/testing/personas.py: each does what its docstring says, to a client and to the real engine."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio
import trio.testing

import policy
from engine.testing.client import Client
from engine.testing.clock import scenario
from engine.testing.hop import NextHop
from engine.testing.personas import (
    CountsFailedLogins,
    ExpiredCertificate,
    LiesAboutSize,
    LimitsConnections,
    RestartsBackEnd,
    Storm,
    StripsStartTls,
    TarPit,
)
from engine.testing.relay import open_relay
from engine.testing.secrets import Secrets

DNS = {"example.com": {"MX": ["10 mx.example.com."]}}
PASSWORD = "vault:secret/relay"
AUTH = {
    "smtp_auth_plain_username": "scott",
    "smtp_auth_plain_password": {"vault_mount": "secret", "vault_path": "relay"},
}


def hooks(*, queue: dict[str, Any] | None = None, **path: Any) -> dict[str, Any]:
    """A policy with one path; failed mail is tried again after a minute."""
    config = policy.make_queue_config(**{"retry_interval": 60, **(queue or {})})
    egress = policy.make_egress_path(**{"enable_tls": "Required", **path})
    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": lambda domain, egress_source, site_name: egress,
    }


def relay(hop: NextHop, given: dict[str, Any], **more: Any) -> Any:
    return open_relay(given, hops={"mx.example.com": hop}, dns=DNS, **more)


# What the engine makes of them


@scenario
async def test_a_wrong_password_is_tried_far_less_often_than_would_lock_the_account() -> None:
    hop = CountsFailedLogins(limit=3)
    secrets = Secrets({PASSWORD: "wrong"})
    async with relay(hop, hooks(**AUTH, connection_limit=10), secrets=secrets) as running:
        for number in range(20):
            assert (await running.submit(f"u{number}@example.com")).ok
        await running.wait_for("TransientFailure", 1)
        await running.wait("30 seconds")
        assert 1 <= hop.failed["scott"] < 3 and hop.locked == []
        secrets.values[PASSWORD] = "tiger"
        delivered = await running.wait_for("Delivery", 20, within="2 hours")
        assert {record.num_attempts for record in delivered} == {0}
        assert hop.locked == [] and running.queued == 0


@scenario
async def test_no_more_connections_than_the_hop_has_room_for() -> None:
    hop = LimitsConnections(most=3)
    async with relay(hop, hooks(connection_limit=3)) as running:
        for number in range(100):
            await running.submit(f"u{number}@example.com")
        await running.wait_for("Delivery", 100)
        assert hop.turned_away == 0 and hop.most_open <= 3
    hop = LimitsConnections(most=3)
    async with relay(hop, hooks(connection_limit=20, max_deliveries_per_connection=1)) as running:
        async with trio.open_nursery() as crowd:
            for number in range(100):
                crowd.start_soon(running.submit, f"u{number}@example.com")
        await running.wait_for("Delivery", 100)
        assert hop.turned_away > 0 and len(hop.arrived) == 100


@scenario
async def test_535_while_the_back_end_restarts_bounces_nothing_and_costs_no_attempt() -> None:
    hop = RestartsBackEnd()
    async with relay(hop, hooks(**AUTH, hold_interval=60), secrets={PASSWORD: "tiger"}) as running:
        hop.restart("10 minutes")
        for number in range(20):
            await running.submit(f"u{number}@example.com")
        await running.wait("9 minutes")
        assert 1 <= hop.refused <= 10 and not hop.arrived
        delivered = await running.wait_for("Delivery", 20, within="2 hours")
        assert {record.num_attempts for record in delivered} == {0}
        assert not running.records("Bounce")
        assert {record.cause for record in running.records("TransientFailure")} == {"login-refused"}


@scenario
async def test_no_password_goes_where_starttls_was_taken_out() -> None:
    hop = StripsStartTls(users={"scott": "tiger"})
    async with relay(hop, hooks(**AUTH), secrets={PASSWORD: "tiger"}) as running:
        await running.submit()
        await running.wait("1 hour")
        assert hop.exposed == 0 and not hop.arrived and running.queued == 1
        assert {record.cause for record in running.records("TransientFailure")} == {"tls"}
    async with relay(hop, hooks(enable_tls="Opportunistic")) as running:
        await running.submit()
        (record,) = await running.wait_for("Delivery")
        assert record.tls_cipher is None


@scenario
async def test_mail_waits_for_a_certificate_that_is_valid() -> None:
    hop = ExpiredCertificate(users={"scott": "tiger"})
    async with relay(hop, hooks(**AUTH), secrets={PASSWORD: "tiger"}) as running:
        await running.submit()
        await running.wait("1 hour")
        assert hop.logins == [] and "AUTH" not in hop.words()
        first, *_ = running.records("TransientFailure")
        assert first.cause == "tls" and "expired" in first.content
        hop.renew()
        (record,) = await running.wait_for("Delivery", within="1 hour")
        assert record.tls_verified and record.num_attempts == 0


@scenario
async def test_a_tar_pit_costs_its_own_mail_time_and_nobody_elses() -> None:
    slow, quick = TarPit(pause="30 seconds"), NextHop()
    given = hooks(enable_tls="Opportunistic")
    async with open_relay(given, hops={"slow.example": slow, "quick.example": quick}) as running:
        begun = trio.current_time()
        await running.submit("bob@slow.example")
        await running.submit("bob@quick.example")
        await running.wait_for("Delivery", 1)
        assert trio.current_time() == begun and len(quick.arrived) == 1
        await running.wait_for("Delivery", 2)
        assert trio.current_time() - begun == pytest.approx(8 * 30, abs=61)
        assert len(slow.arrived) == 1


@scenario
async def test_a_tar_pit_that_drips_meets_the_timeouts() -> None:
    hop = TarPit(pause="30 seconds", drip=True)
    given = hooks(enable_tls="Disabled", banner_timeout="1 minute", queue={"max_age": "1 hour"})
    async with relay(hop, given) as running:
        await running.submit()
        await running.wait_for("Expiration", within="3 hours")
        await running.wait("1 minute")
        assert hop.open == 0 and hop.commands == [] and hop.connections > 1


@scenario
async def test_a_message_too_big_for_a_hop_that_lied_bounces_alone() -> None:
    hop = LiesAboutSize(takes=10_000)
    async with relay(hop, hooks()) as running:
        await running.submit("big@example.com", content="Subject: big\n\n" + "x" * 70 + "\n" * 20_000)
        await running.submit("small@example.com")
        (bounce,) = await running.wait_for("Bounce")
        await running.wait_for("Delivery")
        assert bounce.recipient == "big@example.com" and bounce.code == 552 and hop.read > 20_000
        assert [message.recipients for message in hop.arrived] == [["small@example.com"]]


@scenario
async def test_a_storm_of_421_loses_and_doubles_nothing() -> None:
    hop = Storm()
    async with relay(hop, hooks(connection_limit=5)) as running:
        for number in range(50):
            await running.submit(f"u{number}@example.com")
        await running.wait("1 hour")
        assert set(hop.ended) == {"connect", "EHLO", "MAIL", "RCPT", "DATA", "."}
        assert not hop.arrived and running.queued == 50
        hop.end()
        await running.wait_for("Delivery", 50)
        assert sorted(message.recipients[0] for message in hop.arrived) == sorted(
            f"u{number}@example.com" for number in range(50)
        )
        assert not running.records("Bounce")


# What they say, byte by byte


async def talk(hop: NextHop, *commands: str) -> list[str]:
    """A session with a hop: the greeting and the replies, each on one line."""
    here, there = trio.testing.memory_stream_pair()
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hop.serve, there)
        client = Client(here)  # type: ignore[arg-type]
        said.append(str(await client.reply()))
        for command in commands:
            try:
                said.append(str(await client.ask(command)).replace("\n", "|"))
            except (EOFError, trio.BrokenResourceError):
                said.append("closed")
                break
        await here.aclose()
    return said


def login(password: str, user: str = "scott") -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode()


@scenario
async def test_the_count_of_failed_logins() -> None:
    hop = CountsFailedLogins(tls=None, limit=2, lock="1 minute")
    wrong, right = login("lion"), login("tiger")
    assert await talk(hop, "EHLO c", wrong, right, wrong, right, wrong, wrong, right) == [
        "220 peer.example ESMTP",
        "250 peer.example|PIPELINING|8BITMIME|SIZE 100000000|AUTH PLAIN LOGIN",
        "535 5.7.8 authentication failed",
        "235 2.7.0 ok",
        "535 5.7.8 authentication failed",
        "235 2.7.0 ok",
        "535 5.7.8 authentication failed",
        "535 5.7.8 authentication failed",
        "535 5.7.8 account is locked",
    ]
    assert hop.failed == {"scott": 4} and hop.locked == ["scott"]
    await trio.sleep(60)
    assert (await talk(hop, "EHLO c", right))[-1] == "235 2.7.0 ok"


@scenario
async def test_the_end_of_a_restart() -> None:
    hop = RestartsBackEnd(tls=None)
    hop.restart("1 minute")
    assert (await talk(hop, "EHLO c", login("tiger"), login("lion")))[2:] == [
        "535 5.7.8 authentication failed"
    ] * 2
    assert hop.refused == 1
    await trio.sleep(60)
    assert (await talk(hop, "EHLO c", login("lion"), login("tiger")))[2:] == [
        "535 5.7.8 authentication failed",
        "235 2.7.0 ok",
    ]


@scenario
async def test_the_reply_to_ehlo_without_starttls() -> None:
    assert await talk(StripsStartTls(), "EHLO c", "STARTTLS", "NOOP") == [
        "220 peer.example ESMTP",
        "250 peer.example|PIPELINING|8BITMIME|SIZE 100000000|XXXXXXXA",
        "502 5.5.1 not understood",
        "250 2.0.0 ok",
    ]


@scenario
async def test_the_size_that_is_offered() -> None:
    said = await talk(
        LiesAboutSize(tls=None, offered=5000, takes=10),
        *("EHLO c", "MAIL FROM:<> SIZE=4000", "RCPT TO:<b@example.com>", "DATA", "0123456789\r\n."),
        *("MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "01234567\r\n."),
    )
    assert said[1].split("|")[-1] == "SIZE 5000"
    assert said[5] == "552 5.3.4 message too big" and said[-1] == "250 2.0.0 taken"


@scenario
async def test_where_a_storm_ends_each_session() -> None:
    hop = Storm(tls=None)
    dialog = ("EHLO c", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA", "x\r\n.")
    for number in range(12):
        said = await talk(hop, *dialog)
        moment = number % 6
        assert said[moment].startswith("421 4.3.2 ") and len(said) == (moment + 2 if moment < 5 else 6)
        assert said[-1] == "closed" or moment == 5
    assert not hop.arrived and sum(hop.ended.values()) == 12
    hop.end()
    assert (await talk(hop, *dialog))[-1] == "250 2.0.0 taken"


@scenario
async def test_the_pauses_of_a_tar_pit() -> None:
    hop = TarPit(pause=10)
    assert (await talk(hop, "EHLO c"))[1].count("|") == 3
    assert trio.current_time() == 50.0
    await talk(TarPit(pause=1, drip=True))
    assert trio.current_time() == 50.0 + len("220 peer.example ESMTP\r\n")


@scenario
async def test_a_renewal_needs_an_authority() -> None:
    with pytest.raises(ValueError, match=r"in no relay of open_relay"):
        ExpiredCertificate().renew()
