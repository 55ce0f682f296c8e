"""A router with everything around it faked but the sockets and the protocol, and hooks to steer it by."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

import policy
from engine.egress.resolve import Resolver
from engine.egress.router import Router, open_router
from engine.hooks import Hooks
from engine.keys import open_keys
from engine.log import Record
from engine.model import Message, QueueName, new_message_id
from engine.queues.limits import LocalLimits
from engine.queues.ready import ReadyQueue
from engine.shaping import Automation
from engine.spool import MemorySpool
from engine.testing.journal import Journal
from policy.hooks import EVENTS, HookTable, on, registering
from tests.support.fakedns import StaticDns
from tests.support.peer import FakePeer

__all__ = ["AUTH", "Bench", "HookSet", "login", "open_bench", "to"]

HookSet = dict[str, Callable[..., Any]]

AUTH = {
    "smtp_auth_plain_username": "scott",
    "smtp_auth_plain_password": {"key_data": "tiger"},
    "allow_smtp_auth_plain_without_tls": True,
}
"""Options of a path that logs in, without TLS: what is tested is something else."""


def to(*peers: FakePeer, queue: dict[str, Any] | None = None, **path: Any) -> HookSet:
    """Hooks that route everything to these peers, with these options of queue and path.

    A failed message is tried again after a minute, unless the test says otherwise.
    """
    hosts = [f"127.0.0.1:{peer.port}" for peer in peers]
    path.setdefault("enable_tls", "Disabled")
    path.setdefault("idle_timeout", 0.3)
    config = policy.make_queue_config(
        **{"protocol": {"smtp": {"mx_list": hosts}}, "retry_interval": 60, **(queue or {})}
    )
    egress = policy.make_egress_path(**path)
    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": lambda domain, egress_source, site_name: egress,
    }


def login(line: str) -> tuple[str, str]:
    """User and password of an AUTH PLAIN command line."""
    user, password = base64.b64decode(line.split()[-1]).decode().split("\0")[1:]
    return user, password


@dataclass
class Bench:
    """The router under test and its surroundings."""

    router: Router
    spool: MemorySpool
    log: Journal

    async def submit(
        self,
        recipients: str | list[str] = "bob@example.com",
        body: bytes = b"Subject: hello\r\n\r\nHello\r\n",
        **options: Any,
    ) -> bytes:
        """Commit and enqueue one message, as ingress does."""
        listed = [recipients] if isinstance(recipients, str) else recipients
        domain = listed[0].rsplit("@", 1)[1]
        message = Message(
            id=new_message_id(),
            sender=options.pop("sender", "alice@sender.example"),
            recipients=listed,
            queue=QueueName(domain, options.pop("tenant", None), None, options.pop("routing_domain", None)),
            created=options.pop("created", time.time()),
            size=len(body),
            **options,
        )
        (handle,) = await self.spool.commit([body], [message])
        self.router.enqueue(message, body, handle)
        return message.id

    async def submit_many(self, number: int, **options: Any) -> None:
        """So many messages, to u0@example.com, u1@example.com, ..."""
        for i in range(number):
            await self.submit(f"u{i}@example.com", **options)

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait for something to become true."""
        pause = 0.005
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(pause)
                pause = min(pause * 1.5, seconds / 50)

    async def records(self, kind: str, number: int = 1, seconds: float = 5.0) -> list[Record]:
        """Wait for so many records of a kind."""
        with trio.fail_after(seconds):
            return await self.log.wait_for(kind, number)

    async def first(self, seconds: float = 5.0) -> Record:
        """Wait for the first record, whatever it is."""
        with trio.fail_after(seconds):
            return await self.log.first()

    def recorded(self, kind: str) -> list[Record]:
        """The records of a kind so far."""
        return self.log.of(kind)

    def outcomes(self) -> dict[str, list[str]]:
        """Kinds of record so far by recipient (without its domain), in order."""
        return self.log.outcomes()

    def text(self) -> str:
        """Everything the records say."""
        return self.log.text()

    def ready(self) -> Sequence[ReadyQueue]:
        """The ready queues."""
        return self.router._finder.ready_queues()


@asynccontextmanager
async def open_bench(
    hooks: HookSet,
    *,
    resolver: Resolver | None = None,
    spool: MemorySpool | None = None,
    automation: Automation | None = None,
) -> AsyncIterator[Bench]:
    """A running router with these hooks. Hooks whose name is no event are key sources. What lies in the
    spool is restored."""
    table = HookTable()
    token = registering.set(table)
    try:
        for event, function in hooks.items():
            on(event, keysource=event not in EVENTS)(function)
    finally:
        registering.reset(token)
    called = Hooks(table)
    log, spool = Journal(), spool or MemorySpool()
    async with (
        open_keys(called) as keys,
        open_router(
            spool=spool,
            log=log,
            hooks=called,
            keys=keys,
            resolver=resolver or Resolver(StaticDns({})),
            limits=LocalLimits(),
            hostname="relay.example",
            automation=automation,
        ) as router,
    ):
        async for batch in spool.recover():
            for found in batch:
                router.restore(found)
        yield Bench(router, spool, log)
