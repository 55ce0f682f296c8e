"""A router whose paths come from a shaping file, with the rules of that file at work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import policy
from engine.app import hosts_of
from engine.egress.resolve import Resolver
from engine.shaping import ShapingService, State, open_shaping
from policy.shaping import Shaper
from tests.support.bench import Bench, open_bench
from tests.support.fakedns import StaticDns
from tests.support.peer import FakePeer

__all__ = ["BLOCK", "open_automated", "rule"]

BLOCK = '["default"]\nenable_tls = "Disabled"\nidle_timeout = "200ms"\n'


def rule(conditions: str, action: str = '"Suspend"', duration: str = "1h", block: str = "default") -> str:
    """A rule."""
    return f'[["{block}".automation]]\n{conditions}\naction = {action}\nduration = "{duration}"\n'


@asynccontextmanager
async def open_automated(
    file: Path,
    *peers: FakePeer,
    pool: int = 0,
    state: State | None = None,
    retry: float = 60,
    max_age: float = 86400,
    automation: str = "enforce",
) -> AsyncIterator[tuple[Bench, ShapingService, Shaper]]:
    """`pool`: so many sources, ip-0, ip-1 ... with equal weights; 0: none by name."""
    shaper = policy.shaping.load([file], automation=automation)  # type: ignore[arg-type]
    hosts = [f"127.0.0.1:{peer.port}" for peer in peers]
    config = policy.make_queue_config(
        protocol={"smtp": {"mx_list": hosts}},
        retry_interval=retry,
        max_age=max_age,
        **({"egress_pool": "pool"} if pool else {}),
    )
    entries = [{"name": f"ip-{n}", "weight": 1} for n in range(pool)]
    hooks = {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": shaper,
        "get_egress_pool": lambda name: policy.make_egress_pool(name=name, entries=entries),
        "get_egress_source": lambda name: policy.make_egress_source(name=name),
    }
    async with open_shaping([shaper], hosts_of(Resolver(StaticDns({}))), state) as service:
        async with open_bench(hooks, automation=service.automation) as bench:
            service.tell(bench.router.reconsider)
            yield bench, service, shaper
