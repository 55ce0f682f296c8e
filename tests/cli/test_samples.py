"""engine/cli/samples.py: the demo's messages."""

from __future__ import annotations

import email
import email.policy

from engine.cli.samples import samples


def test_they_are_like_the_ones_people_send() -> None:
    kinds, names = set(), set()
    for raw in samples():
        assert raw.endswith(b"\r\n") and b"\0" not in raw
        assert raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n")
        assert max(map(len, raw.split(b"\r\n"))) <= 998
        message = email.message_from_bytes(raw, policy=email.policy.default)
        assert message.defects == [] and message["Date"]
        kinds.add(message.get_content_type())
        names.add(message["Message-ID"])
    assert kinds == {"text/plain", "multipart/alternative", "multipart/mixed"}
    assert len(names) == 12


def test_they_need_transparency_and_8_bits() -> None:
    assert any(b"\r\n.\r\n" in raw for raw in samples())
    assert any(not raw.isascii() for raw in samples())
