"""``posthorn check``: load and validate a policy without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from engine.cli.report import guarded

__all__ = ["check"]


def check(
    policy: Path | None = None,
    /,
    *,
    domain: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Load a policy, run its `init` without acting on it, and ask its egress hooks about a destination.

    No socket, spool or log is opened, and no secret is fetched; the certificate and key of a listener
    are read if they are files. Exit status 0 when all is well, 2 when not.

    Parameters
    ----------
    policy
        The policy file (Python); without one the shipped default is checked.
    domain
        A destination to ask the hooks about, instead of example.com; may be repeated.
    """
    return guarded(lambda: trio.run(_check, policy, domain), command="check")


async def _check(path: Path | None, domains: list[str] | None) -> None:
    from engine.cli.inspection import SAMPLE, Inspection
    from engine.errors import HookError
    from policy.load import load_policy

    loaded = load_policy(path)
    found = Inspection(loaded, await loaded.run_init())
    await found.run(domains or [SAMPLE])
    if found.problems:
        raise ExceptionGroup("the policy has mistakes", [HookError(problem) for problem in found.problems])
    print(f"{loaded.path}: ok")
    for name, text in [*found.facts, *(("note", note) for note in found.notes)]:
        print(f"  {name:<10} {text}")
