"""The composition root: the one file that knows every room.

The nested ``async with`` blocks are the start order; leaving them is the stop order; together
they are the tree of task owners:

    pressure   measures the memory that is taken
    claim      the lock of the spool's directory: a second process is refused before it touches a thing
    log        next in, next to last out: everything else may have something to write down
    spool      committer
    keys       refreshes secrets
    policies   MTA-STS policies of domains: fetches them anew, writes them down
    shaping    watches the policy's shaping files, if it has any
    router     timer, route finders, outgoing sessions
    listeners  innermost: nothing is accepted before everything above is ready
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from engine import __version__, _fast
from engine.egress.circuitfile import CircuitFile, directory
from engine.egress.dns import Dns, HostsFile, StubResolver, is_local_address
from engine.egress.resolve import Resolver
from engine.egress.router import Router, open_router
from engine.egress.site import NoRoute, asked_for
from engine.egress.sts import Policies, open_policies
from engine.egress.stsfetch import Fetcher
from engine.egress.stsstore import Store
from engine.egress.targets import OwnHosts
from engine.errors import ConfigError, ResolveError
from engine.hooks import Hooks
from engine.ingress import Listeners, open_listeners
from engine.ingress.strangers import Strangers, state_of
from engine.keys import KeyRing, KeySource, open_keys
from engine.log import Log, open_log
from engine.memory import Memory, available_memory
from engine.net import Listener, Stream, connect, open_listener
from engine.pressure import Level, Pressure
from engine.queues.limits import LocalLimits
from engine.shaping import HostsOf, ShapingService, State, Unresolved, open_shaping
from engine.signals import Signals
from engine.spool import Spool, claim_spool, open_spool
from engine.tripwire import Tripwire
from engine.watchdog import open_watchdog
from policy.runtime import MemoryDeclaration, MtaStsDeclaration

if TYPE_CHECKING:
    from policy.load import LoadedPolicy
    from policy.runtime import Declarations, LogDeclaration, SpoolDeclaration
    from policy.shaping import Shaper
    from policy.shaping.rules import Bounces

__all__ = ["Engine", "Outside", "hosts_of", "open_engine", "own_hosts", "serve"]

logger = logging.getLogger("posthorn")

DRAIN_INGRESS = 10.0
"""Seconds a transaction under way has after the first SIGTERM (reliability O9)."""

_RESIDENT = 256 << 20
"""Octets at most of queued messages that stay in memory besides the spool; of a small memory a quarter. More
makes nothing faster: what is delivered at once is a few megabytes."""

_GC_THRESHOLDS = (50_000, 50, 100)
"""Queued messages are freed by reference count; the collector only has to find cycles, rarely."""


class Engine:
    """A running engine, as seen by an embedding program or a test."""

    def __init__(self, log: Log, spool: Spool, keys: KeyRing, router: Router, listeners: Listeners) -> None:
        self.log = log
        self.spool = spool
        self.keys = keys
        self.router = router
        self.listeners = listeners

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the listeners really listen (a port 0 is resolved)."""
        return self.listeners.addresses

    async def drain(self, within: Callable[[float], None] = lambda seconds: None) -> None:
        """Stop accepting; transactions under way have 10 s, then deliveries `system_shutdown_timeout`.

        `within` is told before each step how long it may take.
        """
        within(DRAIN_INGRESS)
        await self.listeners.drain(DRAIN_INGRESS)
        # Asked now: a transaction that ended in those 10 s may have begun a delivery.
        within(self.router.longest_drain())
        await self.router.drain()
        within(0)


class Outside:
    """What an engine reaches outside of itself; a subclass puts something else there, as tests do.

    `key_sources`: what reads a kind of key reference, instead of what usually does.
    """

    key_sources: Mapping[type, KeySource] = {}
    tripwire: Tripwire | None = None
    """Knows the live secrets; None: `open_engine` makes one."""

    @asynccontextmanager
    async def open_stores(
        self, spool: SpoolDeclaration, logs: Sequence[LogDeclaration], bounces: Bounces | None
    ) -> AsyncIterator[tuple[Log, Spool]]:
        """Where records and messages are kept. `bounces`: the policy's bounce classes.

        Raises: SpoolLocked, ConfigError.
        """
        async with (
            claim_spool(spool.path) as claim,
            open_log(logs, bounces=bounces, tripwire=self.tripwire) as log,
            open_spool(
                claim,
                segment_size=spool.segment_size,
                min_free_space=spool.min_free_space,
                min_free_inodes=spool.min_free_inodes,
            ) as opened,
        ):
            yield log, opened

    def pressure(self, limit: int) -> Pressure | None:
        """What measures the memory that the process takes; None: nobody does. Raises: ConfigError."""
        pressure = Pressure(limit)
        pressure.check()
        return pressure

    def dns(self) -> Dns:
        """Who answers questions about names."""
        return StubResolver(os.environ.get("POSTHORN_DNS_SERVERS", "").split())

    def hosts(self) -> HostsFile | None:
        """Names that are known without DNS."""
        return HostsFile()

    @asynccontextmanager
    async def open_shaping(
        self, shapers: Sequence[Shaper], hosts_of: HostsOf, spool: SpoolDeclaration
    ) -> AsyncIterator[ShapingService]:
        """The shaping files of the policy."""
        async with open_shaping(shapers, hosts_of, State(spool.path)) as service:
            yield service

    @asynccontextmanager
    async def open_circuits(self, spool: SpoolDeclaration) -> AsyncIterator[CircuitFile | None]:
        """Where it is kept which logins were refused; None: in memory alone."""
        yield await trio.to_thread.run_sync(CircuitFile.load, directory(spool.path))

    async def strangers(self, spool: SpoolDeclaration) -> Strangers:
        """What users that do not exist are shown by SCRAM."""
        return await trio.to_thread.run_sync(Strangers, state_of(spool.path))

    @asynccontextmanager
    async def open_policies(
        self, wanted: MtaStsDeclaration, resolver: Resolver, spool: SpoolDeclaration
    ) -> AsyncIterator[Policies | None]:
        """The MTA-STS policies of domains; None: nobody is asked for them. Raises: ConfigError."""
        if not wanted.enabled:
            yield None
            return
        fetcher = Fetcher(resolver, ca=wanted.ca, gateway=wanted.gateway)
        await fetcher.check()
        async with open_policies(resolver, fetcher, Store(spool.path)) as policies:
            yield policies

    async def connect(self, address: str, port: int, *, source_address: str | None = None) -> Stream:
        """See `engine.net.connect`."""
        return await connect(address, port, source_address=source_address)

    def listen(self, host: str, port: int) -> Listener:
        """See `engine.net.open_listener`."""
        return open_listener(host, port)


@asynccontextmanager
async def open_engine(policy: LoadedPolicy, outside: Outside | None = None) -> AsyncIterator[Engine]:
    """A running engine for a loaded policy; leaving the block stops it without waiting for mail.

    `outside`: what it reaches; None: the disk, DNS and the network of this machine.

    Raises: policy.PolicyLoadError from `init`, ConfigError, SpoolLocked, OSError (a listener's
    address). Call `Engine.drain` before leaving for a graceful end.
    """
    outside = outside if outside is not None else Outside()
    if outside.tripwire is None:
        outside.tripwire = Tripwire()
    declarations = await policy.run_init()
    spool_declaration = declarations.spool
    if spool_declaration is None:
        raise ConfigError(policy.no_spool())
    hooks = Hooks(policy.hooks)
    hostname = _hostname(declarations)
    memory = memory_limit(declarations)
    pressure = outside.pressure(memory)
    begun = time.monotonic()
    async with (
        _watched(hooks),
        _measured(pressure),
        outside.open_stores(spool_declaration, declarations.logs, policy.hooks.bounces) as (log, spool),
        outside.open_circuits(spool_declaration) as circuits,
        open_keys(
            hooks,
            instead=outside.key_sources,
            tripwire=outside.tripwire,
            fingerprint=circuits.key if circuits is not None else None,
        ) as keys,
    ):
        resolver = Resolver(
            outside.dns(),
            hosts=outside.hosts(),
            # Before any route is worked out: mail found in the spool must not be sent to ourselves.
            own=own_hosts(declarations),
        )
        async with (
            outside.open_policies(
                declarations.mta_sts or MtaStsDeclaration(), resolver, spool_declaration
            ) as policies,
            outside.open_shaping(policy.hooks.shapers, hosts_of(resolver), spool_declaration) as shaping,
            open_router(
                circuits,
                spool=spool,
                log=log,
                hooks=hooks,
                keys=keys,
                resolver=resolver,
                limits=LocalLimits(),
                hostname=hostname,
                automation=shaping.automation if policy.hooks.shapers else None,
                resident_limit=min(_RESIDENT, memory // 4),
                connect=outside.connect,
                policies=policies,
            ) as router,
            contextlib.AsyncExitStack() as stack,
        ):
            shaping.tell(router.reconsider)
            unfinished = stack.enter_context(_told(pressure, router, unfinished_limit(memory, declarations)))
            found = 0
            async for batch in spool.recover():
                for recovered in batch:
                    router.restore(recovered)
                found += len(batch)
            if found:
                logger.info(
                    "spool %s: %d message%s found, read in %.1f s",
                    spool_declaration.path,
                    found,
                    "" if found == 1 else "s",
                    time.monotonic() - begun,
                )
            if not declarations.listeners:
                logger.warning("init starts no listener: no mail can be submitted")
            async with open_listeners(
                declarations.listeners,
                hooks=hooks,
                spool=spool,
                enqueue=router.enqueue,
                log=log,
                keys=keys,
                hostname=hostname,
                memory=unfinished,
                strangers=await outside.strangers(spool_declaration),
                tripwire=outside.tripwire,
                listen=outside.listen,
            ) as listeners:
                resolver.own = own_hosts(declarations, listeners.addresses)
                yield Engine(log, spool, keys, router, listeners)


@asynccontextmanager
async def _measured(pressure: Pressure | None) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        if pressure is not None:
            nursery.start_soon(pressure.run)
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def _told(pressure: Pressure | None, router: Router, limit: int) -> Iterator[Memory]:
    """The memory of messages under way, which gets scarce, as that of the router, while the process takes too
    much."""
    memory = Memory(limit)

    def tell(level: Level) -> None:
        router.spare.memory_is_short(level >= Level.SOFT)
        memory.refuse(level == Level.HARD)

    if pressure is None:
        yield memory
    else:
        with pressure.telling(tell):
            yield memory


@asynccontextmanager
async def _watched(hooks: Hooks) -> AsyncIterator[None]:
    with open_watchdog(hooks):
        yield


def hosts_of(resolver: Resolver, *, route: bool = False) -> HostsOf:
    """What shaping asks DNS: the hosts that take a domain's mail, without their preferences.

    `route`: as where a policy names the destination, when the hosts file counts, too."""

    async def ask(domain: str) -> frozenset[str]:
        try:
            site = await resolver.site_for(domain, route=route)
        except ResolveError as error:
            raise Unresolved(str(error), later=True) from None
        if isinstance(site, NoRoute):
            raise Unresolved(site.text, later=False, missing=site.enhanced in ("5.1.2", "4.4.4"))
        return asked_for(site).names

    return ask


def memory_limit(declarations: Declarations) -> int:
    """Octets of memory to plan with (reliability O1)."""
    return (declarations.memory or MemoryDeclaration()).limit.of(available_memory())


def unfinished_limit(memory: int, declarations: Declarations) -> int:
    """Octets of `memory` for messages that are being received: a quarter, and two of the greatest fit."""
    greatest = max((listener.max_message_size for listener in declarations.listeners), default=0)
    return max(memory // 4, 2 * greatest)


def _hostname(declarations: Declarations) -> str:
    for listener in declarations.listeners:
        if listener.hostname:
            return listener.hostname
    return socket.gethostname() or "localhost"


def own_hosts(declarations: Declarations, listeners: Iterable[tuple[str, int]] | None = None) -> OwnHosts:
    """What is this host itself. `listeners`: where they really listen; else where `init` wants them."""
    if listeners is None:
        listeners = [(at.listen.host, at.listen.port) for at in declarations.listeners]
    names = {_hostname(declarations).lower()} | {
        listener.hostname.lower() for listener in declarations.listeners if listener.hostname
    }
    return OwnHosts(names=frozenset(names), listeners=frozenset(listeners), is_local=is_local_address)


def _raise_file_limit() -> None:
    """As many descriptors as the system lets us have (reliability O4)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            logger.debug("file descriptors: limit raised from %d to %d", soft, wanted)


@contextmanager
def _tuned_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def serve(
    policy: LoadedPolicy,
    *,
    started: Callable[[Engine], None] | None = None,
    signals: Signals | None = None,
    tripwire: Tripwire | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal leaves at once.

    After the first signal: listeners close, transactions under way have 10 s, deliveries the
    `system_shutdown_timeout` of their path (60 s). One that comes before the start is done ends it.
    Everything that got its 250 is in the spool whatever happens. The process ends within those
    limits plus 25 s even if a disk, a thread or a hook hangs. SIGHUP is logged and changes nothing.

    `signals`: they are handled already, since before the event loop. `tripwire`: the one that looks at the
    diagnostics, too. Main thread only.
    """
    if signals is None:
        with Signals() as signals:
            await serve(policy, started=started, signals=signals, tripwire=tripwire)
        return
    logger.info("Posthorn %s, policy %s, %s hot path", __version__, policy.path, _fast.ACTIVE)
    for note in policy.notes:
        logger.warning("policy: %s", note)
    if _fast.ACTIVE != "compiled":
        logger.warning("the compiled hot path is not active; this is several times slower")
    _raise_file_limit()
    life = _Life(signals)
    outside = Outside()
    outside.tripwire = tripwire
    with signals.in_loop(), _tuned_collector():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.obey, nursery.cancel_scope)
            async with open_engine(policy, outside) as engine:
                # What was loaded so far lives as long as the process: the collector need not look again.
                gc.collect()
                gc.freeze()
                for host, port in engine.addresses:
                    logger.info("listening on %s", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                if started is not None:
                    started(engine)
                life.engine = engine
                await life.stop.wait()
                await engine.drain(signals.within)
            nursery.cancel_scope.cancel()
    life.say_end()


class _Life:
    """What the signals have to do with a running engine. `engine`: None until the start is done."""

    def __init__(self, signals: Signals) -> None:
        self.engine: Engine | None = None
        self.stop = trio.Event()
        self._signals = signals

    async def obey(self, everything: trio.CancelScope) -> None:
        """Turn signals into the end: a gentle one first, if there is something to be gentle with."""
        signals = self._signals
        while True:
            if await signals.wait() == signal.SIGHUP:
                logger.warning("SIGHUP: there is no reload yet; start anew to take a changed policy")
                continue
            if self.engine is None or self.stop.is_set():
                why = "second signal" if self.stop.is_set() else "stopping before the start is done"
                logger.info("%s: leaving at once", why)
                signals.within(0)
                everything.cancel()
                return
            queued = self.engine.router.statistics().queued
            noun = "message" if queued == 1 else "messages"
            logger.info("stopping: finishing what is under way (%d %s queued)", queued, noun)
            signals.within(DRAIN_INGRESS)
            self.stop.set()

    def say_end(self) -> None:
        """The last line."""
        if self.engine is None:
            return
        counters = self.engine.router.settler.counters
        logger.info(
            "stopped: %d delivered, %d bounced, %d expired since the start; %d still queued",
            counters.delivered,
            counters.bounced,
            counters.expired,
            self.engine.router.statistics().queued,
        )
