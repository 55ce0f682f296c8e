"""engine/egress/login.py: which mechanism is used, and what a peer that cheats gets."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import policy
from engine.net import end_point_binding
from engine.smtp import MECHANISMS, Binding
from policy.egress import EgressPath
from policy.login import EVERY, PASSWORD, TOKEN
from tests.egress.dialing import hooks_for
from tests.support.certificates import Authority
from tests.support.peer import FakePeer, listening, open_peer
from tests.support.saslpeer import SaslPeer, offering
from tests.support.tokens import TokenEndpoint, run_endpoint

CLEAR = {
    "enable_tls": "Disabled",
    "allow_smtp_auth_plain_without_tls": True,
    "hold_interval": 0.1,
    "idle_timeout": 0.3,
    "connection_limit": 1,
}
SCOTT = {"username": "scott", "password": {"key_data": "tiger"}}


def clear(smtp_auth: dict[str, Any], **options: Any) -> EgressPath:
    return policy.make_egress_path(smtp_auth=smtp_auth, **{**CLEAR, **options})  # type: ignore[arg-type]


def test_the_policy_knows_the_mechanisms_of_the_engine() -> None:
    assert tuple(MECHANISMS) == EVERY
    for name, row in MECHANISMS.items():
        assert (row.needs == "token") == (name in TOKEN)
        assert name not in PASSWORD or row.needs == "password"


@pytest.mark.parametrize(
    ("offered", "allowed", "used"),
    [
        (("LOGIN", "PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "XOAUTH2"), None, "SCRAM-SHA-256"),
        (("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS"), None, "SCRAM-SHA-1"),  # nothing to bind to
        (("LOGIN", "CRAM-MD5", "PLAIN"), None, "PLAIN"),
        (("CRAM-MD5", "PLAIN"), ["CRAM-MD5", "PLAIN"], "CRAM-MD5"),
        (("LOGIN",), None, "LOGIN"),
        (("SCRAM-SHA-256", "PLAIN"), ["PLAIN"], "PLAIN"),
    ],
)
async def test_the_strongest_that_both_sides_can_is_used(
    offered: tuple[str, ...], allowed: list[str] | None, used: str, bench: Any
) -> None:
    login = SCOTT if allowed is None else {**SCOTT, "mechanisms": allowed}
    async with listening(SaslPeer(capabilities=offering(*offered))) as peer:
        async with bench(hooks_for(peer, clear(login))) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert (record.smtp_auth_user, record.smtp_auth_mechanism) == ("scott", used)
            assert peer.logins == [(used, "scott")] and peer.tried == [used]


@pytest.mark.parametrize(
    ("offered", "allowed"),
    [
        (("PLAIN", "LOGIN"), ["SCRAM-SHA-256"]),
        (("CRAM-MD5",), None),
        (("SCRAM-SHA-256-PLUS",), None),  # without TLS
        (tuple(f"X-{n}" for n in range(60)), None),
        ((), None),
    ],
)
async def test_a_peer_that_offers_only_weaker_ones_gets_no_attempt(
    offered: tuple[str, ...], allowed: list[str] | None, bench: Any
) -> None:
    login = SCOTT if allowed is None else {**SCOTT, "mechanisms": allowed}
    async with listening(SaslPeer(capabilities=offering(*offered))) as peer:
        async with bench(hooks_for(peer, clear(login))) as b:
            await b.submit()
            (record,) = await b.records("TransientFailure")
            assert (record.cause, record.num_attempts) == ("auth-not-offered", 0)
            assert len(record.content) < 500
            assert not {"AUTH", "MAIL"} & set(peer.words())


async def held(bench: Any, peer: FakePeer, login: dict[str, Any], **options: Any) -> Any:
    """The record of mail that a failed login holds."""
    async with bench(hooks_for(peer, clear(login, **options))) as b:
        await b.submit()
        (record, *_) = await b.records("TransientFailure")
        assert record.num_attempts == 0 and "MAIL" not in peer.words()
        assert not any("tiger" in text.content or "c4n4ry" in text.content for text in b.log.records)
        return record


def scram(client_first: str, rest: str) -> str:
    """The server's first message, with the client's nonce in front."""
    nonce = base64.b64decode(client_first.split(" ")[2]).decode().rpartition("r=")[2]
    return "334 " + base64.b64encode(f"r={nonce}{rest}".encode()).decode()


async def test_success_before_the_server_proved_itself_is_not_believed(bench: Any) -> None:
    async with open_peer(capabilities=offering("SCRAM-SHA-256"), replies={"AUTH": "235 2.7.0 ok"}) as peer:
        record = await held(bench, peer, SCOTT)
        assert record.cause == "login-unanswered" and "before it was finished" in record.content


async def test_a_server_that_does_not_know_the_password_is_not_believed(bench: Any) -> None:
    async with open_peer(capabilities=offering("SCRAM-SHA-256")) as peer:
        salt = base64.b64encode(b"sixteen octets 1").decode()
        peer.replies["AUTH"] = lambda line: scram(line, f"S,s={salt},i=4096")
        answers = iter(["334 " + base64.b64encode(b"v=AAAA").decode(), "235 2.7.0 ok"])
        real = peer.answer

        def answer(word: str, line: str, default: str) -> str:
            known = word in ("EHLO", "AUTH", "QUIT", "connect", "MAIL")
            return real(word, line, default) if known else next(answers, "235 2.7.0 ok")

        peer.answer = answer  # type: ignore[method-assign]
        record = await held(bench, peer, SCOTT)
        assert "did not prove that it knows the password" in record.content
        assert "*" in peer.commands


async def test_a_server_that_wants_years_of_work_is_given_up(bench: Any) -> None:
    async with open_peer(capabilities=offering("SCRAM-SHA-256"), replies={"*": "501 5.7.0 bye"}) as peer:
        salt = base64.b64encode(b"sixteen octets 1").decode()
        peer.replies["AUTH"] = lambda line: scram(line, f"S,s={salt},i=9000000")
        begun = time.process_time()
        with trio.fail_after(30):
            record = await held(bench, peer, SCOTT)
        assert record.cause == "login-refused"
        assert "asks for 9000000 iterations" in record.content
        assert time.process_time() - begun < 1


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"])
async def test_a_wrong_password_holds(mechanism: str, bench: Any) -> None:
    async with listening(SaslPeer(capabilities=offering(mechanism), users={"scott": "lion"})) as peer:
        record = await held(bench, peer, {**SCOTT, "mechanisms": [mechanism]}, hold_interval=30)
        assert record.cause == "login-refused" and peer.tried == [mechanism]


# Tokens


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with run_endpoint(None) as running:
        yield running


def tokens(endpoint: TokenEndpoint) -> dict[str, Any]:
    return {
        "username": "scott@corp.example",
        "oauth2": {
            "token_endpoint": endpoint.url,
            "client_id": "posthorn",
            "client_secret": {"key_data": "c4n4ry-of-the-client"},
        },
    }


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
async def test_a_token_is_presented(mechanism: str, endpoint: TokenEndpoint, bench: Any) -> None:
    users = {"scott@corp.example": "c4n4ry-token-1"}
    async with listening(SaslPeer(capabilities=offering("PLAIN", mechanism), users=users)) as peer:
        async with bench(hooks_for(peer, clear(tokens(endpoint)))) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert record.smtp_auth_user == "scott@corp.example"
            assert record.smtp_auth_mechanism == mechanism
            assert peer.logins == [(mechanism, "scott@corp.example")]


@pytest.mark.parametrize(("mechanism", "dummy"), [("OAUTHBEARER", "AQ=="), ("XOAUTH2", "")])
async def test_a_token_that_is_not_accepted(
    mechanism: str, dummy: str, endpoint: TokenEndpoint, bench: Any
) -> None:
    """The server's JSON is answered as the RFC says, shown without the token, and the token fetched a
    moment ago is not fetched again."""
    echo = base64.b64encode(b'{"status":"401 c4n4ry-token-1 is old","schemes":"bearer"}').decode()
    async with open_peer(capabilities=offering(mechanism)) as peer:
        peer.replies = {"AUTH": f"334 {echo}", dummy.upper(): "535 5.7.8 c4n4ry-token-1 not accepted"}
        record = await held(bench, peer, tokens(endpoint), hold_interval=30)
        assert record.cause == "login-refused"
        assert "535 5.7.8 ******** not accepted" in record.content
        assert "the token is not accepted: 401 ******** is old" in record.content
        assert peer.commands[2:3] == [dummy]
        assert peer.words().count("AUTH") == 1 and len(endpoint.asked) == 1


async def test_success_behind_a_failure_is_not_believed(endpoint: TokenEndpoint, bench: Any) -> None:
    async with open_peer(capabilities=offering("XOAUTH2")) as peer:
        peer.replies = {"AUTH": "334 " + base64.b64encode(b'{"status":"400"}').decode(), "": "235 ok"}
        record = await held(bench, peer, tokens(endpoint))
        assert record.cause == "login-unanswered"


async def test_without_a_token_mail_waits(endpoint: TokenEndpoint, bench: Any) -> None:
    endpoint.answer = lambda asked, number: (
        (400, {"error": "invalid_client"}, {}) if number == 1 else (200, {"access_token": "c4n4ry-token"}, {})
    )
    users = {"scott@corp.example": "c4n4ry-token"}
    async with listening(SaslPeer(capabilities=offering("XOAUTH2"), users=users)) as peer:
        async with bench(hooks_for(peer, clear(tokens(endpoint)))) as b:
            await b.submit()
            (record,) = await b.records("TransientFailure")
            assert (record.cause, record.num_attempts) == ("secret-unavailable", 0)
            assert "oauth2:posthorn@127.0.0.1: " in record.content
            assert "client_id or client_secret is wrong" in record.content
            assert peer.connections == 0
            await b.records("Delivery")


# Channel binding


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def secured(authority: Authority) -> tuple[ssl.SSLContext, Binding]:
    """A peer's context, and what its certificate binds to."""
    context = authority.server_context()
    (der,) = (ssl.PEM_cert_to_DER_cert(pem) for pem in [authority.last_certificate.decode()])
    binding = end_point_binding(der)
    assert binding is not None
    return context, binding


def in_tls(authority: Authority, tmp_path: Path, **options: Any) -> EgressPath:
    ca = {"file": str(authority.write(tmp_path / "ca.pem"))}
    mode = options.pop("enable_tls", "Required")
    return policy.make_egress_path(
        enable_tls=mode,
        smtp_auth=SCOTT,  # type: ignore[arg-type]
        hold_interval=0.1,
        connection_limit=1,
        **({"tls_ca": ca} if mode == "Required" else {}),  # type: ignore[arg-type]
        **options,
    )


EVERYTHING = offering("PLAIN", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")


async def test_a_login_is_bound_to_the_connection(authority: Authority, tmp_path: Path, bench: Any) -> None:
    context, binding = secured(authority)
    async with listening(SaslPeer(capabilities=EVERYTHING, tls=context, binding=binding)) as peer:
        async with bench(hooks_for(peer, in_tls(authority, tmp_path))) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert record.smtp_auth_mechanism == "SCRAM-SHA-256-PLUS" and record.tls_verified


async def test_a_peer_with_another_certificate_behind_it_is_noticed(
    authority: Authority, tmp_path: Path, bench: Any
) -> None:
    """Whoever ends TLS in front of the real server cannot pass the login on."""
    context, _ = secured(authority)
    other = Binding("tls-server-end-point", b"of the real server")
    async with listening(SaslPeer(capabilities=EVERYTHING, tls=context, binding=other)) as peer:
        async with bench(hooks_for(peer, in_tls(authority, tmp_path))) as b:
            await b.submit()
            (record, *_) = await b.records("TransientFailure")
            assert record.cause == "login-refused"
            assert set(peer.tried) == {"SCRAM-SHA-256-PLUS"} and "MAIL" not in peer.words()


async def test_a_peer_that_binds_otherwise_is_logged_in_to_without(
    authority: Authority, tmp_path: Path, bench: Any
) -> None:
    context, _ = secured(authority)
    other = Binding("tls-unique", b"something")
    async with listening(SaslPeer(capabilities=EVERYTHING, tls=context, binding=other)) as peer:
        async with bench(hooks_for(peer, in_tls(authority, tmp_path, idle_timeout=0.2))) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert peer.tried == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
            assert record.smtp_auth_mechanism == "SCRAM-SHA-256"
            await b.until(lambda: peer.open == 0)
            await b.submit()
            await b.records("Delivery", 2)
            assert peer.tried[2:] == ["SCRAM-SHA-256"], (
                "what it counts as a failure is not repeated each time"
            )
            (known,) = b.router.services.dialer.circuits.opened()
            assert len(known.failures) == 1 and not known.refused


async def test_without_verified_tls_nothing_weaker_follows(
    authority: Authority, tmp_path: Path, bench: Any
) -> None:
    context, _ = secured(authority)
    other = Binding("tls-unique", b"something")
    path = in_tls(
        authority,
        tmp_path,
        enable_tls="RequiredInsecure",
        allow_smtp_auth_plain_without_valid_certificate=True,
    )
    async with listening(SaslPeer(capabilities=EVERYTHING, tls=context, binding=other)) as peer:
        async with bench(hooks_for(peer, path)) as b:
            await b.submit()
            (record, *_) = await b.records("TransientFailure")
            assert record.cause == "login-refused" and set(peer.tried) == {"SCRAM-SHA-256-PLUS"}


# Who shares a connection


async def test_logins_that_differ_in_anything_never_share_a_connection(bench: Any) -> None:
    paths = [
        clear(SCOTT),
        clear({**SCOTT, "mechanisms": ["SCRAM-SHA-256", "PLAIN"]}),
        clear({**SCOTT, "username": "lion"}),
        clear({**SCOTT, "password": {"key_data": "lion"}}),
        clear({"username": "scott", "token": {"key_data": "tiger"}}),
        policy.make_egress_path(
            smtp_auth_plain_username="scott",
            smtp_auth_plain_password={"key_data": "tiger"},
            **CLEAR,  # type: ignore[arg-type]
        ),
        policy.make_egress_path(**CLEAR),  # type: ignore[arg-type]
    ]
    assert len(set(map(repr, paths))) >= 6
    assert all(one != other for at, one in enumerate(paths) for other in paths[at + 1 :])
    async with open_peer(capabilities=offering("PLAIN", "XOAUTH2")) as peer:
        async with bench(hooks_for(peer, *paths)) as b:
            for _ in range(3):
                for number in range(len(paths)):
                    await b.submit(f"bob@d{number}.example")
            records = await b.records("Delivery", 3 * len(paths))
            sessions: dict[str, set[str]] = {}
            for record in records:
                sessions.setdefault(record.session_id, set()).add(str(record.recipient))
            assert all(len(recipients) == 1 for recipients in sessions.values())


async def test_a_tenants_credentials_by_the_name_of_its_source(bench: Any) -> None:
    """The documented way: queue -> pool -> source named after the tenant -> path."""
    async with listening(
        SaslPeer(capabilities=offering("SCRAM-SHA-256"), users={"acme": "a", "umbrella": "u"})
    ) as peer:
        hooks = hooks_for(peer, clear(SCOTT))
        base = hooks["get_queue_config"]("", None, None, None)

        def queue(domain: str, tenant: str, campaign: str, routing_domain: str) -> Any:
            return msgspec.structs.replace(base, egress_pool=f"tenant-{tenant}")

        def path(domain: str, egress_source: str, site_name: str) -> EgressPath:
            tenant = egress_source.removeprefix("tenant-")
            return clear({"username": tenant, "password": {"key_data": tenant[0]}}, idle_timeout=0.05)

        hooks |= {
            "get_queue_config": queue,
            "get_egress_pool": lambda name: policy.make_egress_pool(name=name, entries=[{"name": name}]),
            "get_egress_source": lambda name: policy.make_egress_source(name=name),
            "get_egress_path_config": path,
        }
        async with bench(hooks) as b:
            await b.submit(tenant="acme")
            await b.records("Delivery", 1)
            await b.submit(tenant="umbrella")
            records = await b.records("Delivery", 2)
            assert [record.smtp_auth_user for record in records] == ["acme", "umbrella"]
            assert peer.logins == [("SCRAM-SHA-256", "acme"), ("SCRAM-SHA-256", "umbrella")]
