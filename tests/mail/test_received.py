"""The Received field: what it says, and what a peer can never make it say."""

from __future__ import annotations

import email
import email.policy
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.mail.headers import HeaderMap
from engine.mail.received import ReceivedStamp, date_text, protocol_name, too_many_received

NOW = 1795493709.9  # Tue, 24 Nov 2026 04:15:09 +0000


def stamp(**changes: str) -> ReceivedStamp:
    facts = {
        "hostname": "mx.example",
        "ehlo_domain": "client.example",
        "peer": "192.0.2.7",
        "protocol": "ESMTP",
    }
    return ReceivedStamp(**(facts | changes))  # type: ignore[arg-type]


def test_the_whole_field() -> None:
    assert stamp().field("0" * 32, "Joe@Example.com", NOW) == (
        b"Received: from client.example ([192.0.2.7])\r\n"
        b"\tby mx.example (Posthorn) with ESMTP\r\n"
        b"\tid 00000000000000000000000000000000\r\n"
        b"\tfor <Joe@Example.com>;\r\n"
        b"\tTue, 24 Nov 2026 04:15:09 +0000\r\n"
    )


def test_tls_facts_ipv6_and_several_recipients() -> None:
    made = stamp(
        peer="2001:db8::1", protocol="ESMTPSA", tls_version="TLSv1.3", tls_cipher="TLS_AES_256_GCM_SHA384"
    )
    assert made.field("ab", "", NOW) == (
        b"Received: from client.example ([IPv6:2001:db8::1])\r\n"
        b"\tby mx.example (Posthorn) with ESMTPSA (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tid ab;\r\n"
        b"\tTue, 24 Nov 2026 04:15:09 +0000\r\n"
    )


@given(st.text(max_size=300), st.text(max_size=300))
def test_whatever_a_peer_says_it_stays_one_field_of_one_shape(ehlo: str, recipient: str) -> None:
    field = stamp(ehlo_domain=ehlo).field("id", recipient, NOW)
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) == (5 if recipient else 4)
    assert field.isascii()
    assert all(32 <= byte < 127 or byte in b"\r\n\t" for byte in field)
    assert max(map(len, lines)) <= 998
    assert field.count(b";") == 1
    assert field.count(b"(") == field.count(b")") == 2
    assert b'"' not in field
    assert b"\\" not in field
    assert field.count(b"<") == field.count(b">") == (1 if recipient else 0)
    assert [name for name, _ in HeaderMap(field + b"\r\n").items()] == ["Received"]


@pytest.mark.parametrize(
    ("recipient", "shown"),
    [
        ('"a@evil"@b.example', b"<?a@evil?@b.example>"),
        ("a>(x)@b", b"<a??x?@b>"),
        ("jös@b", b"<j?s@b>"),
        ("a\r\nX: y@b", b"<a??X:?y@b>"),
        ("postmaster", b"<postmaster>"),
        ("a+b=c@[192.0.2.1]", b"<a+b=c@[192.0.2.1]>"),
    ],
)
def test_a_recipient_that_is_not_plain(recipient: str, shown: bytes) -> None:
    assert b"\tfor " + shown + b";\r\n" in stamp().field("id", recipient, NOW)


def test_no_ehlo() -> None:
    assert (
        stamp(ehlo_domain="").field("id", "", NOW).startswith(b"Received: from unspecified ([192.0.2.7])\r\n")
    )


@given(st.integers(0, 4_000_000_000))
def test_the_date_is_what_the_standard_library_says(second: int) -> None:
    expected = email.utils.formatdate(second).replace("-0000", "+0000")
    assert date_text(second + 0.5).decode() == expected


def test_protocol_names() -> None:
    names = {
        (esmtp, tls, auth, utf8): protocol_name(esmtp=esmtp, tls=tls, authenticated=auth, smtputf8=utf8)
        for esmtp in (False, True)
        for tls in (False, True)
        for auth in (False, True)
        for utf8 in (False, True)
    }
    assert names[False, False, False, False] == "SMTP"
    assert names[True, False, False, False] == "ESMTP"
    assert names[True, True, False, False] == "ESMTPS"
    assert names[True, True, True, False] == "ESMTPSA"
    assert names[True, False, True, False] == "ESMTPA"
    assert names[True, False, False, True] == "UTF8SMTP"
    assert names[True, True, True, True] == "UTF8SMTPSA"


@pytest.mark.parametrize(
    "field", [b"Received: x\r\n", b"RECEIVED: x\r\n", b"received:\r\n", b"Received:a\r\n\tb\r\n"]
)
def test_loops_are_counted_at_the_limit(field: bytes) -> None:
    for count, looped in ((49, False), (50, False), (51, True)):
        header = field * count + b"Subject: Received: 1\r\nX-Received: no\r\n\r\n"
        content = header + field * 100
        assert too_many_received(content, len(header)) is looped
    assert not too_many_received(b"", 0)
    assert too_many_received(field * 3, len(field) * 3, limit=2)
    assert not too_many_received(field * 2, len(field) * 2, limit=2)
