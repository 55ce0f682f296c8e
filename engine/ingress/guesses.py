"""Password guessing, counted across sessions (reliability S54).

Failed logins are counted per client address and per account. The more there were within an hour, the longer
a refusal takes, and nobody is judged before the time of the last refusal is over, in however many sessions
he tries; at most a few are judged at once. So a guesser gets one guess in half a minute, from one address
or against one account.

Where an account has logged in from an address before, only the failures of that pair count: who fails an
account from everywhere, or other accounts from the same address, does not lock its owner out of his usual
place. Names that belong to nobody are counted like all others and tell nothing.

Three bounded tables, in memory: the least recently used is forgotten first, and a restart forgets all.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

__all__ = ["Guesses", "TurnDenied", "peer_group"]

STEP = 1.0
"""Seconds. A refusal comes a whole number of these after the AUTH: a wrong password and an unknown user look
alike however long the hook needs for either."""

_TYPOS = 3
"""Failures that are refused after one step; then it takes 2, 4, 8 ..."""
_MOST_STEPS = 32
_MEMORY = 3600.0
"""Seconds after the last failure in which its count matters."""
_AT_ONCE = 5
"""Logins judged at the same time of an address or account without a failure; then it is one."""
_PATIENCE = 60.0
"""Seconds that a login may wait to be judged."""
_KEPT = 10_000
"""Rows of each table."""


K = TypeVar("K")


class TurnDenied(Exception):
    """Too many failed logins came before this one: it is refused without being looked at."""


class _Count:
    __slots__ = ("failures", "judging", "last", "lot", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.last = float("-inf")
        self.until = float("-inf")
        self.judging = 0
        self.lot = trio.lowlevel.ParkingLot()

    def fail(self, now: float) -> int:
        """One more failure. Returns: the steps that its refusal takes."""
        self.failures = self.failures + 1 if self.failing(now) else 1
        self.last = now
        return min(1 << min(max(0, self.failures - _TYPOS), 10), _MOST_STEPS)

    def failing(self, now: float) -> bool:
        """Whether there were failures that matter."""
        return now - self.last <= _MEMORY and self.failures > 0


class Guesses:
    """See the module. One for the engine."""

    __slots__ = ("_accounts", "_addresses", "_usual")

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Count] = OrderedDict()
        self._accounts: OrderedDict[bytes, _Count] = OrderedDict()
        self._usual: OrderedDict[tuple[str, bytes], _Count] = OrderedDict()

    @asynccontextmanager
    async def turn(self, peer: str, account: str) -> AsyncIterator[None]:
        """Around the judging of one login, which waits for its turn. Raises: TurnDenied."""
        address, name = peer_group(peer), _key(account)
        with trio.move_on_after(_PATIENCE) as patience:
            counts = await self._wait(address, name)
        if patience.cancelled_caught:
            raise TurnDenied
        for count in counts:
            count.judging += 1
        try:
            yield
        finally:
            for count in counts:
                count.judging -= 1
                count.lot.unpark_all()
            _tidy(self._addresses, address)
            _tidy(self._accounts, name)

    async def _wait(self, address: str, name: bytes) -> list[_Count]:
        while True:
            now = trio.current_time()
            counts = self._counts(address, name)
            full = next((count for count in counts if count.judging >= self._at_once(count, now)), None)
            until = max(count.until for count in counts)
            if until > now:
                await trio.sleep_until(until)
            elif full is not None:
                await full.lot.park()
            else:
                return counts

    def _counts(self, address: str, name: bytes) -> list[_Count]:
        """The counts that matter to this login."""
        if (address, name) in self._usual:
            return [_row(self._usual, (address, name))]
        return [_row(self._addresses, address), _row(self._accounts, name)]

    def _at_once(self, count: _Count, now: float) -> int:
        return 1 if count.failing(now) else _AT_ONCE

    def refused(self, peer: str, account: str, begun: float) -> float:
        """This login, whose judging began at `begun`, failed. Returns: when to say so (monotonic)."""
        address, name = peer_group(peer), _key(account)
        now = trio.current_time()
        counts = self._counts(address, name)
        steps = max(count.fail(now) for count in counts)
        due = begun + ((now - begun) // STEP + steps) * STEP
        for count in counts:
            count.until = due
        return due

    def granted(self, peer: str, account: str) -> None:
        """This login was right: from now on this address is a usual one of the account."""
        usual = _row(self._usual, (peer_group(peer), _key(account)))
        usual.failures = 0
        usual.until = float("-inf")


def _tidy(table: OrderedDict[K, _Count], key: K) -> None:
    """Who never failed needs no row."""
    count = table.get(key)
    if count is not None and not count.failures and not count.judging and not count.lot:
        del table[key]


def _row(table: OrderedDict[K, _Count], key: K) -> _Count:
    count = table.get(key)
    if count is None:
        while len(table) >= _KEPT:
            table.popitem(last=False)
        count = table[key] = _Count()
    else:
        table.move_to_end(key)
    return count


def _key(account: str) -> bytes:
    """An account in a table: of a length that nobody chooses, and the same in large and small letters."""
    return hashlib.blake2b(account.casefold().encode("utf-8", "replace"), digest_size=16).digest()


def peer_group(peer: str) -> str:
    """Who is counted together: an IPv4 address, or the /64 of an IPv6 address (reliability S33)."""
    if ":" not in peer:
        return peer
    return str(ipaddress.IPv6Network((peer.partition("%")[0], 64), strict=False))
