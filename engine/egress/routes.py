"""Routes: which ready queues carry a scheduled queue's mail, worked out from policy and DNS.

One scheduled queue leads to one ready queue per source of its pool. Ready queues are shared by
every scheduled queue that agrees in source, exact site and the *whole* egress path; nothing less
may share a connection, or one domain's mail would travel under another's credentials.

Weights of a pool are honoured per (pool, site), not per scheduled queue: with many small queues
the proportions still hold.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from engine.errors import HookError
from engine.queues.limits import Limits
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import ScheduledQueue
from policy.egress import UNSPECIFIED, EgressPath, EgressPool, EgressSource, QueueConfig
from policy.shaping import asking
from policy.tlskinds import OBSOLETE

from . import outcome
from .mta_sts import Policy, narrowed
from .outcome import Outcome
from .resolve import Resolver
from .site import NoRoute, Site, asked_for, is_localhost, mx_list_site, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.hooks import Hooks
    from engine.model import QueueName
    from policy.shaping import Found

    from .sts import Policies

__all__ = ["NoRouteNow", "RouteFinder", "Routes"]

logger = logging.getLogger("posthorn.egress")

_DEFAULT_PATH = EgressPath()
_DEFAULT_CONFIG = QueueConfig()
_DEFAULT_SOURCE = EgressSource(name=UNSPECIFIED)
"""Built in: the kernel chooses the address."""

_DEFINITIONS_KEPT = 4096

_RELAXATIONS = {
    "allow_smtp_auth_plain_without_tls": "in clear text",
    "allow_smtp_auth_plain_without_valid_certificate": "over TLS to a host that was not verified",
}


_ReadyKey = tuple[EgressSource, str, EgressPath, bool]


def _ready_key(source: EgressSource, site: Site, path: EgressPath) -> _ReadyKey:
    """What must agree to share connections. With DANE also whether the domain's hosts are known securely: a
    domain whose MX records could be forged must not weaken, or be bound by, what is demanded for one whose
    could not."""
    return (source, site.key, path, site.secure and path.enable_dane)


class NoRouteNow(msgspec.Struct, frozen=True):
    """There is no way to deliver: the outcome for every message of the queue."""

    outcome: Outcome
    retry_after: float


class Weights:
    """Smooth weighted round robin: the state of one (pool, site)."""

    __slots__ = ("current",)

    def __init__(self, size: int) -> None:
        self.current = [0] * size


class Routes:
    """The ready queues of one scheduled queue, with weights. `lifetime`: seconds until refresh."""

    __slots__ = ("_ready", "_state", "_weights", "lifetime")

    def __init__(
        self, ready: Sequence[ReadyQueue], weights: Sequence[int], state: Weights, lifetime: float
    ) -> None:
        self._ready = tuple(ready)
        self._weights = tuple(weights)
        self._state = state
        self.lifetime = lifetime

    def all(self) -> tuple[ReadyQueue, ...]:
        """Every candidate, in the pool's order."""
        return self._ready

    def weights(self) -> tuple[int, ...]:
        """The share of each."""
        return self._weights

    def pick(self) -> ReadyQueue:
        """The candidate whose turn it is."""
        ready = self._ready
        if len(ready) == 1:
            return ready[0]
        current, weights = self._state.current, self._weights
        best = 0
        for i, weight in enumerate(weights):
            current[i] += weight
            if current[i] > current[best]:
                best = i
        current[best] -= sum(weights)
        return ready[best]


class RouteFinder:
    """Asks hooks and DNS; owns the ready queues."""

    def __init__(
        self, hooks: Hooks, resolver: Resolver, limits: Limits, policies: Policies | None = None
    ) -> None:
        self._hooks = hooks
        self._resolver = resolver
        self._limits = limits
        self._policies = policies
        self._ready: dict[_ReadyKey, ReadyQueue] = {}
        self._users: dict[ReadyQueue, int] = {}
        self._weights: dict[tuple[str, tuple[tuple[str, int], ...], str], Weights] = {}
        self._told: set[tuple[str, str]] = set()
        self._definitions: OrderedDict[tuple[str, str], tuple[float, Any]] = OrderedDict()
        self.refill: Callable[[ReadyQueue], None] | None = None
        """Called by a ready queue that has room again and messages waiting for it."""
        self.proceed: Callable[[ReadyQueue], None] | None = None
        """Called by a ready queue whose credentials were just accepted."""
        self.observe: Callable[[str, Found | None], None] | None = None
        """Told, for each source that is asked about, what shaping files said; for tools that explain."""

    async def find(self, queue: ScheduledQueue) -> Routes | NoRouteNow:
        """The routes of `queue`; sets its `config`.

        Raises: HookError, ResolveError (ask again later).
        """
        name = queue.name
        config: QueueConfig | None = await self._hooks.call(
            "get_queue_config", name.domain, name.tenant, name.campaign, name.routing_domain
        )
        queue.config = config = config if config is not None else _DEFAULT_CONFIG
        pool, entries = await self._pool(config.egress_pool)
        if not entries:
            text = f"no sources for {name.route} pool={pool!r} are eligible for selection"
            return NoRouteNow(Outcome("held", outcome.internal(451, "4.4.4", text)), 60.0)
        site = await self._site(queue, config)
        if isinstance(site, NoRoute):
            reply = outcome.internal(site.code, site.enhanced, site.text)
            return NoRouteNow(Outcome("permanent" if site.permanent else "transient", reply), 30.0)
        lifetime = config.refresh_interval
        ready: list[ReadyQueue] = []
        owner, demands = await self._demands(site, name)
        strict = narrowed(site, owner, demands) if demands is not None else site
        shown = strict if strict.hosts else site
        for source, _ in entries:
            path, providers = await self._path(name.route, source.name, shown)
            lifetime = min(lifetime, path.refresh_interval)
            left = site
            if demands is not None and path.enable_mta_sts:
                left = narrowed(site, owner, demands, dane=path.enable_dane)
            one = self._ready_queue(source, left, path)
            one.providers |= providers
            ready.append(one)
        weights = tuple((source.name, weight) for source, weight in entries)
        key = (pool, weights, site.key)
        state = self._weights.get(key)
        if state is None:
            state = self._weights[key] = Weights(len(entries))
        return Routes(ready, [weight for _, weight in entries], state, lifetime)

    async def _path(self, domain: str, source: str, site: Site) -> tuple[EgressPath, frozenset[str]]:
        """The hook's answer, and the providers of shaping files that the destination belongs to. Shaping
        files that it is taken from know the hosts of the site, too."""
        with asking(asked_for(site)) as found:
            path: EgressPath | None = await self._hooks.call(
                "get_egress_path_config", domain, source, site.name
            )
        for one in found:
            for note in one.notes:
                self._tell(note, site.name, "%s", note)
        if self.observe is not None:
            self.observe(source, found[-1] if found else None)
        providers = frozenset(name for one in found for name in one.providers)
        return (path if path is not None else _DEFAULT_PATH), providers

    async def _pool(self, name: str) -> tuple[str, list[tuple[EgressSource, int]]]:
        if name == UNSPECIFIED:
            return name, [(_DEFAULT_SOURCE, 1)]
        pool: EgressPool = await self._definition("get_egress_pool", name)
        entries: list[tuple[EgressSource, int]] = []
        for entry in pool.entries:
            if entry.weight <= 0:
                continue
            if entry.name == UNSPECIFIED:
                entries.append((_DEFAULT_SOURCE, entry.weight))
            else:
                source: EgressSource = await self._definition("get_egress_source", entry.name)
                entries.append((source, entry.weight))
        return name, entries

    async def _definition(self, event: str, name: str) -> Any:
        """A pool or a source by name, cached for its own `ttl`."""
        now = trio.current_time()
        found = self._definitions.get((event, name))
        if found is not None and now < found[0]:
            return found[1]
        answer = await self._hooks.call(event, name)
        if answer is None:
            raise HookError(
                f'the policy names {name!r} but has no hook; register one with @policy.on("{event}")'
            )
        self._definitions[event, name] = (now + answer.ttl, answer)
        if len(self._definitions) > _DEFINITIONS_KEPT:
            self._definitions.popitem(last=False)
        return answer

    async def _site(self, queue: ScheduledQueue, config: QueueConfig) -> Site | NoRoute:
        entries = config.protocol.mx_list
        if entries:
            return mx_list_site(entries, secure=config.protocol.treat_mx_list_as_secure)
        name = queue.name
        return await self._resolver.site_for(name.route, route=name.routing_domain is not None)

    async def _demands(self, site: Site, name: QueueName) -> tuple[str, Policy | None]:
        """Whose MTA-STS policy counts, and the policy. Only hosts found by MX have one (RFC 8461 3)."""
        if self._policies is None or site.kind != "mx":
            return "", None
        domain = parse_endpoint(name.route).host
        if is_localhost(domain):
            return "", None
        return domain, await self._policies.of(domain, route=site.route)

    def _ready_queue(self, source: EgressSource, site: Site, path: EgressPath) -> ReadyQueue:
        key = _ready_key(source, site, path)
        found = self._ready.get(key)
        if found is not None:
            return found
        ready = self._ready[key] = ReadyQueue(source, site, path, self._limits)
        self._warn(ready.name, path)
        ready.refill = self.refill
        ready.proceed = self.proceed
        self._users[ready] = 0
        return ready

    def _warn(self, name: str, path: EgressPath) -> None:
        """Credentials that may go where nobody is known to be, and TLS that is no protection, are said aloud,
        once (reliability C26, C40)."""
        login = path.login
        if path.enable_tls != "Disabled" and path.tls_minimum_version in OBSOLETE:
            text = "%s: %s is spoken where the peer knows no better, which RFC 8996 forbids (%s)"
            self._tell(name, "obsolete", text, name, path.tls_minimum_version, "tls_minimum_version")
        for option, where in _RELAXATIONS.items():
            if login is not None and getattr(path, option):
                text = "%s: the credentials of %r may be sent %s (%s)"
                self._tell(name, option, text, name, login.username or "", where, option)

    def _tell(self, one: str, other: str, text: str, *values: str) -> None:
        """A warning, once."""
        if (one, other) not in self._told:
            if len(self._told) >= _DEFINITIONS_KEPT:
                self._told.clear()
            self._told.add((one, other))
            logger.warning(text, *values)

    def replace(self, queue: ScheduledQueue, old: Routes | None, new: Routes | None) -> list[ReadyQueue]:
        """Count users. Returns the ready queues that lost their last one by a *change* of routes.

        A queue that merely fell idle keeps its ready queue (and its open connections) until the
        sweep.
        """
        before = old.all() if old is not None else ()
        after = new.all() if new is not None else ()
        for ready in after:
            self._users[ready] += 1
        retired: list[ReadyQueue] = []
        for ready in before:
            self._users[ready] -= 1
            if not self._users[ready] and new is not None:
                retired.append(ready)
                self._drop(ready)
        return retired

    def _drop(self, ready: ReadyQueue) -> None:
        del self._users[ready]
        del self._ready[_ready_key(ready.source, ready.site, ready.path)]

    def ready_queues(self) -> tuple[ReadyQueue, ...]:
        """All of them."""
        return tuple(self._users)

    def sweep(self, now: float, idle: float) -> Iterator[ReadyQueue]:
        """Forget ready queues that nobody uses and nothing is in; yields each."""
        for ready in self.ready_queues():
            unused = not self._users[ready] and not ready.sessions and not ready.entries
            if unused and now - ready.touched >= idle:
                self._drop(ready)
                yield ready
        if len(self._weights) > _DEFINITIONS_KEPT:
            self._weights.clear()
