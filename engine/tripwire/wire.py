"""Which secrets are live, and what happens where one is found.

Key sources register what they resolve (`Tripwire.watch`); an older version stays registered for `KEPT`
seconds, because sessions that used it may still be under way. A client's password is known to the
session it was said in and to nobody else (`keep_private`): clients choose what they send, and one that says
``delivered`` must not make that word vanish from everybody's records.

Sets of patterns do not change: a new secret goes into a small one that is made on the spot, `tidy` brings
small ones together in a worker thread, and they are exchanged in one assignment. While new ones come, sets
grow by merging those of like size, so that each secret is moved a few times in its life, however many there
are. When none has come for a while, most are brought into one: each set costs time in every search.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar

import msgspec

from engine._fast import PatternSet
from policy.secret import Secret

from .forms import forms
from .jsonlines import rewritten

__all__ = ["KEPT", "MARK", "Tripwire", "TripwireStatistics", "keep_private", "private"]

logger = logging.getLogger("posthorn.tripwire")

MARK = b"********"
"""Stands where a secret was. Of one length, as that of a password is nobody's business either."""

KEPT = 3600.0
"""Seconds an older version of a secret stays registered, at least while there are few of them."""

_REPORT = 60.0
"""Seconds between two alarms about one secret in one place."""
_YOUNG = 8
"""Secrets up to which a new one is added on the spot: a third of a millisecond of the event loop."""
_GROWN = 8192
"""Secrets of a set at most: 30 MB, made in a second, some 30 ms of it with nothing else running."""
_CALM = 10.0
"""Seconds without a new secret after which sets are merged though they differ more in size."""
_MOST = 50_000
"""Secrets from which on older versions are forgotten before their time; and owners that are remembered."""
_REMEMBERED = 10_000
"""Places and names that alarms are counted for."""


class TripwireStatistics(msgspec.Struct, frozen=True):
    """Counts for metrics. `watched`: secrets, older versions included; `hits`: found since the start, by
    place and name."""

    watched: int
    hits: dict[tuple[str, str], int]


class _Watched:
    """One secret. `until`: monotonic time at which it is `gone`."""

    __slots__ = ("_forms", "gone", "name", "owners", "until")

    def __init__(self, name: str, secret: Secret) -> None:
        self.name = name
        self.owners: set[Hashable] = set()
        # In one piece, as small objects cost more than what is in them: size, word or not, octets.
        self._forms = b"".join(
            len(form).to_bytes(2, "big") + bytes((word,)) + form
            for form, word in forms(secret.reveal()).items()
        )
        self.until = math.inf
        self.gone = False

    def patterns(self) -> Iterator[tuple[bytes, bool]]:
        """The forms, and whether each counts only where it stands alone."""
        packed, at = self._forms, 0
        while at < len(packed):
            begin = at + 3
            at = begin + int.from_bytes(packed[at : at + 2], "big")
            yield packed[begin:at], packed[begin - 1] != 0


class _Layer:
    """Some secrets in one set of patterns."""

    __slots__ = ("names", "patterns", "secrets")

    def __init__(self, secrets: Iterable[_Watched]) -> None:
        self.secrets = tuple(secrets)
        # Pattern -> twice the number of its secret, and one more if it is a word. Numbers, since tuples would
        # call the garbage collector, which holds up the event loop.
        known: dict[bytes, int] = {}
        sorting: dict[int, list[bytes]] = {}
        for number, watched in enumerate(self.secrets):
            for pattern, word in watched.patterns():
                before = known.get(pattern)
                if before is None:
                    sorting.setdefault(int.from_bytes(pattern[:2], "big"), []).append(pattern)
                if before is None or (before & 1 and not word):
                    known[pattern] = number * 2 + word
        # By first octets, since nothing else runs while Python sorts a list.
        found = [pattern for first in sorted(sorting) for pattern in sorted(sorting[first])]
        self.names = [self.secrets[known[pattern] >> 1].name for pattern in found]
        self.patterns = PatternSet(found, bytes(known[pattern] & 1 for pattern in found))


def _to_merge(layers: Sequence[_Layer], *, calm: bool) -> range:
    """Which neighbours of `layers` should be one; an empty range when there is nothing to do. `calm`: no new
    secrets come. While they do the last one grows, and is left out.

    The first one is not much larger than those behind it together, so each secret is moved seldom.
    """
    end, times, few = (len(layers), 8, 2) if calm else (max(0, len(layers) - 1), 2, 3)
    found, total = end, 0
    for at in range(end - 1, -1, -1):
        size = len(layers[at].secrets)
        if total + size > _GROWN:
            break
        if size < times * total and end - at >= few:
            found = at
        total += size
    return range(found, end)


def _living(secrets: Sequence[_Watched], layer: _Layer | None = None) -> list[_Layer]:
    """One set of those that are not gone, or none. `layer`: the set of all of them, which will do while most
    are left."""
    left = [watched for watched in secrets if not watched.gone]
    if layer is not None and len(left) * 2 > len(secrets):
        return [layer]
    return [_Layer(left)] if left else []


_SAID = 8
"""Passwords of one session that are remembered; it may try fewer."""
_LONGEST_SAID = 2048
"""Octets of each that are hidden: clients must not make us work for more."""
_said: ContextVar[_Layer | None] = ContextVar("said", default=None)


def keep_private(secret: Secret) -> None:
    """From now on `private` hides `secret` in what the running task, and threads it waits for, have to tell:
    the password a client has just said, or what is stored of it."""
    value = secret.reveal()
    if len(value) > _LONGEST_SAID:
        secret = Secret(value[:_LONGEST_SAID])
    layer = _said.get()
    before = layer.secrets[1 - _SAID :] if layer is not None else ()
    _said.set(_Layer((*before, _Watched("", secret))))


def private(text: str) -> str:
    """`text` without what this session keeps private. That is its client's own: no alarm, and what other
    sessions tell is not touched."""
    layer = _said.get()
    if layer is None:
        return text
    data = text.encode("utf-8", "surrogatepass")
    found = layer.patterns.search(data)
    return (
        text
        if found is None
        else _without(data, [(begin, end) for begin, end, _ in found]).decode("utf-8", "replace")
    )


def _without(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    parts = []
    at = 0
    for begin, end in sorted(spans):
        if begin >= at:
            parts += [data[at:begin], MARK]
        at = max(at, end)
    parts.append(data[at:])
    return b"".join(parts)


class Tripwire:
    """See the module. One for the process. Every method may be called in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._current: OrderedDict[Hashable, Secret] = OrderedDict()
        self._watched: dict[Secret, _Watched] = {}
        self._layers: tuple[_Layer, ...] = ()
        self._tidying = False
        self._newest = -math.inf
        self._hits: dict[tuple[str, str], int] = {}
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<Tripwire: {len(self._watched)} secrets>"

    # -- which secrets ---------------------------------------------------------------------------

    def watch(self, owner: Hashable, name: str, secret: Secret) -> None:
        """`secret` is what `owner` (a reference, say) stands for from now on; `name` is for alarms.

        Nothing happens if it did so before; else the earlier value becomes an older version. A value
        with no form that can be told from ordinary text is not searched for (`forms`).
        """
        with self._lock:
            if self._current.get(owner) == secret:
                return
            self._release(owner)
            self._current[owner] = secret
            if len(self._current) > _MOST:
                self._release(next(iter(self._current)))
            watched = self._watched.get(secret)
            if watched is None:
                watched = self._watched[secret] = _Watched(name, secret)
                self._add(watched)
            watched.owners.add(owner)
            watched.until = math.inf

    def release(self, owner: Hashable) -> None:
        """`owner` stands for nothing any more; what it stood for is an older version now."""
        with self._lock:
            self._release(owner)

    def _release(self, owner: Hashable) -> None:
        before = self._current.pop(owner, None)
        if before is not None:
            watched = self._watched[before]
            watched.owners.discard(owner)
            if not watched.owners:
                watched.until = self._clock() + KEPT

    def _add(self, watched: _Watched) -> None:
        layers = self._layers
        self._newest = self._clock()
        if layers and len(layers[-1].secrets) < _YOUNG:
            self._layers = (*layers[:-1], _Layer((*layers[-1].secrets, watched)))
        else:
            self._layers = (*layers, _Layer((watched,)))

    @property
    def untidy(self) -> bool:
        """Whether `tidy` has something to do: call it then, in a worker thread."""
        layers = self._layers
        return not self._tidying and len(layers) > 1 and len(_to_merge(layers, calm=self._calm())) > 0

    def _calm(self) -> bool:
        return self._clock() - self._newest >= _CALM

    def tidy(self) -> None:
        """Merge sets, and forget older versions whose time is over. A second or two for ten thousand secrets,
        and the lock is held for little of it."""
        with self._lock:
            if self._tidying:
                return
            self._tidying = True
            self._forget()
            layers = self._layers
        tidied: list[_Layer] | None = None
        try:
            which = _to_merge(layers, calm=self._calm())
            merged = [watched for at in which for watched in layers[at].secrets]
            tidied = [each for layer in layers[: which.start] for each in _living(layer.secrets, layer)]
            tidied += _living(tuple(dict.fromkeys(merged)))
        finally:
            with self._lock:
                self._tidying = False
                if tidied is not None:
                    behind = which.stop
                    if behind and self._layers[behind - 1] is not layers[behind - 1]:
                        behind -= 1  # the last one has grown meanwhile
                    rest = [each for layer in self._layers[behind:] for each in _living(layer.secrets, layer)]
                    self._layers = (*tidied, *rest)

    def _forget(self) -> None:
        now = self._clock()
        excess = len(self._watched) - _MOST
        for secret, watched in list(self._watched.items()):
            if watched.until < now or (excess > 0 and not watched.owners):
                watched.gone = True
                del self._watched[secret]
                excess -= 1

    def statistics(self) -> TripwireStatistics:
        with self._lock:
            return TripwireStatistics(len(self._watched), dict(self._hits))

    # -- what is about to be shown ---------------------------------------------------------------

    def octets(self, data: bytes, place: str) -> bytes:
        """`data` with each secret in it masked; an alarm names `place`. Without one, the same object."""
        for layer in self._layers:
            if layer.patterns.search(data) is not None:
                return self._masked(data, place)
        return data

    def text(self, text: str, place: str) -> str:
        """Likewise."""
        if not self._layers:
            return text
        data = text.encode("utf-8", "surrogatepass")
        masked = self.octets(data, place)
        return text if masked is data else masked.decode("utf-8", "replace")

    def json_lines(self, lines: bytes, place: str, ours: frozenset[str] = frozenset()) -> bytes:
        """Likewise for objects of JSON, one in a line, which stay that: inside of strings is looked alone.

        `ours`: names of outer members whose value is a word of our own and no text of anybody's.
        """
        for layer in self._layers:
            if layer.patterns.search(lines) is not None:
                break
        else:
            return lines
        return b"".join(
            self._json_line(line, place, ours) if self._shows(line) else line
            for line in lines.splitlines(keepends=True)
        )

    def _shows(self, data: bytes) -> bool:
        return any(layer.patterns.search(data) is not None for layer in self._layers)

    def _json_line(self, line: bytes, place: str, ours: frozenset[str]) -> bytes:
        return rewritten(line, lambda text: self.text(text, place), ours)

    def _masked(self, data: bytes, place: str) -> bytes:
        spans: list[tuple[int, int]] = []
        names: dict[str, None] = {}
        for layer in self._layers:
            for begin, end, number in layer.patterns.search(data) or ():
                spans.append((begin, end))
                names[layer.names[number]] = None
        for name in names:
            self._alarm(place, name)
        return _without(data, spans)

    def _alarm(self, place: str, name: str) -> None:
        key = (place, name)
        now = self._clock()
        with self._lock:
            if key not in self._hits and len(self._hits) >= _REMEMBERED:
                key = (place, "others")
            count = self._hits[key] = self._hits.get(key, 0) + 1
            told_at, told = self._told.get(key, (-math.inf, 0))
            if now - told_at < _REPORT:
                return
            self._told[key] = (now, count)
        more = f" ({count - told - 1} times more in between)" if count - told > 1 else ""
        logger.error(
            "LEAK: the secret of %s was about to be shown in %s; it was masked%s", key[1], place, more
        )
