"""The message object that hooks are handed."""

from __future__ import annotations

import timeit
from typing import Any

import pytest

import policy.protocols
from engine.ingress.message import EnvelopeAddress, ReceivedMessage
from engine.smtp import Address

PREFIX = b"Received: from a\r\n\tby b; now\r\n"
CONTENT = b"Subject: hello\r\nX-Tenant-Id: blue\r\nX-tenant-id: red\r\nTo: a@b\r\n\r\nbody\r\n"
META: dict[str, Any] = {"hostname": "mx.example"}


def message(content: bytes = CONTENT, *recipients: str, prefix: bytes = PREFIX) -> ReceivedMessage:
    to = [Address(text) for text in recipients or ("To@Example.com",)]
    return ReceivedMessage(
        b"\x01" * 16, Address("from@client.example"), to, META, prefix, content, None,
        smtputf8=False, default_domain="mx.example",
    )  # fmt: skip


def test_it_is_what_policies_are_promised() -> None:
    promised: policy.protocols.Message = message()
    for name in dir(policy.protocols.Message):
        if not name.startswith("_"):
            assert hasattr(promised, name), name
    address: policy.protocols.Address = EnvelopeAddress(Address("a@b"))
    assert address.email == str(address) == "a@b"


def test_envelope() -> None:
    msg = message()
    assert msg.id() == "01" * 16
    assert msg.sender().email == "from@client.example"
    assert str(msg.recipient()) == "To@Example.com"
    assert msg.recipient_list() == ["To@Example.com"]
    msg.set_recipient(["a@b.example", '"c d"@e.example'])
    assert msg.recipient() == ["a@b.example", '"c d"@e.example']
    assert [address.user for address in msg.recipient_list()] == ["a", "c d"]
    msg.set_recipient(msg.recipient_list()[1])
    assert str(msg.recipient()) == '"c d"@e.example'
    msg.set_sender("")
    assert str(msg.sender()) == ""
    msg.set_sender("<x@y.example>")
    assert str(msg.sender()) == "x@y.example"
    assert not msg.smtputf8
    msg.set_sender("jörg@y.example")
    assert msg.smtputf8


@pytest.mark.parametrize(
    "wrong", ["a", "a@b c", "a@b>\r\nRCPT TO:<x@y", "<a@b> SIZE=1", "a@b\n", "@", "a@b,c@d"]
)
def test_what_is_no_address_is_refused(wrong: str) -> None:
    msg = message()
    with pytest.raises(ValueError, match="no envelope address"):
        msg.set_recipient(wrong)
    with pytest.raises(ValueError, match="no envelope address"):
        msg.set_sender(wrong)
    with pytest.raises(ValueError, match="no envelope address"):
        msg.set_recipient("")
    with pytest.raises(ValueError, match="at least one"):
        msg.set_recipient([])
    with pytest.raises(TypeError):
        msg.set_sender(None)  # type: ignore[arg-type]
    assert str(msg.recipient()) == "To@Example.com"


def test_addresses_compare_by_text() -> None:
    one = EnvelopeAddress(Address("a@b"))
    assert one == EnvelopeAddress(Address("a@b"))
    assert one == "a@b"
    assert one != "A@b"
    assert one != 1
    assert {one: 1}[EnvelopeAddress(Address("a@b"))] == 1
    assert repr(one) == "EnvelopeAddress('a@b')"


def test_meta_is_copied_at_the_first_write() -> None:
    msg = message()
    assert msg.meta is META
    msg.del_meta("absent")
    assert msg.meta is META
    msg.set_meta("tenant", "t")
    msg.set_meta("x_list", [1])
    assert META == {"hostname": "mx.example"}
    assert msg.get_meta("x_list") == [1]
    assert msg.queue_name() == "t@example.com"
    msg.set_meta("campaign", "c")
    msg.set_meta("routing_domain", "hub.example")
    assert msg.queue_name() == "c:t@example.com!hub.example"
    msg.del_meta("tenant")
    assert msg.get_meta("tenant") is None
    with pytest.raises(ValueError, match="not supported yet"):
        msg.set_meta("queue", "x@y")


def test_reading_headers_looks_at_prefix_and_content() -> None:
    msg = message()
    assert msg.get_first_named_header_value("received") == "from a\tby b; now"
    assert msg.get_first_named_header_value("SUBJECT") == "hello"
    assert msg.get_first_named_header_value("none") is None
    assert msg.get_all_named_header_values("x-tenant-id") == ["blue", "red"]
    assert [name for name, _ in msg.get_all_headers()] == [
        "Received", "Subject", "X-Tenant-Id", "X-tenant-id", "To",
    ]  # fmt: skip
    assert msg.content is CONTENT
    assert msg.prefix is PREFIX
    assert msg.get_data() == PREFIX + CONTENT


def test_a_field_on_top_leaves_the_shared_content_alone() -> None:
    msg = message()
    msg.prepend_header("X-Top", "1")
    assert msg.content is CONTENT
    assert msg.prefix == b"X-Top: 1\r\n" + PREFIX


def test_changing_headers() -> None:
    msg = message()
    msg.append_header("X-End", "é")
    msg.set_header("subject", "new")
    msg.set_header("X-New", "1")
    msg.remove_x_headers(["x-tenant-ID"])
    assert msg.get_data() == (
        PREFIX + b"subject: new\r\nTo: a@b\r\nX-End: =?utf-8?b?w6k=?=\r\nX-New: 1\r\n\r\nbody\r\n"
    )
    msg.set_header("Received", "one")
    msg.remove_all_named_headers("To")
    msg.remove_x_headers()
    assert msg.get_data() == b"Received: one\r\nsubject: new\r\n\r\nbody\r\n"


def test_set_header_on_top_removes_those_below() -> None:
    msg = message()
    msg.prepend_header("Subject", "top")
    msg.set_header("Subject", "only")
    assert msg.get_all_named_header_values("subject") == ["only"]
    assert msg.prefix.startswith(b"Subject: only\r\n")


def test_importing_x_headers() -> None:
    msg = message()
    msg.import_x_headers()
    assert msg.get_meta("x_tenant_id") == "red"
    msg = message()
    msg.import_x_headers(["Subject", "X-None"])
    assert msg.get_meta("subject") == "hello"
    assert msg.get_meta("x_tenant_id") is None


def test_utf8_header_needs_smtputf8() -> None:
    msg = message()
    msg.prepend_header("Subject", "plain", utf8=True)
    assert not msg.smtputf8
    msg.prepend_header("Subject", "é", utf8=True)
    assert msg.smtputf8
    assert msg.prefix.startswith("Subject: é\r\n".encode())


def test_header_injection_is_refused() -> None:
    msg = message()
    for change in (msg.prepend_header, msg.append_header, msg.set_header):
        with pytest.raises(ValueError, match="control"):
            change("X", "a\r\nBcc: b@c")
        with pytest.raises(ValueError, match="field name"):
            change("X\r\nY", "a")
        with pytest.raises(TypeError):
            change("X", b"bytes")  # type: ignore[arg-type]
    assert msg.get_data() == PREFIX + CONTENT


def test_set_data_is_made_clean() -> None:
    msg = message()
    msg.set_data(b"Subject: x\n\nbare\rcr\0\r\n.\r\nno end")
    assert msg.get_data() == b"Subject: x\r\n\r\nbare\r\ncr\r\n.\r\nno end\r\n"
    assert msg.get_first_named_header_value("Subject") == "x"
    assert msg.get_first_named_header_value("Received") is None
    msg.set_data(b"")
    assert msg.get_data() == b""
    msg.set_data(b" starts with white space\r\n")
    msg.prepend_header("A", "b")
    assert msg.get_data() == b"A: b\r\n\r\n starts with white space\r\n"
    with pytest.raises(TypeError):
        msg.set_data("text")  # type: ignore[arg-type]


def test_making_one_costs_next_to_nothing() -> None:
    to, sender = [Address("a@b")], Address("c@d")

    def make() -> ReceivedMessage:
        return ReceivedMessage(
            b"\x01" * 16, sender, to, META, PREFIX, CONTENT, 30, smtputf8=False, default_domain="mx"
        )

    assert min(timeit.repeat(make, number=1000, repeat=5)) / 1000 < 10e-6
