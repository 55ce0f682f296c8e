"""A peer that repeats our password, in whatever reply and dress: it is in no record and no log (K4)."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest
import trio
from trio.testing import MockClock

from tests.support.bench import AUTH, to
from tests.support.peer import open_peer

PASSWORD = "c4n4ry-Tiger+9/secret"
BLOB = base64.b64encode(b"\0scott\0" + PASSWORD.encode()).decode()
PATH = {**AUTH, "smtp_auth_plain_password": {"key_data": PASSWORD}}


def shows(text: str) -> list[str]:
    """Parts of the secret that are in `text`: its plain forms, and any twelve characters of its base64."""
    forms = {PASSWORD, quote(PASSWORD, safe=""), PASSWORD.encode().hex()}
    forms |= {BLOB[at : at + 12] for at in range(len(BLOB) - 11)}
    return sorted(form for form in forms if form in text)


def test_this_test_would_find_it() -> None:
    assert shows(f"535 {PASSWORD}") and shows(f"535 AUTH PLAIN {BLOB[:30]}...") and not shows("535 wrong")


REPLIES = {
    "AUTH": f"535 5.7.8 {PASSWORD} {BLOB} wrong",
    "AUTH, over two lines": f"535-5.7.8 AUTH PLAIN\r\n535 5.7.8 {BLOB}",
    "AUTH, the blob folded": f"535-{BLOB[:24]}\r\n535 {BLOB[24:]}",
    "AUTH, the beginning": f"501 5.5.2 cannot understand: AUTH PLAIN {BLOB[:30]}...",
    "AUTH, percent-encoded": f"535 see https://help.example/?u=scott&p={quote(PASSWORD, safe='')}",
    "AUTH, not a proper answer": f"250 {PASSWORD}",
    "AUTH, not now": f"454 4.7.0 {BLOB}",
    "MAIL": f"550 5.7.1 scott/{PASSWORD} may not send",
    "RCPT": f"451 4.7.1 after AUTH PLAIN {BLOB}",
    "DATA": f"554 5.7.1 {PASSWORD}",
    ".": f"250 2.0.0 queued for {PASSWORD}",
    "., refused": f"554 5.6.0 {PASSWORD.encode().hex()}",
    "., 421": f"421 4.3.2 {BLOB}",
}


@pytest.mark.parametrize("where", REPLIES)
async def test_in_any_reply(
    where: str, bench: Any, clock: MockClock, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    word = where.split(",")[0]
    async with open_peer(replies={word: REPLIES[where]}, capabilities=["AUTH PLAIN"]) as peer:
        async with bench(to(peer, **PATH)) as b:
            await b.submit()
            await b.first()
            await trio.sleep(70)
            assert word in (".", *peer.words()), "it was said"
            assert shows(b.text()) == []
    assert shows("".join(capfd.readouterr()) + caplog.text) == []


async def test_in_what_is_told_about_a_peer_that_stumbles(
    bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    mails = 0

    def mail(line: str) -> str:
        nonlocal mails
        mails += 1
        return f"503 5.5.1 {PASSWORD}" if mails == 2 else "250 ok"

    async with open_peer(replies={"MAIL": mail}, capabilities=["AUTH PLAIN", "PIPELINING"]) as peer:
        async with bench(to(peer, connection_limit=1, **PATH)) as b:
            await b.submit_many(3)
            await b.records("Delivery", 3)
            assert "stumbles" in caplog.text
            assert shows(b.text() + caplog.text) == []


@pytest.mark.parametrize("stage", ["before MAIL", "idle"])
async def test_in_a_reply_nobody_asked_for(
    stage: str, bench: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    async def script(wire: Any) -> None:
        await wire.greet("AUTH PLAIN", "PIPELINING")
        await wire.line()
        await wire.say("235 ok")
        for _ in range(3):
            await wire.line()
        await wire.say("250 ok", "250 ok", "354 go")
        await wire.data()
        if stage == "idle":
            await wire.say("250 taken")
            await trio.sleep(1)
            await wire.say(f"421 {PASSWORD} was idle")
        else:
            await wire.say(f"250 taken\r\n250 {PASSWORD} too much")
        await wire.until_closed()

    async with open_peer(script) as peer:
        async with bench(to(peer, connection_limit=1, idle_timeout=10, mail_from_timeout=5, **PATH)) as b:
            await b.submit_many(2)
            await b.records("Delivery", 2, seconds=60)
            assert shows(b.text() + caplog.text) == []
