"""engine/smtp/client.py from bytes: what is sent, what replies mean, in every split."""

from __future__ import annotations

import base64
import random

import pytest

from engine.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp import (
    AuthDone,
    ClientEvent,
    ClientSession,
    Finished,
    GoAhead,
    Greeting,
    HelloDone,
    StartTlsReply,
    Transaction,
    Unsolicited,
    client_mechanism,
)
from policy import Secret


def events(session: ClientSession, data: bytes, how: str = "whole") -> list[ClientEvent]:
    found: list[ClientEvent] = []
    dice = random.Random(how)
    while data:
        cut = len(data) if how == "whole" else 1 if how == "octets" else dice.randint(1, 9)
        session.receive_data(data[:cut])
        data = data[cut:]
        while (event := session.next_event()) is not None:
            found.append(event)
    return found


def greeted(*extensions: str) -> ClientSession:
    session = ClientSession("me.example")
    assert isinstance(events(session, b"220 hi\r\n")[0], Greeting)
    session.hello()
    assert b"".join(session.data_to_send()) == b"EHLO me.example\r\n"
    lines = ["peer", *extensions]
    text = "".join(f"250{'-' if i < len(lines) - 1 else ' '}{x}\r\n" for i, x in enumerate(lines))
    (done,) = events(session, text.encode())
    assert isinstance(done, HelloDone) and done.ok
    return session


def sent(session: ClientSession) -> bytes:
    return b"".join(session.data_to_send())


def tx(*recipients: str, **options: bool) -> Transaction:
    return Transaction("a@b.example", list(recipients or ("c@d.example",)), **options)  # type: ignore[arg-type]


GROUP = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"


@pytest.mark.parametrize("how", ["whole", "octets", "1", "2"])
def test_pipelining_across_messages(how: str) -> None:
    session = greeted("PIPELINING")
    one, two = tx(), tx()
    session.mail(one)
    assert sent(session) == GROUP
    (go,) = events(session, b"250 ok\r\n250-multi\r\n250 line\r\n354 go\r\n", how)
    assert isinstance(go, GoAhead) and go.tx is one
    session.body(one, [b"body\r\n"], two)
    assert sent(session) == b"body\r\n.\r\n" + GROUP
    finished, go = events(session, b"250 2.0.0 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n", how)
    assert isinstance(finished, Finished) and finished.tx is one
    assert one.dot_reply is not None and (one.dot_reply.code, one.dot_reply.enhanced) == (250, "2.0.0")
    assert isinstance(go, GoAhead) and go.tx is two


def test_without_pipelining_one_command_at_a_time_and_none_after_a_refusal() -> None:
    session = greeted()
    one = tx("c@d.example", "e@f.example")
    session.mail(one)
    assert sent(session) == b"MAIL FROM:<a@b.example>\r\n"
    assert events(session, b"250 ok\r\n") == []
    assert sent(session) == b"RCPT TO:<c@d.example>\r\n"
    events(session, b"550 no\r\n")
    assert sent(session) == b"RCPT TO:<e@f.example>\r\n"
    assert events(session, b"550 no\r\n") == []
    assert sent(session) == b"RSET\r\n"
    (finished,) = events(session, b"250 reset\r\n")
    assert isinstance(finished, Finished)
    assert one.data_reply is None
    session.mail(tx())
    assert sent(session) == b"MAIL FROM:<a@b.example>\r\n"


def test_354_although_nobody_was_accepted_gets_a_lone_dot_that_counts_for_nothing() -> None:
    session = greeted("PIPELINING")
    one = tx()
    session.mail(one)
    sent(session)
    assert events(session, b"250 ok\r\n550 5.1.1 who\r\n354 go\r\n") == []
    assert sent(session) == b".\r\n"
    (finished,) = events(session, b"250 taken\r\n")
    assert isinstance(finished, Finished) and one.dot_reply is None


def test_any_2xx_accepts_a_recipient() -> None:
    session = greeted("PIPELINING")
    one = tx()
    session.mail(one)
    (go,) = events(session, b"250 ok\r\n251 will forward\r\n354 go\r\n")
    assert isinstance(go, GoAhead)


def test_too_many_recipients_is_surplus_only_after_an_accepted_one() -> None:
    session = greeted("PIPELINING")
    one = tx("a@x.example", "b@x.example", "c@x.example")
    session.mail(one)
    events(session, b"250 ok\r\n452 4.5.3 full\r\n250 ok\r\n452 4.5.3 too many\r\n354 go\r\n")
    assert one.surplus == (2,)


def test_421_ends_everything_in_order() -> None:
    session = greeted("PIPELINING")
    one, two = tx(), tx()
    session.mail(one)
    events(session, b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.body(one, [b"x\r\n"], two)
    found = events(session, b"421 4.3.2 bye\r\n")
    assert [event.tx for event in found if isinstance(event, Finished)] == [one, two]
    assert session.closing and one.dot_reply is not None and two.mail_reply is None


@pytest.mark.parametrize(
    "data",
    [b"25 ok\r\n", b"abc\r\n", b"150 wait\r\n", b"650 what\r\n", b"250-a\r\n251 b\r\n", b"354 go\r\n",
     b"250x\r\n", b"\xef\xbc\x92\xef\xbc\x95\xef\xbc\x90 ok\r\n", b"250-x\r\n" * 200],
)  # fmt: skip
def test_what_is_no_answer_is_a_protocol_error(data: bytes) -> None:
    session = greeted("PIPELINING")
    session.mail(tx())
    with pytest.raises(RemoteProtocolError):
        events(session, data)


@pytest.mark.parametrize("code", [200, 250, 251, 300, 353, 355, 399])
def test_only_354_or_a_refusal_answers_data(code: int) -> None:
    session = greeted("PIPELINING")
    session.mail(tx())
    with pytest.raises(RemoteProtocolError, match=f"{code} is no answer to DATA"):
        events(session, b"250 ok\r\n250 ok\r\n%d ok\r\n" % code)


def test_each_transaction_is_told_what_was_said_to_it() -> None:
    """Replies that repeat the last one of their kind are told from what they do not repeat."""
    session = greeted("PIPELINING")
    for said in ("2.1.0 ok", "2.1.0 ok", "2.1.0 other", "2.1.5 ok", "ok", "x" * 300, "x" * 300, "2.1.0 ok"):
        one = tx()
        session.mail(one)
        events(session, b"250 %s\r\n250 ok\r\n354 go\r\n" % said.encode())
        session.body(one, [])
        events(session, b"250 done\r\n")
        assert one.mail_reply is not None
        assert f"{one.mail_reply.enhanced} {one.mail_reply.text}".strip() == said
        assert one.dot_reply is not None and one.dot_reply.text == "done"


def _before(kind: str) -> ClientSession:
    """A session that waits for the answer to this."""
    if kind == "greeting":
        return ClientSession("me.example")
    session = greeted("PIPELINING", "STARTTLS", "AUTH PLAIN")
    if kind == "EHLO":
        session.hello()
    elif kind == "HELO":
        session.hello()
        events(session, b"502 5.5.1 what?\r\n")
    elif kind == "STARTTLS":
        session.starttls()
    elif kind == "AUTH":
        session.auth(client_mechanism("PLAIN", "scott", Secret("tiger")))
    elif kind == "RSET":
        session.rset()
    elif kind == "QUIT":
        session.quit()
    else:
        one = tx()
        session.mail(one)
        steps = ["MAIL FROM", "RCPT TO", "DATA", "final dot"]
        for step in steps[: steps.index(kind)]:
            events(session, b"354 go\r\n" if step == "DATA" else b"250 ok\r\n")
        if kind == "final dot":
            session.body(one, [b"x\r\n"])
    return session


KINDS = ["greeting", "EHLO", "HELO", "STARTTLS", "AUTH", "RSET", "QUIT", "MAIL FROM", "RCPT TO", "final dot"]


@pytest.mark.parametrize("code", [100, 199, 300, 354, 399])
@pytest.mark.parametrize("kind", KINDS)
def test_1yz_and_3yz_are_no_answers_where_none_is_due(kind: str, code: int) -> None:
    """C5; what follows it would be paired with the wrong command."""
    session = _before(kind)
    assert session.stage == kind
    with pytest.raises(RemoteProtocolError):
        events(session, b"%d what\r\n" % code)


def test_without_pipelining_nothing_follows_a_refused_sender() -> None:
    session, one = greeted(), tx("c@d.example", "e@d.example")
    session.mail(one)
    assert sent(session) == b"MAIL FROM:<a@b.example>\r\n"
    (done,) = events(session, b"550 5.7.1 not you\r\n")
    assert isinstance(done, Finished) and sent(session) == b"" and one.rcpt_replies == [None, None]


def test_a_reply_nobody_asked_for() -> None:
    (event,) = events(greeted(), b"250 delivered\r\n")
    assert isinstance(event, Unsolicited)


def test_helo_when_ehlo_is_not_known() -> None:
    session = ClientSession("me.example")
    events(session, b"220 hi\r\n")
    session.hello()
    sent(session)
    assert events(session, b"502 what\r\n") == []
    assert sent(session) == b"HELO me.example\r\n"
    (done,) = events(session, b"250 hi\r\n")
    assert isinstance(done, HelloDone) and done.ok and not session.capabilities.names


def test_octets_behind_the_answer_to_starttls_are_refused() -> None:
    session = greeted("STARTTLS")
    session.starttls()
    with pytest.raises(RemoteProtocolError):
        events(session, b"220 go\r\n250-injected\r\n")


def test_tls_forgets_the_capabilities() -> None:
    session = greeted("STARTTLS", "AUTH PLAIN")
    session.starttls()
    (reply,) = events(session, b"220 go\r\n")
    assert isinstance(reply, StartTlsReply)
    session.tls_established()
    assert not session.capabilities.auth


def login(mechanism: str) -> ClientSession:
    session = greeted(f"AUTH {mechanism}")
    session.auth(client_mechanism(mechanism, "scott", Secret("tiger")))
    return session


def test_auth_plain() -> None:
    session = login("PLAIN")
    assert sent(session) == b"AUTH PLAIN AHNjb3R0AHRpZ2Vy\r\n"
    (done,) = events(session, b"235 welcome\r\n")
    assert isinstance(done, AuthDone) and done.ok


@pytest.mark.parametrize("excess", [0, 1])
def test_an_initial_response_that_makes_the_line_too_long_waits_for_a_challenge(excess: int) -> None:
    """RFC 4954 4: access tokens are often longer than a command line may be."""
    session = greeted("AUTH XOAUTH2")
    token = "t" * (347 + excess)
    session.auth(client_mechanism("XOAUTH2", "scott", Secret(token)))
    response = base64.b64encode(f"user=scott\1auth=Bearer {token}\1\1".encode())
    command = sent(session)
    if not excess:
        assert command == b"AUTH XOAUTH2 " + response + b"\r\n" and 508 <= len(command) <= 512
    else:
        assert command == b"AUTH XOAUTH2\r\n"
        assert events(session, b"334 \r\n") == []
        assert sent(session) == response + b"\r\n"
    (done,) = events(session, b"235 2.7.0 welcome\r\n")
    assert isinstance(done, AuthDone) and done.ok


def test_success_before_a_long_initial_response_was_said_is_refused() -> None:
    session = greeted("AUTH XOAUTH2")
    session.auth(client_mechanism("XOAUTH2", "scott", Secret("t" * 2000)))
    with pytest.raises(RemoteProtocolError, match="before it was finished"):
        events(session, b"235 2.7.0 welcome\r\n")


@pytest.mark.parametrize(
    ("mechanism", "secret", "answer"),
    [
        ("XOAUTH2", "t" * 2000, b"334 \r\n235 2.7.0 welcome\r\n"),
        ("LOGIN", "tiger", b"334 \r\n334 \r\n235 2.7.0 welcome\r\n"),
        ("PLAIN", "tiger", b"334 \r\n235 2.7.0 welcome\r\n"),
    ],
)
def test_success_behind_a_challenge_came_before_our_answer(
    mechanism: str, secret: str, answer: bytes
) -> None:
    """C6, C43: it cannot be about what we said, for that was not said yet."""
    session = greeted(f"AUTH {mechanism}")
    session.auth(client_mechanism(mechanism, "scott", Secret(secret)))
    with pytest.raises(RemoteProtocolError, match="behind an AUTH challenge"):
        events(session, answer)


def test_a_refusal_before_it_was_said_is_no_verdict_on_it() -> None:
    session = greeted("AUTH XOAUTH2")
    session.auth(client_mechanism("XOAUTH2", "scott", Secret("t" * 2000)))
    (done,) = events(session, b"504 5.5.4 not today\r\n")
    assert isinstance(done, AuthDone) and not done.ok and not done.exposed


def test_auth_login_whatever_the_prompts_say() -> None:
    session = login("LOGIN")
    assert sent(session) == b"AUTH LOGIN\r\n"
    events(session, b"334 " + base64.b64encode(b"Quis es?") + b"\r\n")
    assert sent(session) == base64.b64encode(b"scott") + b"\r\n"
    events(session, b"334 \r\n")
    assert sent(session) == base64.b64encode(b"tiger") + b"\r\n"
    (done,) = events(session, b"535 no\r\n")
    assert isinstance(done, AuthDone) and not done.ok


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_challenge_that_is_not_base64_ends_it(mechanism: str) -> None:
    session = login(mechanism)
    sent(session)
    with pytest.raises(RemoteProtocolError, match="not base64"):
        events(session, b"334 not base64!\r\n")
    assert sent(session) == b""


def test_235_before_we_said_everything_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        events(login("LOGIN"), b"235 already\r\n")


def test_endless_challenges_are_given_up() -> None:
    session = login("PLAIN")
    with pytest.raises(RemoteProtocolError):
        for _ in range(20):
            events(session, b"334 \r\n")


def test_arguments_with_control_characters_never_reach_the_wire() -> None:
    with pytest.raises(LocalProtocolError):
        ClientSession("me.example\r\nMAIL")
    with pytest.raises(LocalProtocolError):
        greeted("PIPELINING").mail(tx("a@b.example>\r\nRCPT TO:<x@y.example"))


def test_obstacles() -> None:
    session = greeted("SIZE 1000")
    assert session.obstacle(Transaction("a@b.example", ["c@d.example"], size=1000)) is None
    big = Transaction("a@b.example", ["c@d.example"], size=1001)
    reply = session.obstacle(big)
    assert reply is not None and (reply.code, reply.enhanced) == (552, "5.3.4")
    reply = session.obstacle(tx(body_8bit=True))
    assert reply is not None and reply.enhanced == "5.6.3"
    reply = session.obstacle(tx("grün@d.example"))
    assert reply is not None and reply.enhanced == "5.6.7"
    assert session.obstacle(tx()) is None
    session = greeted("8BITMIME")
    assert session.obstacle(tx(body_8bit=True)) is None
    assert session.obstacle(tx(smtputf8=True)) is None, "all of it is ASCII after all"
    reply = session.obstacle(tx(smtputf8=True, body_8bit=True))
    assert reply is not None and reply.enhanced == "5.6.7", "the header may be UTF-8"


def test_a_refusal_while_content_is_being_sent() -> None:
    session = greeted("PIPELINING")
    one = tx()
    session.mail(one)
    events(session, b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.body(one, [b"x" * 10])
    session.hear_early(b"552 5.3.4 enough\r\n")
    assert isinstance(session.next_event(), Finished)
    assert one.dot_reply is not None and one.dot_reply.code == 552


@pytest.mark.parametrize("early", [b"250 taken\r\n", b"25", b"354 go\r\n", b"junk\r\n"])
def test_nothing_that_came_before_the_dot_answers_the_dot(early: bytes) -> None:
    session = greeted("PIPELINING")
    one = tx()
    session.mail(one)
    events(session, b"250 ok\r\n250 ok\r\n354 go\r\n")
    session.body(one, [b"x" * 10])
    with pytest.raises(RemoteProtocolError):
        session.hear_early(early)
    assert one.dot_reply is None


def test_a_reply_behind_the_answer_to_data_is_out_of_step() -> None:
    session = greeted("PIPELINING")
    session.mail(tx())
    with pytest.raises(RemoteProtocolError, match="behind the answer to DATA"):
        events(session, b"250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n")


def test_a_reply_that_waits_before_mail_is_noticed() -> None:
    session = greeted("PIPELINING")
    session.receive_data(b"421 bye\r\n")
    assert session.unasked
    with pytest.raises(RemoteProtocolError, match="before MAIL"):
        session.mail(tx())


def test_an_address_with_control_characters_is_an_obstacle() -> None:
    session = greeted("PIPELINING", "SMTPUTF8")
    assert session.obstacle(tx("c\u0085@d.example")) is not None
    assert session.obstacle(tx("c\u00e4@d.example")) is None


def test_a_refused_rset_ends_the_session() -> None:
    """Else the next message's recipients might join a transaction that is still open at the peer."""
    session = greeted("PIPELINING")
    one = tx(rset=True)
    session.mail(one)
    sent(session)
    with pytest.raises(RemoteProtocolError, match="RSET refused"):
        events(session, b"500 what\r\n503 nested\r\n250 ok\r\n354 go\r\n")
    assert one.mail_reply is None and sent(session) == b""


def test_no_lone_dot_for_recipients_of_another_transaction() -> None:
    session = greeted("PIPELINING")
    session.mail(tx())
    sent(session)
    with pytest.raises(RemoteProtocolError, match="MAIL was refused"):
        events(session, b"503 nested\r\n250 ok\r\n354 go\r\n")
    assert sent(session) == b""
