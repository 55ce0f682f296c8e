"""engine/egress/dial.py: from candidates to a session, against peers that misbehave at each step.

What TLS believes is in test_tls.py; here it works whenever it is done.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress.dial import NoHostReached
from engine.errors import AuthNotOffered, LoginRefused, MailLoop, SecretUnavailable, TlsRequired
from policy.egress import make_egress_path
from tests.egress.dialing import NAME, OWN_NAME, candidate, inside, login, open_dial
from tests.support.certificates import Authority
from tests.support.peer import DROP, HANG, Wire, command_word, open_peer
from tests.support.ports import free_port

CLEAR = make_egress_path(enable_tls="Disabled")
"""Nothing but greeting and EHLO."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    """For a peer that is dialled as `NAME`."""
    return authority.server_context(NAME)


@pytest.fixture
def trusting(authority: Authority) -> dict[str, Any]:
    """Options of a path that wants TLS and trusts the peer's authority."""
    return {"enable_tls": "Required", "tls_ca": {"key_data": authority.pem.decode()}}


def cut(text: str) -> Callable[[Wire], Awaitable[None]]:
    """A peer that says so much, with no line end behind it, and closes."""

    async def script(wire: Wire) -> None:
        await wire.raw(text)

    return script


# -- which host ------------------------------------------------------------------------------------


async def test_the_first_host_that_can_be_made_ready_is_taken() -> None:
    async with open_peer(replies={"connect": "421 4.3.2 busy"}) as busy, open_peer() as good:
        async with open_peer() as spare, open_dial() as dial:
            connection = await dial(CLEAR, free_port(), busy, good, spare)
            assert (busy.connections, good.connections, spare.connections) == (1, 1, 0)
            assert (connection.mx_name, connection.address) == (NAME, "127.0.0.1")
            assert good.commands == [f"EHLO {OWN_NAME}"]
            assert connection.client.capabilities.pipelining


async def test_when_none_can_be_reached_each_is_named_with_its_reason() -> None:
    nobody = free_port()
    async with open_peer(replies={"connect": "554 5.7.1 go away"}) as rude, open_dial() as dial:
        with pytest.raises(NoHostReached) as caught:
            await dial(CLEAR, candidate(nobody, "one.example"), candidate(rude, "two.example"))
        one, two = str(caught.value).split("; ")
        assert one.startswith(f"one.example[127.0.0.1]:{nobody}: ") and "refused" in one
        assert two.startswith(f"two.example[127.0.0.1]:{rude.port}: ") and "554 5.7.1 go away" in two


async def test_without_candidates_there_is_no_host() -> None:
    async with open_dial() as dial:
        with pytest.raises(NoHostReached, match="no candidate"):
            await dial(CLEAR)


async def test_a_host_that_lacks_what_the_path_demands_is_passed_over(
    tls: ssl.SSLContext, trusting: dict[str, Any]
) -> None:
    async with open_peer() as plain, open_peer(tls=tls) as good, open_dial() as dial:
        connection = await dial(make_egress_path(**trusting), plain, good)
        assert connection.stream.tls is not None and good.connections == 1


async def test_what_an_operator_must_know_wins_over_hosts_that_are_down(trusting: dict[str, Any]) -> None:
    async with open_peer() as plain, open_dial() as dial:
        with pytest.raises(TlsRequired, match=r"first\.example.*does not offer STARTTLS"):
            await dial(
                make_egress_path(**trusting),
                free_port(),
                candidate(plain, "first.example"),
                candidate(plain, "second.example"),
                free_port(),
            )
        assert plain.connections == 2


async def test_a_connection_that_came_to_nothing_is_closed() -> None:
    async with open_peer(replies={"connect": "421 4.3.2 busy"}) as peer, open_dial() as dial:
        with pytest.raises(NoHostReached):
            await dial(CLEAR, peer)
        with trio.fail_after(5):
            while peer.open:
                await trio.sleep(0.001)


# -- from where ------------------------------------------------------------------------------------


async def test_the_source_address_is_where_the_connection_comes_from() -> None:
    clients: list[str] = []

    async def script(wire: Wire) -> None:
        clients.append(wire.socket.socket.getpeername()[0])
        await wire.greet()

    async with open_peer(script) as peer, open_dial() as dial:
        connection = await dial(CLEAR, peer, source_address="127.0.0.7")
        assert clients == ["127.0.0.7"] and connection.source_address == "127.0.0.7"


async def test_a_source_address_that_is_not_ours_reaches_no_host_and_says_why() -> None:
    async with open_peer() as peer, open_dial() as dial:
        with pytest.raises(NoHostReached, match=r"source address 192\.0\.2\.1: .* \(bind\)"):
            await dial(CLEAR, peer, source_address="192.0.2.1")
        assert peer.connections == 0


# -- how long --------------------------------------------------------------------------------------

SILENCES: dict[str, tuple[dict[str, Any], str, str]] = {
    "banner_timeout": ({"connect": HANG}, "greeting", "clear"),
    "ehlo_timeout": ({"EHLO": HANG}, "EHLO", "clear"),
    "ehlo_timeout (HELO)": ({"EHLO": "502 what?", "HELO": HANG}, "EHLO", "clear"),
    "ehlo_timeout (inside TLS)": ({"EHLO": ["250-peer.example\r\n250 STARTTLS", HANG]}, "EHLO", "tls"),
    "starttls_timeout": ({"STARTTLS": HANG}, "STARTTLS", "tls"),
    "auth_timeout": ({"AUTH": HANG}, "AUTH", "login"),
}


@pytest.mark.parametrize(("replies", "stage", "kind"), SILENCES.values(), ids=SILENCES)
async def test_each_stage_has_its_own_limit(
    replies: dict[str, Any],
    stage: str,
    kind: str,
    request: pytest.FixtureRequest,
    tls: ssl.SSLContext,
    trusting: dict[str, Any],
    clock: MockClock,
) -> None:
    # The identifier of the row is the option's name; all the others stay as they are.
    option = request.node.callspec.id.split(" ")[0]
    extra = {option: "17s"}
    path = {
        "clear": lambda: make_egress_path(enable_tls="Disabled", **extra),
        "tls": lambda: make_egress_path(**trusting, **extra),
        "login": lambda: login(**extra),
    }[kind]()
    async with open_peer(tls=tls, capabilities=["AUTH PLAIN"], replies=replies) as peer, open_dial() as dial:
        begun = trio.current_time()
        with pytest.raises((NoHostReached, LoginRefused), match="no answer within 17 s") as caught:
            await dial(path, peer)
        assert stage in str(caught.value)
        assert trio.current_time() - begun == pytest.approx(17.0)


async def test_a_connection_that_does_not_come_up_is_given_up(clock: MockClock) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            # The backlog is full now: the kernel answers no further SYN.
            async with open_dial() as dial:
                begun = trio.current_time()
                with pytest.raises(NoHostReached, match=r"no connection within 9 s \(connect\)"):
                    await dial(make_egress_path(enable_tls="Disabled", connect_timeout="9s"), port)
                assert trio.current_time() - begun == pytest.approx(9.0)


async def test_a_handshake_that_does_not_end_is_given_up(trusting: dict[str, Any], clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.say("220 go ahead")
        await wire.until_closed()

    async with open_peer(script) as peer, open_dial() as dial:
        begun = trio.current_time()
        with pytest.raises(NoHostReached, match="handshake not done within 21 s"):
            await dial(make_egress_path(**trusting, starttls_timeout="21s"), peer)
        assert trio.current_time() - begun == pytest.approx(21.0)


async def test_after_a_limit_the_next_host_has_all_its_time(clock: MockClock) -> None:
    async with open_peer(replies={"connect": HANG}) as silent, open_dial() as dial:
        begun = trio.current_time()
        with pytest.raises(NoHostReached):
            await dial(make_egress_path(enable_tls="Disabled", banner_timeout="30s"), silent, silent, silent)
        assert trio.current_time() - begun == pytest.approx(90.0)


# -- greeting and EHLO -----------------------------------------------------------------------------

GREETINGS = {
    "421 4.3.2 too busy": "421 4.3.2 too busy",
    "450 later": "450 later",
    "554 5.7.1 no": "554 5.7.1 no",
    "521 we take no mail": "521 we take no mail",
    "250 hello": "250 hello",
    "354 hello": "354",
    "120 wait": "does not begin with a code",
    "HTTP/1.1 400 Bad Request": "does not begin with a code",
    "\x15\x03\x01": "does not begin with a code",
    "220-two codes\r\n221 in one reply": "code",
    DROP: "closed",
}


@pytest.mark.parametrize(("greeting", "reason"), GREETINGS.items())
async def test_a_host_that_greets_otherwise_is_left_for_the_next(greeting: str, reason: str) -> None:
    async with open_peer(replies={"connect": greeting}) as odd, open_peer() as good, open_dial() as dial:
        with pytest.raises(NoHostReached, match=reason):
            await dial(CLEAR, odd)
        connection = await dial(CLEAR, odd, good)
        assert connection.stream.peer[1] == good.port
        assert odd.commands == []


@pytest.mark.parametrize("text", ["220", "220 peer.example ESMTP", "220-peer.example\r\n220"])
async def test_a_greeting_cut_off_by_the_end_is_none(text: str) -> None:
    async with open_peer(cut(text)) as peer, open_dial() as dial:
        with pytest.raises(NoHostReached, match="closed"):
            await dial(CLEAR, peer)


HELLOS = {
    "421 4.3.2 going down": "EHLO refused: 421",
    "451 later": "EHLO refused: 451",
    "354 what": "354 is no answer to EHLO",
    "250-peer.example\r\n251 other": "code",
    "junk": "does not begin with a code",
}


@pytest.mark.parametrize(("reply", "reason"), HELLOS.items())
async def test_a_host_that_answers_ehlo_otherwise_is_left_for_the_next(reply: str, reason: str) -> None:
    async with open_peer(replies={"EHLO": reply}) as odd, open_peer() as good, open_dial() as dial:
        with pytest.raises(NoHostReached, match=reason):
            await dial(CLEAR, odd)
        assert (await dial(CLEAR, odd, good)).stream.peer[1] == good.port
        assert set(odd.words()) == {"EHLO"}


@pytest.mark.parametrize("refusal", ["500 what?", "502 5.5.1 no", "504 no", "550 no", "554 no"])
async def test_helo_follows_where_ehlo_is_not_known_and_offers_nothing(refusal: str) -> None:
    replies = {"EHLO": refusal, "HELO": "250-peer.example\r\n250-PIPELINING\r\n250 AUTH PLAIN"}
    async with open_peer(replies=replies) as peer, open_dial() as dial:
        connection = await dial(CLEAR, peer)
        assert peer.commands == [f"EHLO {OWN_NAME}", f"HELO {OWN_NAME}"]
        assert not connection.client.capabilities.names
        with pytest.raises(AuthNotOffered):
            await dial(login(), peer)


async def test_a_host_that_knows_neither_ehlo_nor_helo_is_left() -> None:
    async with open_peer(replies={"EHLO": "502 no", "HELO": "502 no"}) as peer, open_dial() as dial:
        with pytest.raises(NoHostReached, match="EHLO refused: 502"):
            await dial(CLEAR, peer)


@pytest.mark.parametrize("greeting", [f"220 {OWN_NAME} ESMTP", f"220 {OWN_NAME.upper()}.", f"220 {OWN_NAME}"])
async def test_a_host_found_by_mx_that_greets_with_our_own_name_is_ourselves(greeting: str) -> None:
    async with open_peer(replies={"connect": greeting}) as peer, open_dial() as dial:
        with pytest.raises(MailLoop, match=r"itself relay\.example, which is our own name"):
            await dial(CLEAR, peer, route=False)
        assert peer.commands == []
        await dial(CLEAR, peer, route=True)  # an operator named it: a next hop on this machine


@pytest.mark.parametrize("greeting", [f"220 mx.{OWN_NAME} ESMTP", f"220 ESMTP {OWN_NAME}", "220"])
async def test_another_name_that_looks_like_ours_is_not_ours(greeting: str) -> None:
    async with open_peer(replies={"connect": greeting}) as peer, open_dial() as dial:
        await dial(CLEAR, peer, route=False)


OWN_ELSEWHERE: dict[str, dict[str, Any]] = {
    "in a greeting of two lines": {"connect": f"220-{OWN_NAME}\r\n220 ESMTP"},
    "in the reply to EHLO": {
        "connect": "220 ESMTP",
        "EHLO": f"250-{OWN_NAME} at your service\r\n250 PIPELINING",
    },
}


@pytest.mark.parametrize("replies", OWN_ELSEWHERE.values(), ids=OWN_ELSEWHERE)
async def test_our_own_name_is_a_loop_wherever_the_peer_gives_it(replies: dict[str, Any]) -> None:
    async with open_peer(replies=replies) as peer, open_dial() as dial:
        with pytest.raises(MailLoop, match="own name"):
            await dial(CLEAR, peer, route=False)


async def test_hosts_of_worse_preference_would_only_bring_it_back() -> None:
    async with open_peer(replies={"connect": f"220 {OWN_NAME}"}) as us, open_peer() as worse:
        async with open_dial() as dial:
            with pytest.raises(MailLoop, match=rf"{NAME}\[127\.0\.0\.1\]:{us.port}"):
                await dial(CLEAR, us, worse, route=False)
            # With a better one that is only down the mail is not bounced.
            with pytest.raises(NoHostReached, match="own name"):
                await dial(CLEAR, free_port(), us, worse, route=False)
            assert worse.connections == 0


# -- STARTTLS --------------------------------------------------------------------------------------

STARTTLS_ANSWERS = {
    "334 go on": "334 is no answer to STARTTLS",
    "120 wait": "does not begin with a code",
    "junk": "does not begin with a code",
    "220 go ahead\r\n250 injected": "octets behind the answer to STARTTLS",
    "220-go\r\n220 ahead\r\n250-injected\r\n250 AUTH PLAIN": "octets behind the answer to STARTTLS",
    DROP: "closed",
}


@pytest.mark.parametrize("mode", ["Required", "Opportunistic"])
@pytest.mark.parametrize(("reply", "reason"), STARTTLS_ANSWERS.items())
async def test_a_strange_answer_to_starttls_ends_the_connection(
    reply: str, reason: str, mode: str, trusting: dict[str, Any]
) -> None:
    async with open_peer(capabilities=["STARTTLS", "AUTH PLAIN"], replies={"STARTTLS": reply}) as peer:
        async with open_dial() as dial:
            with pytest.raises(NoHostReached, match=reason):
                await dial(make_egress_path(**{**trusting, "enable_tls": mode}), peer)
            assert peer.words() == ["EHLO", "STARTTLS"] and peer.connections == 1


@pytest.mark.parametrize("reply", ["454 4.7.0 later", "502 what?", "250 fine", "221 bye"])
async def test_a_starttls_that_is_refused_holds_where_it_is_required(
    reply: str, trusting: dict[str, Any]
) -> None:
    async with open_peer(capabilities=["STARTTLS"], replies={"STARTTLS": reply}) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match=f"refused: {reply[:3]}"):
            await dial(make_egress_path(**trusting), peer)
        assert peer.words() == ["EHLO", "STARTTLS"]


async def test_a_421_to_starttls_is_the_end_of_this_host_in_every_mode() -> None:
    leaving = {"STARTTLS": "421 4.3.2 going down"}
    async with open_peer(capabilities=["STARTTLS"], replies=leaving) as peer, open_peer() as good:
        async with open_dial() as dial:
            connection = await dial(make_egress_path(enable_tls="Opportunistic"), peer, good)
            assert connection.stream.peer[1] == good.port


async def test_what_was_offered_before_tls_does_not_exist_inside(
    tls: ssl.SSLContext, trusting: dict[str, Any]
) -> None:
    before = ["PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8", "AUTH PLAIN"]
    async with open_peer(tls=tls, capabilities=before, secured=["SIZE 2000"]) as peer, open_dial() as dial:
        connection = await dial(make_egress_path(**trusting), peer)
        assert peer.commands == [f"EHLO {OWN_NAME}", "STARTTLS", "(tls)", f"EHLO {OWN_NAME}"]
        assert connection.client.capabilities.names == {"SIZE"}
        assert connection.client.capabilities.size == 2000
        with pytest.raises(AuthNotOffered, match="offers no AUTH"):
            await dial(login(**trusting), peer)
        assert "AUTH" not in peer.words()


# -- AUTH ------------------------------------------------------------------------------------------


async def test_what_is_offered_inside_only_is_used(tls: ssl.SSLContext, trusting: dict[str, Any]) -> None:
    async with open_peer(tls=tls, capabilities=[], secured=["AUTH LOGIN PLAIN"]) as peer:
        async with open_dial() as dial:
            connection = await dial(login(**trusting), peer)
            assert [command_word(line) for line in inside(peer)] == ["EHLO", "AUTH"]
            assert connection.auth_mechanism == "PLAIN"


@pytest.mark.parametrize("reply", ["535 5.7.8 wrong", "534 too weak", "501 odd", "550 no"])
async def test_a_refused_login_is_not_repeated_at_the_next_host(reply: str, clock: MockClock) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"], replies={"AUTH": reply}) as one, open_peer() as two:
        async with open_dial() as dial:
            with pytest.raises(
                LoginRefused, match=rf"\[127.0.0.1\]:{one.port}: .*'scott'.* {reply}"
            ) as caught:
                await dial(login(), one, two)
            assert caught.value.cause == "login-refused"
            assert one.words().count("AUTH") == 1 and two.connections == 0


@pytest.mark.parametrize("reply", ["454 4.7.0 later", "421 4.3.2 going down"])
async def test_not_now_is_no_word_on_the_password(reply: str, clock: MockClock) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"], replies={"AUTH": reply}) as one, open_dial() as dial:
        async with open_peer(capabilities=["AUTH PLAIN"]) as two:
            assert (await dial(login(), one, two)).stream.peer[1] == two.port
        await trio.sleep(100)
        with pytest.raises(LoginRefused, match=reply) as caught:
            await dial(login(), one)
        assert caught.value.cause == "login-deferred"


async def answers(wire: Wire, *replies: str) -> None:
    """Answer each line of an AUTH exchange with the next of these, the last one again and again."""
    await wire.line()
    for reply in replies:
        await wire.say(reply)
        await wire.line()
    while True:
        await wire.say(replies[-1])
        await wire.line()


BROKEN = {
    "endless challenges": ("PLAIN", ["334 "]),
    "a challenge that is no base64": ("PLAIN", ["334 *no*"]),
    "another 3yz": ("PLAIN", ["354 ", "235 ok"]),
    "a success by another code": ("PLAIN", ["250 ok"]),
    "junk": ("PLAIN", ["hello"]),
    "a success before the user was named": ("LOGIN", ["235 ok"]),
    "a success before the password was said": ("LOGIN", ["334 VXNlcm5hbWU6", "235 ok"]),
}


@pytest.mark.parametrize(
    ("mechanism", "replies"),
    [
        *(pytest.param(*row, id=name) for name, row in BROKEN.items()),
        pytest.param("PLAIN", ["334 \r\n235 ok"], id="a success with the challenge"),
        pytest.param(
            "LOGIN",
            ["334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n235 ok"],
            id="a success with all challenges",
        ),
    ],
)
async def test_a_broken_auth_exchange_is_no_login_and_is_not_repeated(
    mechanism: str, replies: list[str], clock: MockClock
) -> None:
    """The peer has the password, or part of it, and says nothing sensible: as good as refused."""

    async def script(wire: Wire) -> None:
        await wire.greet(f"AUTH {mechanism}")
        await answers(wire, *replies)

    async with open_peer(script) as peer, open_peer() as other, open_dial() as dial:
        with pytest.raises(LoginRefused, match="not answered") as caught:
            await dial(login(), peer, other)
        assert caught.value.cause == "login-unanswered"
        assert len(peer.commands) <= 12 and other.connections == 0


@pytest.mark.parametrize("option", ["smtp_auth_plain_password", "tls_ca"])
async def test_without_its_secret_a_path_connects_to_nobody(
    option: str, trusting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSTHORN_TEST_SECRET", raising=False)
    path = login(**{**trusting, option: {"env": "POSTHORN_TEST_SECRET"}})
    async with open_peer(capabilities=["AUTH PLAIN"]) as peer, open_dial() as dial:
        with pytest.raises(SecretUnavailable, match="POSTHORN_TEST_SECRET"):
            await dial(path, peer)
        assert peer.connections == 0
