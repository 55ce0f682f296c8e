"""What one endpoint knows of one user's logins: which failed, and until when none is tried.

Failures are counted in windows that slide: no success and no new version takes one out of them, only time
does. One login is held against two counts, that of its version of the secret (by whatever source it was read)
and that of its source (whatever version it gave). So a source that gives another secret each time
spends one budget as well, while tenants who happen to share a user name do not spend each other's.

A version that was refused leaves the last failure of a budget to one that was not, and so does a trial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import LoginRefused
from policy.login import FAILURE_BUDGET, MOST_FAILURES

if TYPE_CHECKING:
    from policy.units import Throttle

__all__ = ["Account", "Circuit", "Failure", "OpenCircuit", "Try", "grown"]

_GROWTH = 3.0
"""Each pause is so many times the one before. A guess: with 6 an hour that is 1, 3, 9, 10 minutes."""

_NEVER = float("-inf")

_BROKEN_OFF = "logins were broken off when the peer had the secret, and may count as failed"


class Try(msgspec.Struct, frozen=True):
    """One login that somebody wants to make. `pause`: seconds, the first one; `budget`: failures that the
    peer may see in a period; `source`: of the secret, "" for one that has no other versions; `trial`: a new
    version is tried, while an old one is in use."""

    name: str
    port: int
    user: str
    version: str
    pause: float = 60.0
    budget: Throttle = FAILURE_BUDGET
    source: str = ""
    trial: bool = False

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.name}:{self.port}"


class OpenCircuit(msgspec.Struct, frozen=True):
    """Failed logins with one version as others may know them. `hosts`: names and addresses of the endpoint;
    `failures`: when they were, oldest first, and `until`: no try before (`trio.current_time`). `unheard`:
    when logins began whose answer was not heard. `refused`: nothing was accepted since; `period`: seconds the
    failures are remembered."""

    hosts: tuple[str, ...]
    user: str
    version: str
    failures: tuple[float, ...]
    streak: int
    until: float
    said_by: str
    text: str
    cause: str
    unheard: tuple[float, ...] = ()
    source: str = ""
    refused: bool = True
    period: float = 86400.0


class Failure:
    """A login that the peer counts as failed, or may. `heard`: that is known; `flying`: it is under way; if
    neither, it was broken off by us."""

    __slots__ = ("flying", "heard", "source", "version", "when")

    def __init__(self, when: float, version: str, source: str, *, heard: bool = False) -> None:
        self.when = when
        self.version = version
        self.source = source
        self.heard = heard
        self.flying = False


class Circuit:
    """One version of a secret. `streak`: failures since logins were accepted for a while; `refused`: none was
    accepted since the last one."""

    __slots__ = ("cause", "last", "lock", "refused", "said_by", "streak", "text", "until")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.last = _NEVER
        self.streak = 0
        self.refused = False
        self.until = _NEVER
        self.said_by = ""
        self.text = ""
        self.cause = LoginRefused.cause

    def join(self, other: Circuit) -> None:
        """Both were of one endpoint all along."""
        self.streak = max(self.streak, other.streak)
        self.refused = self.refused or other.refused
        self.last = max(self.last, other.last)
        if other.until > self.until or not self.text:
            self.until, self.said_by = other.until, other.said_by
            self.text, self.cause = other.text, other.cause


class Account:
    """See the module. Times are of `trio.current_time`."""

    __slots__ = ("_budgets", "_locks", "circuits", "failures", "period", "written")

    def __init__(self) -> None:
        self._budgets: dict[tuple[int, float], None] = {}
        self._locks: dict[str, trio.Lock] = {}
        self.circuits: dict[str, Circuit] = {}
        self.failures: list[Failure] = []
        """Oldest first."""
        self.period = 0.0
        """Seconds until a failure is forgotten: the longest of a budget."""
        self.written: dict[tuple[str, str], int] = {}
        """How many failures are on the disk at least, by version and source."""

    def obey(self, budget: Throttle) -> None:
        """Another path's budget for the same login counts, too."""
        if len(self._budgets) < MOST_FAILURES:
            self._budgets[budget.quantity, budget.period] = None
            self.period = max(self.period, budget.period)

    def circuit(self, version: str) -> Circuit:
        """That of a version; made when there is none."""
        found = self.circuits.get(version)
        if found is None:
            found = self.circuits[version] = Circuit()
        return found

    def lock_of(self, source: str) -> trio.Lock | None:
        """Held while a secret of this source is shown to the peer."""
        return self._locks.setdefault(source, trio.Lock()) if source else None

    def alone(self, source: str) -> AbstractAsyncContextManager[None]:
        """No other login with a secret of this source; ask for the circuit's lock first."""
        return self.lock_of(source) or nullcontext()

    def closed_until(self, wanted: Try, now: float, *, flying: bool = False) -> float:
        """No try before this moment. `flying`: for one whose turn it is, others under way count."""
        self.forget(now)
        circuit = self.circuits.get(wanted.version)
        until = circuit.until if circuit is not None else _NEVER
        spare = wanted.source and (wanted.trial or (circuit is not None and circuit.refused))
        times = [one.when for one in self._counted(wanted) if flying or not one.flying]
        for quantity, period in self._budgets:
            allowed = quantity - 1 if spare and quantity > 1 else quantity
            if len(times) >= allowed:
                until = max(until, times[-allowed] + period)
        return until

    def _counted(self, wanted: Try) -> Iterator[Failure]:
        for one in self.failures:
            if one.version == wanted.version or (wanted.source and one.source == wanted.source):
                yield one

    def why(self, wanted: Try) -> tuple[str, str]:
        """What stands in the way of a login: a text, and the cause."""
        circuit = self.circuits.get(wanted.version)
        if circuit is not None and circuit.text and circuit.refused:
            where = "" if circuit.said_by == wanted.where else f" (at {circuit.said_by})"
            return circuit.text + where, circuit.cause
        for one in reversed([*self._counted(wanted)]):
            other = self.circuits.get(one.version)
            if other is not None and other.text:
                which = "" if one.version == wanted.version else ", with another version of the secret"
                return f"{other.text} (at {other.said_by}{which})", other.cause
        return _BROKEN_OFF, LoginRefused.cause

    def began(self, wanted: Try, now: float) -> Failure:
        """A login is about to be made. It counts as failed until something else is known."""
        failure = Failure(now, wanted.version, wanted.source)
        failure.flying = True
        self.failures.append(failure)
        return failure

    def numbers(self) -> dict[tuple[str, str], int]:
        """How many failures are remembered, by version and source."""
        return Counter((one.version, one.source) for one in self.failures)

    def is_written(self, failure: Failure) -> bool:
        """Whether the disk says as much: a login that was accepted just now was not taken back there yet."""
        key = (failure.version, failure.source)
        return self.numbers()[key] <= self.written.get(key, 0)

    def take_back(self, failure: Failure) -> None:
        """It was none."""
        if failure in self.failures:
            self.failures.remove(failure)

    def heard(self, failure: Failure, now: float) -> None:
        """It was one."""
        self.take_back(failure)
        failure.when, failure.heard, failure.flying = now, True, False
        self.failures.append(failure)

    def failed(self, wanted: Try, now: float, error: LoginRefused) -> None:
        """A failure was heard: nobody repeats it before a pause is over."""
        circuit = self.circuit(wanted.version)
        longest = max((wanted.pause, *(period / quantity for quantity, period in self._budgets)))
        # A peer that accepts now and then does not bring the pauses back to the first one.
        lasted = not circuit.refused and now - circuit.last > longest
        circuit.streak = 1 if lasted else circuit.streak + 1
        circuit.refused, circuit.last = True, now
        circuit.until = now + grown(wanted.pause, circuit.streak, longest)
        circuit.said_by, circuit.text, circuit.cause = wanted.where, error.reason, error.cause

    def accepted(self, wanted: Try, failure: Failure | None) -> bool:
        """The peer took a login with this version; what it was not heard to say of it before was no refusal.
        Returns: whether that changes anything."""
        circuit = self.circuit(wanted.version)
        kept = [
            one
            for one in self.failures
            if one is not failure and (one.heard or one.flying or one.version != wanted.version)
        ]
        changed = circuit.refused or len(kept) != len(self.failures)
        self.failures = kept
        circuit.refused, circuit.until = False, _NEVER
        return changed

    def forget(self, now: float) -> None:
        """What is too old to count."""
        if self.failures and now - self.failures[0].when >= self.period:
            self.failures = [one for one in self.failures if now - one.when < self.period]
        if len(self.circuits) > 1:
            known = {one.version for one in self.failures}
            for version in [*self.circuits]:
                one = self.circuits[version]
                if version not in known and one.until <= now and not one.lock.locked():
                    del self.circuits[version]
        for source in [source for source, lock in self._locks.items() if not lock.locked()]:
            del self._locks[source]

    def counts(self, now: float) -> bool:
        """Whether forgetting all of it would make a difference."""
        self.forget(now)
        held = any(one.lock.locked() or one.until > now for one in self.circuits.values())
        return held or bool(self.failures)

    def join(self, other: Account) -> None:
        """Both were of one endpoint all along."""
        self._budgets.update(other._budgets)
        self.period = max(self.period, other.period)
        self.failures = sorted((*self.failures, *other.failures), key=lambda one: one.when)
        for version, circuit in other.circuits.items():
            mine = self.circuits.setdefault(version, circuit)
            if mine is not circuit:
                mine.join(circuit)
        for source, lock in other._locks.items():
            self._locks.setdefault(source, lock)

    def shown(self, hosts: tuple[str, ...], user: str, now: float) -> Iterator[OpenCircuit]:
        """What is to be known of it elsewhere."""
        self.forget(now)
        for version, source in dict.fromkeys((one.version, one.source) for one in self.failures):
            mine = [one for one in self.failures if (one.version, one.source) == (version, source)]
            circuit = self.circuit(version)
            yield OpenCircuit(
                hosts,
                user,
                version,
                tuple(one.when for one in mine if one.heard),
                circuit.streak,
                self.closed_until(Try("", 0, user, version, source=source), now),
                circuit.said_by,
                circuit.text,
                circuit.cause,
                tuple(one.when for one in mine if not one.heard),
                source,
                circuit.refused,
                self.period,
            )

    def restore(self, known: OpenCircuit) -> None:
        """What was shown, some time ago."""
        self.period = max(self.period, known.period)
        for when in known.failures:
            self.failures.append(Failure(when, known.version, known.source, heard=True))
        for when in known.unheard:
            self.failures.append(Failure(when, known.version, known.source))
        self.failures.sort(key=lambda one: one.when)
        there, circuit = self.circuit(known.version), Circuit()
        circuit.streak, circuit.refused = known.streak, known.refused
        circuit.last = max(known.failures, default=_NEVER)
        circuit.until = known.until if known.refused else _NEVER
        circuit.said_by, circuit.text, circuit.cause = known.said_by, known.text, known.cause
        there.join(circuit)


def grown(first: float, number: int, longest: float) -> float:
    """The pause after so many failures."""
    return min(first * _GROWTH ** min(number - 1, 16), longest)
