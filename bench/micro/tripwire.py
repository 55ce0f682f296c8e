"""The leak tripwire: what searching costs for a KiB, a record and a reply, and what a new secret costs."""

from __future__ import annotations

import random
from typing import Any

from bench.micro.measure import nanoseconds
from engine.log.records import OURS, LineEncoder, Record
from engine.tripwire import Tripwire
from policy.secret import Secret

__all__ = ["measured"]

_RECORDS = 256
"""As many as the log's writer encodes at once."""


def measured(*, seconds: float) -> list[dict[str, Any]]:
    """One row per case: name, input, nanoseconds of one call, or of one KiB or record where it says so."""
    lines = LineEncoder("6f2b54a0-7c0e-5d0e-9a55-706f7374686e").encode([_record(n) for n in range(_RECORDS)])
    reply = b"250 2.0.0 OK: queued as 01a215166c94b63e89bdd2c38130d295\r\n"
    rows = []
    for secrets in (0, 10, 1000, 10_000):
        tripwire = _tripwire(secrets)
        if tripwire.json_lines(lines, "log", OURS) is not lines or tripwire.octets(reply, "x") is not reply:
            raise AssertionError("a secret of chance is in the records")
        batch, one = nanoseconds(
            [lambda t=tripwire: t.json_lines(lines, "log", OURS), lambda t=tripwire: t.octets(reply, "x")],
            seconds=seconds,
        )
        rows += [
            _row(f"per KiB, {secrets:,} secrets", batch * 1024 / len(lines)),
            _row(f"per record, {secrets:,} secrets", batch / _RECORDS),
            _row(f"a reply, {secrets:,} secrets", one),
        ]
    chance = random.Random(2)
    fresh = _tripwire(31)
    (new,) = nanoseconds([lambda: fresh.watch("x", "x", Secret(_secret(chance)))], seconds=seconds)
    return [*rows, _row("a new secret beside 31", new)]


def _row(what: str, ns: float) -> dict[str, Any]:
    return {"function": "tripwire", "input": what, "ns": round(ns, 1)}


def _tripwire(secrets: int) -> Tripwire:
    chance = random.Random(1)
    now = 0.0
    tripwire = Tripwire(lambda: now)
    for number in range(secrets):
        tripwire.watch(number, f"vault:secret/smtp-auth/d{number}.example", Secret(_secret(chance)))
        if tripwire.untidy:
            tripwire.tidy()
    now += 60.0  # nothing new for a while
    while tripwire.untidy:
        tripwire.tidy()
    return tripwire


def _secret(chance: random.Random) -> str:
    return "".join(chance.choices("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789+/%-_", k=20))


def _record(number: int) -> Record:
    return Record(
        type="Delivery",
        timestamp=1_764_158_400.0 + number / 1000,
        created=1_764_158_399.0,
        id=f"{number:032x}",
        sender=f"bounce-{number}@client.example",
        recipient=f"someone{number}@customer.example",
        queue="customer.example",
        site="ip-1->mx.customer.example",
        size=4096,
        code=250,
        enhanced_code="2.0.0",
        content=f"OK: queued as {number * 7919:x}",
        peer_name="mx.customer.example",
        peer_addr="192.0.2.25",
        num_attempts=1,
        egress_pool="bulk",
        egress_source="ip-1",
        tls_cipher="TLS_AES_256_GCM_SHA384",
        tls_protocol_version="TLSv1.3",
        tls_verified=True,
        smtp_auth_user="scott",
        smtp_auth_mechanism="SCRAM-SHA-256",
    )
