"""A dialer on its own, and candidates on this machine under whatever name a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import policy
from engine.egress.connection import Connection
from engine.egress.dial import Dialer
from engine.egress.resolve import Candidate
from engine.egress.site import Sts
from engine.egress.tlsa import Dane
from engine.keys import open_keys
from policy.egress import EgressPath, make_egress_path
from tests.support.bench import AUTH
from tests.support.peer import FakePeer

__all__ = ["NAME", "OWN_NAME", "Dial", "candidate", "hooks_for", "inside", "login", "open_dial"]

NAME = "mx.peer.example"
OWN_NAME = "relay.example"


def candidate(where: FakePeer | int, name: str = NAME) -> Candidate:
    """A peer (or a port) of 127.0.0.1, as if it had been found under `name`."""
    return Candidate(name, "127.0.0.1", where if isinstance(where, int) else where.port, name)


def login(**options: object) -> EgressPath:
    """A path that logs in, without TLS as it has to allow by name."""
    return make_egress_path(**{"enable_tls": "Disabled", **AUTH, **options})  # type: ignore[arg-type]


def hooks_for(peer: FakePeer, *paths: EgressPath) -> dict[str, Callable[..., Any]]:
    """Everything goes to this peer; the paths are for domains d0.example, d1.example ..."""
    config = policy.make_queue_config(
        protocol={"smtp": {"mx_list": [f"127.0.0.1:{peer.port}"]}}, retry_interval=0.05
    )

    def path(domain: str, egress_source: str, site_name: str) -> EgressPath:
        return paths[int(domain[1]) if len(paths) > 1 else 0]

    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": path,
    }


def inside(peer: FakePeer) -> list[str]:
    """What a peer heard inside TLS."""
    return peer.commands[peer.commands.index("(tls)") + 1 :] if "(tls)" in peer.commands else []


class Dial:
    """Calls the dialer as a session does. What it opened is closed at the end of the test."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.opened: list[Connection] = []

    async def __call__(
        self,
        path: EgressPath,
        *where: FakePeer | int | Candidate,
        source_address: str | None = None,
        route: bool = True,
        sts: Sts | None = None,
        dane: Dane | None = None,
    ) -> Connection:
        """A session that is ready for mail with the first of these that can be made so. `dane`: what it says
        of each."""
        candidates: Sequence[Candidate] = [
            one if isinstance(one, Candidate) else candidate(one) for one in where
        ]

        async def ask(where: Candidate) -> Dane:
            assert dane is not None
            return dane

        connection = await self.dialer.open(
            candidates,
            path,
            source_address,
            OWN_NAME,
            route=route,
            sts=sts,
            dane=ask if dane is not None else None,
        )
        self.opened.append(connection)
        return connection


@asynccontextmanager
async def open_dial(ring: Any = None) -> AsyncIterator[Dial]:
    """A dialer for a host called `OWN_NAME`. `ring`: what to ask for secrets instead of their sources."""
    async with open_keys() as keys:
        dial = Dial(Dialer(ring or keys, lambda name: name == OWN_NAME))
        try:
            yield dial
        finally:
            for connection in dial.opened:
                connection.stream.close()
