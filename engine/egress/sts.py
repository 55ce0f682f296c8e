"""Which MTA-STS policy a domain has: looked up, remembered, kept up to date (RFC 8461 sections 3 and 5).

Who asks waits only where nothing is known of the domain, or not any more. A policy that is known answers at
once; whether there is a newer one is looked up behind the scenes: when the record's TTL is over, and the
policy itself anew when its record has another `id`, when half its `max_age` is over, or after a day. Whatever
goes wrong then, the policy stays in force until its `max_age` is over. That there is none is remembered for
the TTL of DNS's answer, and for `FAILED` after a failure.

Policies survive a restart (`stsstore`). Their number is limited, and whoever can have mail sent to domains of
his own must not be able to push out what is known of others: domains without a policy are remembered in a
place of their own, and where policies take too much room the longest goes first, not the least recently used.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from engine.egress.dns import FAILURE_TTL, MAX_TTL, MIN_TTL
from engine.egress.mta_sts import Policy, parse_record
from engine.egress.stsfetch import NoPolicy
from engine.egress.stsstore import Kept, Store
from engine.errors import ResolveError

if TYPE_CHECKING:
    from engine.egress.resolve import Resolver

__all__ = ["Fetches", "Policies", "open_policies"]

logger = logging.getLogger("posthorn.egress")

FAILED = 300.0
"""Seconds until a policy is fetched again that could not be had (RFC 8461 section 3.3)."""
DAILY = 86400.0
"""Seconds after which a policy is fetched anew, even if its record is the same (section 10.2)."""
SHORTEST = 60.0
"""Seconds that a policy serves at least, whatever its `max_age`: as long as the routes made with it."""
KNOWN = 50_000
"""Policies that are remembered, and domains of which it is remembered that they have none."""
OCTETS = 48 << 20
"""Of the policies in memory, about; written down they are less, and fit into one file of `StateDir`."""
_LONGEST = 253 - len("_mta-sts.")
"""Characters of a domain whose record and server can have a name in DNS."""
_SWEEP = 3600.0
"""Seconds between two looks for policies that are to be fetched anew."""
_WRITE, _WRITE_EACH = 5.0, 0.01
"""Seconds for which changes are gathered before all policies are written, and more for each of them."""


class Fetches(Protocol):
    """What gets policies: `stsfetch.Fetcher`."""

    async def fetch(self, domain: str, *, route: bool = False) -> Policy:
        """See `stsfetch.Fetcher.fetch`."""
        ...


_Key = tuple[str, bool]


class _Known:
    """A policy that is known. Moments are those of Trio's clock."""

    __slots__ = ("asked", "check_at", "checking", "ends", "kept", "refetch_at", "weight")

    def __init__(self, kept: Kept, check_at: float, refetch_at: float, ends: float) -> None:
        self.kept = kept
        self.weight = 600 + sum(len(pattern) + 64 for pattern in kept.policy.mx)
        """Octets, about."""
        self.check_at = check_at
        """When the record is looked at again."""
        self.refetch_at = refetch_at
        """When the policy is fetched again, even if the record is the same."""
        self.ends = ends
        """When it is in force no more."""
        self.asked = False
        """Whether anybody wanted to know since the policy was fetched."""
        self.checking = False


class Policies:
    """See the module. Made by `open_policies`. `clock`: Unix seconds."""

    def __init__(
        self,
        resolver: Resolver,
        fetcher: Fetches,
        nursery: trio.Nursery,
        store: Store | None,
        clock: Callable[[], float],
    ) -> None:
        self._resolver = resolver
        self._fetcher = fetcher
        self._nursery = nursery
        self._store = store
        self._clock = clock
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._octets = 0
        self._absent: OrderedDict[_Key, tuple[float, str]] = OrderedDict()
        """Until when a domain is taken to have no policy, and why."""
        self._flights: dict[_Key, trio.Event] = {}
        self._changed = trio.Event()

    def __len__(self) -> int:
        """Domains of which something is known."""
        return len(self._known) + len(self._absent)

    async def of(self, domain: str, *, route: bool = False) -> Policy | None:
        """The policy of a domain (in A-labels, lower case); None when it has none, or none can be had.
        `route`: an operator named the domain. Checkpoint: only when it has to wait."""
        kept = await self.look(domain, route=route)
        return kept.policy if kept is not None else None

    def reason(self, domain: str, *, route: bool = False) -> str:
        """Why the domain has no policy, after a `look` that found none."""
        absent = self._absent.get((domain, route))
        return absent[1] if absent is not None else ""

    async def look(self, domain: str, *, route: bool = False) -> Kept | None:
        """Likewise, with the `id` and when it was fetched."""
        key = (domain, route)
        while True:
            known = self._known.get(key)
            now = trio.current_time()
            if known is not None and now < known.ends:
                self._known.move_to_end(key)
                known.asked = True
                if now >= known.check_at and not known.checking:
                    known.checking = True
                    self._nursery.start_soon(self._check, key, known)
                return known.kept
            absent = self._absent.get(key)
            if absent is not None and now < absent[0]:
                self._absent.move_to_end(key)
                return None
            flight = self._flights.get(key)
            if flight is not None:
                await flight.wait()
                continue
            flight = self._flights[key] = trio.Event()
            try:
                found = await self._find(key, None)
                if found is None:
                    return None
                found.asked = True
                return found.kept
            finally:
                del self._flights[key]
                flight.set()

    async def _check(self, key: _Key, known: _Known) -> None:
        """Whether what is known is still so. The barrier: what goes wrong here ends only this look, as it
        may come from a stranger's server."""
        try:
            await self._find(key, known)
        except Exception:
            logger.exception("MTA-STS policy of %s", key[0])
            known.check_at = trio.current_time() + FAILED
        finally:
            known.checking = False

    async def _find(self, key: _Key, before: _Known | None) -> _Known | None:
        """Ask DNS and, if need be, the policy's server; note what comes out. None: there is none to be had;
        one that was known stays in force."""
        domain, route = key
        if len(domain) > _LONGEST:
            self._without(key, before, MAX_TTL, "its name is too long to have one")
            return None
        try:
            answer = await self._resolver.texts(f"_mta-sts.{domain}")
        except ResolveError as error:
            self._without(key, before, FAILURE_TTL, str(error))
            return None
        ttl = min(max(answer.ttl, MIN_TTL), MAX_TTL)
        found = parse_record(text for _, text in answer.records)
        if found is None:
            self._without(key, before, ttl, f"no record at _mta-sts.{domain} announces one")
            return None
        now = trio.current_time()
        if before is not None and before.kept.id == found and now < before.refetch_at:
            before.check_at = min(now + ttl, before.refetch_at)
            return before
        try:
            policy = await self._fetcher.fetch(domain, route=route)
        except NoPolicy as error:
            self._without(key, before, FAILED, str(error))
            return None
        logger.debug("MTA-STS policy of %s: %s, id %s", domain, policy, found)
        self._changed.set()
        return self._note(key, Kept(domain, found, policy, self._clock(), route), ttl)

    def _without(self, key: _Key, before: _Known | None, seconds: float, why: str) -> None:
        now = trio.current_time()
        if before is None:
            logger.debug("no MTA-STS policy of %s: %s", key[0], why)
            self._absent[key] = now + seconds, why
            self._absent.move_to_end(key)
            if len(self._absent) > KNOWN:
                self._absent.popitem(last=False)
            return
        before.check_at = now + seconds
        left = before.ends - now
        logger.warning("MTA-STS policy of %s: %s; the one known serves for %.0f s more", key[0], why, left)

    def _note(self, key: _Key, kept: Kept, ttl: float) -> _Known:
        """Remember a policy; `ttl`: seconds until its record is looked at again."""
        now = trio.current_time()
        age = max(0.0, self._clock() - kept.fetched)
        max_age = max(kept.policy.max_age, SHORTEST)
        refetch_at = now + min(max_age / 2, DAILY) - age
        known = _Known(kept, min(now + ttl, refetch_at), refetch_at, now + max_age - age)
        self._absent.pop(key, None)
        self._forget(key)
        self._known[key] = known
        self._octets += known.weight
        if len(self._known) > KNOWN:
            self._forget(next(iter(self._known)))
        while self._octets > OCTETS and len(self._known) > 1:
            self._forget(max(self._known.items(), key=lambda item: item[1].weight)[0])
        return known

    def _forget(self, key: _Key) -> None:
        old = self._known.pop(key, None)
        self._octets -= old.weight if old is not None else 0

    # -- tasks -----------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Fetch anew, before they end, the policies that somebody asked for since they were fetched."""
        while True:
            await trio.sleep(_SWEEP)
            for key, known in list(self._known.items()):
                now = trio.current_time()
                if self._known.get(key) is not known:
                    continue  # gone, or newer, since this round began
                if now >= known.ends:
                    self._forget(key)
                elif known.asked and now >= max(known.refetch_at, known.check_at) and not known.checking:
                    known.checking = True
                    self._nursery.start_soon(self._check, key, known)
                    await trio.sleep(_SWEEP / KNOWN)

    async def keep(self) -> None:
        """Write what changed, soon."""
        while True:
            await self._changed.wait()
            await trio.sleep(_WRITE + _WRITE_EACH * len(self._known))
            await self.write()

    async def write(self) -> None:
        """Write what is in force, if it changed."""
        if self._store is not None and self._changed.is_set():
            self._changed = trio.Event()
            now = trio.current_time()
            kept = [one.kept for one in self._known.values() if now < one.ends]
            await trio.to_thread.run_sync(self._store.write, kept)

    async def restore(self) -> None:
        """Read what was in force. Each record is looked at when the domain is next asked for."""
        if self._store is None:
            return
        now = self._clock()
        for kept in await trio.to_thread.run_sync(self._store.read):
            if now < kept.fetched + max(kept.policy.max_age, SHORTEST):
                self._note((kept.domain, kept.route), kept, 0.0)


@asynccontextmanager
async def open_policies(
    resolver: Resolver,
    fetcher: Fetches,
    store: Store | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Policies]:
    """The policies of all domains; leaving the block writes down what is in force. `store` None: nothing is
    kept."""
    async with trio.open_nursery() as nursery:
        policies = Policies(resolver, fetcher, nursery, store, clock)
        await policies.restore()
        nursery.start_soon(policies.sweep)
        if store is not None:
            nursery.start_soon(policies.keep)
        try:
            yield policies
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await policies.write()
