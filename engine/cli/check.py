"""``posthorn check``: load and validate a policy without starting anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
from cyclopts import Parameter

from engine.cli.report import guarded
from engine.errors import ConfigError
from engine.process import keep_to_itself

if TYPE_CHECKING:
    from engine.tripwire import Tripwire

__all__ = ["check"]

_SCREEN = 20
"""Mistakes that need not be counted."""


def check(
    policy: Path | None = None,
    /,
    *,
    domain: Annotated[list[str] | None, Parameter(negative=())] = None,
    tenant: Annotated[list[str] | None, Parameter(negative=())] = None,
    secrets: Annotated[bool, Parameter(negative=())] = False,
    offline: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Load a policy, run its `init` without acting on it, and ask its egress hooks about a destination.

    No spool, log or listener is opened. The certificate and key of a listener are read if they are files.
    Of a policy with shaping files, the URLs are read and DNS is asked about the blocks with roll-up. Exit
    status 0 when all is well, 2 when not.

    Parameters
    ----------
    policy
        The policy file (Python); without one the shipped default is checked.
    domain
        A destination to ask the hooks about, instead of example.com; may be repeated.
    tenant
        A tenant to ask the hooks about, instead of mail that has none; may be repeated. Its secrets are
        looked at, those of a made-up one are not.
    secrets
        Fetch every secret that was met, and say which cannot be had. None is shown.
    offline
        Read no URL of the shaping files and ask no DNS.
    """
    from engine.tripwire import Tripwire

    keep_to_itself()
    tripwire = Tripwire()
    return guarded(
        lambda: trio.run(_check, policy, domain, tenant, secrets, offline, tripwire),
        command="check",
        tripwire=tripwire,
    )


async def _check(
    path: Path | None,
    domains: list[str] | None,
    tenants: list[str] | None,
    secrets: bool,
    offline: bool,
    tripwire: Tripwire,
) -> None:
    from engine.cli.asked import destination
    from engine.cli.inspection import SAMPLE, Inspection
    from engine.errors import HookError
    from policy import PolicyLoadError
    from policy.errors import PolicyErrors
    from policy.load import load_policy

    asked = [destination(domain, "--domain") for domain in domains or (SAMPLE,)]
    mistakes: list[PolicyLoadError] = []
    try:
        loaded = load_policy(path)
        declared = await loaded.run_init(mistakes)
    except PolicyLoadError as error:
        # What hooks say now may come of an init that was not done.
        last = (*error.__cause__.problems,) if isinstance(error.__cause__, PolicyErrors) else (error,)
        raise _all_of([*mistakes, *last]) from None
    found = Inspection(loaded, declared, [str(mistake) for mistake in mistakes])
    await found.run(asked, tenants or (), offline=offline)
    if secrets:
        await found.fetch_secrets(tripwire)
    if found.problems:
        raise _all_of([HookError(problem) for problem in found.problems])
    lines = [f"{loaded.path}: ok"]
    for name, text in [*found.facts, *(("note", note) for note in found.notes)]:
        lines.append(f"  {name:<10} {text}")
    print(tripwire.text("\n".join(lines), "standard output"))


def _all_of(mistakes: Sequence[Exception]) -> ExceptionGroup[Exception]:
    """All of them; where they fill a screen, with their number behind them."""
    if len(mistakes) <= _SCREEN:
        return ExceptionGroup("the policy has mistakes", mistakes)
    return ExceptionGroup("the policy has mistakes", [*mistakes, ConfigError(f"{len(mistakes):,} mistakes")])
