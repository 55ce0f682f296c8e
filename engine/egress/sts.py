"""Which MTA-STS policy a domain has: looked up, remembered, kept up to date (RFC 8461 sections 3 and 5).

Who asks waits only where nothing is known of the domain, or not any more. A policy that is known answers at
once; whether there is a newer one is looked up behind the scenes: when the record's TTL is over, and the
policy itself anew when its record has another `id`, when half its `max_age` is over, or after a day. Whatever
goes wrong then, the policy stays in force until its `max_age` is over. That there is none is remembered for
the TTL of DNS's answer, and for `FAILED` after a failure.

Policies survive a restart (`stsstore`). Their number is limited; the least recently used is forgotten first.
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
"""Domains of which something is remembered."""
OCTETS = 48 << 20
"""Of all that is remembered, about; written down it fits into one file of `StateDir`."""
_LONGEST = 253 - len("_mta-sts.")
"""Characters of a domain whose record and server can have a name in DNS."""
_SWEEP = 3600.0
"""Seconds between two looks for policies that are to be fetched anew."""
_WRITE = 5.0
"""Seconds for which changes are gathered before they are written."""


class Fetches(Protocol):
    """What gets policies: `stsfetch.Fetcher`."""

    async def fetch(self, domain: str, *, route: bool = False) -> Policy:
        """See `stsfetch.Fetcher.fetch`."""
        ...


_Key = tuple[str, bool]


class _Known:
    """What is known of a domain. `kept` None: that it has no policy. Moments are those of Trio's clock."""

    __slots__ = ("asked", "check_at", "checking", "ends", "kept", "refetch_at", "why")

    def __init__(self, kept: Kept | None, check_at: float, ends: float, why: str = "") -> None:
        self.kept = kept
        self.why = why
        """Why there is none."""
        self.check_at = check_at
        """When the record is looked at again."""
        self.ends = ends
        """When this is not true any more."""
        self.refetch_at = float("inf")
        """When the policy is fetched again, even if the record is the same."""
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
        self._flights: dict[_Key, trio.Event] = {}
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._known)

    async def of(self, domain: str, *, route: bool = False) -> Policy | None:
        """The policy of a domain (in A-labels, lower case); None when it has none, or none can be had.
        `route`: an operator named the domain. Checkpoint: only when it has to wait."""
        kept = await self.look(domain, route=route)
        return kept.policy if kept is not None else None

    def reason(self, domain: str, *, route: bool = False) -> str:
        """Why the domain has no policy, after a `look` that found none."""
        known = self._known.get((domain, route))
        return known.why if known is not None else ""

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
            flight = self._flights.get(key)
            if flight is not None:
                await flight.wait()
                continue
            flight = self._flights[key] = trio.Event()
            try:
                await self._find(key, None)
                self._known[key].asked = True
                return self._known[key].kept
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

    async def _find(self, key: _Key, before: _Known | None) -> None:
        """Ask DNS and, if need be, the policy's server; note what comes out."""
        domain, route = key
        if len(domain) > _LONGEST:
            self._without(key, before, MAX_TTL, "its name is too long to have one")
            return
        try:
            answer = await self._resolver.texts(f"_mta-sts.{domain}")
        except ResolveError as error:
            self._without(key, before, FAILURE_TTL, str(error))
            return
        ttl = min(max(answer.ttl, MIN_TTL), MAX_TTL)
        found = parse_record(text for _, text in answer.records)
        if found is None:
            self._without(key, before, ttl, f"no record at _mta-sts.{domain} announces one")
            return
        now = trio.current_time()
        known = before.kept if before is not None else None
        if before is not None and known is not None and known.id == found and now < before.refetch_at:
            before.check_at = min(now + ttl, before.refetch_at)
            return
        try:
            policy = await self._fetcher.fetch(domain, route=route)
        except NoPolicy as error:
            self._without(key, before, FAILED, str(error))
            return
        logger.debug("MTA-STS policy of %s: %s, id %s", domain, policy, found)
        self._note(key, Kept(domain, found, policy, self._clock(), route), ttl)
        self._changed.set()

    def _without(self, key: _Key, before: _Known | None, seconds: float, why: str) -> None:
        """There is no policy to be had now. One that is known stays in force."""
        again = trio.current_time() + seconds
        if before is None or before.kept is None:
            logger.debug("no MTA-STS policy of %s: %s", key[0], why)
            self._put(key, _Known(None, again, again, why))
            return
        before.check_at = again
        left = before.ends - trio.current_time()
        logger.warning("MTA-STS policy of %s: %s; the one known serves for %.0f s more", key[0], why, left)

    def _note(self, key: _Key, kept: Kept, ttl: float) -> None:
        """Remember a policy; `ttl`: seconds until its record is looked at again."""
        now = trio.current_time()
        age = max(0.0, self._clock() - kept.fetched)
        max_age = max(kept.policy.max_age, SHORTEST)
        known = _Known(kept, 0.0, now + max_age - age)
        known.refetch_at = now + min(max_age / 2, DAILY) - age
        known.check_at = min(now + ttl, known.refetch_at)
        self._put(key, known)

    def _put(self, key: _Key, known: _Known) -> None:
        old = self._known.pop(key, None)
        self._octets += _weight(known) - (_weight(old) if old is not None else 0)
        self._known[key] = known
        while len(self._known) > KNOWN or (self._octets > OCTETS and len(self._known) > 1):
            self._octets -= _weight(self._known.popitem(last=False)[1])

    # -- tasks -----------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Fetch anew, before they end, the policies that somebody asked for since they were fetched."""
        while True:
            await trio.sleep(_SWEEP)
            now = trio.current_time()
            for key, known in list(self._known.items()):
                if now >= known.ends:
                    self._octets -= _weight(self._known.pop(key))
                elif known.asked and now >= max(known.refetch_at, known.check_at) and not known.checking:
                    known.checking = True
                    self._nursery.start_soon(self._check, key, known)
                    await trio.sleep(_SWEEP / KNOWN)

    async def keep(self) -> None:
        """Write what changed, soon."""
        while True:
            await self._changed.wait()
            await trio.sleep(_WRITE)
            await self.write()

    async def write(self) -> None:
        """Write what is in force, if it changed."""
        if self._store is not None and self._changed.is_set():
            self._changed = trio.Event()
            now = trio.current_time()
            kept = [one.kept for one in self._known.values() if one.kept is not None and now < one.ends]
            await trio.to_thread.run_sync(self._store.write, kept)

    async def restore(self) -> None:
        """Read what was in force. Each record is looked at when the domain is next asked for."""
        if self._store is None:
            return
        now = self._clock()
        for kept in await trio.to_thread.run_sync(self._store.read):
            if now < kept.fetched + max(kept.policy.max_age, SHORTEST):
                self._note((kept.domain, kept.route), kept, 0.0)


def _weight(known: _Known) -> int:
    return 450 + sum(len(pattern) + 3 for pattern in known.kept.policy.mx) if known.kept is not None else 0


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
