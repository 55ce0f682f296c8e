"""STARTTLS and AUTH through the driver: who may try, what failure shows, what is forgotten."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio

from engine.ingress import guesses
from policy import Secret
from tests.ingress.peer import ENVELOPE, HELLO, Client, open_relay

PASSWORD = "tiger-canary"


def plain(user: str = "scott", password: str = PASSWORD, authz: str = "") -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(f"{authz}\0{user}\0{password}".encode()) + b"\r\n"


class Check:
    """An auth hook that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        self.calls.append((authz, authc, password.reveal().decode()))
        return (authc, password) == ("scott", Secret(PASSWORD))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "STEP", 0.01)


async def test_starttls_then_auth_then_mail() -> None:
    check = Check()
    async with open_relay({"smtp_server_auth_plain": check}) as relay, relay.client() as client:
        await client.start_tls()
        code, text = await client.ask(b"EHLO second.example\r\n")
        assert "STARTTLS" not in text.split("\n")
        assert any(line.startswith("AUTH ") and "PLAIN" in line for line in text.split("\n"))
        code, text = await client.ask(plain())
        assert (code, text[:6]) == (235, "2.7.0 ")
        assert check.calls == [("scott", "scott", PASSWORD)]
        assert (await client.transaction())[0] == 250
        message, _ = relay.queued[0]
        assert b"from second.example (" in message.prefix
        assert b" with ESMTPSA (TLSv1." in message.prefix
        assert b"scott" not in message.prefix
        assert message.meta["authn_id"] == message.meta["authz_id"] == "scott"
        assert message.meta["tls_protocol_version"].startswith("TLSv1.")
        assert message.meta["tls_cipher"]
        (record,) = relay.log.records
        assert (record.smtp_auth_user, record.smtp_auth_mechanism) == ("scott", "PLAIN")
        assert record.tls_protocol_version == message.meta["tls_protocol_version"]


async def test_tls_forgets_what_was_said_before() -> None:
    notes: list[Any] = []

    def accepted(conn_meta: Any) -> None:
        conn_meta.set_meta("x_network", "kept")

    def ehlo(domain: str, conn_meta: Any) -> None:
        conn_meta.set_meta("x_said", [*(conn_meta.get_meta("x_said") or []), domain])

    def sender(address: Any, conn_meta: Any) -> None:
        notes.append((conn_meta.get_meta("x_network"), conn_meta.get_meta("x_said")))

    hooks = {
        "smtp_server_connection_accepted": accepted,
        "smtp_server_ehlo": ehlo,
        "smtp_server_mail_from": sender,
    }
    async with open_relay(hooks) as relay, relay.client() as client:
        await client.start_tls()
        assert (await client.ask(b"MAIL FROM:<a@b.example>\r\n"))[0] == 503, "a new EHLO is needed"
        assert (await client.ask(b"STARTTLS\r\n"))[0] in (501, 503)
        assert (await client.ask(b"HELO x.example\r\n"))[0] == 250
        assert (await client.transaction())[0] == 250
        assert notes == [("kept", ["x.example"])]
        assert b"from x.example (" in relay.queued[0][0].prefix


async def test_auth_needs_tls_unless_the_listener_says_otherwise_by_name() -> None:
    check = Check()
    async with open_relay({"smtp_server_auth_plain": check}) as relay, relay.client() as client:
        code, _ = await client.ask(plain())
        assert code in (530, 538)
        assert check.calls == []
    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": check}, **options) as relay, relay.client() as client:
        assert (await client.ask(plain()))[0] == 235
        assert (await client.ask(plain()))[0] == 503
        assert (await client.ask(b"MAIL FROM:<>\r\n"))[0] == 250
        assert (await client.ask(plain()))[0] == 503


async def test_without_a_hook_there_is_no_auth() -> None:
    async with open_relay(allow_auth_without_tls=True) as relay, relay.client() as client:
        assert (await client.ask(plain()))[0] in (502, 503, 504, 530)


async def test_auth_login() -> None:
    check = Check()
    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": check}, **options) as relay, relay.client() as client:
        assert (await client.ask(b"AUTH LOGIN\r\n"))[0] == 334
        assert (await client.ask(base64.b64encode(b"scott") + b"\r\n"))[0] == 334
        assert (await client.ask(base64.b64encode(PASSWORD.encode()) + b"\r\n"))[0] == 235
        assert check.calls == [("scott", "scott", PASSWORD)]
        assert (await client.transaction())[0] == 250
        assert relay.log.records[0].smtp_auth_mechanism == "LOGIN"


async def test_the_authorization_identity_is_the_hooks_to_judge() -> None:
    calls = []

    async def check(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        await trio.lowlevel.checkpoint()
        calls.append((authz, authc))
        return authz == authc

    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": check}, **options) as relay, relay.client() as client:
        assert (await client.ask(plain(authz="admin")))[0] == 535
        assert (await client.ask(plain(authz="scott")))[0] == 235
        assert calls == [("admin", "scott"), ("scott", "scott")]


async def test_three_failures_end_the_session_and_look_alike(caplog: pytest.LogCaptureFixture) -> None:
    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": Check()}, **options) as relay, relay.client() as client:
        unknown = await client.ask(plain(user="nobody"))
        wrong = await client.ask(plain(password=PASSWORD + "x"))
        assert unknown == wrong
        assert (wrong[0], wrong[1][:6]) == (535, "5.7.8 ")
        code, text = await client.ask(plain(user="nobody"))
        assert (code, text[:6]) == (421, "4.7.0 ")
        assert await client.reply() == (0, "")
        records = relay.log.of("Rejection")
        assert [record.code for record in records] == [535, 535, 421]
        everything = repr(records) + caplog.text
        for secret in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode()[:-4], plain().decode()[11:-6]):
            assert secret not in everything


async def test_failure_takes_a_whole_number_of_seconds(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "STEP", 1.0)

    async def check(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        await trio.sleep(0.3 if authc == "known" else 0.001)
        return False

    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": check}, **options) as relay, relay.client() as client:
        for user in ("known", "unknown"):
            begun = trio.current_time()
            assert (await client.ask(plain(user=user)))[0] == 535
            assert trio.current_time() - begun == pytest.approx(1.0, abs=0.01)


async def test_an_auth_hook_that_fails_is_no_yes_and_shows_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def check(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool:
        raise ValueError(f"cannot check {password.reveal()!r}")

    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": check}, **options) as relay, relay.client() as client:
        code, text = await client.ask(plain())
        assert (code, text[:6]) == (451, "4.3.0 ")
        assert (await client.ask(b"NOOP\r\n"))[0] == 250
        (record,) = relay.log.of("Rejection")
        assert "test_auth.py" in (record.cause or "")
        assert "test_auth.py" in caplog.text
        assert PASSWORD not in caplog.text + repr(record)


@pytest.mark.parametrize(("length", "code"), [(12286, 535), (12288, 501), (12289, 500)])
async def test_an_auth_line_may_be_long_but_not_endless(length: int, code: int) -> None:
    """A line of 12288 octets is read as a whole (and is no base64, which comes in fours)."""
    options = {"allow_auth_without_tls": True}
    async with open_relay({"smtp_server_auth_plain": Check()}, **options) as relay, relay.client() as client:
        assert (await client.ask(b"AUTH LOGIN\r\n"))[0] == 334
        assert (await client.ask(base64.b64encode(b"scott") + b"\r\n"))[0] == 334
        assert (await client.ask(b"A" * (length - 2) + b"\r\n"))[0] == code
        assert (await client.ask(b"NOOP\r\n"))[0] == 250


async def _login(client: Client) -> None:
    await client.ask(HELLO)
    assert (await client.ask(plain()))[0] == 235


async def test_relay_authenticated_grants_after_login_only() -> None:
    options = {"allow_auth_without_tls": True, "relay_hosts": [], "relay_authenticated": True}
    async with open_relay({"smtp_server_auth_plain": Check()}, **options) as relay, relay.client() as client:
        assert (await client.transaction())[0] == 550
        await client.ask(b"RSET\r\n")
        while client.buffer:
            await client.reply()
    async with open_relay({"smtp_server_auth_plain": Check()}, **options) as relay, relay.client() as client:
        await _login(client)
        assert (await client.transaction())[0] == 250
        assert len(relay.queued) == 1


async def test_the_end_of_tls_is_said_after_the_goodbye() -> None:
    """Without close_notify (RFC 8446 6.1) the client's library calls the end a truncation."""
    async with open_relay() as relay, relay.client() as client:
        await client.start_tls()
        assert (await client.ask(b"QUIT\r\n"))[0] == 221
        assert await client.stream.receive_some(100) == b""


async def test_rights_gained_before_tls_are_gone_inside_it() -> None:
    options = {"allow_auth_without_tls": True, "relay_hosts": [], "relay_authenticated": True}
    async with open_relay({"smtp_server_auth_plain": Check()}, **options) as relay, relay.client() as client:
        assert (await client.ask(plain()))[0] == 235
        await client.start_tls()
        await client.ask(HELLO)
        assert (await client.transaction())[0] == 550
        assert not relay.queued


async def test_domain_lookups_are_asked_again_after_login() -> None:
    asked = []

    def domain(domain: str, listener: str, conn_meta: Any) -> Any:
        from policy.ingress import make_listener_domain

        asked.append((domain, listener, conn_meta.get_meta("authn_id")))
        return make_listener_domain(relay_to=True) if conn_meta.get_meta("authn_id") else None

    hooks = {"smtp_server_auth_plain": Check(), "get_listener_domain": domain}
    options = {"allow_auth_without_tls": True, "relay_hosts": []}
    async with open_relay(hooks, **options) as relay, relay.client() as client:
        await client.send(ENVELOPE + b"RCPT TO:<other@example.com>\r\nRSET\r\n")
        assert [(await client.reply())[0] for _ in range(4)] == [250, 550, 550, 250]
        await _login(client)
        assert (await client.transaction())[0] == 250
        listener = f"127.0.0.1:{relay.listeners.addresses[0][1]}"
        assert asked == [
            ("client.example", listener, None),
            ("example.com", listener, None),
            ("client.example", listener, "scott"),
            ("example.com", listener, "scott"),
        ]
