"""The key ring: secrets by reference, fetched once, remembered, refreshed behind the scenes.

A delivery asks `KeyRing.fetch` and never waits longer than `wait`; the code that runs per message asks
`KeyRing.cached` and never waits at all. How long a value is used (reliability V3):

| age of the value           | what happens                                                              |
|----------------------------|---------------------------------------------------------------------------|
| up to `ttl`                | used                                                                      |
| up to `ttl` + `stale_for`  | used, while it is read again in the background; an outage changes nothing |
|                            | (a file, with a `ttl` of one second, is waited for if it can be read)     |
| older                      | `SecretUnavailable`                                                       |

Each reference may say its own (`policy.keyterms.Terms`). With `on_outage` "hold" nothing is used past its
`ttl`, and it is read again when three quarters of that are over; with `on_denied` "hold" a source that says
"you may not" ends the use of the old value at once. A value that has a life of its own, a token, says itself
how long it is fresh and how long it lasts.

A definite "there is no such value" ends the use of an old value too, once it was heard three times over at
least a minute. A failing source is asked at growing intervals, never twice within a second per secret, and
not at all before the time it named itself (Retry-After), not even after a refused login.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
import trio

from engine.errors import SecretUnavailable
from engine.tripwire import Tripwire
from policy.keysource import CallbackKey, CommandKey, KeyRef, LiteralKey
from policy.keyterms import Terms
from policy.secret import Secret

from .source import MAX_SECRET, Credential, Dated, KeySource, SourceFailure, Tells, Told

__all__ = ["KeyRing", "KeyStatistics"]

logger = logging.getLogger("posthorn.keys")

TTL = 300.0
STALE_FOR = 86400.0
WAIT = 5.0
LEAST_INTERVAL = 1.0
"""Seconds between two reads of one secret, whatever is asked (reliability V6)."""
LONGEST_BACKOFF = 30.0  # so that mail leaves soon after the cause is repaired
LONGEST_RETRY_AFTER = 300.0
GONE_TIMES = 3
GONE_SECONDS = 60.0
CAPACITY = 10_000


class KeyStatistics(msgspec.Struct, frozen=True):
    """Counts for metrics. `oldest` is the age in seconds of the oldest value that is past its `ttl`."""

    entries: int
    fetching: int
    failing: int
    oldest: float
    reads: int
    failures: int


class _Entry:
    """What the ring knows about one reference."""

    __slots__ = (
        "credential",
        "failure",
        "failures",
        "flight",
        "fresh_until",
        "gone",
        "gone_since",
        "must_read",
        "next_try",
        "quiet_until",
        "started",
        "usable_until",
    )

    def __init__(self) -> None:
        self.credential: Credential | None = None
        self.fresh_until = -math.inf
        self.usable_until = -math.inf
        self.must_read = False
        self.started = -math.inf
        self.flight: trio.Event | None = None
        self.failure = ""
        self.failures = 0
        self.next_try = -math.inf
        self.quiet_until = -math.inf
        self.gone = 0
        self.gone_since = 0.0


class KeyRing:
    """See the module. Made by `open_keys`, whose block owns the reading tasks."""

    def __init__(
        self,
        nursery: trio.Nursery,
        sources: Mapping[type, KeySource],
        *,
        ttl: float = TTL,
        stale_for: float = STALE_FOR,
        wait: float = WAIT,
        capacity: int = CAPACITY,
        rng: random.Random | None = None,
        tripwire: Tripwire | None = None,
        fingerprint: bytes | None = None,
    ) -> None:
        self._nursery = nursery
        self._tripwire = tripwire if tripwire is not None else Tripwire()
        self._sources = sources
        self._ttl = ttl
        self._stale_for = stale_for
        self._wait = wait
        self._capacity = capacity
        self._rng = rng if rng is not None else random.Random()
        self._fingerprint_key = fingerprint if fingerprint is not None else os.urandom(32)
        self._entries: OrderedDict[KeyRef, _Entry] = OrderedDict()
        self._reads = 0
        self._failures = 0

    def cached(self, ref: KeyRef) -> Credential | None:
        """The value if it is at hand. Never waits; starts a refresh when the value is past its `ttl`."""
        entry = self._entries.get(ref)
        if entry is None or entry.credential is None or entry.must_read:
            return None
        self._entries.move_to_end(ref)
        now = trio.current_time()
        if now < entry.fresh_until:
            return entry.credential
        self._start(ref, entry, now, urgent=False)
        return self._usable(entry, now)

    async def fetch(self, ref: KeyRef, *, fresh: bool = False) -> Credential:
        """The value; waits at most `wait` seconds, and only when none is at hand, or, for one second at most,
        when a near source (a file) is being looked at again.

        `fresh`: read the source again first, as after a refused login. If it cannot be read now, the value
        at hand is returned; the caller sees that its `version` is the same.

        Raises: SecretUnavailable naming the reference and the reason, never the secret.
        Checkpoint: always.
        """
        await trio.lowlevel.checkpoint()
        entry = self._entry(ref)
        wait = self._wait
        if not (fresh or entry.must_read):
            credential = self.cached(ref)
            if credential is not None:
                # What is read in a moment, such as a file, is waited for: somebody may have repaired it just
                # now, and what is at hand may be what was wrong.
                if entry.flight is None or not self._near(ref):
                    return credential
                wait = min(wait, LEAST_INTERVAL)
        urgent = fresh or entry.must_read
        flight = self._start(ref, entry, trio.current_time(), urgent=urgent)
        if flight is not None:
            with trio.move_on_after(wait):
                await flight.wait()
        now = trio.current_time()
        credential = self._usable(entry, now)
        if credential is not None:
            return credential
        reason = entry.failure or f"no answer in {self._wait:g} s"
        if entry.credential is not None:
            reason += f"; the last value is {now - entry.credential.fetched:.0f} s old and not used any more"
        raise SecretUnavailable(f"{ref.name}: {reason}") from None

    def _near(self, ref: KeyRef) -> bool:
        """Whether its source is looked at again within a second anyway."""
        fresh_for = self._sources[type(ref)].fresh_for
        return fresh_for is not None and fresh_for <= LEAST_INTERVAL

    def source(self, ref: KeyRef) -> str:
        """A fingerprint of what a reference names, whatever its terms, comparable as versions are; "" for a
        literal, which has one version for ever."""
        if isinstance(ref, LiteralKey):
            return ""
        name = ref.name.encode()
        if isinstance(ref, CallbackKey):
            name += b" " + ref.arguments.reveal()
        elif isinstance(ref, CommandKey):
            name = b" ".join(os.fsencode(one) for one in ref.argv)
        return self._fingerprint(b"source\0" + name)

    def _fingerprint(self, content: bytes) -> str:
        return hashlib.blake2b(content, key=self._fingerprint_key, digest_size=4).hexdigest()

    def invalidate(self, ref: KeyRef) -> None:
        """The value may be wrong: the next `fetch` reads it again and waits for that."""
        entry = self._entries.get(ref)
        if entry is not None:
            entry.must_read = True

    def still_used(self, ref: KeyRef, earlier: Credential) -> None:
        """An earlier value is used on, because the newer one is not good yet: it is still searched for in
        what is shown."""
        self._tripwire.watch(("earlier", ref), ref.name, earlier.secret)

    def fingerprint(self, secret: Secret) -> str:
        """What a `Credential` of this value would be called as its `version`."""
        return self._fingerprint(secret.reveal())

    def told(self, ref: KeyRef) -> Told | None:
        """What the source itself says of the value it gave last: its own version, since when."""
        source = self._sources[type(ref)]
        return source.told(ref) if isinstance(source, Tells) else None

    def statistics(self) -> KeyStatistics:
        now = trio.current_time()
        entries = self._entries.values()
        ages = [now - e.credential.fetched for e in entries if e.credential and now >= e.fresh_until]
        return KeyStatistics(
            entries=len(entries),
            fetching=sum(entry.flight is not None for entry in entries),
            failing=sum(entry.failures > 0 for entry in entries),
            oldest=max(ages, default=0.0),
            reads=self._reads,
            failures=self._failures,
        )

    def _entry(self, ref: KeyRef) -> _Entry:
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._entries[ref] = _Entry()
            if len(self._entries) > self._capacity:
                evicted = self._entries.popitem(last=False)[0]
                self._tripwire.release(evicted)
                self._tripwire.release(("earlier", evicted))
        else:
            self._entries.move_to_end(ref)
        return entry

    def _usable(self, entry: _Entry, now: float) -> Credential | None:
        return entry.credential if now < entry.usable_until else None

    def _start(self, ref: KeyRef, entry: _Entry, now: float, *, urgent: bool) -> trio.Event | None:
        """Begin to read, or join. None: the source is being left alone. `urgent` ignores our back-off, but
        not the pause that the source asked for."""
        if entry.flight is None:
            if now < (entry.quiet_until if urgent else entry.next_try):
                return None
            entry.flight = trio.Event()
            delay = max(0.0, entry.started + LEAST_INTERVAL - now)
            self._nursery.start_soon(self._read, ref, entry, entry.flight, delay, name=f"read {ref.name}")
        return entry.flight

    async def _read(self, ref: KeyRef, entry: _Entry, flight: trio.Event, delay: float) -> None:
        try:
            await trio.sleep(delay)
            entry.started = trio.current_time()
            entry.must_read = False  # before the read: an `invalidate` meanwhile asks for another one
            self._reads += 1
            source = self._sources[type(ref)]
            answer: Secret | Dated | None = None
            with trio.move_on_after(self._wait):
                answer = await source.read(ref)
            if answer is None:
                raise SourceFailure(f"no answer in {self._wait:g} s")
            secret = answer.secret if isinstance(answer, Dated) else answer
            if not 0 < len(secret.reveal()) <= MAX_SECRET:
                raise SourceFailure(f"the value is empty or larger than {MAX_SECRET} octets")
            if isinstance(answer, Dated):
                self._succeeded(ref, entry, secret, answer.fresh_for, answer.lasts)
            else:
                self._succeeded(ref, entry, secret, *self._life(_terms(ref), source.fresh_for))
        except SourceFailure as failure:
            self._failed(ref, entry, failure)
        except Exception as error:
            # A fault of one source is a failure of this secret only. No text: it might hold the secret.
            self._failed(ref, entry, SourceFailure(f"internal error ({type(error).__name__})"))
        finally:
            entry.flight = None
            flight.set()
        if self._tripwire.untidy:
            await trio.to_thread.run_sync(self._tripwire.tidy)

    def _life(self, terms: Terms, fresh_for: float | None) -> tuple[float, float]:
        """Seconds until a value is read again, and until it is not used any more."""
        ttl = terms.ttl if terms.ttl is not None else fresh_for if fresh_for is not None else self._ttl
        if terms.on_outage == "hold" and math.isfinite(ttl):
            return ttl * self._rng.uniform(0.7, 0.75), ttl
        lasts = ttl + (self._stale_for if terms.stale_for is None else terms.stale_for)
        # Spread, so that secrets fetched together are not refreshed together.
        return (ttl if fresh_for is not None else ttl * self._rng.uniform(0.9, 1.0)), lasts

    def _succeeded(self, ref: KeyRef, entry: _Entry, secret: Secret, fresh_for: float, lasts: float) -> None:
        now = trio.current_time()
        version = self.fingerprint(secret)
        if entry.failures:
            logger.info("%s can be read again", ref.name)
        elif entry.credential is not None and entry.credential.version != version:
            logger.info("%s has a new value", ref.name)
        self._tripwire.watch(ref, ref.name, secret)
        entry.credential = Credential(secret, version, now)
        entry.fresh_until = now + fresh_for
        entry.usable_until = now + lasts
        entry.failure = ""
        entry.failures = entry.gone = 0
        entry.next_try = -math.inf

    def _failed(self, ref: KeyRef, entry: _Entry, failure: SourceFailure) -> None:
        now = trio.current_time()
        self._failures += 1
        if failure.denied and entry.credential is not None and _terms(ref).on_denied == "hold":
            entry.credential = None
            logger.warning("%s: %s; the last value is not used any more", ref.name, failure.reason)
        elif failure.reason != entry.failure:
            if self._usable(entry, now) is not None:
                logger.warning("%s: %s; the last value stays in use", ref.name, failure.reason)
            else:  # whoever asked is told, and says what it means for the mail
                logger.debug("%s: %s", ref.name, failure.reason)
        entry.failure = failure.reason
        entry.failures += 1
        backoff = min(LEAST_INTERVAL * 2.0 ** min(entry.failures - 1, 16), LONGEST_BACKOFF)
        pause = min(failure.retry_after, LONGEST_RETRY_AFTER)
        spread = self._rng.uniform(1.0, 1.25)
        entry.next_try = now + max(backoff, pause) * spread
        entry.quiet_until = now + pause * spread
        if failure.definite and entry.credential is not None:
            if entry.gone == 0:
                entry.gone_since = now
            entry.gone += 1
            if entry.gone >= GONE_TIMES and now - entry.gone_since >= GONE_SECONDS:
                logger.warning("%s is gone; its last value is not used any more", ref.name)
                entry.credential = None


def _terms(ref: KeyRef) -> Terms:
    """What the reference says; those that have a life of their own, or none, say nothing."""
    terms: Terms = getattr(ref, "terms", _DEFAULT)
    return terms


_DEFAULT = Terms()
