"""A new version of a secret is taken into use as a new version of a program is: tried first. Pure.

For each secret, user and endpoint one version is *active*. When its source has another one, a session that
was to be opened is given that for a *trial*: it connects, does TLS and AUTH, and says goodbye (the
probe); then it connects again with the new version and carries a message (the canary). When that came to
an end the new version is active, and sessions that were opened with the old one finish their message and
close. Meanwhile all others go on with the old version, and they go on with it when the new one is
refused. That is said aloud and tried again later; an old version outlives a newer one by `FALLBACK` at
most. When it is the active version that is refused, the newest takes its place as soon as it is accepted.

The first version is used without a trial: there is nothing to go back to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.keys import Credential

__all__ = ["AGAIN", "FALLBACK", "Behind", "Rotation"]

FALLBACK = 24 * 3600.0
"""Seconds an old version is used while a newer one is refused; as long as one whose source is out."""

AGAIN = 10.0
"""Seconds until a trial that came to nothing is repeated; after a refusal the circuit has a word, too."""

_NOMINATION = 5.0
"""Seconds within which one session is asked to end for the sake of a trial."""

_LONGEST_TRIAL = 900.0
"""Seconds after which a trial of which nothing was heard is given up. Only a defect needs that."""


class Behind(NamedTuple):
    """A version that is `active` while `newest` is not, since that was seen (monotonic seconds). `trying`: a
    trial is under way."""

    active: str
    newest: str
    since: float
    trying: bool


class Rotation:
    """See the module. Times are monotonic seconds."""

    __slots__ = (
        "_asked",
        "_begun",
        "_changed",
        "_pending",
        "_retry_at",
        "_since",
        "_trial",
        "active",
        "proven",
    )

    def __init__(self, changed: Callable[[Rotation], None] | None = None) -> None:
        """`changed` is told when `behind` gives something else."""
        self._changed = changed
        self.active: Credential | None = None
        self.proven = False
        """Whether the peer accepted the active version once."""
        self._pending: str | None = None
        """The version that waits for its trial, or is in it."""
        self._since = float("-inf")
        self._trial: Credential | None = None
        self._begun = float("-inf")
        self._retry_at = float("-inf")
        self._asked = float("-inf")

    def behind(self) -> Behind | None:
        """What is in use instead of the newest version; None: that is."""
        if self._pending is None or self.active is None or self.active.version == self._pending:
            return None
        return Behind(self.active.version, self._pending, self._since, self._trial is not None)

    def choose(self, newest: Credential, now: float, *, may_try: bool = True) -> tuple[Credential, bool]:
        """What the next session is to use, and whether that is a trial. Who is given one says how it went:
        `promote` or `undecided`. `may_try`: it can be."""
        active = self.active
        if active is None or not self.proven or newest.version == active.version:
            self._use(newest, proven=self.proven and active is not None and newest.version == active.version)
            return newest, False
        self._see(newest.version, now)
        if now - self._since >= FALLBACK:
            self._use(newest, proven=False)
            return newest, False
        if self._trial is not None and now - self._begun < _LONGEST_TRIAL:
            return active, False
        if now < self._retry_at or not may_try:
            return active, False
        self._trial, self._begun = newest, now
        self._tell()
        return newest, True

    def current(self, version: str, newest: str, now: float) -> bool:
        """Whether a session that was opened with `version` may go on, now that the source has `newest`. Says
        No to one of them when a trial is due, so that somebody begins it."""
        if version == newest or (self._trial is not None and version == self._trial.version):
            return True
        if self.active is None or version != self.active.version:
            return False
        self._see(newest, now)
        if self._trial is not None or now < self._retry_at or now < self._asked + _NOMINATION:
            return True
        self._asked = now
        return False

    def accepted(self, version: str) -> None:
        """The peer took a login with it."""
        if self.active is not None and version == self.active.version:
            self.proven = True

    def replace(self, newest: Credential) -> str | None:
        """The active version was refused and `newest` accepted. Returns: the version that it replaced."""
        before = self.active.version if self.active is not None else None
        self._use(newest, proven=True)
        return before

    def promote(self, version: str) -> str | None:
        """The trial of this version went well. Returns: the version that it replaced, None: it came to
        nothing meanwhile."""
        trial = self._trial
        if trial is None or trial.version != version:
            return None
        before = self.active.version if self.active is not None else None
        self.active, self.proven, self._trial = trial, True, None
        if self._pending == version:
            self._pending = None
        self._tell()
        return before

    def undecided(self, version: str, again: float) -> None:
        """The trial came to nothing. `again`: when the next one may be made."""
        if self._trial is not None and self._trial.version == version:
            self._trial = None
            self._retry_at = again
            self._tell()

    def _see(self, version: str, now: float) -> None:
        if self._pending != version:
            self._pending, self._since = version, now
            self._retry_at = self._asked = float("-inf")
            self._tell()

    def _use(self, credential: Credential, *, proven: bool) -> None:
        waited = self._pending is not None
        self.active, self.proven = credential, proven
        self._pending = self._trial = None
        if waited:
            self._tell()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed(self)
