"""The JSON line of a record: its shape, its times, and that nothing in it can do harm."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.log import KINDS, Record
from engine.log.records import LineEncoder
from policy.secret import Secret


def line(record: Record, encoder: LineEncoder | None = None) -> dict[str, Any]:
    raw = (encoder or LineEncoder("node-1")).encode([record])
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    found = json.loads(raw)
    assert isinstance(found, dict)
    return found


def delivery(**more: Any) -> Record:
    fields: dict[str, Any] = {
        "type": "Delivery",
        "timestamp": 1_700_000_000.25,
        "id": "0" * 32,
        "sender": "news@sender.example",
        "recipient": "reader@domain.example",
        "queue": "news:shop@domain.example",
        "site": "pool->mx.example",
        "size": 4096,
        "code": 250,
        "enhanced_code": "2.0.0",
        "content": "Ok",
        "command": ".",
        "created": 1_699_999_999.0,
        "peer_name": "mx.example",
        "peer_addr": "192.0.2.1",
    }
    return Record(**{**fields, **more})


def test_the_documented_shape() -> None:
    found = line(
        delivery(tls_verified=True, smtp_auth_user="scott", next_due=1_700_000_060.5, attempt_ms=1.25)
    )
    assert found == {
        "v": 1,
        "type": "Delivery",
        "id": "0" * 32,
        "sender": "news@sender.example",
        "recipient": "reader@domain.example",
        "queue": "news:shop@domain.example",
        "site": "pool->mx.example",
        "size": 4096,
        "response": {
            "code": 250,
            "enhanced_code": {"class": 2, "subject": 0, "detail": 0},
            "content": "Ok",
            "command": ".\r\n",
        },
        "peer_address": {"name": "mx.example", "addr": "192.0.2.1"},
        "timestamp": 1_700_000_000,
        "event_time": "2023-11-14T22:13:20.250000Z",
        "created": 1_699_999_999,
        "created_time": "2023-11-14T22:13:19.000000Z",
        "num_attempts": 0,
        "bounce_classification": "Uncategorized",
        "egress_pool": None,
        "egress_source": None,
        "source_address": None,
        "delivery_protocol": None,
        "reception_protocol": None,
        "feedback_report": None,
        "meta": {},
        "headers": {},
        "nodeid": "node-1",
        "tls_verified": True,
        "smtp_auth_user": "scott",
        "next_due": "2023-11-14T22:14:20.500000Z",
        "attempt_ms": 1.25,
        "queue_age": 1.25,
    }


def test_a_subject_is_a_list_of_parts() -> None:
    assert line(delivery(tls_peer_subject_name=("O=a", "CN=b")))["tls_peer_subject_name"] == ["O=a", "CN=b"]
    assert "tls_peer_subject_name" not in line(delivery())


def test_several_recipients_and_a_source_address() -> None:
    found = line(delivery(recipient=["a@x.example", "b@x.example"], source_address="192.0.2.9"))
    assert found["recipient"] == ["a@x.example", "b@x.example"]
    assert found["source_address"] == {"address": "192.0.2.9"}


def test_a_reception_has_no_queue_age_and_a_rejection_no_message() -> None:
    assert "queue_age" not in line(delivery(type="Reception"))
    found = line(Record(type="Rejection", timestamp=1_700_000_000.0, code=550, enhanced_code="5.7.1"))
    assert found["id"] == "" and found["size"] == 0 and found["queue"] == "" and found["headers"] == {}
    assert found["peer_address"] is None
    assert found["created"] == found["timestamp"] and "queue_age" not in found


@pytest.mark.parametrize("text", ["", "2.0", "2.x.0", "2.0.0.0", "two"])
def test_what_is_no_enhanced_code_is_null(text: str) -> None:
    encoder = LineEncoder()
    for _ in range(2):  # the second time from the cache
        assert line(delivery(enhanced_code=text), encoder)["response"]["enhanced_code"] is None


def test_times_follow_the_record_not_the_cache() -> None:
    encoder = LineEncoder()
    for instant, text in (
        (1_700_000_000.0, "20.000000Z"),
        (1_700_000_000.999999, "20.999999Z"),
        (1_700_000_001.5, "21.500000Z"),
        (1_700_000_000.5, "20.500000Z"),
    ):
        stamp = line(delivery(timestamp=instant), encoder)["event_time"]
        assert stamp == f"2023-11-14T22:13:{text}"
        datetime.fromisoformat(stamp)
    assert line(delivery(timestamp=1e300), encoder)["event_time"].startswith("1970")


@given(st.text(st.characters(codec=None), max_size=40))
def test_no_text_of_a_peer_gets_out_of_its_string(text: str) -> None:
    raw = LineEncoder().encode([delivery(content=text, sender=text), delivery()])
    lines = raw.split(b"\n")
    assert len(lines) == 3
    shown = json.loads(lines[0])
    assert shown["response"]["content"] == text.encode("utf-8", "replace").decode()
    # Nothing a terminal would act on: no C0, no DEL, no C1.
    decoded = raw.replace(b"\n", b"").decode()
    assert not [c for c in decoded if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0]


class _Stubborn:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_written_costs_neither_its_line_nor_the_others() -> None:
    records = [
        delivery(),
        delivery(meta={"bad": _Stubborn(), "lone": "\ud800", "good": 1}),
        delivery(content="last"),
    ]
    lines = [json.loads(text) for text in LineEncoder().encode(records).splitlines()]
    assert [found["response"]["content"] for found in lines] == ["Ok", "Ok", "last"]
    assert lines[1]["meta"] == {"bad": "(a _Stubborn that cannot be shown)", "lone": "?", "good": "1"}


def test_a_secret_in_metadata_stays_masked() -> None:
    raw = LineEncoder().encode(
        [delivery(meta={"password": Secret("tiger"), "other": {"deep": Secret("tiger")}})]
    )
    assert b"tiger" not in raw
    assert b"Secret(***)" in raw


def test_a_record_has_no_field_for_a_secret() -> None:
    words = ("password", "secret", "token", "credential", "key")
    assert not [field for field in Record.__struct_fields__ if any(word in field for word in words)]
    assert len(set(KINDS)) == len(KINDS)
