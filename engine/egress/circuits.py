"""Who may try a credential now: one at a time, and nobody while a refusal is fresh (reliability C42).

Peers count failed logins and lock accounts. So there is one *circuit* for each endpoint, user and version
of a secret. While it is closed one login is under way at most, whatever ready queue, source or session wants
it. A login that was not accepted opens it: nobody repeats that login before a pause is over, the pauses grow,
and in no period does the peer see more failures than the budget allows (`account`). A login that is
accepted closes it. A rotated secret is another version, with a circuit of its own and the same budget.

A login counts as failed before it begins, and that is written down (`commit`) before the secret leaves; it
is taken back when the peer accepts. So what breaks it off, a kill of the process included, hides nothing.

An *endpoint* is what may well share one list of accounts. Hosts that stand side by side for a destination
(the MX hosts of a domain, the addresses of a name, the entries of an `mx_list`) do, and so do hosts of one
name or one address, whatever the port. What is learned later only makes endpoints larger.

"Not now" (4xx) is no failure: it concerns one host and port, and the next one may be asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import LoginRefused

from .account import Account, Failure, OpenCircuit, Try, grown
from .rotation import Behind, Rotation

if TYPE_CHECKING:
    from policy.keysource import KeyRef

    from .resolve import Candidate

__all__ = ["LOGIN_DEFERRED", "LOGIN_UNANSWERED", "Circuits", "Endpoint", "OpenCircuit", "Try", "Turn"]

LOGIN_DEFERRED = "login-deferred"
LOGIN_UNANSWERED = "login-unanswered"
"""Causes of held mail, beside those of the errors themselves."""

_KEPT = 10_000
"""Hosts and addresses that are known, and hosts that said "not now" or do not bind as we do."""

_UNBOUND = 24 * 3600.0
"""Seconds a host is not asked again for a channel binding that it refused."""

_NEVER = float("-inf")


class Endpoint:
    """See the module. Two that turn out to be one are joined: ask `root` for what holds."""

    __slots__ = ("_parent", "_told", "accounts", "known", "members", "rotations")

    def __init__(self, told: Callable[[Endpoint, str, Rotation], None] | None = None) -> None:
        self._parent: Endpoint | None = None
        self._told = told
        self.members: set[str] = set()
        self.known = True
        """Whether it is found by its members."""
        self.accounts: dict[str, Account] = {}
        self.rotations: dict[tuple[KeyRef | None, str | None], Rotation] = {}
        """Which version of each secret is in use here, by reference and user."""

    def root(self) -> Endpoint:
        """The endpoint that this one has become part of; itself when it stands alone."""
        found = self
        while found._parent is not None:
            found = found._parent
        return found

    def rotation(self, reference: KeyRef | None, user: str | None) -> Rotation:
        """Which version of a secret is in use; made when nothing is known."""
        rotations = self.root().rotations
        found = rotations.get((reference, user))
        if found is None:
            told = self._told
            changed = partial(told, self, user or "") if told is not None else None
            found = rotations[reference, user] = Rotation(changed)
        return found

    def absorb(self, other: Endpoint) -> None:
        """`other` is part of this one from now on."""
        for user, account in other.accounts.items():
            mine = self.accounts.setdefault(user, account)
            if mine is not account:
                mine.join(account)
        for name, rotation in other.rotations.items():
            self.rotations.setdefault(name, rotation)
        self.members |= other.members
        other._parent = self
        other.accounts = {}


class Turn:
    """One's turn to log in. `waited`: others had it first."""

    __slots__ = ("_begin", "failure", "waited")

    def __init__(self, begin: Callable[[Turn], Awaitable[None]]) -> None:
        self._begin = begin
        self.waited = False
        self.failure: Failure | None = None

    async def begin(self) -> None:
        """The exchange with the peer comes now; the one before, if there was one, was refused. Raises:
        LoginRefused when that leaves nothing of the budget; cancellation leaves nothing counted."""
        await self._begin(self)


class _NotNow(msgspec.Struct):
    """A host that takes no login now. `times`: when it said so, in the last period of the budget."""

    until: float
    text: str
    times: tuple[float, ...]


class Circuits:
    """See the module. One for the engine."""

    __slots__ = ("_behind", "_endpoints", "_most", "_not_now", "_open", "_unbound", "changed", "commit")

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._most = _KEPT
        self._not_now: OrderedDict[tuple[str, int, str], _NotNow] = OrderedDict()
        self._unbound: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._behind: dict[Rotation, tuple[Endpoint, str]] = {}
        """Where another version than the newest is in use, and whose it is."""
        self._open: dict[Account, tuple[Endpoint, str]] = {}
        """Accounts with failures, and whose they are."""
        self.changed = trio.Event()
        """Set when `opened` or `behind` would give something else; whoever waits puts a new one here."""
        self.commit: Callable[[], Awaitable[None]] | None = None
        """Returns when what `opened` gives now was written down."""

    def endpoint(self, candidates: Iterable[Candidate], beside: Iterable[str] = ()) -> Endpoint:
        """What these hosts are together; `beside`: names of others that stand for the same destination."""
        members = [member for one in candidates for member in (one.name.lower(), one.address)]
        return self._endpoint([*members, *(name.lower() for name in beside)])

    def _endpoint(self, members: list[str], known: Endpoint | None = None) -> Endpoint:
        roots = dict.fromkeys(self._endpoints[one].root() for one in members if one in self._endpoints)
        if known is not None:
            roots = {known: None, **roots}
        root = next(iter(roots), None)
        if root is None:
            self._tidy()
            root = Endpoint(self._rotated)
        for other in roots:
            if other is not root:
                root.absorb(other)
                for member in other.members:
                    self._endpoints[member] = root
        for member in members:
            self._endpoints[member] = root
        root.members.update(members)
        root.known = True
        return root

    def check(self, endpoint: Endpoint, wanted: Try, *, flying: bool = False) -> None:
        """Raises: LoginRefused when this login may not be tried now. Ask before connecting. `flying`: it is
        its turn, so that others under way (in what was another endpoint) count."""
        now = trio.current_time()
        account = endpoint.root().accounts.get(wanted.user)
        if account is not None:
            account.obey(wanted.budget)
            left = account.closed_until(wanted, now, flying=flying) - now
            if left > 0.0:
                raise _refused(*account.why(wanted), left)
        found = self._not_now.get(_host(wanted))
        if found is not None and found.until > now:
            raise _refused(found.text, LOGIN_DEFERRED, found.until - now)

    @asynccontextmanager
    async def turn(self, endpoint: Endpoint, wanted: Try) -> AsyncIterator[Turn]:
        """Wait for the turn to try. Say `Turn.begin` before anything is said to the peer. A LoginRefused that
        leaves the block is remembered and raised for everybody else meanwhile, who then say nothing to the
        peer; a block that comes to its end is a login that was accepted. Whatever else leaves it after
        `begin` counts as a failure that was not heard."""

        async def begin(turn: Turn) -> None:
            await self._begin(endpoint, wanted, turn)

        turn = Turn(begin)
        while True:
            account = self._account(endpoint, wanted)
            circuit = account.circuit(wanted.version)
            turn.waited = turn.waited or circuit.lock.locked()
            async with circuit.lock:
                source = account.lock_of(wanted.source)
                turn.waited = turn.waited or (source is not None and source.locked())
                async with account.alone(wanted.source):
                    now = self._account(endpoint, wanted)
                    if account is not now or circuit is not now.circuits.get(wanted.version):
                        continue  # the endpoint has become part of a larger one
                    self.check(endpoint, wanted, flying=True)
                    try:
                        yield turn
                    except LoginRefused as error:
                        if not error.remark:  # else it is one of ours
                            self._failed(endpoint, wanted, turn.failure, error)
                        raise
                    finally:
                        if turn.failure is not None:
                            turn.failure.flying = False
                    if self._account(endpoint, wanted).accepted(wanted, turn.failure):
                        self.changed.set()
                    self._not_now.pop(_host(wanted), None)
                    return

    def hurry(self, endpoint: Endpoint, wanted: Try) -> bool:
        """Something speaks for this login: its pause is over, its budget is not. Whether it may be tried."""
        account = self._account(endpoint, wanted)
        account.circuit(wanted.version).until = _NEVER
        now = trio.current_time()
        return account.closed_until(wanted, now) <= now

    def closed_until(self, endpoint: Endpoint, wanted: Try) -> float:
        """No such login before this moment."""
        account = endpoint.root().accounts.get(wanted.user)
        return account.closed_until(wanted, trio.current_time()) if account is not None else _NEVER

    def unbound(self, name: str, port: int) -> bool:
        """Whether a host refused our kind of channel binding lately."""
        return self._unbound.get((name, port), _NEVER) > trio.current_time()

    def does_not_bind(self, name: str, port: int) -> None:
        """It just did."""
        self._unbound[name, port] = trio.current_time() + _UNBOUND
        self._unbound.move_to_end((name, port))
        if len(self._unbound) > _KEPT:
            self._unbound.popitem(last=False)

    def opened(self) -> Iterator[OpenCircuit]:
        """All that had failures lately."""
        now = trio.current_time()
        for account, (endpoint, user) in [*self._open.items()]:
            root = endpoint.root()
            account.forget(now)
            if not account.failures or root.accounts.get(user) is not account:
                del self._open[account]
            else:
                yield from account.shown(tuple(sorted(root.members)), user, now)

    def writing(self) -> Callable[[], None]:
        """What `opened` gives now is about to be written: from now on the disk says no more than that. Call
        the result when it says as much."""
        numbers = {account: account.numbers() for account in self._open}
        for account, known in numbers.items():
            account.written = {key: min(one, known.get(key, 0)) for key, one in account.written.items()}

        def done() -> None:
            for account, known in numbers.items():
                account.written = known

        return done

    def behind(self) -> Iterator[tuple[tuple[str, ...], str, Behind]]:
        """Hosts and user for whom another version than the newest is in use, and which."""
        for rotation, (endpoint, user) in [*self._behind.items()]:
            found = rotation.behind()
            if found is None or rotation not in endpoint.root().rotations.values():
                del self._behind[rotation]
            else:
                yield tuple(sorted(endpoint.root().members)), user, found

    def _rotated(self, endpoint: Endpoint, user: str, rotation: Rotation) -> None:
        self._behind[rotation] = (endpoint, user)
        self.changed.set()

    def restore(self, known: OpenCircuit) -> None:
        """A circuit that was open when the engine stopped."""
        endpoint = self._endpoint([*known.hosts])
        account = endpoint.accounts.setdefault(known.user, Account())
        account.restore(known)
        self._open[account] = (endpoint, known.user)

    def _account(self, endpoint: Endpoint, wanted: Try) -> Account:
        root = endpoint.root()
        if not root.known:
            self._endpoint([*root.members], root)  # it was forgotten while somebody was on his way there
            root = root.root()
        account = root.accounts.get(wanted.user)
        if account is None:
            if len(root.accounts) >= _KEPT:
                now = trio.current_time()
                root.accounts = {user: one for user, one in root.accounts.items() if one.counts(now)}
            account = root.accounts[wanted.user] = Account()
        account.obey(wanted.budget)
        return account

    async def _begin(self, endpoint: Endpoint, wanted: Try, turn: Turn) -> None:
        account, now = self._account(endpoint, wanted), trio.current_time()
        if turn.failure is not None:
            account.heard(turn.failure, now)
            turn.failure = None
            self.check(endpoint, wanted, flying=True)
        failure = account.began(wanted, now)
        self._note(account, endpoint, wanted)
        if self.commit is not None and not account.is_written(failure):
            try:
                await self.commit()
            except BaseException:
                self._account(endpoint, wanted).take_back(failure)
                self.changed.set()
                raise
        turn.failure = failure

    def _failed(self, endpoint: Endpoint, wanted: Try, failure: Failure | None, error: LoginRefused) -> None:
        account, now = self._account(endpoint, wanted), trio.current_time()
        if error.cause == LOGIN_DEFERRED:
            if failure is not None:
                account.take_back(failure)
            self._deferred(wanted, error, now)
        else:
            account.heard(failure or account.began(wanted, now), now)
            account.failed(wanted, now, error)
        self._note(account, endpoint, wanted)

    def _deferred(self, wanted: Try, error: LoginRefused, now: float) -> None:
        key = _host(wanted)
        found = self._not_now.pop(key, None)
        quantity, period = wanted.budget.quantity, wanted.budget.period
        before = found.times if found is not None else ()
        times = (*(time for time in before if now - time < period), now)[-quantity:]
        until = now + grown(wanted.pause, len(times), max(wanted.pause, period / quantity))
        if len(times) == quantity:  # it may count them all the same
            until = max(until, times[0] + period)
        self._not_now[key] = _NotNow(until, error.reason, times)
        if len(self._not_now) > _KEPT:
            self._not_now.popitem(last=False)

    def _note(self, account: Account, endpoint: Endpoint, wanted: Try) -> None:
        self._open[account] = (endpoint, wanted.user)
        self.changed.set()

    def _tidy(self) -> None:
        # Only what does not count can go, so the next look must wait: if all counts, each would be in vain.
        if len(self._endpoints) < self._most:
            return
        now = trio.current_time()
        kept: dict[str, Endpoint] = {}
        judged: dict[Endpoint, bool] = {}
        for member, endpoint in self._endpoints.items():
            root = endpoint.root()
            if root not in judged:
                judged[root] = root.known = any(one.counts(now) for one in root.accounts.values())
            if judged[root]:
                kept[member] = root
        self._endpoints = kept
        self._most = max(_KEPT, 2 * len(kept))


def _host(wanted: Try) -> tuple[str, int, str]:
    return (wanted.name, wanted.port, wanted.user)


def _refused(text: str, cause: str, left: float) -> LoginRefused:
    error = LoginRefused(text, f"not repeated for another {left:.0f} s")
    error.cause = cause
    return error
