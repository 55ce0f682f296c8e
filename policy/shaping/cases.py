"""``[[test]]`` blocks: a reply or an address in, the expected actions or options out.

They are run against all files together whenever these are read, and refuse them when one fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ..egress import EgressPath
from ..errors import PolicyError
from .asked import Asked
from .rules import Action, Bounces, Failure, meeting
from .settings import MAPS, UNSET, Key, Origin
from .shown import shown

if TYPE_CHECKING:
    from .table import Found, Table

__all__ = ["Case", "failing"]

_DEFAULT = EgressPath()


class Case(msgspec.Struct, frozen=True):
    """One test. `failure`: the reply that comes in, None where options are asked for. `actions`: what is
    expected, whatever the triggers, in any order. `options`: what is expected of the path."""

    origin: Origin
    domain: str
    source: str
    asked: Asked
    failure: Failure | None = None
    actions: tuple[Action, ...] = ()
    options: tuple[tuple[Key, Any], ...] = ()


def failing(table: Table, cases: Iterator[Case], bounces: Bounces | None) -> Iterator[PolicyError]:
    """What the tests that fail have to say. `bounces`: the policy's bounce classes."""
    for case in cases:
        where = case.origin.where
        try:
            if case.failure is not None:
                failure = case.failure
                if bounces is not None:
                    failure = msgspec.structs.replace(failure, bounce_class=bounces.of(failure.line))
                yield from _actions(table, case, failure)
            else:
                yield from _options(table.find(case.domain, case.source, case.asked), case)
        except PolicyError as problem:
            yield PolicyError(f"this test fails: {problem}", where)


def _same(expected: Action, given: Action) -> bool:
    return expected.kind == given.kind and (not expected.settings or expected.settings == given.settings)


def _actions(table: Table, case: Case, failure: Failure) -> Iterator[PolicyError]:
    rules = meeting(table.rules_for(case.domain, case.asked), failure)
    given = [(action, rule) for rule in rules for action in rule.actions]
    missing = list(case.actions)
    extra: list[str] = []
    for action, rule in given:
        for one in missing:
            if _same(one, action):
                missing.remove(one)
                break
        else:
            extra.append(f"{action.shown} ({rule.origin.where})")
    if missing or extra:
        wanted = ", ".join(one.shown for one in case.actions) or "no action"
        got = ", ".join(f"{action.shown} ({rule.origin.where})" for action, rule in given) or "no action"
        yield PolicyError(
            f'this test fails: "{failure.line}" for {case.domain} leads to {got}, not to {wanted}',
            case.origin.where,
        )


def _options(found: Found, case: Case) -> Iterator[PolicyError]:
    for (option, entry), value in case.options:
        given = getattr(found.path, option)
        if option in MAPS:
            given = given.get(entry)
        expected = getattr(_DEFAULT, option) if value is UNSET else value
        if given != expected:
            setting = found.settings.get((option, entry))
            by = f" ({setting.origin.where})" if setting is not None else ""
            name = f'{option}."{entry}"' if entry else option
            yield PolicyError(
                f"this test fails: {name} for {case.domain} is {shown(given)}{by}, not {shown(expected)}",
                case.origin.where,
            )
