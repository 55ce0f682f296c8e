"""A peer that really authenticates."""

from __future__ import annotations

from typing import Any

from .peer import FakePeer

__all__ = ["SaslPeer", "offering"]


def offering(*mechanisms: str) -> list[str]:
    """Capabilities with these mechanisms."""
    return ["PIPELINING", "AUTH " + " ".join(mechanisms)]


def SaslPeer(*, users: dict[str, str] | None = None, **options: Any) -> FakePeer:
    """One with these users; ``scott`` with ``tiger`` if none are given."""
    return FakePeer(users={"scott": "tiger"} if users is None else users, **options)
