"""Rules: what is done when a peer answers so.

A rule stands in a block and looks at the replies to mail that the block holds for. It has conditions, which
must all be met (`Rule.meets`), a trigger, a duration and actions. What an action is about, its *place*, is as
wide as the rule's block: see `place_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from .asked import Asked
from .patterns import LONGEST, Pattern
from .settings import Key, Origin

__all__ = [
    "ACTIONS",
    "COMMANDS",
    "INTERNAL",
    "Action",
    "ActionKind",
    "Bounces",
    "Failure",
    "Rule",
    "Threshold",
    "meeting",
]

ActionKind = Literal[
    "Suspend",
    "SuspendTenant",
    "SuspendCampaign",
    "Bounce",
    "BounceTenant",
    "BounceCampaign",
    "SetConfig",
    "SetDomainConfig",
]
ACTIONS: tuple[ActionKind, ...] = (
    "Suspend",
    "SuspendTenant",
    "SuspendCampaign",
    "Bounce",
    "BounceTenant",
    "BounceCampaign",
    "SetConfig",
    "SetDomainConfig",
)
INTERNAL = "Posthorn internal: "
"""How every reply text of our own making begins; rules ignore those unless told otherwise."""

COMMANDS = ("MAIL", "RCPT", "DATA", ".")
"""What a reply may answer; ``.``: the final dot."""


class Bounces(Protocol):
    """The bounce classes of a policy."""

    @property
    def names(self) -> Sequence[str]:
        """Every class that a reply can have."""
        ...

    def of(self, line: str) -> str:
        """The class of a reply on one line, ``CODE [E.S.D ]TEXT``."""
        ...


class Failure(msgspec.Struct, frozen=True):
    """One reply that is no success, and whose mail met it. One reply to several recipients is one failure.

    `domain`: where the mail is routed, its routing domain if it has one. `internal`: the text is our own.
    `line`: the reply on one line, ``CODE [E.S.D ]TEXT``. `bounce_class`: its class, where the policy has
    classes.
    """

    domain: str
    source: str
    asked: Asked
    code: int
    enhanced: str = ""
    line: str = ""
    command: str = ""
    internal: bool = False
    tenant: str | None = None
    campaign: str | None = None
    bounce_class: str = ""


class Threshold(msgspec.Struct, frozen=True):
    """So many matches within so many seconds, whenever these seconds begin."""

    number: int
    period: float

    def __str__(self) -> str:
        return f"{self.number}/{self.period:g}s"


class Action(msgspec.Struct, frozen=True):
    """`settings`: of SetConfig and SetDomainConfig, the option's value as the path wants it. `shown`: for
    people."""

    kind: ActionKind
    shown: str
    settings: tuple[tuple[Key, Any], ...] = ()

    @property
    def per_tenant(self) -> bool:
        """Whether it is about one tenant's mail (or one campaign's)."""
        return self.kind.endswith(("Tenant", "Campaign"))

    @property
    def per_campaign(self) -> bool:
        """Whether it is about one campaign's mail."""
        return self.kind.endswith("Campaign")

    @property
    def of_queue(self) -> bool:
        """Whether it is about mail whatever source it leaves from."""
        return self.per_tenant or self.kind == "Bounce"

    @property
    def of_path(self) -> bool:
        """Whether it changes the egress path."""
        return bool(self.settings)


class Rule(msgspec.Struct, frozen=True, eq=False):
    """See the module. `identity`: tells rules apart, also after a restart; another one when a condition or an
    action changes, the same one when lines are moved. `codes`: the beginnings of reply codes.
    `enhanced`: enhanced codes; a final ``.*`` means every detail. `classes`: bounce classes.
    `kind`, `block`, `rollup`: of its block."""

    origin: Origin
    identity: str
    kind: str
    block: str
    rollup: bool
    patterns: tuple[Pattern, ...]
    codes: tuple[str, ...]
    enhanced: tuple[str, ...]
    commands: tuple[str, ...]
    classes: tuple[str, ...]
    match_internal: bool
    threshold: Threshold | None
    duration: float
    shadow: bool
    actions: tuple[Action, ...]

    def meets(self, failure: Failure) -> bool:
        """Whether all conditions are met. Linear in the reply's length."""
        if failure.internal and not self.match_internal:
            return False
        if self.codes and not str(failure.code).startswith(self.codes):
            return False
        if self.enhanced and not any(_covers(one, failure.enhanced) for one in self.enhanced):
            return False
        if self.commands and failure.command.partition(" ")[0] not in self.commands:
            return False
        if self.classes and failure.bounce_class not in self.classes:
            return False
        if not self.patterns:
            return True
        line = failure.line[:LONGEST].encode("utf-8", "replace")
        return any(pattern.found(line) for pattern in self.patterns)

    def counted_with(self, failure: Failure) -> tuple[str, ...]:
        """What a threshold counts together: everything the rule's widest action would hold for."""
        tenant = failure.tenant or "" if any(one.per_tenant for one in self.actions) else ""
        campaign = failure.campaign or "" if any(one.per_campaign for one in self.actions) else ""
        source = "" if all(one.of_queue for one in self.actions) else failure.source
        return (self.identity, self.place(failure), source, tenant, campaign)

    def place(self, failure: Failure) -> str:
        """Where the rule's block holds: a provider, one host or domain by name, or the hosts of the site."""
        if self.kind == "provider":
            return f"provider:{self.block}"
        if self.kind == "domain" and not self.rollup:
            return f"block:{self.block}"
        return f"site:{failure.asked.key}"

    def place_of(self, action: Action, failure: Failure, domain: str) -> str:
        """What an action is about. `domain`: the failure's, as `name_key` spells it."""
        if action.kind == "SetDomainConfig":
            return f"domain:{domain}"
        if self.kind == "provider":
            return f"provider:{self.block}"
        if action.of_queue:
            return f"domain:{domain}"
        if action.kind == "Suspend":
            return f"site:{failure.asked.key}"
        return self.place(failure)


def _covers(wanted: str, enhanced: str) -> bool:
    return enhanced.startswith(wanted[:-1]) if wanted.endswith("*") else enhanced == wanted


def meeting(rules: Sequence[Rule], failure: Failure) -> tuple[Rule, ...]:
    """The rules whose conditions are met, in order."""
    return tuple(rule for rule in rules if rule.meets(failure))
