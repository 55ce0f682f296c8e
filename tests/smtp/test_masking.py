"""engine/smtp/masking.py: a secret that a peer repeats, in whatever dress, is not repeated by us."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp import Masker
from policy.secret import Secret

PASSWORD = "canary-Tiger+9/secret"
BLOB = base64.b64encode(b"\0scott\0" + PASSWORD.encode()).decode()
masker = Masker([Secret(PASSWORD)], ["scott"])


@pytest.mark.parametrize(
    "text",
    [
        PASSWORD,
        f"535 scott/{PASSWORD} may not",
        BLOB,
        f"after AUTH PLAIN {BLOB}",
        f"AUTH PLAIN {BLOB[:30]}...",
        f"{BLOB[:24]}\n{BLOB[24:]}",
        base64.b64encode(PASSWORD.encode()).decode(),
        f"https://help.example/?u=scott&p={quote(PASSWORD, safe='')}",
        PASSWORD.encode().hex(),
        PASSWORD.encode().hex().upper(),
    ],
)
def test_no_part_of_it_is_left(text: str) -> None:
    masked = masker(text)
    assert "********" in masked
    assert PASSWORD not in masked
    for at in range(len(BLOB) - 11):
        assert BLOB[at : at + 12] not in masked.replace("\n", "")


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("behind", ["", "x", "xy"])
def test_each_alignment_of_base64(before: str, behind: str) -> None:
    masked = masker(base64.b64encode(f"{before}{PASSWORD}{behind}".encode()).decode())
    assert "********" in masked


def test_other_texts_stay_as_they_are() -> None:
    text = "250 2.0.0 Ok: queued as 4bXq8Z2zL1z9sVf by mx-12.example.com (4096 octets)"
    assert masker(text) == text


def test_a_short_secret_is_masked_too() -> None:
    short = Masker([Secret("tiger")], ["scott"])
    assert "tiger" not in short("no tiger here")
    assert "dGlnZX" not in short("dGlnZXI=")
    assert "dGlnZX" not in short("AHNjb3R0AHRpZ2Vy") and "AHRpZ2Vy" not in short("AHNjb3R0AHRpZ2Vy")


def test_nothing_to_mask() -> None:
    assert (
        Masker([Secret("")])("anything at all, even AHNjb3R0AHRpZ2Vy")
        == "anything at all, even AHNjb3R0AHRpZ2Vy"
    )


@given(st.text(min_size=6, max_size=40), st.binary(max_size=5), st.binary(max_size=5))
def test_any_secret_anywhere(secret: str, before: bytes, behind: bytes) -> None:
    one = Masker([Secret(secret)])
    blob = base64.b64encode(before + secret.encode() + behind).decode()
    assert one(f"x {blob} y") != f"x {blob} y"
    assert secret not in one(secret) or secret in "********"


def test_the_secret_does_not_show() -> None:
    assert PASSWORD not in repr(masker) and PASSWORD not in str(masker)
