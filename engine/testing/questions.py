"""A policy that is asked and does nothing: hooks, routes, shaping and rules on replies, without a socket.

`load` gives a `Questions`. It asks hooks as the engine asks them (adapted arguments, chains, `STOP`, answers
of the right type) and finds routes with the engine's own route finder, from a zone table. Its clock moves
when it is told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from engine.app import hosts_of
from engine.egress.resolve import Resolver
from engine.egress.routes import NoRouteNow, RouteFinder
from engine.egress.site import Site, asked_for
from engine.hooks import Hooks
from engine.model import QueueName
from engine.queues.limits import LocalLimits
from engine.queues.scheduled import ScheduledQueue
from engine.shaping import open_shaping
from policy.egress import EgressPath, EgressSource, QueueConfig
from policy.hooks import EVENTS
from policy.runtime import Declarations
from policy.shaping import Failure, Found
from policy.shaping.rules import INTERNAL
from policy.shaping.shown import shown_key
from policy.units import parse_duration

from .clock import run_from
from .relay import Policy, Web, loaded
from .zones import StaticDns, Zones

__all__ = ["Questions", "Road", "Route", "load"]

T = TypeVar("T")


class Road(msgspec.Struct, frozen=True):
    """The way from one source. `weight`: its share. `site`: the site's name; `hosts`: in order of preference;
    `path`: the egress path; `providers`: of shaping files that the destination belongs to."""

    source: EgressSource
    weight: int
    site: str
    hosts: tuple[str, ...]
    path: EgressPath
    providers: frozenset[str] = frozenset()
    found: Found | None = None

    def origin(self, option: str) -> str | None:
        """``FILE:LINE`` of the shaping file that gave an option of the path its value; an entry of a map is
        asked for as ``NAME."ENTRY"``. None: no file did."""
        for key, setting in (self.found.settings if self.found is not None else {}).items():
            if shown_key(key) == option:
                return setting.origin.where
        return None


class Route(msgspec.Struct, frozen=True):
    """Where mail for an address goes. `refused`: the reply its mail gets where there is no way, else None."""

    config: QueueConfig
    roads: tuple[Road, ...] = ()
    refused: str | None = None


class Questions:
    """See the module. `now`: Unix time on its clock. `declared`: what `init` declared, None without one.

    Not to be used inside of a `scenario`: a relay has a clock of its own.
    """

    def __init__(self, policy: Policy, dns: Zones | None, urls: Mapping[str, str | bytes] | None) -> None:
        self.now = time.time()
        self.dns = StaticDns(dns or {})
        self._policy = loaded(policy)
        self._hooks = Hooks(self._policy.hooks)
        self._urls = dict(urls or {})
        self.declared: Declarations = self._run(self._start)

    def _run(self, question: Callable[..., Awaitable[T]], *args: Any) -> T:
        return run_from(self.now, partial(question, *args))

    async def _start(self) -> Declarations:
        declared = await self._policy.run_init()
        resolver = Resolver(self.dns)
        async with open_shaping(
            self._policy.hooks.shapers, hosts_of(resolver), client=Web(self._urls), watch=False
        ):
            return declared

    def pass_time(self, duration: float | str) -> None:
        """Seconds, or text like ``"1 hour"``. What rules on replies have brought about may be over then."""
        self.now += parse_duration(duration)
        for shaper in self._policy.hooks.shapers:
            shaper.orders.expire(self.now)
            shaper.use_orders()

    def call(self, event: str, *arguments: Any) -> Any:
        """What the hooks of an event answer: all arguments of the event, in order. None: no opinion. A hook
        that is a key source is asked by its name.

        Raises: policy.Reject as the hook raised it; HookError that names hook, file and line for every other
        exception and for an answer that is none; ValueError for an event that there is not, or another number
        of arguments.
        """
        if event in EVENTS:
            names = EVENTS[event].names
            if len(arguments) != len(names):
                raise ValueError(f"call: {event} takes ({', '.join(names)}), not {len(arguments)} arguments")
        elif not self._hooks.has(event):
            raise ValueError(f"call: there is no event and no key source {event!r}")
        return self._run(self._hooks.call, event, *arguments)

    def route(
        self,
        address: str,
        *,
        tenant: str | None = None,
        campaign: str | None = None,
        routing_domain: str | None = None,
    ) -> Route:
        """Where mail for `address` goes, as the engine finds out: `get_queue_config`, pool and sources, DNS,
        the path for each source. Raises: HookError; engine.errors.ResolveError where DNS has no answer."""
        name = QueueName(_domain(address), tenant, campaign, routing_domain)
        return self._run(self._route, name)

    async def _route(self, name: QueueName) -> Route:
        finder = RouteFinder(self._hooks, Resolver(self.dns), LocalLimits())
        seen: dict[str, Found | None] = {}
        finder.observe = seen.__setitem__
        queue = ScheduledQueue(name)
        routes = await finder.find(queue)
        config = queue.config if queue.config is not None else QueueConfig()
        if isinstance(routes, NoRouteNow):
            return Route(config, refused=routes.outcome.reply.line)
        return Route(
            config,
            tuple(
                Road(
                    ready.source,
                    weight,
                    ready.site.name,
                    tuple(_shown(host.host, host.port) for host in ready.site.hosts),
                    ready.path,
                    frozenset(ready.providers),
                    seen.get(ready.source.name),
                )
                for ready, weight in zip(routes.all(), routes.weights(), strict=True)
            ),
        )

    def road(self, address: str, *, source: str | None = None, **parts: Any) -> Road:
        """The way of one source, or of the only one; `parts` as for `route`.

        Raises: LookupError where there is none, or several and no `source` is named.
        """
        route = self.route(address, **parts)
        if route.refused is not None:
            raise LookupError(f"there is no way to {address}: {route.refused}")
        roads = [road for road in route.roads if source in (None, road.source.name)]
        if len(roads) != 1:
            names = ", ".join(road.source.name for road in route.roads)
            raise LookupError(f"mail for {address} leaves from {names}; name one of them with source=")
        return roads[0]

    def path(self, address: str, *, source: str | None = None, **parts: Any) -> EgressPath:
        """The egress path of `road`."""
        return self.road(address, source=source, **parts).path

    def reply(
        self,
        address: str,
        line: str,
        *,
        command: str = ".",
        source: str | None = None,
        tenant: str | None = None,
        campaign: str | None = None,
        routing_domain: str | None = None,
    ) -> tuple[str, ...]:
        """A peer answers so to mail for `address`: what the rules of the shaping files do now, as actions
        they name. ``SetConfig`` holds for the paths asked for afterwards, until its duration is over.

        `line`: ``CODE [E.S.D ]TEXT``. `command`: what is answered, ``.`` is the final dot.
        Raises: ValueError for a line that is no refusal; LookupError as `road`.
        """
        code, _, text = line.partition(" ")
        if not (code.isdigit() and len(code) == 3 and code[0] in "45"):
            raise ValueError(f"reply: {line!r} is no refusal like '421 4.7.0 Too many connections'")
        name = QueueName(_domain(address), tenant, campaign, routing_domain)
        return self._run(self._reply, name, code, text, command, source)

    async def _reply(
        self, name: QueueName, code: str, text: str, command: str, source: str | None
    ) -> tuple[str, ...]:
        finder = RouteFinder(self._hooks, Resolver(self.dns), LocalLimits())
        routes = await finder.find(ScheduledQueue(name))
        if isinstance(routes, NoRouteNow):
            raise LookupError(f"there is no way to {name.route}: {routes.outcome.reply.line}")
        sites: dict[str, Site] = {ready.source.name: ready.site for ready in routes.all()}
        if source is None:
            source = next(iter(sites))
        if source not in sites:
            raise LookupError(f"mail for {name.route} leaves from {', '.join(sites)}, not from {source}")
        first, _, rest = text.partition(" ")
        enhanced = first if first.count(".") == 2 and first.replace(".", "").isdigit() else ""
        failure = Failure(
            name.route,
            source,
            asked_for(sites[source]),
            int(code),
            enhanced,
            f"{code} {text}",
            command,
            internal=(rest if enhanced else text).startswith(INTERNAL),
            tenant=name.tenant,
            campaign=name.campaign,
        )
        done: list[str] = []
        for shaper in self._policy.hooks.shapers:
            for match in shaper.orders.judge(shaper.table, shaper.classed(failure), self.now):
                done += [action.shown for order, action, _ in match.orders if not order.shadow]
            shaper.use_orders()
        return tuple(done)


def load(
    policy: Policy, *, dns: Zones | None = None, urls: Mapping[str, str | bytes] | None = None
) -> Questions:
    """A policy to ask: a file, or hooks by event. `dns`: a zone table. `urls`: content of shaping URLs.

    Raises: policy.PolicyError as a start would, from the file, from `init` and from shaping files.
    """
    return Questions(policy, dns, urls)


def _domain(address: str) -> str:
    _, at, domain = address.rpartition("@")
    if not at or not domain:
        raise ValueError(f"{address!r} has no domain; right would be user@example.com")
    return domain.lower()


def _shown(host: str, port: int | None) -> str:
    return host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
