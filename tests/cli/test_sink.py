"""The sink: what it takes, what it insists on, how it misbehaves, and that pipelining costs one write."""

from __future__ import annotations

import base64
import mailbox
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.ca import ThrowAwayCa
from engine.cli.sink import Arrival, Sink, open_sink
from engine.cli.sink_rules import STAGES, parse_rule
from engine.cli.sink_session import Counts, Session, SinkConfig
from engine.errors import ConfigError

HELLO = b"EHLO me.example\r\n"
ENVELOPE = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
MESSAGE = b"Subject: x\r\n\r\nhello\r\n.\r\n"


@pytest.fixture(scope="module")
def ca() -> ThrowAwayCa:
    return ThrowAwayCa()


class Talk:
    """A session without sockets, as its loop would drive it; `arrived` collects the messages."""

    def __init__(self, config: SinkConfig | None = None, **more: Any) -> None:
        self.arrived: list[Arrival] = []
        self.counts = Counts()
        more.setdefault("on_message", self._take)
        self.session = Session(config or SinkConfig(), self.counts, **more)

    def _take(self, arrival: Arrival) -> None:
        self.arrived.append(arrival)

    def say(self, data: bytes) -> list[str]:
        """The replies' codes and first words."""
        return [
            line[:3].decode() for line in self.session.feed(data).split(b"\r\n") if line and line[3:4] != b"-"
        ]


def greeted(config: SinkConfig | None = None, **more: Any) -> Talk:
    talk = Talk(config, **more)
    assert talk.session.begin().startswith(b"220 ")
    assert talk.say(HELLO) == ["250"]
    return talk


# -- without sockets -------------------------------------------------------------------------------


def test_one_message_then_the_next_in_the_same_write() -> None:
    talk = greeted()
    assert talk.say(ENVELOPE) == ["250", "250", "354"]
    assert talk.say(MESSAGE + ENVELOPE) == ["250", "250", "250", "354"]
    assert talk.say(MESSAGE + b"QUIT\r\n") == ["250", "221"]
    assert talk.session.pause is not None and talk.session.pause.kind == "close"
    assert talk.counts.messages == 2 and talk.counts.recipients == 2
    assert talk.counts.octets == 2 * (len(MESSAGE) - 3)
    assert [arrival.content for arrival in talk.arrived] == [MESSAGE[:-3]] * 2
    assert (talk.arrived[0].sender, talk.arrived[0].recipients) == ("a@x.example", ["b@y.example"])
    assert talk.arrived[0].ehlo == "me.example"


CONTENTS = {
    b".\r\n": b"",
    b"..\r\n.\r\n": b".\r\n",
    b"...\r\n..\r\n.\r\n": b"..\r\n.\r\n",
    b"\r\n..x\r\n\r\n.\r\n": b"\r\n.x\r\n\r\n",
    b"a\n.\nb\r\n.\n\r\n.\r\n": b"a\n.\nb\r\n.\n\r\n",
    b"a\r.\r\n.\rb\r\n.\r\n": b"a\r.\r\n.\rb\r\n",
    b"\r\n\r\n\r\n.\r\n": b"\r\n\r\n\r\n",
}


@pytest.mark.parametrize(("sent", "content"), CONTENTS.items())
@pytest.mark.parametrize("keeps", [True, False])
def test_every_split_of_a_conversation_means_the_same(sent: bytes, content: bytes, keeps: bool) -> None:
    whole = HELLO + ENVELOPE + sent + ENVELOPE + MESSAGE + b"QUIT\r\n"
    for step in range(1, len(whole)):
        talk = Talk() if keeps else Talk(on_message=None)
        replies = []
        for at in range(0, len(whole), step):
            replies += talk.say(whole[at : at + step])
        assert replies == ["250", "250", "250", "354", "250", "250", "250", "354", "250", "221"], step
        assert talk.counts.messages == 2
        # An undotted line is counted as it came: with its dot.
        assert talk.counts.octets == len(sent) + len(MESSAGE) - 6
        if keeps:
            assert [arrival.content for arrival in talk.arrived] == [content, MESSAGE[:-3]]


def test_commands_out_of_order() -> None:
    talk = Talk()
    talk.session.begin()
    assert talk.say(ENVELOPE) == ["503", "503", "503"]
    mixed = b"DATA\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nDATA\r\nRSET\r\nNOOP\r\nVRFY x\r\nwhat\r\n"
    assert talk.say(HELLO + mixed) == [
        "250", "503", "250", "503", "554", "250", "250", "252", "500",
    ]  # fmt: skip
    assert talk.say(b"RCPT TO:<b@y.example>\r\n") == ["503"]


def test_paths_as_they_stand_between_the_brackets() -> None:
    talk = greeted()
    talk.say(
        b'mail from:<"a>b"@x.example> SIZE=10\r\n'
        b"rcpt to:<b@y.example> NOTIFY=NEVER\r\nRCPT TO:<\xc3\xa9@y>\r\n"
    )
    talk.say(b"DATA\r\n" + MESSAGE)
    assert talk.arrived[0].sender == '"a>b"@x.example'
    assert talk.arrived[0].recipients == ["b@y.example", "\u00e9@y"]


def test_a_line_without_end_ends_the_session() -> None:
    talk = greeted()
    assert talk.say(b"x" * 70_000) == ["500"]
    assert talk.session.pause is not None and talk.session.pause.kind == "close"


def rules(*texts: str) -> SinkConfig:
    config = SinkConfig()
    for text in texts:
        rule = parse_rule(text)
        config.rules = {**config.rules, rule.stage: [*config.rules.get(rule.stage, []), rule]}
    return config


def test_a_refused_recipient_and_every_nth() -> None:
    talk = greeted(rules("rcpt=550 5.1.1 nobody;every=2"))
    assert talk.say(b"MAIL FROM:<>\r\n" + b"RCPT TO:<x@y>\r\n" * 4 + b"DATA\r\n") == [
        "250", "250", "550", "250", "550", "354",
    ]  # fmt: skip
    talk.say(MESSAGE)
    assert len(talk.arrived[0].recipients) == 2
    talk = greeted(rules("rcpt=550 no"))
    assert talk.say(ENVELOPE) == ["250", "550", "554"]


def test_the_first_rule_that_applies_counts() -> None:
    talk = greeted(rules("mail=451 4.3.0 later;first=1", "mail=250 2.0.0 welcome"))
    assert talk.session.feed(b"MAIL FROM:<>\r\n") == b"451 4.3.0 later\r\n"
    assert talk.session.feed(b"MAIL FROM:<>\r\n") == b"250 2.0.0 welcome\r\n"
    assert talk.say(b"RCPT TO:<x@y>\r\n") == ["250"]


def test_a_message_that_is_refused_or_dropped_at_its_dot_is_not_counted() -> None:
    for rule in ("dot=452 4.3.1 full", "dot=drop", "dot=hang"):
        talk = greeted(rules(rule))
        talk.say(ENVELOPE)
        assert talk.say(MESSAGE) == (["452"] if rule.startswith("dot=4") else [])
        assert talk.counts.messages == 0 and not talk.arrived


def test_421_is_the_end_even_when_it_comes_late() -> None:
    talk = greeted(rules("mail=421 4.3.2 going down"))
    assert talk.say(ENVELOPE) == ["421"]
    assert talk.session.pause is not None and talk.session.pause.kind == "close"
    talk = greeted(rules("mail=421 4.3.2 going down;delay=1"))
    assert talk.say(ENVELOPE) == []
    assert talk.session.pause is not None and (talk.session.pause.kind, talk.session.pause.seconds) == (
        "delay",
        1.0,
    )
    assert talk.say(b"") == ["421"]
    assert talk.session.pause is not None and talk.session.pause.kind == "close"


def test_a_delay_keeps_what_is_pipelined_behind_it_in_order() -> None:
    talk = greeted(rules("rcpt=delay=2;every=2", "dot=250 2.0.0 slow;delay=0.5"))
    assert talk.say(b"MAIL FROM:<>\r\nRCPT TO:<x@y>\r\nRCPT TO:<x@y>\r\nDATA\r\n") == ["250", "250"]
    assert talk.say(b"") == ["250", "354"]
    assert talk.session.pause is None
    assert talk.say(MESSAGE + b"NOOP\r\n") == []
    assert talk.counts.messages == 1
    assert talk.session.feed(b"") == b"250 2.0.0 slow\r\n250 2.0.0 Ok\r\n"


def test_a_refusal_at_the_door() -> None:
    talk = Talk(rules("connect=554 5.7.1 go away"))
    assert talk.session.begin() == b"554 5.7.1 go away\r\n"
    assert talk.session.pause is not None and talk.session.pause.kind == "close"


def test_a_reply_of_several_lines_and_a_bare_ehlo() -> None:
    talk = Talk(rules("ehlo=250 mx\\nSIZE 10"))
    talk.session.begin()
    assert talk.session.feed(HELLO) == b"250-mx\r\n250 SIZE 10\r\n"
    assert talk.say(ENVELOPE) == ["250", "250", "354"]


def test_keywords_can_be_left_out() -> None:
    talk = Talk(SinkConfig(without=frozenset({"PIPELINING", "SIZE"})))
    reply = talk.session.feed(HELLO)
    assert b"PIPELINING" not in reply and b"SIZE" not in reply and b"8BITMIME" in reply


def test_an_answer_of_the_callback_replaces_the_250() -> None:
    talk = greeted(on_message=lambda arrival: "554 5.6.0 not this" if b"bad" in arrival.content else None)
    talk.say(ENVELOPE)
    assert talk.say(b"bad\r\n.\r\n" + ENVELOPE + MESSAGE) == ["554", "250", "250", "354", "250"]
    assert talk.counts.messages == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rcpt",
        "nowhere=450 x",
        "rcpt=999 x",
        "rcpt=",
        "rcpt=45",
        "rcpt=delay=soon",
        "rcpt=450 x;every=0",
        "rcpt=450 x;every=two",
        "rcpt=450 x;evry=2",
        "rcpt=450 x;first=-1",
        "rcpt=delay=inf",
        "rcpt=450 \x07",
    ],
)
def test_a_wrong_rule_says_what_is_right(text: str) -> None:
    with pytest.raises(ConfigError, match="reply rule"):
        parse_rule(text)


def test_rules_are_read() -> None:
    assert parse_rule("mail=550 5.7.1 spf;reason=fail").reply == b"550 5.7.1 spf;reason=fail\r\n"
    rule = parse_rule("DOT=450 4.2.0 a; b;every=3; delay=0.5;first=9")
    assert (rule.stage, rule.code, rule.reply) == ("dot", 450, b"450 4.2.0 a; b\r\n")
    assert (rule.every, rule.delay, rule.first) == (3, 0.5, 9)
    assert [parse_rule(f"{stage}=drop").drop for stage in STAGES] == [True] * len(STAGES)


# -- AUTH, without sockets -------------------------------------------------------------------------

PLAIN = base64.b64encode(b"\0scott\0tiger")


def login(**more: Any) -> Talk:
    return greeted(SinkConfig(login=("scott", "tiger"), **{"login_without_tls": True, **more}))


def test_auth_plain_and_login_in_all_their_forms() -> None:
    for talk, steps in (
        (login(), [b"AUTH PLAIN " + PLAIN]),
        (login(), [b"AUTH PLAIN", PLAIN]),
        (login(), [b"auth login", base64.b64encode(b"scott"), base64.b64encode(b"tiger")]),
        (login(), [b"AUTH LOGIN " + base64.b64encode(b"scott"), base64.b64encode(b"tiger")]),
    ):
        assert talk.say(ENVELOPE) == ["530", "503", "503"]
        replies = [talk.say(step + b"\r\n") for step in steps]
        assert replies == [["334"]] * (len(steps) - 1) + [["235"]]
        assert talk.say(ENVELOPE) == ["250", "250", "354"]
        talk.say(MESSAGE)
        assert talk.arrived[0].user == "scott"
        assert talk.counts.logins == 1


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([b"AUTH PLAIN " + base64.b64encode(b"\0scott\0lion")], "535"),
        ([b"AUTH PLAIN " + base64.b64encode(b"\0scott")], "501"),
        ([b"AUTH PLAIN ***"], "501"),
        ([b"AUTH PLAIN", b"*"], "501"),
        ([b"AUTH LOGIN", b"*"], "501"),
        ([b"AUTH CRAM-MD5"], "504"),
        ([b"AUTH"], "504"),
    ],
)
def test_auth_that_fails_opens_nothing(steps: list[bytes], code: str) -> None:
    talk = login()
    replies = [talk.say(step + b"\r\n") for step in steps]
    assert replies[-1] == [code]
    assert talk.say(ENVELOPE) == ["530", "503", "503"]
    assert talk.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == ["235"]


def test_auth_is_neither_offered_nor_taken_in_the_clear() -> None:
    talk = Talk(SinkConfig(login=("scott", "tiger"), offer_tls=True))
    talk.session.begin()
    assert b"AUTH" not in talk.session.feed(HELLO)
    assert talk.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == ["538"]
    assert talk.session.feed(b"MAIL FROM:<>\r\n").startswith(b"530 5.7.0 Must issue a STARTTLS")


def test_a_rule_makes_a_good_login_fail() -> None:
    config = rules("auth=454 4.7.0 not now;first=1")
    config.login, config.login_without_tls = ("scott", "tiger"), True
    talk = greeted(config)
    assert talk.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == ["454"]
    assert talk.say(b"MAIL FROM:<>\r\n") == ["530"]
    assert talk.say(b"AUTH PLAIN " + PLAIN + b"\r\n") == ["235"]


def test_tls_forgets_what_came_before_and_what_was_sent_ahead() -> None:
    talk = greeted(SinkConfig(offer_tls=True))
    assert talk.say(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n") == ["220"]
    assert talk.session.pause is not None and talk.session.pause.kind == "tls"
    talk.session.tls_started("TLSv1.3")
    assert talk.say(b"") == []
    assert talk.say(b"MAIL FROM:<>\r\n") == ["503"]
    assert b"STARTTLS" not in talk.session.feed(HELLO)
    assert talk.say(b"STARTTLS\r\n") == ["503"]


# -- with sockets ----------------------------------------------------------------------------------


async def with_smtplib(sink: Sink, work: Callable[[smtplib.SMTP], None]) -> None:
    def blocking() -> None:
        with smtplib.SMTP(*sink.address, local_hostname="me.example", timeout=10) as client:
            work(client)

    await trio.to_thread.run_sync(blocking)


async def test_smtplib_delivers_over_tls_with_a_password(ca: ThrowAwayCa) -> None:
    arrived: list[Arrival] = []
    async with open_sink(ca=ca, auth=("scott", "tiger"), on_message=arrived.append) as sink:
        assert sink.ca_pem == ca.pem
        context = ssl.create_default_context(cadata=ca.pem.decode())

        def work(client: smtplib.SMTP) -> None:
            client.starttls(context=context)
            client.login("scott", "tiger")
            for number in range(3):
                client.sendmail("a@x.example", ["b@y.example"], b"Subject: %d\r\n\r\n.dot\r\n" % number)

        await with_smtplib(sink, work)
        await sink.wait_count(3)
        assert (sink.count, sink.counts.tls, sink.counts.logins, sink.counts.connections) == (3, 1, 1, 1)
    assert [arrival.content for arrival in arrived] == [b"Subject: %d\r\n\r\n.dot\r\n" % n for n in range(3)]
    assert arrived[0].tls == "TLSv1.3" and arrived[0].user == "scott" and arrived[0].peer[0] == "127.0.0.1"


async def test_an_untrusted_certificate_ends_that_session_only(ca: ThrowAwayCa) -> None:
    async with open_sink(ca=ca) as sink:

        def work(client: smtplib.SMTP) -> None:
            with pytest.raises(ssl.SSLCertVerificationError):
                client.starttls(context=ssl.create_default_context())
            client.close()

        await with_smtplib(sink, work)
        await with_smtplib(sink, lambda client: client.noop() and None)
        assert sink.counts.connections == 2


async def test_a_large_message_and_large_pipelined_input(ca: ThrowAwayCa) -> None:
    big = b"x" * 998 + b"\r\n"
    arrived: list[int] = []

    def take(arrival: Arrival) -> None:
        arrived.append(len(arrival.content))

    for tls in (False, True):
        arrived.clear()
        async with open_sink(ca=ca if tls else None, on_message=take) as sink:

            def work(client: smtplib.SMTP, tls: bool = tls) -> None:
                if tls:
                    client.starttls(context=ssl.create_default_context(cadata=ca.pem.decode()))
                client.ehlo()
                body = big * 5000 + b".\r\n"
                assert client.sock is not None
                client.sock.sendall(ENVELOPE)
                codes = [client.getreply()[0] for _ in range(3)]
                client.sock.sendall((body + ENVELOPE) * 3 + body)
                codes += [client.getreply()[0] for _ in range(13)]
                assert codes == [250, 250, 354] + [250, 250, 250, 354] * 3 + [250]

            await with_smtplib(sink, work)
        assert arrived == [5_000_000] * 4


async def test_a_peer_that_does_not_read_its_replies_is_not_read_either_and_loses_none() -> None:
    number = 1_500_000  # more than the kernel holds for two sockets
    async with open_sink() as sink:

        def work() -> None:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                sock.settimeout(10)
                sock.connect(sink.address)
                sent = HELLO + b"NOOP\r\n" * number + b"QUIT\r\n"
                sender = threading.Thread(target=sock.sendall, args=(sent,))
                sender.start()
                sender.join(0.3)
                assert sender.is_alive()
                got = bytearray()
                while data := sock.recv(65536):
                    got += data
                sender.join()
                assert got.count(b"250 2.0.0 Ok\r\n") == number
                assert got.endswith(b"Bye\r\n")

        await trio.to_thread.run_sync(work)
        assert sink.counts.sessions == 0


async def test_misbehaviour_can_be_repaired_while_it_runs() -> None:
    async with open_sink(replies=["mail=450 4.7.1 greylisted"]) as sink:

        def refused(client: smtplib.SMTP) -> None:
            with pytest.raises(smtplib.SMTPSenderRefused):
                client.sendmail("a@x.example", ["b@y.example"], b"x\r\n")

        await with_smtplib(sink, refused)
        sink.misbehave()
        await with_smtplib(
            sink, lambda client: client.sendmail("a@x.example", ["b@y.example"], b"x\r\n") and None
        )
        assert sink.count == 1


@pytest.mark.parametrize("rule", ["connect=drop", "ehlo=drop", "mail=drop", "data=drop", "dot=drop"])
async def test_a_dropped_connection(rule: str) -> None:
    async with open_sink(replies=[rule]) as sink:

        def work() -> None:
            with pytest.raises(smtplib.SMTPServerDisconnected):
                with smtplib.SMTP(*sink.address, local_hostname="me.example", timeout=10) as client:
                    client.sendmail("a@x.example", ["b@y.example"], b"x\r\n")

        await trio.to_thread.run_sync(work)
        assert sink.count == 0 and sink.counts.sessions == 0


async def test_a_hanging_sink_reads_on_and_sees_the_peer_leave() -> None:
    async with open_sink(replies=["mail=hang", "helo=delay=0.01"]) as sink:

        def work() -> None:
            with socket.create_connection(sink.address) as sock:
                sock.sendall(b"HELO me\r\n" + ENVELOPE)
                sock.settimeout(0.2)
                got = b""
                with pytest.raises(TimeoutError):
                    while True:
                        got += sock.recv(4096)
                assert got.splitlines()[-1] == b"250 posthorn-sink"

        await trio.to_thread.run_sync(work)
        with trio.fail_after(5):
            while sink.counts.sessions:
                await trio.sleep(0.01)


async def test_a_maildir_octet_for_octet_before_the_250(tmp_path: Path) -> None:
    async with open_sink(store=tmp_path / "box", replies=["dot=delay=0.01;every=2"]) as sink:

        def work(client: smtplib.SMTP) -> None:
            for number in range(4):
                client.sendmail("a@x.example", ["b@y.example"], b"Subject: %d\r\n\r\n..\r\n" % number)
                assert len(list((tmp_path / "box" / "new").iterdir())) == number + 1

        await with_smtplib(sink, work)
    found = sorted(path.read_bytes() for path in (tmp_path / "box" / "new").iterdir())
    assert found == [b"Subject: %d\r\n\r\n..\r\n" % number for number in range(4)]
    assert not list((tmp_path / "box" / "tmp").iterdir())
    assert len(mailbox.Maildir(tmp_path / "box")) == 4


async def test_auth_in_the_clear_has_to_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="TLS"):
        async with open_sink(auth=("scott", "tiger")):
            pass
