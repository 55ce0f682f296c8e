"""Logins without queues and sessions: circuits, and hosts by name and address."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.egress.circuits import Circuits, Endpoint, Try
from engine.egress.resolve import Candidate
from engine.errors import LoginRefused
from policy.units import parse_throttle

__all__ = ["HERE", "SCOTT", "at", "may", "other", "refuse"]

SCOTT = Try("mx.example", 25, "scott", "1", budget=parse_throttle("3/h"))


def at(circuits: Circuits, *hosts: str) -> Endpoint:
    """The endpoint of a plan with these hosts, ``name=address``."""
    pairs = [host.split("=") for host in hosts]
    return circuits.endpoint([Candidate(name, address, 25, name) for name, address in pairs])


HERE = "mx.example=192.0.2.1"


async def refuse(
    circuits: Circuits, which: Try = SCOTT, *, cause: str = "", plan: tuple[str, ...] = (HERE,)
) -> None:
    with pytest.raises(LoginRefused):
        async with circuits.turn(at(circuits, *plan), which):
            error = LoginRefused("535 wrong")
            if cause:
                error.cause = cause
            raise error


def may(circuits: Circuits, which: Try = SCOTT, *plan: str) -> bool:
    try:
        circuits.check(at(circuits, *(plan or (HERE,))), which)
    except LoginRefused:
        return False
    return True


def other(**changes: Any) -> Try:
    return msgspec.structs.replace(SCOTT, **changes)
