"""engine/smtp/masking.py: a secret that a peer repeats, in whatever dress, is not repeated by us."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp import AuthDone, ClientSession, Masker
from policy.secret import Secret
from tests.contract.mechanism import exchange, secret_of

PASSWORD = "c4n4ry-Tiger+9/secret"
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


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"])
def test_what_a_mechanism_said_is_not_repeated(name: str) -> None:
    """A proof is no password, but whoever reads it can try passwords."""
    _, said = exchange(name, "scott@corp.example", secret_of(name))
    session = ClientSession("client.example")
    session.mask = Masker([secret_of(name)], ["scott@corp.example"])
    session.receive_data(b"220 hi\r\n")
    session.next_event()
    last = said[-1] or said[-2]
    half = Spoken(name, said)
    session.auth(half)
    for _ in said:
        session.receive_data(b"334 \r\n")
        session.next_event()
    coded = base64.b64encode(last).decode()
    echo = coded + " for scott@corp.example, " + coded[:20] + ": " + repr(last.decode())
    session.receive_data(b"535 5.7.8 no: " + echo.encode() + b"\r\n")
    done = session.next_event()
    assert isinstance(done, AuthDone)
    shown = done.reply.text
    assert "for scott@corp.example," in shown, "a name is no secret"
    assert all(coded[at : at + 12] not in shown for at in range(len(coded) - 11))
    assert ",p=" not in shown and "c4n4ry" not in shown


class Spoken:
    """Says what was said before; the secret is in the last word."""

    slow = False
    failure = ""
    finished = True

    def __init__(self, name: str, said: list[bytes]) -> None:
        self.name = name
        self._left = [line for line in said if line]

    @property
    def exposed(self) -> bool:
        return not self._left

    def initial(self) -> bytes | None:
        return self._left.pop(0)

    def respond(self, challenge: bytes) -> bytes | None:
        return self._left.pop(0) if self._left else b""
