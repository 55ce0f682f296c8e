"""Who may try a credential now: one at a time, and nobody while a refusal is fresh (reliability C42).

Peers count failed logins and lock accounts. So there is one *circuit* for each endpoint, user and version
of a secret. While it is closed one login is under way at most, whatever ready queue, source or session wants
it. A login that was not accepted opens it: nobody repeats that login before a pause is over, the pauses grow,
and in no period does the peer see more failures than the budget allows. A login that is accepted closes it. A
rotated secret is another version, with a circuit of its own.

An *endpoint* is what may well share one list of accounts. Hosts that stand side by side in one plan (the MX
hosts of a domain, the addresses of a name, the entries of an `mx_list`) do, and so do hosts of one name or
one address, whatever the port. What is learned later only makes endpoints larger.

"Not now" (4xx) is no failure: it concerns one host and port, and the next one may be asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import LoginRefused
from policy.login import FAILURE_BUDGET, MOST_FAILURES

if TYPE_CHECKING:
    from policy.keysource import KeyRef
    from policy.units import Throttle

    from .resolve import Candidate
    from .rotation import Rotation

__all__ = ["LOGIN_DEFERRED", "LOGIN_UNANSWERED", "Circuits", "Endpoint", "OpenCircuit", "Try"]

LOGIN_DEFERRED = "login-deferred"
LOGIN_UNANSWERED = "login-unanswered"
"""Causes of held mail, beside those of the errors themselves."""

_KEPT = 10_000
"""Hosts and addresses that are known, and hosts that said "not now"."""

_GROWTH = 3.0
"""Each pause is so many times the one before. A guess: with 6 an hour that is 1, 3, 9, 10 minutes."""


class Try(msgspec.Struct, frozen=True):
    """One login that somebody wants to make. `pause`: seconds, the first one; `budget`: failures that the
    peer may see in a period."""

    name: str
    port: int
    user: str
    version: str
    pause: float = 60.0
    budget: Throttle = FAILURE_BUDGET


class OpenCircuit(msgspec.Struct, frozen=True):
    """An open circuit as others may know it. `hosts`: names and addresses of the endpoint; `failures`: when
    they were, oldest first, and `until`: no try before (`trio.current_time`)."""

    hosts: tuple[str, ...]
    user: str
    version: str
    failures: tuple[float, ...]
    streak: int
    until: float
    said_by: str
    text: str
    cause: str


class _Circuit:
    """One user and version at one endpoint. `streak`: failures since a login was accepted."""

    __slots__ = ("budgets", "cause", "failures", "lock", "said_by", "streak", "text", "until")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.budgets: dict[tuple[int, float], None] = {}
        self.failures: deque[float] = deque(maxlen=MOST_FAILURES)
        self.streak = 0
        self.until = float("-inf")
        self.said_by = ""
        self.text = ""
        self.cause = ""

    def obey(self, budget: Throttle) -> None:
        """Another path's budget for the same login counts, too."""
        if len(self.budgets) < MOST_FAILURES:
            self.budgets[budget.quantity, budget.period] = None

    def closed_until(self) -> float:
        """No try before this moment."""
        if not self.streak:
            return float("-inf")
        until = self.until
        for quantity, period in self.budgets:
            if len(self.failures) >= quantity:
                until = max(until, self.failures[-quantity] + period)
        return until

    def failed(self, now: float, pause: float, said_by: str, error: LoginRefused) -> None:
        self.failures.append(now)
        self.streak += 1
        longest = max((pause, *(period / quantity for quantity, period in self.budgets)))
        self.until = now + min(pause * _GROWTH ** min(self.streak - 1, 16), longest)
        self.said_by, self.text, self.cause = said_by, error.reason, error.cause

    def succeeded(self) -> None:
        self.failures.clear()
        self.streak = 0
        self.until = float("-inf")

    def join(self, other: _Circuit) -> None:
        """Both were of one endpoint all along."""
        self.budgets.update(other.budgets)
        self.failures = deque(sorted((*self.failures, *other.failures)), maxlen=MOST_FAILURES)
        if other.until > self.until:
            self.until, self.said_by, self.text, self.cause = (
                other.until,
                other.said_by,
                other.text,
                other.cause,
            )
        self.streak += other.streak


class Endpoint:
    """See the module. Two that turn out to be one are joined: ask `root` for what holds."""

    __slots__ = ("_parent", "circuits", "members", "rotations")

    def __init__(self) -> None:
        self._parent: Endpoint | None = None
        self.members: set[str] = set()
        self.circuits: dict[tuple[str, str], _Circuit] = {}
        self.rotations: dict[tuple[KeyRef | None, str | None], Rotation] = {}
        """Which version of each secret is in use here, by reference and user."""

    def root(self) -> Endpoint:
        """The endpoint that this one has become part of; itself when it stands alone."""
        found = self
        while found._parent is not None:
            found = found._parent
        return found

    def absorb(self, other: Endpoint) -> None:
        """`other` is part of this one from now on."""
        for key, circuit in other.circuits.items():
            mine = self.circuits.setdefault(key, circuit)
            if mine is not circuit:
                mine.join(circuit)
        for name, rotation in other.rotations.items():
            self.rotations.setdefault(name, rotation)
        self.members |= other.members
        other._parent = self
        other.circuits = {}


class Circuits:
    """See the module. One for the engine."""

    __slots__ = ("_endpoints", "_not_now", "changed")

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._not_now: dict[tuple[str, int, str, str], tuple[float, str]] = {}
        self.changed = trio.Event()
        """Set when a circuit was opened or closed; whoever waits puts a new one here."""

    def endpoint(self, candidates: Iterable[Candidate]) -> Endpoint:
        """What these hosts are together."""
        return self._endpoint([member for one in candidates for member in (one.name.lower(), one.address)])

    def _endpoint(self, members: list[str], known: Endpoint | None = None) -> Endpoint:
        roots = dict.fromkeys(self._endpoints[one].root() for one in members if one in self._endpoints)
        if known is not None:
            roots = {known: None, **roots}
        root = next(iter(roots), None)
        if root is None:
            self._tidy()
            root = Endpoint()
        for other in roots:
            if other is not root:
                root.absorb(other)
                for member in other.members:
                    self._endpoints[member] = root
        for member in members:
            self._endpoints[member] = root
        root.members.update(members)
        return root

    def check(self, endpoint: Endpoint, wanted: Try) -> None:
        """Raises: LoginRefused when this login may not be tried now. Ask before connecting."""
        now = trio.current_time()
        circuit = endpoint.root().circuits.get((wanted.user, wanted.version))
        if circuit is not None:
            circuit.obey(wanted.budget)
            _check(circuit, wanted, now)
        until, text = self._not_now.get(_host(wanted), (float("-inf"), ""))
        if until > now:
            raise _refused(text, LOGIN_DEFERRED, until - now)

    @asynccontextmanager
    async def turn(self, endpoint: Endpoint, wanted: Try) -> AsyncIterator[bool]:
        """Wait for the turn to try; gives whether others had it first. A LoginRefused that leaves the block
        is remembered and raised for everybody else meanwhile, who then say nothing to the peer; a block
        that comes to its end is a login that was accepted."""
        waited = False
        while True:
            circuit = self._circuit(endpoint, wanted)
            waited = waited or circuit.lock.locked()
            async with circuit.lock:
                if circuit is not self._circuit(endpoint, wanted):
                    continue  # the endpoint has become part of a larger one
                self.check(endpoint, wanted)
                try:
                    yield waited
                except LoginRefused as error:
                    self._failed(self._circuit(endpoint, wanted), wanted, error)
                    raise
                self._succeeded(self._circuit(endpoint, wanted), wanted)
                return

    def hurry(self, endpoint: Endpoint, wanted: Try) -> bool:
        """Something speaks for this login: its pause is over, its budget is not. Whether it may be tried."""
        circuit = self._circuit(endpoint, wanted)
        circuit.until = float("-inf")
        return circuit.closed_until() <= trio.current_time()

    def closed_until(self, endpoint: Endpoint, user: str, version: str) -> float:
        """No login with this version before this moment."""
        circuit = endpoint.root().circuits.get((user, version))
        return circuit.closed_until() if circuit is not None else float("-inf")

    def opened(self) -> Iterator[OpenCircuit]:
        """All that are open."""
        for root in dict.fromkeys(endpoint.root() for endpoint in self._endpoints.values()):
            for (user, version), one in root.circuits.items():
                if one.streak:
                    yield OpenCircuit(
                        tuple(sorted(root.members)),
                        user,
                        version,
                        tuple(one.failures),
                        one.streak,
                        one.closed_until(),
                        one.said_by,
                        one.text,
                        one.cause,
                    )

    def restore(self, known: OpenCircuit) -> None:
        """A circuit that was open when the engine stopped."""
        circuit = _Circuit()
        circuit.failures.extend(known.failures)
        circuit.streak, circuit.until = known.streak, known.until
        circuit.said_by, circuit.text, circuit.cause = known.said_by, known.text, known.cause
        there = self._endpoint(list(known.hosts)).circuits.setdefault((known.user, known.version), circuit)
        if there is not circuit:
            there.join(circuit)

    def _circuit(self, endpoint: Endpoint, wanted: Try) -> _Circuit:
        root = endpoint.root()
        if any(member not in self._endpoints for member in root.members):
            self._endpoint(list(root.members), root)  # it was forgotten while somebody was on his way there
            root = root.root()
        circuits = root.circuits
        circuit = circuits.get((wanted.user, wanted.version))
        if circuit is None:
            if len(circuits) >= _KEPT:
                for key in [key for key, one in circuits.items() if not _counts(one)]:
                    del circuits[key]
            circuit = circuits[wanted.user, wanted.version] = _Circuit()
        circuit.obey(wanted.budget)
        return circuit

    def _failed(self, circuit: _Circuit, wanted: Try, error: LoginRefused) -> None:
        now = trio.current_time()
        if error.cause == LOGIN_DEFERRED:
            if len(self._not_now) >= _KEPT:
                self._not_now = {key: row for key, row in self._not_now.items() if row[0] > now}
            self._not_now[_host(wanted)] = (now + wanted.pause, error.reason)
            return
        circuit.failed(now, wanted.pause, f"{wanted.name}:{wanted.port}", error)
        self.changed.set()

    def _succeeded(self, circuit: _Circuit, wanted: Try) -> None:
        self._not_now.pop(_host(wanted), None)
        if circuit.streak:
            circuit.succeeded()
            self.changed.set()

    def _tidy(self) -> None:
        if len(self._endpoints) >= _KEPT:
            self._endpoints = {
                member: endpoint
                for member, endpoint in self._endpoints.items()
                if any(map(_counts, endpoint.root().circuits.values()))
            }


def _counts(circuit: _Circuit) -> bool:
    """Whether forgetting a circuit would make a difference."""
    return circuit.streak > 0 or circuit.lock.locked()


def _host(wanted: Try) -> tuple[str, int, str, str]:
    return (wanted.name, wanted.port, wanted.user, wanted.version)


def _check(circuit: _Circuit, wanted: Try, now: float) -> None:
    left = circuit.closed_until() - now
    if left > 0.0:
        here = circuit.said_by == f"{wanted.name}:{wanted.port}"
        raise _refused(
            circuit.text if here else f"{circuit.text} (at {circuit.said_by})", circuit.cause, left
        )


def _refused(text: str, cause: str, left: float) -> LoginRefused:
    error = LoginRefused(text, f"not repeated for another {left:.0f} s")
    error.cause = cause
    return error
