"""How contexts are made when many want one; what they are for is in test_tls.py."""

from __future__ import annotations

import ssl
import threading
import time

import pytest
import trio

from engine.egress import tls
from engine.egress.tls import TlsContexts, TlsSetting


async def test_a_context_is_made_once_and_not_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the system's roots takes a twentieth of a second and more."""
    made: list[bool] = []

    def make(setting: TlsSetting) -> ssl.SSLContext:
        made.append(threading.current_thread() is threading.main_thread())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def look() -> tuple[tuple[int, ...], ...]:
        time.sleep(0.05)  # in a thread
        return ((1,),)

    monkeypatch.setattr(tls, "_make", make)
    monkeypatch.setattr(tls, "_store", look)
    contexts = TlsContexts()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(contexts.get, TlsSetting(True))
    assert made == [False]
