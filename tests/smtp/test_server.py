"""engine/smtp/server.py from bytes: each conversation whole, octet by octet and in random pieces."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator

import pytest

from engine.smtp import (
    Auth,
    BodyReceived,
    Data,
    Hello,
    Mail,
    Rcpt,
    Reply,
    ServerConfig,
    ServerSession,
    StartTls,
)
from engine.smtp.state import MAIL, RCPT, READY, SERVER, START

CONFIG = ServerConfig(
    hostname="mx.example", offer_auth=("PLAIN", "LOGIN"), max_recipients=3, max_message_size=2000
)
PLAIN = base64.b64encode(b"\0scott\0tiger")


class Driver:
    """Accepts everything; STARTTLS and AUTH included."""

    def __init__(self, config: ServerConfig = CONFIG) -> None:
        self.session = ServerSession(config)
        self.session.greet()
        self.output = self.session.data_to_send()
        self.bodies: list[bytes] = []
        self.events: list[object] = []

    def feed(self, data: bytes) -> None:
        self.session.receive_data(data)
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, BodyReceived):
                self.bodies.append(event.content)
            if isinstance(event, Auth):
                if event.password.reveal() != b"tiger":
                    self.session.refuse(Reply(535, "5.7.8", "no"))
                    continue
                self.session.authenticated(event.authcid)
            self.session.accept()
            if isinstance(event, StartTls) and not self.session.closing:
                self.output += self.session.data_to_send()
                self.session.tls_established(None)
        self.output += self.session.data_to_send()

    def codes(self) -> list[int]:
        return [int(line[:3]) for line in self.output.split(b"\r\n") if line and line[3:4] == b" "]


def pieces(data: bytes, how: str) -> Iterator[bytes]:
    if how == "whole":
        yield data
    elif how == "octets":
        yield from (data[i : i + 1] for i in range(len(data)))
    else:
        dice = random.Random(how)
        while data:
            cut = dice.randint(1, 9)
            yield data[:cut]
            data = data[cut:]


def run(data: bytes, how: str = "whole", config: ServerConfig = CONFIG) -> Driver:
    driver = Driver(config)
    for piece in pieces(data, how):
        driver.feed(piece)
    return driver


EHLO = b"EHLO client.example\r\n"
GOOD = EHLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
TLS = EHLO + b"STARTTLS\r\n"

CONVERSATIONS: dict[str, tuple[bytes, list[int]]] = {
    "a message": (GOOD + b"x\r\n.\r\nQUIT\r\n", [220, 250, 250, 250, 354, 250, 221]),
    "an empty message": (GOOD + b".\r\nQUIT\r\n", [220, 250, 250, 250, 354, 250, 221]),
    "two messages": (
        GOOD + b"x\r\n.\r\n" + GOOD[len(EHLO) :] + b"y\r\n.\r\n",
        [220, 250, 250, 250, 354, 250, 250, 250, 354, 250],
    ),
    "MAIL before EHLO": (b"MAIL FROM:<a@b.example>\r\n", [220, 503]),
    "RCPT before MAIL": (EHLO + b"RCPT TO:<a@b.example>\r\n", [220, 250, 503]),
    "DATA without RCPT": (EHLO + b"MAIL FROM:<>\r\nDATA\r\n", [220, 250, 250, 503]),
    "MAIL twice": (EHLO + b"MAIL FROM:<>\r\nMAIL FROM:<>\r\n", [220, 250, 250, 503]),
    "EHLO ends a transaction": (
        EHLO + b"MAIL FROM:<>\r\n" + EHLO + b"MAIL FROM:<>\r\n",
        [220, 250, 250, 250, 250],
    ),
    "RSET": (EHLO + b"MAIL FROM:<>\r\nRSET\r\nRCPT TO:<a@b.example>\r\n", [220, 250, 250, 250, 503]),
    "unknown": (
        EHLO + b"BDAT 5\r\nHELP\r\nVRFY a\r\nEXPN a\r\nNOOP\r\n",
        [220, 250, 500, 214, 252, 502, 250],
    ),
    "bare LF in a command": (EHLO + b"NOOP\nNOOP\r\nNOOP\r\n", [220, 250, 500, 250]),
    "control in a command": (EHLO + b"NO\0OP\r\nNOOP\r\n", [220, 250, 500, 250]),
    "a long line": (EHLO + b"NOOP " + b"x" * 3000 + b"\r\nNOOP\r\n", [220, 250, 500, 250]),
    "too many recipients": (
        EHLO + b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<r%d@b.example>\r\n" % i for i in range(4)),
        [220, 250, 250, 250, 250, 250, 452],
    ),
    "parameters": (
        EHLO + b"MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME\r\nRSET\r\n"
        b"MAIL FROM:<a@b.example> SIZE=1 SIZE=1\r\nMAIL FROM:<a@b.example> X=1\r\n"
        b"MAIL FROM:<a@b.example> SIZE=999999\r\nMAIL FROM:<a@b.example> SIZE=+5\r\n",
        [220, 250, 250, 250, 501, 555, 552, 501],
    ),
    "bare LF in a message": (GOOD + b"a\nb\r\n.\r\nNOOP\r\n", [220, 250, 250, 250, 354, 550, 250]),
    "NUL in a message": (GOOD + b"a\0b\r\n.\r\nNOOP\r\n", [220, 250, 250, 250, 354, 550, 250]),
    "too big": (
        GOOD + b"x" * 1000 + b"\r\n" + b"y" * 1000 + b"\r\n.\r\nNOOP\r\n",
        [220, 250, 250, 250, 354, 552, 250],
    ),
    "AUTH in clear": (EHLO + b"AUTH PLAIN " + PLAIN + b"\r\n", [220, 250, 538]),
    "AUTH": (TLS + EHLO + b"AUTH PLAIN " + PLAIN + b"\r\nAUTH PLAIN x\r\n", [220, 250, 220, 250, 235, 503]),
    "AUTH cancelled": (TLS + EHLO + b"AUTH PLAIN\r\n*\r\n", [220, 250, 220, 250, 334, 501]),
    "AUTH not base64": (TLS + EHLO + b"AUTH PLAIN ???\r\n", [220, 250, 220, 250, 501]),
    "AUTH LOGIN": (
        TLS + EHLO + b"AUTH LOGIN\r\nc2NvdHQ=\r\ndGlnZXI=\r\n",
        [220, 250, 220, 250, 334, 334, 235],
    ),
    "AUTH wrong": (TLS + EHLO + b"AUTH PLAIN AGEAYg==\r\n", [220, 250, 220, 250, 535]),
    "TLS forgets EHLO": (TLS + b"MAIL FROM:<>\r\n", [220, 250, 220, 503]),
    "STARTTLS inside TLS": (TLS + EHLO + b"STARTTLS\r\nMAIL FROM:<>\r\n", [220, 250, 220, 250, 503, 250]),
    "arguments where there are none": (
        EHLO + b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA x\r\nRSET x\r\nQUIT x\r\nDATA\r\n.\r\n",
        [220, 250, 250, 250, 501, 501, 501, 354, 250],
    ),
    "only a postmaster does without a domain": (
        EHLO + b"MAIL FROM:<postmaster>\r\nMAIL FROM:<>\r\nRCPT TO:<somebody>\r\nRCPT TO:<PostMaster>\r\n",
        [220, 250, 501, 250, 501, 250],
    ),
    "the null path is for MAIL alone": (
        EHLO + b"MAIL FROM:<>\r\nRCPT TO:<>\r\nDATA\r\n",
        [220, 250, 250, 501, 503],
    ),
    "AUTH= of MAIL": (
        TLS
        + EHLO
        + b"".join(
            b"MAIL FROM:<a@b.example> AUTH=" + value + b"\r\nRSET\r\n"
            for value in (b"<>", b"e+3Dmc2@example.com", b"a+0D+0Ab", b"e+3dmc2", b"a+4", b"a=b", b"")
        ),
        [220, 250, 220, 250] + [250, 250] * 3 + [501, 250] * 4,
    ),
}


@pytest.mark.parametrize("how", ["whole", "octets", "1", "2", "3"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_the_same_in_every_split(name: str, how: str) -> None:
    data, codes = CONVERSATIONS[name]
    if b"STARTTLS" in data:
        # What stands behind STARTTLS in one piece is an injection; these clients wait.
        before, _, after = data.partition(b"STARTTLS\r\n")
        driver = Driver()
        for part in (before + b"STARTTLS\r\n", after):
            for piece in pieces(part, how):
                driver.feed(piece)
    else:
        driver = run(data, how)
    assert driver.codes() == codes


def test_commands_behind_starttls_end_the_session() -> None:
    driver = run(TLS + b"EHLO injected.example\r\n")
    assert driver.codes() == [220, 250, 554]
    assert driver.session.closing and not driver.session.tls


def test_starttls_takes_no_argument_and_changes_nothing_then() -> None:
    driver = run(EHLO + b"STARTTLS now\r\nMAIL FROM:<>\r\n")
    assert driver.codes() == [220, 250, 501, 250]
    assert not driver.session.tls and not driver.session.closing


def test_octets_between_the_220_and_the_handshake_are_never_read() -> None:
    """S8: whoever feeds the session must not hand them on; if it does, they are gone all the same."""
    session = ServerSession(CONFIG)
    session.greet()
    session.receive_data(TLS)
    for _ in range(2):
        assert session.next_event() is not None
        session.accept()
    session.data_to_send()
    session.receive_data(b"EHLO injected.example\r\nMAIL FROM:<evil@b.example>\r\n")
    assert session.next_event() is None
    session.tls_established(None)
    assert session.next_event() is None and session.data_to_send() == b"" and session.pending == 0


def test_tls_forgets_who_logged_in() -> None:
    """S9: what was said in the clear does not count inside, so the client may (and must) log in again."""
    config = ServerConfig(hostname="mx.example", offer_auth=("PLAIN",), require_tls_for_auth=False)
    driver = run(EHLO + b"AUTH PLAIN " + PLAIN + b"\r\n", config=config)
    assert driver.session.identity == "scott"
    driver.feed(b"STARTTLS\r\n")
    assert driver.session.identity is None
    driver.feed(EHLO + b"AUTH PLAIN " + PLAIN + b"\r\n")
    assert driver.codes() == [220, 250, 235, 220, 250, 235]


@pytest.mark.parametrize("between", [b"RSET\r\n", EHLO, b"HELO client.example\r\n"])
def test_a_transaction_that_was_given_up_leaves_nothing_behind(between: bytes) -> None:
    driver = run(EHLO + b"MAIL FROM:<old@b.example>\r\nRCPT TO:<old@d.example>\r\n" + between)
    assert driver.session.reverse_path is None and driver.session.forward_paths == []
    driver.feed(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n")
    assert [path.text for path in driver.session.forward_paths] == ["c@d.example"]


@pytest.mark.parametrize("how", ["whole", "octets", "7"])
def test_dots_come_through(how: str) -> None:
    driver = run(GOOD + b"..\r\n..x\r\nx..\r\n...\r\n.\r\n", how)
    assert driver.bodies == [b".\r\n.x\r\nx..\r\n..\r\n"]


FIXING = ServerConfig(hostname="mx.example", max_message_size=2000, bare_lines="Fix")


@pytest.mark.parametrize("how", ["whole", "octets", "3"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"S: x\r\n\r\n" + b"\n" * 995 + b"\r\n", 250),  # 10 octets, 995 pairs: exactly the limit
        (b"S: x\r\n\r\n" + b"\n" * 996 + b"\r\n", 552),
        (b"S: x\r\n\r\n" + b"\r" * 995 + b"\r\n", 250),
        (b"S: x\r\n\r\n" + b"\r" * 996 + b"\r\n", 552),
    ],
)
def test_the_size_limit_holds_for_repaired_content(content: bytes, code: int, how: str) -> None:
    assert len(content) < FIXING.max_message_size
    assert run(GOOD + content + b".\r\n", how, FIXING).codes()[-1] == code


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"a: b\n" * 1000, 250),
        (b"a: b\n" * 1001, 552),
        (b"a: b\r\n" + b"a: b\r" * 1000, 552),
        (b"a: b\n c\n" * 999 + b"a: b\n", 250),
        (b"a: b\n\n" + b"c: d\n" * 2000, 250),
        (b"a: " + (b"b\n " * 15000 + b"b\r\n ") * 8 + b"end", 250),  # 480,032 octets when repaired
        (b"a: " + (b"b\n " * 15000 + b"b\r\n ") * 9 + b"end", 552),  # 540,036, from 405,036
    ],
)
def test_the_header_limits_hold_for_repaired_content(header: bytes, code: int) -> None:
    config = ServerConfig(hostname="mx.example", bare_lines="Fix")
    assert run(GOOD + header + b"\r\nbody\r\n.\r\n", config=config).codes()[-1] == code


def test_too_many_errors_end_the_session() -> None:
    driver = run(EHLO + b"WHAT\r\n" * 30)
    assert driver.codes()[-1] == 421 and driver.session.closing
    assert driver.codes().count(500) == CONFIG.max_errors


@pytest.mark.parametrize(
    ("command", "answered"),
    [
        (b"NOOP\r\n", 103),
        (b"RSET\r\n", 103),
        (b"VRFY a\r\n", 103),
        (EHLO, 102),
        (b"HELO client.example\r\n", 102),
    ],
)
def test_a_hundred_commands_that_do_nothing_then_each_is_an_error(command: bytes, answered: int) -> None:
    """S29: the hundred is free, each one after it counts as an error, and a message starts the count anew."""
    config = ServerConfig(hostname="mx.example", max_errors=3)
    driver = run(EHLO, config=config)
    for _ in range(2):
        driver.output = b""
        driver.feed(command * 102)
        assert not driver.session.closing and b"421" not in driver.output
        driver.session._errors = 0
        driver.feed(GOOD[len(EHLO) :] + b"x\r\n.\r\n")
        assert len(driver.bodies) == 1
        driver.bodies.clear()
    driver.output = b""
    driver.feed(command * 110)
    assert driver.session.closing
    assert [code < 300 for code in driver.codes()] == [True] * answered + [False], "nothing follows the 421"
    assert driver.codes()[-1] == 421


@pytest.mark.parametrize("verb", [b"EHLO", b"HELO"])
@pytest.mark.parametrize(
    ("argument", "code"),
    [
        (b"x" * 255, 250),
        (b"x" * 256, 501),
        ("ü".encode() * 127, 250),
        ("ü".encode() * 128, 501),
        (b"", 501),
        (b"two words", 501),
        ("a\u2028b".encode(), 501),
        ("a\u0085b".encode(), 501),
        (b"\xff", 501),
        (b"[127.0.0.1]", 250),
    ],
)
def test_the_name_of_the_client(verb: bytes, argument: bytes, code: int) -> None:
    """S27."""
    driver = run(verb + b" " + argument + b"\r\n")
    assert driver.codes() == [220, code]
    assert driver.session.ehlo_domain.encode() == (argument if code == 250 else b"")


def _path(octets: int, local: str = "a") -> bytes:
    """A path of this many octets, brackets included."""
    rest = octets - 2 - len(local.encode()) - 1
    domain = "b" * 50
    while len(domain) < rest:
        domain = "b" * min(50, rest - len(domain) - 1) + "." + domain
    return f"<{local}@{domain[-rest:]}>".encode()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"<" + b"x" * 64 + b"@b.example>", 250),
        (b"<" + b"x" * 65 + b"@b.example>", 501),
        (b'<"' + b"x" * 62 + b'"@b.example>', 250),
        (b'<"' + b"x" * 63 + b'"@b.example>', 501),
        (b"<" + "ü".encode() * 32 + b"@b.example>", 250),
        (b"<" + "ü".encode() * 33 + b"@b.example>", 501),
        (_path(256), 250),
        (_path(257), 501),
        (_path(256, '"a b"'), 250),
        (_path(257, '"a b"'), 501),
        (_path(256, "ü"), 250),
        (_path(257, "ü"), 501),
    ],
)
def test_an_address_has_its_limits_in_octets(path: bytes, code: int) -> None:
    """S26; octets, also where a character is two of them."""
    driver = run(EHLO + b"MAIL FROM:" + path + b" SMTPUTF8\r\n")
    assert driver.codes() == [220, 250, code]


def test_addresses_keep_their_text() -> None:
    driver = run(EHLO + b'MAIL FROM:<"a@evil"@b.example>\r\nRCPT TO:<@relay.example:c@[IPv6:::1]>\r\n')
    mail, rcpt = (e for e in driver.events if isinstance(e, (Mail, Rcpt)))
    assert mail.address.text == '"a@evil"@b.example' and mail.address.route_domain == "b.example"
    assert mail.address.local_part == "a@evil"
    assert rcpt.address.text == "c@[IPv6:::1]"


@pytest.mark.parametrize(
    "path",
    [b"a@b.example", b"<a@b.example", b"<a b@c.example>", b"<a@b..example>", b"<@>", b"<a@-b.example>",
     b"<" + b"x" * 65 + b"@b.example>", b"<a@[300.1.1.1]>", b"<a@b.example>X=1", b"<\xff@b.example>"],
)  # fmt: skip
def test_bad_addresses_are_refused(path: bytes) -> None:
    assert run(EHLO + b"MAIL FROM:" + path + b"\r\n").codes()[-1] in (501, 553)


def test_utf8_addresses_need_smtputf8() -> None:
    path = "<grün@köln.example>".encode()
    assert run(EHLO + b"MAIL FROM:" + path + b"\r\n").codes()[-1] == 553
    driver = run(EHLO + b"MAIL FROM:" + path + b" SMTPUTF8\r\n")
    assert driver.codes()[-1] == 250
    assert driver.session.reverse_path is not None
    assert driver.session.reverse_path.route_domain == "xn--kln-sna.example"


AUTHENTICATING = ServerConfig(hostname="mx.example", offer_auth=("PLAIN",), require_tls_for_auth=False)


def _response(octets: int) -> bytes:
    """A PLAIN response of the good user, this long in base64."""
    return base64.b64encode(b"\0scott\0" + b"x" * (octets // 4 * 3 - 7))


@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"NOOP " + b"x" * (2048 - 7), 250),
        (b"NOOP " + b"x" * (2048 - 6), 500),
        (b"NOOP " + b"x" * 12000, 500),
        (b"NOOP " + b"x" * 13000, 500),
        (b"AUTH PLAIN " + _response(3000), 535),
        (b"AUTH PLAIN " + _response(12272), 535),  # 12,285 octets with CR LF
        (b"AUTH PLAIN " + _response(12276), 500),
        (b"AUTH PLAIN\r\n" + _response(12284), 535),
        (b"AUTH PLAIN\r\n" + _response(12288), 500),
    ],
)
def test_a_line_has_its_limit_and_auth_its_own(line: bytes, code: int, how: str) -> None:
    driver = run(EHLO + line + b"\r\nNOOP\r\n", how, AUTHENTICATING)
    assert driver.codes()[-2:] == [code, 250]
    if code == 500:
        assert all("x" not in refusal.command for refusal in driver.session.take_refusals())


def test_records_of_refusals_hold_no_secret() -> None:
    driver = run(EHLO + b"AUTH PLAIN " + PLAIN + b"\r\n" + PLAIN + b"\r\nAUTH " + PLAIN + b"\r\n")
    shown = [refusal.command for refusal in driver.session.take_refusals()]
    assert len(shown) == 3
    assert not any(PLAIN.decode()[:8] in command or "tiger" in command for command in shown)


def test_a_recipient_that_cannot_be_read_is_not_recorded_as_the_one_before_it() -> None:
    driver = run(
        EHLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<no>\r\nMAIL FROM:<>\r\n"
    )
    named = [(refusal.command[:4], refusal.recipient) for refusal in driver.session.take_refusals()]
    assert named == [("RCPT", ""), ("MAIL", "c@d.example")]


COMMANDS = {
    b"EHLO": b"EHLO x\r\n", b"HELO": b"HELO x\r\n", b"STARTTLS": b"STARTTLS\r\n", b"AUTH": b"AUTH PLAIN\r\n",
    b"MAIL": b"MAIL FROM:<>\r\n", b"RCPT": b"RCPT TO:<a@b.example>\r\n", b"DATA": b"DATA\r\n",
    b"RSET": b"RSET\r\n", b"NOOP": b"NOOP\r\n", b"VRFY": b"VRFY a\r\n", b"EXPN": b"EXPN a\r\n",
    b"HELP": b"HELP\r\n", b"QUIT": b"QUIT\r\n",
}  # fmt: skip
ROADS = {
    START: b"",
    READY: EHLO,
    MAIL: EHLO + b"MAIL FROM:<>\r\n",
    RCPT: EHLO + b"MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\n",
}


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("state", ROADS)
def test_the_session_does_what_the_table_says(state: str, verb: bytes) -> None:
    """Every pair of state and verb is a transition or a refusal that changes nothing."""
    config = ServerConfig(hostname="x", offer_auth=("PLAIN",), require_tls_for_auth=False)
    driver = run(ROADS[state], config=config)
    assert driver.session._state == state
    before = len(driver.codes())
    driver.feed(COMMANDS[verb])
    (code,) = driver.codes()[before:]
    step = SERVER[state][verb]
    if isinstance(step, Reply):
        assert code == step.code == 503
        assert driver.session._state == state
    elif verb not in (b"AUTH", b"STARTTLS"):
        assert code < 400 or verb == b"EXPN"
        assert driver.session._state == step or verb == b"QUIT"


def test_events_in_order() -> None:
    driver = run(GOOD + b"x\r\n.\r\n")
    assert [type(event) for event in driver.events] == [Hello, Mail, Rcpt, Data, BodyReceived]


@pytest.mark.parametrize("how", ["whole", "octets", "random"])
def test_a_message_that_is_abandoned_is_refused_at_its_true_end(how: str) -> None:
    driver = Driver()
    driver.feed(b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n")
    assert not driver.session.abandon(Reply(452, "4.3.1", "no memory")), "there is nothing to abandon"
    driver.feed(b"DATA\r\nSubject: x\r\n\r\nfirst\r\n")
    assert driver.session.abandon(Reply(452, "4.3.1", "no memory")) and driver.session.abandoned
    driver.output = b""
    for piece in pieces(b"QUIT\r\n.\rx\r\n" + b"y" * 3000 + b"\r\n.\r\nMAIL FROM:<e@f.example>\r\n", how):
        driver.feed(piece)
    assert driver.output == b"452 4.3.1 no memory\r\n250 2.1.0 OK\r\n"
    assert driver.bodies == [] and not driver.session.abandoned
    driver.feed(b"RCPT TO:<c@d.example>\r\nDATA\r\nSubject: y\r\n\r\n.\r\n")
    assert driver.bodies == [b"Subject: y\r\n\r\n"], "only that one was abandoned"
