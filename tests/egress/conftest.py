"""A router with everything around it faked but the sockets and the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from engine.egress.resolve import Resolver
from engine.egress.router import Router, open_router
from engine.hooks import Hooks
from engine.keys import open_keys
from engine.log import Log, Record
from engine.model import Message, QueueName, new_message_id
from engine.queues.limits import LocalLimits
from engine.spool import MemorySpool
from policy.hooks import HookTable, on, registering
from tests.support.fakedns import StaticDns


class ListLog(Log):
    """Keeps the records in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def kinds(self) -> list[str]:
        return [record.type for record in self.records]


@dataclass
class Bench:
    """The router under test and its surroundings."""

    router: Router
    spool: MemorySpool
    log: ListLog
    sent: list[bytes] = field(default_factory=list)

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
            queue=QueueName(domain, options.pop("tenant", None)),
            created=options.pop("created", __import__("time").time()),
            size=len(body),
            **options,
        )
        (handle,) = await self.spool.commit([body], [message])
        self.router.enqueue(message, body, handle)
        return message.id

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        """Wait for something to become true."""
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.005)

    async def records(self, kind: str, number: int = 1, seconds: float = 5.0) -> list[Record]:
        """Wait for so many records of a kind."""
        await self.until(lambda: self.log.kinds().count(kind) >= number, seconds)
        return [record for record in self.log.records if record.type == kind]


@asynccontextmanager
async def open_bench(hooks: dict[str, Callable[..., Any]]) -> AsyncIterator[Bench]:
    """A running router with these hooks."""
    table = HookTable()
    token = registering.set(table)
    try:
        for event, function in hooks.items():
            on(event)(function)
    finally:
        registering.reset(token)
    called = Hooks(table)
    log, spool = ListLog(), MemorySpool()
    async with (
        open_keys(called) as keys,
        open_router(
            spool=spool,
            log=log,
            hooks=called,
            keys=keys,
            resolver=Resolver(StaticDns({})),
            limits=LocalLimits(),
            hostname="relay.example",
        ) as router,
    ):
        yield Bench(router, spool, log)


@pytest.fixture
def bench() -> Callable[..., Any]:
    """`async with bench({...hooks...}) as b`."""
    return open_bench
