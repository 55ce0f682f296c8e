"""Nobody on the way can talk us out of TLS or a password out of us (reliability C20-C23, C28, C40, C41).

A path's `enable_tls` says what must be; what the peer says, refuses or claims in clear text changes
nothing about it, and a failed handshake under one path's demands opens nothing for another path.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, HookSet
from tests.support.certificates import Authority
from tests.support.peer import HANG, FakePeer, Wire, open_peer

NAME = "mx.good.example"
GOOD, OTHER = Authority(), Authority()
TRUSTED = {"key_data": GOOD.pem.decode()}
MISTAKEN = {"key_data": OTHER.pem.decode()}
LOGIN = {key: value for key, value in AUTH.items() if not key.startswith("allow")}

SPOKEN = {"MAIL", "RCPT", "AUTH", "DATA"}
"""What must not be said where the path's demands are not met."""


def to(peer: FakePeer, paths: dict[str, dict[str, Any]] | None = None, **path: Any) -> HookSet:
    """Hooks that route everything to this peer by the name `NAME`; `paths` has options by domain."""
    target = {"name": NAME, "addr": f"127.0.0.1:{peer.port}"}
    config = policy.make_queue_config(protocol={"smtp": {"mx_list": [target]}})
    made = {
        domain: policy.make_egress_path(**{"idle_timeout": 0.1, **path, **options})
        for domain, options in (paths or {"example.com": {}}).items()
    }
    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": lambda domain, egress_source, site_name: made[domain],
    }


async def is_held(b: Any, peer: FakePeer) -> Any:
    """The record of a message that was not tried, and about which nothing was said."""
    record = await b.first(20)
    assert record.type == "TransientFailure" and record.num_attempts == 0
    assert not SPOKEN & set(peer.words())
    return record


# TLS that is required is not talked away (C21, C23)


@pytest.mark.parametrize("mode", ["Required", "RequiredInsecure"])
@pytest.mark.parametrize(
    "answer",
    ["454 4.7.0 no", "502 no", "334 x", "150 x", "junk", "250 ok", "299 x", "220-go\r\n250 x", HANG],
)
async def test_starttls_refused(answer: str, mode: str, bench: Any, clock: MockClock) -> None:
    capabilities = ["STARTTLS", "PIPELINING", "AUTH PLAIN"]
    async with open_peer(replies={"STARTTLS": answer}, capabilities=capabilities) as peer:
        async with bench(to(peer, enable_tls=mode, **AUTH)) as b:
            await b.submit()
            record = await b.first(100)
            assert record.type == "TransientFailure" and not SPOKEN & set(peer.words())


async def test_starttls_not_offered(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, enable_tls="Required", **AUTH)) as b:
        await b.submit()
        assert (await is_held(b, peer)).cause == "tls"


async def test_ehlo_refused_and_helo_accepted(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"EHLO": "502 no EHLO"}) as peer:
        async with bench(to(peer, enable_tls="Required", **AUTH)) as b:
            await b.submit()
            await is_held(b, peer)
            assert "HELO" in peer.words()


@pytest.mark.parametrize(
    "replies",
    [{"connect": "235 already authenticated"}, {"EHLO": "235-authenticated\r\n235 TLS"}],
    ids=["greeting", "EHLO"],
)
async def test_claims_to_be_further_already(replies: Any, bench: Any, clock: MockClock) -> None:
    async with open_peer(replies=replies) as peer, bench(to(peer, enable_tls="Required", **AUTH)) as b:
        await b.submit()
        assert (await b.first()).type == "TransientFailure"
        assert not SPOKEN & set(peer.words())


async def test_a_greeting_that_is_none(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"connect": "235 already authenticated"}) as peer:
        async with bench(to(peer, enable_tls="Opportunistic")) as b:
            await b.submit()
            assert (await b.first()).type == "TransientFailure"
            assert peer.commands == []


@pytest.mark.parametrize("mode", ["Required", "Opportunistic"])
async def test_a_certificate_nobody_trusts(mode: str, bench: Any, clock: MockClock) -> None:
    """Also where TLS is merely taken when offered: no clear text behind a failed handshake by itself."""
    async with open_peer(tls=OTHER.server_context(NAME)) as peer:
        async with bench(to(peer, enable_tls=mode, tls_ca=TRUSTED)) as b:
            await b.submit()
            assert (await b.first()).type == "TransientFailure"
            await trio.sleep(30)
            assert not SPOKEN & set(peer.words())


async def test_421_to_starttls_ends_the_session(bench: Any, clock: MockClock) -> None:
    """C10: the mail must not go on in clear text behind it."""
    replies = {"STARTTLS": "421 4.3.2 shutting down"}
    async with open_peer(replies=replies, capabilities=["STARTTLS"]) as peer:
        async with bench(to(peer, enable_tls="Opportunistic")) as b:
            await b.submit()
            assert (await b.first()).type == "TransientFailure"
            assert not SPOKEN & set(peer.words())


# Nothing heard in clear text counts inside TLS (C22)


@pytest.mark.parametrize("gap", [0, 0.1])
async def test_octets_behind_the_answer_to_starttls(gap: float, bench: Any, clock: MockClock) -> None:
    injected = "250-peer\r\n250 AUTH PLAIN\r\n"

    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.raw("220 go\r\n" + ("" if gap else injected))
        if gap:
            await trio.sleep(gap)
            await wire.raw(injected)
        await wire.start_tls(context)
        await wire.peer.obey(wire)

    context = GOOD.server_context(NAME)
    async with open_peer(script) as peer:
        async with bench(to(peer, enable_tls="Required", tls_ca=TRUSTED, **LOGIN)) as b:
            await b.submit()
            assert (await b.first()).type == "TransientFailure"
            assert not SPOKEN & set(peer.words())


async def test_only_the_second_list_of_capabilities_counts(bench: Any, clock: MockClock) -> None:
    capabilities = ["PIPELINING", "AUTH PLAIN", "8BITMIME", "SIZE 5"]
    async with open_peer(
        tls=GOOD.server_context(NAME), capabilities=capabilities, secured=["X-NOTHING"]
    ) as peer:
        async with bench(to(peer, enable_tls="Required", tls_ca=TRUSTED, **LOGIN)) as b:
            await b.submit()
            assert (await is_held(b, peer)).cause == "auth-not-offered"
            assert peer.words().count("EHLO") == 2


async def test_a_limit_heard_before_tls_is_forgotten(bench: Any, clock: MockClock) -> None:
    async with open_peer(
        tls=GOOD.server_context(NAME), capabilities=["SIZE 5"], secured=["PIPELINING"]
    ) as peer:
        async with bench(to(peer, enable_tls="Required", tls_ca=TRUSTED)) as b:
            await b.submit()
            assert (await b.first()).type == "Delivery"


# The end of TLS (C29)


async def test_closed_without_goodbye_behind_the_answer_to_the_dot(bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.say("220 go")
        await wire.start_tls(context)
        await wire.line()
        await wire.say("250-peer", "250 PIPELINING")
        await wire.envelope()
        await wire.data()
        await wire.say("250 taken")

    context = GOOD.server_context(NAME)
    async with open_peer(script) as peer:
        async with bench(to(peer, enable_tls="Required", tls_ca=TRUSTED)) as b:
            await b.submit()
            await trio.sleep(30)
            assert b.log.kinds() == ["Delivery"] and b.log.records[0].tls_verified


# A failed handshake is remembered for those who met it (C28)


async def test_one_path_s_failed_handshake_puts_no_other_path_into_clear_text(
    bench: Any, clock: MockClock
) -> None:
    paths = {
        "mistaken.example": {"tls_ca": MISTAKEN, "remember_broken_tls": "1h"},
        "good.example": {"tls_ca": TRUSTED},
    }
    async with open_peer(tls=GOOD.server_context(NAME)) as peer:
        async with bench(to(peer, paths, enable_tls="Opportunistic")) as b:
            await b.submit("u@mistaken.example")
            await b.records("TransientFailure")
            await b.submit("u@good.example")
            (record,) = await b.records("Delivery")
            assert record.tls_verified


@pytest.mark.parametrize("trust", [TRUSTED, MISTAKEN], ids=["other trust", "same trust"])
async def test_nor_its_password(trust: Any, bench: Any, clock: MockClock) -> None:
    """Although that path may send it without TLS (to another host, say): here there is TLS."""
    paths = {
        "mistaken.example": {"tls_ca": MISTAKEN, "remember_broken_tls": "1h"},
        "login.example": {"tls_ca": trust, **AUTH},
    }
    async with open_peer(tls=GOOD.server_context(NAME), capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, paths, enable_tls="Opportunistic")) as b:
            await b.submit("u@mistaken.example")
            await b.records("TransientFailure")
            peer.commands.clear()
            await b.submit("u@login.example")
            await b.until(lambda: len(b.log.records) == 2)
            words = peer.words()
            assert "STARTTLS" in words
            if trust is TRUSTED:
                assert "(TLS)" in words[: words.index("AUTH")]
            else:
                assert b.log.records[1].cause == "tls" and not SPOKEN & set(words)


@pytest.mark.parametrize("retry", ["opportunistic_tls_reconnect_on_failed_handshake", "remember_broken_tls"])
async def test_a_password_never_follows_a_failed_handshake_in_clear_text(
    retry: str, bench: Any, clock: MockClock
) -> None:
    """Not even where the path would send it without TLS: with AUTH a failed handshake is never overlooked."""
    options = {retry: True if retry.startswith("opp") else "1h"}
    async with open_peer(tls=OTHER.server_context(NAME), capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, enable_tls="Opportunistic", tls_ca=TRUSTED, **options, **AUTH)) as b:
            await b.submit()
            await trio.sleep(300)
            assert b.log.records and not SPOKEN & set(peer.words())


async def test_remembered_by_a_lax_path_and_required_by_a_strict_one(bench: Any, clock: MockClock) -> None:
    paths = {
        "lax.example": {"opportunistic_tls_reconnect_on_failed_handshake": True},
        "strict.example": {"enable_tls": "Required"},
    }
    async with open_peer(tls=OTHER.server_context(NAME)) as peer:
        async with bench(to(peer, paths, enable_tls="Opportunistic", tls_ca=TRUSTED)) as b:
            await b.submit("u@lax.example")
            (record,) = await b.records("Delivery")
            assert not record.tls_protocol_version and record.tls_why
            peer.commands.clear()
            await b.submit("u@strict.example")
            (record,) = await b.records("TransientFailure")
            assert record.cause == "tls" and not SPOKEN & set(peer.words())


async def test_the_memory_of_a_failed_handshake_ends(bench: Any, clock: MockClock) -> None:
    async with open_peer(tls=OTHER.server_context(NAME)) as peer:
        path = {"enable_tls": "Opportunistic", "tls_ca": TRUSTED, "remember_broken_tls": 200}
        async with bench(to(peer, **path)) as b:
            await b.submit()
            await b.records("TransientFailure")
            await b.submit()
            (record,) = await b.records("Delivery", seconds=100)
            assert not record.tls_protocol_version and "failed lately" in record.tls_why
            assert peer.words().count("STARTTLS") == 1
            await trio.sleep(200)
            await b.submit()
            await b.records("TransientFailure", 2)
            assert peer.words().count("STARTTLS") == 2


# Credentials (C40, C41)


@pytest.mark.parametrize(
    ("mode", "option", "given"),
    [
        ("Required", None, False),
        ("RequiredInsecure", None, False),
        ("OpportunisticInsecure", None, False),
        ("RequiredInsecure", "allow_smtp_auth_plain_without_tls", False),
        ("OpportunisticInsecure", "allow_smtp_auth_plain_without_tls", False),
        ("RequiredInsecure", "allow_smtp_auth_plain_without_valid_certificate", True),
        ("Disabled", None, False),
        ("Disabled", "allow_smtp_auth_plain_without_valid_certificate", False),
        ("Disabled", "allow_smtp_auth_plain_without_tls", True),
    ],
)
async def test_a_password_goes_into_verified_tls_or_where_an_option_names_the_risk(
    mode: str,
    option: str | None,
    given: bool,
    bench: Any,
    clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    relaxed = {option: True} if option is not None else {}
    async with open_peer(tls=OTHER.server_context(NAME), capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, enable_tls=mode, **LOGIN, **relaxed)) as b:
            await b.submit()
            if given:
                await b.records("Delivery")
                assert "AUTH" in peer.words()
            else:
                assert (await is_held(b, peer)).cause == "tls"
            assert (str(option) in caplog.text) or option is None, "the risk is said aloud"


@pytest.mark.parametrize(
    "capability",
    [
        *("AUTH CRAM-MD5", "AUTH SCRAM-SHA-256", "AUTH", "AUTH=", "AUTHPLAIN", "X-AUTH PLAIN"),
        "AUTH " + " ".join(f"X{i}" for i in range(60)),
    ],
)
async def test_only_what_we_can_do_is_done(capability: str, bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=[capability]) as peer:
        async with bench(to(peer, enable_tls="Disabled", **AUTH)) as b:
            await b.submit()
            assert (await is_held(b, peer)).cause == "auth-not-offered"


@pytest.mark.parametrize("capability", ["AUTH PLAIN", "auth plain", "AUTH=PLAIN", "AUTH X PLAIN LOGIN"])
async def test_it_may_be_offered_in_these_words(capability: str, bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=[capability]) as peer:
        async with bench(to(peer, enable_tls="Disabled", **AUTH)) as b:
            await b.submit()
            await b.records("Delivery")
            assert peer.commands[1].startswith("AUTH PLAIN")


@pytest.mark.parametrize("where", ["MAIL", "RCPT"])
@pytest.mark.parametrize("code", [530, 535])
async def test_a_peer_that_wants_a_login_bounces_nothing(
    where: str, code: int, bench: Any, clock: MockClock
) -> None:
    """A fault of the configuration, not of the mail."""
    async with open_peer(replies={where: f"{code} 5.7.0 authentication required"}) as peer:
        async with bench(to(peer, enable_tls="Disabled")) as b:
            await b.submit()
            assert (await b.first()).type == "TransientFailure"
