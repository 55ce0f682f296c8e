"""Real and difficult messages pass listener, spool and delivery, and arrive octet for octet the same.

But for one thing: our Received field is on top.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bytesink import ByteSink, run_sink
from tests.support.corpus import difficult, email_corpus, without_received
from tests.support.ports import until
from tests.support.posthorn import Relay, relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole

LIMIT = 50 * 1024 * 1024
"""The default of max_message_size."""


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module")
def running(sink: ByteSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay(tmp_path_factory.mktemp("corpus") / "relay", next_hop=sink.port, level="info") as started:
        yield started


def pass_on(running: Relay, sink: ByteSink, messages: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """Submit all in one session; what arrived, by name."""
    recipients = {f"n{number}-{len(sink.arrivals)}@corpus.example": name for number, (name, _) in
                  enumerate(messages)}  # fmt: skip
    with RawClient(running.port) as client:
        for recipient, (name, content) in zip(recipients, messages, strict=True):
            reply = client.deliver("sender@corpus.example", recipient, content, options=" BODY=8BITMIME")
            assert reply[0] == 250, (name, reply)

    def found() -> dict[str, bytes]:
        return {
            recipients[arrival.recipients[0]]: arrival.content
            for arrival in sink.arrivals
            if arrival.recipients[0] in recipients
        }

    until(
        lambda: len(found()) == len(messages), seconds=60, what=lambda: f"{len(messages)}: {running.stderr}"
    )
    return found()


def as_sent(content: bytes) -> bytes:
    """What is to arrive. An SMTP client ends the last line: a message without that cannot be sent. And
    a text that begins with white space would be taken for the rest of our Received field, so the empty
    line that ends the header comes before it."""
    if content[:1] in (b" ", b"\t"):
        content = b"\r\n" + content
    return content if content.endswith(b"\r\n") or not content else content + b"\r\n"


def test_the_interpreters_email_corpus_arrives_unchanged(running: Relay, sink: ByteSink) -> None:
    messages = email_corpus()
    arrived = pass_on(running, sink, messages)
    for name, content in messages:
        assert without_received(arrived[name]) == as_sent(content), name


def test_difficult_messages_arrive_unchanged(running: Relay, sink: ByteSink) -> None:
    messages = difficult()
    arrived = pass_on(running, sink, messages)
    for name, content in messages:
        assert without_received(arrived[name]) == as_sent(content), name


def test_nothing_was_sent_twice_and_each_message_has_its_records(running: Relay, sink: ByteSink) -> None:
    before = len(sink.arrivals)
    pass_on(running, sink, difficult())
    assert len(sink.arrivals) == before + len(difficult())
    deliveries = running.wait_records("Delivery", len(sink.arrivals))
    assert len(deliveries) == len(sink.arrivals)
    assert {record["id"] for record in running.records("Reception")} == {
        record["id"] for record in deliveries
    }


def test_one_octet_below_fifty_mebibytes_passes_and_one_above_does_not(
    running: Relay, sink: ByteSink
) -> None:
    pattern = b"From: big@corpus.example\r\n\r\n" + b"0123456789abcdef" * 61 + b"\r\n.begins with a dot\r\n"
    whole = pattern * (LIMIT // len(pattern) + 1)
    largest = whole[: LIMIT - 3] + b"\r\n"
    assert len(largest) == LIMIT - 1
    arrived = pass_on(running, sink, [("largest", largest)])["largest"]
    # Digests: nobody wants to see the difference of fifty mebibytes.
    assert len(without_received(arrived)) == len(largest)
    assert hashlib.sha256(without_received(arrived)).digest() == hashlib.sha256(largest).digest()
    with RawClient(running.port) as client:
        too_large = whole[: LIMIT - 1] + b"\r\n"
        code, text = client.deliver("sender@corpus.example", "large@corpus.example", too_large)
        assert (code, text[:5]) == (552, b"5.3.4")
        assert client.command("NOOP")[0] == 250


def test_a_size_that_was_announced_too_large_is_refused_at_once(running: Relay) -> None:
    with RawClient(running.port) as client:
        code, text = client.command(f"MAIL FROM:<sender@corpus.example> SIZE={LIMIT + 1}")
        assert (code, text[:5]) == (552, b"5.3.4")


def test_one_message_for_many_recipients_reaches_each(tmp_path: Path, sink: ByteSink) -> None:
    with relay(tmp_path / "relay", next_hop=sink.port) as running, RawClient(running.port) as client:
        assert client.command("MAIL FROM:<a@b.example>")[0] == 250
        recipients = [f"many-{number}@domain-{number % 3}.example" for number in range(30)]
        for recipient in recipients:
            assert client.command(f"RCPT TO:<{recipient}>")[0] == 250
        assert client.command("DATA")[0] == 354
        client.send(b"Subject: to all\r\n\r\nof you\r\n.\r\n")
        assert client.reply()[0] == 250

        def reached() -> list[str]:
            return sorted(one for a in sink.arrivals for one in a.recipients if one.startswith("many-"))

        until(lambda: len(reached()) >= len(recipients), seconds=30, what=lambda: running.stderr)
        assert reached() == sorted(recipients)
