"""What is copied out of messages into records."""

from __future__ import annotations

import sys

import pytest

from engine.log import Capture, Record

META = {"tenant": "shop", "campaign": "news", "x_one": 1, "x_two": 2, "Tenant": "other"}
BODY = b"Subject: hello\r\nX-Tag: one\r\nx-tag: two\r\nX-Other: =?utf-8?q?caf=C3=A9?=\r\n\r\nX-Tag: body\r\n"


def filled(capture: Capture, body: bytes | None = BODY) -> Record:
    record = Record(type="Delivery", timestamp=1.0)
    capture.fill(record, META, b"Received: from here\r\nX-Tag: zero\r\n", body)
    return record


def test_nothing_is_asked_so_nothing_is_done() -> None:
    capture = Capture()
    assert not capture.wanted
    record = filled(capture)
    assert record.meta is None and record.headers is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("tenant",), {"tenant": "shop"}),
        (("x_*", "none"), {"x_one": 1, "x_two": 2}),
        (("*",), META),
        (("missing",), {}),
    ],
)
def test_metadata_by_name_and_prefix(names: tuple[str, ...], expected: dict[str, object]) -> None:
    capture = Capture(meta=names)
    assert capture.wanted
    record = filled(capture)
    assert record.meta == expected
    assert record.headers is None


def test_captured_metadata_does_not_change_with_the_message() -> None:
    meta = {"tenant": "shop"}
    record = Record(type="Delivery", timestamp=1.0)
    Capture(meta=["*"]).fill(record, meta, b"", None)
    meta["tenant"] = "changed"
    assert record.meta == {"tenant": "shop"}


def test_headers_by_name_without_regard_to_case() -> None:
    record = filled(Capture(headers=["SUBJECT", "x-tag", "X-Oth*"]))
    # Several occurrences make a list; the key keeps the case of the first one; the body is no header.
    assert record.headers == {"Subject": "hello", "X-Tag": ["zero", "one", "two"], "X-Other": "café"}


def test_a_body_that_is_not_in_memory_leaves_its_headers_out() -> None:
    assert filled(Capture(headers=["subject", "x-tag"]), None).headers == {"X-Tag": "zero"}


def test_what_several_loggers_want_is_narrowed_for_each() -> None:
    own = Capture(meta=["tenant"], headers=["X-*"])
    assert own.pick_meta(META) == {"tenant": "shop"}
    assert own.pick_headers({"Subject": "hello", "x-tag": "zero"}) == {"x-tag": "zero"}


def test_the_header_scanner_is_not_loaded_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.mail.headers", None)
    filled(Capture(meta=["tenant"]))
    with pytest.raises(ImportError):
        filled(Capture(headers=["subject"]))
