"""AUTH beyond passwords at a listener: SCRAM, tokens, EXTERNAL, and what an unknown user sees."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest
import trio

import policy
from engine.errors import ConfigError
from engine.ingress import guesses
from engine.ingress.strangers import Strangers, state_of
from engine.net import end_point_binding
from engine.smtp import MECHANISMS, Binding, Context, client_mechanism
from policy import Secret
from policy.scramkeys import MOST_ITERATIONS
from tests.ingress.peer import HELLO, Client, open_relay
from tests.support.loop import watched_loop

PASSWORD = "tiger-canary"
TOKEN = "c4n4ry.token-of/scott="
STORED = policy.new_scram_keys(PASSWORD, salt=b"a salt for scott", iterations=5000)
CLEAR = {"allow_auth_without_tls": True}
ALL = {**CLEAR, "auth_mechanisms": [name for name, row in MECHANISMS.items() if not row.binds]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "STEP", 0.01)


class Users:
    """A hook that knows two users: by password, and by keys."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool]] = []

    async def __call__(self, user: str, mechanism: str, token: Secret | None, conn_meta: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append((user, mechanism, token is not None))
        assert conn_meta.get_meta("ehlo_domain") == "client.example"
        if mechanism in ("OAUTHBEARER", "XOAUTH2"):
            return user == "scott" and token == Secret(TOKEN)
        if mechanism == "EXTERNAL":
            return user == "scott"
        return {"scott": Secret(PASSWORD), "keys": STORED}.get(user)


async def log_in(
    client: Client,
    mechanism: str,
    user: str = "scott",
    secret: str = PASSWORD,
    binding: Binding | None = None,
) -> tuple[int, str]:
    """The whole exchange; the last reply."""
    context = Context(nonce="of-the-client", binding=binding, peer_binds=binding is not None)
    half = client_mechanism(mechanism, user, Secret(secret), context)
    line = b"AUTH " + mechanism.encode()
    initial = half.initial()
    if initial is not None:
        line += b" " + (base64.b64encode(initial) or b"=")
    code, text = await client.ask(line + b"\r\n")
    while code == 334:
        response = half.respond(base64.b64decode(text))
        if response is None:
            return await client.ask(b"*\r\n")
        code, text = await client.ask(base64.b64encode(response) + b"\r\n")
    assert half.finished or code != 235
    return code, text


@pytest.mark.parametrize("mechanism", ALL["auth_mechanisms"])
async def test_every_mechanism_lets_the_right_one_in(mechanism: str) -> None:
    users = Users()
    secret = TOKEN if MECHANISMS[mechanism].needs == "token" else PASSWORD
    async with open_relay({"smtp_server_auth": users}, **ALL) as relay, relay.client() as client:
        code, text = await log_in(client, mechanism, secret=secret)
        assert (code, text[:6]) == (235, "2.7.0 ")
        assert (await client.transaction())[0] == 250
        message, _ = relay.queued[0]
        assert message.meta["authn_id"] == message.meta["authz_id"] == "scott"
        (record,) = relay.log.records
        assert (record.smtp_auth_user, record.smtp_auth_mechanism) == ("scott", mechanism)
        assert users.asked == [("scott", mechanism, MECHANISMS[mechanism].needs == "token")]


@pytest.mark.parametrize("mechanism", [name for name in ALL["auth_mechanisms"] if name != "EXTERNAL"])
async def test_a_wrong_one_and_an_unknown_one_look_alike(
    mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_relay({"smtp_server_auth": Users()}, **ALL) as relay, relay.client() as client:
        wrong = await log_in(client, mechanism, secret="wrong-canary")
        unknown = await log_in(client, mechanism, user="nobody", secret="wrong-canary")
        assert wrong == unknown and (wrong[0], wrong[1][:6]) == (535, "5.7.8 ")
        code, text = await log_in(client, mechanism, user="nobody", secret="wrong-canary")
        assert (code, text[:6]) == (421, "4.7.0 ")
        assert await client.reply() == (0, "")
        assert [record.code for record in relay.log.of("Rejection")] == [535, 535, 421]
        assert "canary" not in repr(relay.log.records) + caplog.text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "LOGIN"])
async def test_stored_keys_are_enough(mechanism: str) -> None:
    async with open_relay({"smtp_server_auth": Users()}, **CLEAR) as relay, relay.client() as client:
        assert (await log_in(client, mechanism, user="keys", secret="wrong"))[0] == 535
        assert (await log_in(client, mechanism, user="keys"))[0] == 235


async def server_first(client: Client, user: str) -> dict[str, str]:
    """Salt and iterations that SCRAM shows of a user."""
    first = base64.b64encode(f"n,,n={user},r=nonce".encode())
    code, text = await client.ask(b"AUTH SCRAM-SHA-256 " + first + b"\r\n")
    assert code == 334
    said = dict(part.split("=", 1) for part in base64.b64decode(text).decode().split(","))
    assert (await client.ask(b"*\r\n"))[0] == 501
    return {"salt": said["s"], "iterations": said["i"]}


async def test_an_unknown_user_has_a_salt_of_his_own_that_stays() -> None:
    async with open_relay({"smtp_server_auth": Users()}, **CLEAR) as relay, relay.client() as client:
        known = await server_first(client, "scott")
        unknown = await server_first(client, "nobody")
        assert known["salt"] != unknown["salt"]
        assert known["iterations"] == unknown["iterations"] == "4096"
        assert (await server_first(client, "keys"))["iterations"] == "5000"
        assert await server_first(client, "nobody") == {**unknown, "iterations": "5000"}
        assert len(base64.b64decode(unknown["salt"])) == 16


async def test_a_restart_and_another_listener_show_the_same_of_an_unknown_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What changed would be nobody's: a known user has the salt and iterations that are stored."""
    state = state_of(tmp_path / "spool")
    seen = []
    for _ in range(2):
        strangers = Strangers(state)
        for _ in range(2):
            hooks = {"smtp_server_auth": Users()}
            async with open_relay(hooks, strangers=strangers, **CLEAR) as relay, relay.client() as client:
                if not seen:
                    await server_first(client, "keys")
                seen.append(await server_first(client, "nobody"))
    assert seen == [seen[0]] * 4 and seen[0]["iterations"] == "5000"
    (file,) = (tmp_path / "spool.listeners").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    state.write("strangers", b'{"key":"","iterations":1}')
    assert Strangers(state).keys("nobody", "SHA-256").iterations == 4096
    state.write("strangers", b"?")
    Strangers(state)
    assert "it is made anew" in caplog.text


@pytest.mark.parametrize(
    ("hooks", "offered"),
    [
        ({"smtp_server_auth_plain": lambda *_: True}, "PLAIN LOGIN"),
        ({"smtp_server_auth": lambda *_: None}, "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN"),
        ({}, None),
    ],
)
async def test_what_is_offered_by_itself(hooks: dict[str, Any], offered: str | None) -> None:
    async with open_relay(hooks, **CLEAR) as relay, relay.client() as client:
        _, text = await client.ask(HELLO)
        auth = [line[5:] for line in text.split("\n") if line.startswith("AUTH ")]
        assert auth == ([offered] if offered else [])


async def test_what_is_named_is_offered_the_strongest_first() -> None:
    options = {"auth_mechanisms": ["PLAIN", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"], **CLEAR}
    async with open_relay({"smtp_server_auth": Users()}, **options) as relay, relay.client() as client:
        _, text = await client.ask(HELLO)
        assert "AUTH SCRAM-SHA-256 PLAIN" in text.split("\n"), "without TLS there is nothing to bind to"
        assert (await log_in(client, "LOGIN"))[0] == 504
        await client.start_tls()
        _, text = await client.ask(HELLO)
        assert "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN" in text.split("\n")
        binding = end_point_binding(client.stream.getpeercert(binary_form=True))
        assert binding is not None
        assert (await log_in(client, "SCRAM-SHA-256-PLUS", binding=binding))[0] == 235
        assert (await client.transaction())[0] == 250
        assert relay.log.records[-1].smtp_auth_mechanism == "SCRAM-SHA-256-PLUS"


async def test_a_binding_to_another_connection_is_refused() -> None:
    options = {"auth_mechanisms": ["SCRAM-SHA-256-PLUS"]}
    other = Binding("tls-server-end-point", b"of somebody in the middle")
    async with open_relay({"smtp_server_auth": Users()}, **options) as relay, relay.client() as client:
        await client.start_tls()
        await client.ask(HELLO)
        assert (await log_in(client, "SCRAM-SHA-256-PLUS", binding=other))[0] == 535


@pytest.mark.parametrize(
    ("hooks", "mechanisms", "says"),
    [
        ({"smtp_server_auth_plain": lambda *_: True}, ["SCRAM-SHA-256"], "no hook answers smtp_server_auth"),
        ({}, ["PLAIN"], "no hook answers smtp_server_auth or smtp_server_auth_plain"),
    ],
)
async def test_a_mechanism_that_no_hook_serves_is_a_mistake(
    hooks: dict[str, Any], mechanisms: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        async with open_relay(hooks, auth_mechanisms=mechanisms):
            pass


async def test_a_hook_that_judges_passwords_goes_first() -> None:
    def judge(authz: str, authc: str, password: Secret, conn_meta: Any) -> bool | None:
        return None if authc == "scott" else password == Secret("lion")

    hooks = {"smtp_server_auth_plain": judge, "smtp_server_auth": Users()}
    async with open_relay(hooks, **CLEAR) as relay, relay.client() as client:
        assert (await log_in(client, "PLAIN", user="keys"))[0] == 535
        assert (await log_in(client, "PLAIN", user="keys", secret="lion"))[0] == 235
    async with open_relay(hooks, **CLEAR) as relay, relay.client() as client:
        assert (await log_in(client, "PLAIN"))[0] == 235, "no opinion: what is stored counts"


async def test_what_is_stored_says_nothing_about_acting_for_others() -> None:
    async with open_relay({"smtp_server_auth": Users()}, **CLEAR) as relay, relay.client() as client:
        blob = base64.b64encode(f"admin\0scott\0{PASSWORD}".encode())
        assert (await client.ask(b"AUTH PLAIN " + blob + b"\r\n"))[0] == 535
        blob = base64.b64encode(f"scott\0scott\0{PASSWORD}".encode())
        assert (await client.ask(b"AUTH PLAIN " + blob + b"\r\n"))[0] == 235


@pytest.mark.parametrize(
    ("mechanism", "answer"),
    [
        ("SCRAM-SHA-256", True),
        ("PLAIN", True),
        ("OAUTHBEARER", Secret(PASSWORD)),
        ("EXTERNAL", STORED),
        ("SCRAM-SHA-256", "tiger"),
        ("PLAIN", RuntimeError()),
    ],
)
async def test_an_answer_that_makes_no_sense_is_no_yes(
    mechanism: str, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = {"smtp_server_auth": lambda user, mechanism, token, conn_meta: answer}
    async with open_relay(hooks, **ALL) as relay, relay.client() as client:
        code, text = await log_in(client, mechanism, secret=TOKEN)
        assert (code, text[:6]) == (451, "4.3.0 ")
        assert (await client.ask(b"NOOP\r\n"))[0] == 250
        assert "smtp_server_auth" in caplog.text and "canary" not in caplog.text
        assert (relay.log.of("Rejection")[0].cause or "").startswith("hook-error: ")


async def test_a_hook_may_refuse_before_the_exchange_goes_on() -> None:
    def busy(user: str, mechanism: str, token: Any, conn_meta: Any) -> Any:
        raise policy.Reject(454, "4.7.0 not now")

    async with open_relay({"smtp_server_auth": busy}, **ALL) as relay, relay.client() as client:
        for mechanism in ("SCRAM-SHA-256", "OAUTHBEARER", "PLAIN", "CRAM-MD5"):
            secret = TOKEN if mechanism == "OAUTHBEARER" else PASSWORD
            assert await log_in(client, mechanism, secret=secret) == (454, "4.7.0 not now")


async def test_a_refused_token_is_explained_first() -> None:
    async with open_relay({"smtp_server_auth": Users()}, **ALL) as relay, relay.client() as client:
        half = client_mechanism("OAUTHBEARER", "scott", Secret("old"), Context())
        initial = half.initial()
        assert initial is not None
        code, text = await client.ask(b"AUTH OAUTHBEARER " + base64.b64encode(initial) + b"\r\n")
        assert (code, base64.b64decode(text)) == (334, b'{"status":"invalid_token"}')
        code, _ = await client.ask(b"AQ==\r\n")
        assert code == 535
        assert (await client.ask(b"NOOP\r\n"))[0] == 250


@pytest.mark.parametrize(
    "lines",
    [
        [b"AUTH SCRAM-SHA-256 !!!!"],
        [b"AUTH SCRAM-SHA-256", b"biwsbj0="],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=scott,r=n"), b""],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=scott,r=n"), b"QUJD"],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,a=admin,n=scott,r=n")],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"p=tls-server-end-point,,n=scott,r=n")],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=sc=ott,r=n")],
        [b"AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=scott,r=" + b"n" * 5000)],
        [b"AUTH CRAM-MD5 QUJD"],
        [b"AUTH CRAM-MD5", b"QUJD"],
        [b"AUTH OAUTHBEARER QUJD"],
        [b"AUTH OAUTHBEARER " + base64.b64encode(b"n,a=scott,\x01auth=Basic c2NvdHQ=\x01\x01")],
        [b"AUTH XOAUTH2 " + base64.b64encode(b"user=\x01auth=Bearer x\x01\x01")],
        [b"AUTH EXTERNAL " + base64.b64encode(b"a\0b")],
    ],
)
async def test_what_cannot_be_read_is_refused_without_an_attempt(lines: list[bytes]) -> None:
    users = Users()
    async with open_relay({"smtp_server_auth": users}, **ALL) as relay, relay.client() as client:
        for line in lines[:-1]:
            assert (await client.ask(line + b"\r\n"))[0] == 334
        code, text = await client.ask(lines[-1] + b"\r\n")
        assert (code, text[:6]) in ((501, "5.5.2 "), (535, "5.7.8 "))
        assert (await client.ask(b"NOOP\r\n"))[0] == 250
        assert (await log_in(client, "SCRAM-SHA-256"))[0] == 235


async def test_a_crowd_of_expensive_logins_does_not_hold_the_loop() -> None:
    begun = time.thread_time()
    dear = policy.new_scram_keys(PASSWORD, salt=b"a salt for scott", iterations=MOST_ITERATIONS)
    one_login = time.thread_time() - begun
    hooks = {"smtp_server_auth": lambda user, mechanism, token, conn_meta: dear}
    async with open_relay(hooks, **CLEAR) as relay:

        async def one() -> None:
            async with relay.client() as client:
                await server_first(client, "scott")

        held = []
        for _ in range(3):  # who holds the loop holds it each time; a machine that is full, once in a while
            async with watched_loop() as loop, trio.open_nursery() as crowd:
                for _ in range(3):
                    crowd.start_soon(one)
            held.append(loop.longest)
        assert min(held) < one_login / 2


def test_keys_are_read_as_they_are_written() -> None:
    text = STORED.stored()
    assert policy.scram_keys(text) == policy.scram_keys(Secret(text)) == STORED
    assert PASSWORD not in repr(STORED) and text.split("$")[2] not in repr(STORED)


@pytest.mark.parametrize(
    "text",
    [
        "tiger-canary",
        "SCRAM-SHA-512$4096:QUFBQUFBQUFBQUFBQUFBQQ==$QQ==:QQ==",
        "SCRAM-SHA-256$4096:QUFBQUFBQUFBQUFBQUFBQQ==$QQ==:QQ==",
        STORED.stored().replace("5000", "50"),
        STORED.stored().replace("5000", "5000000"),
        STORED.stored().replace("YSBz", "!!!!"),
        "SCRAM-SHA-256$5000:QQ==$" + STORED.stored().split("$")[2],
    ],
)
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.scram_keys(text)
    assert text not in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"password": "tïger"},
        {"password": ""},
        {"salt": b"short"},
        {"iterations": 100},
        {"iterations": 10_000_000},
        {"hash": "MD5"},
    ],
)
def test_keys_that_are_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.new_scram_keys(**{"password": "c4n4ry", "salt": b"x" * 16, **options})
    assert "c4n4ry" not in str(caught.value)
