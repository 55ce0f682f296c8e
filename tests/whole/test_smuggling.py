"""SMTP smuggling: whatever stands for a line end around a dot, one DATA makes at most one message."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.ports import until
from tests.support.posthorn import Relay, relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

ENDS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n",
    "CRLF.CR": b"\r\n.\r",
    "LF.CR": b"\n.\r",
    "CR.LF": b"\r.\n",
    "CRCRLF.CRLF": b"\r\r\n.\r\r\n",
    "CRLF.CRCRLF": b"\r\n.\r\r\n",
    "CRLFNUL.CRLF": b"\r\n\0.\r\n",
    "CRLF.NULCRLF": b"\r\n.\0\r\n",
}
"""None of these ends a message: the one end is CR LF dot CR LF."""

SMUGGLED = (
    b"MAIL FROM:<forged@bank.example>\r\nRCPT TO:<victim@d.example>\r\nDATA\r\nSubject: forged\r\n\r\nforged"
)


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module", params=["Deny", "Fix"])
def running(
    request: pytest.FixtureRequest, sink: ByteSink, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("smuggling") / "relay"
    listener = {"invalid_line_endings": request.param}
    with relay(directory, next_hop=sink.port, listener=listener, level="info") as started:
        yield started


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("split", [False, True], ids=["in-one-piece", "octet-by-octet-around-the-dot"])
def test_one_data_makes_at_most_one_message(running: Relay, sink: ByteSink, end: bytes, split: bool) -> None:
    before = len(sink.arrivals)
    with RawClient(running.port) as client:
        assert client.command("MAIL FROM:<a@b.example>")[0] == 250
        assert client.command("RCPT TO:<c@d.example>")[0] == 250
        assert client.command("DATA")[0] == 354
        client.send(b"Subject: outer\r\n\r\nouter")
        for piece in [end[at : at + 1] for at in range(len(end))] if split else [end]:
            client.send(piece)
        client.send(SMUGGLED + b"\r\n.\r\n")
        code, text = client.reply()
        accepted = code == 250
        assert accepted or code // 100 == 5, (code, text)
        # The conversation goes on in step: the next reply is the one to the next command.
        assert client.command("VRFY somebody")[0] in (252, 502, 550)
        last = client.deliver("last@b.example", "c@d.example", b"Subject: last\r\n\r\n")
        assert last[0] == 250
    expected = before + 1 + accepted

    def all_here() -> bool:
        return any(arrival.sender == "last@b.example" for arrival in sink.arrivals[before:]) and (
            len(sink.arrivals) >= expected
        )

    until(all_here, seconds=20, what=lambda: running.stderr)
    arrivals = sink.arrivals[before:]
    assert len(sink.arrivals) == expected
    assert {arrival.sender for arrival in arrivals} <= {"a@b.example", "last@b.example"}
    for arrival in arrivals:
        rest = arrival.content.replace(b"\r\n", b"")
        assert b"\r" not in rest
        assert b"\n" not in rest
        assert b"\0" not in rest


def test_the_variants_are_refused_unless_the_listener_repairs_them(running: Relay) -> None:
    fixes = '"Fix"' in running.policy.read_text() or "'Fix'" in running.policy.read_text()
    with RawClient(running.port) as client:
        for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA"):
            code, _ = client.command(command)
            assert code in (250, 354)
        client.send(b"Subject: bare line ends\r\n\r\none\ntwo\rthree\r\n.\r\n")
        code, text = client.reply()
        assert (code, text[:5]) == ((250, text[:5]) if fixes else (550, b"5.6.0"))
