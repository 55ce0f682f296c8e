"""Closes what a test left open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ingress import peer


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    """A test may simply leave a client behind."""
    yield
    while peer.OPENED:
        stream = peer.OPENED.pop().stream
        getattr(stream, "transport_stream", stream).socket._sock.close()
