"""``posthorn explain``: which way mail to an address would take now, and who said so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import trio
from cyclopts import Parameter

from engine.cli.report import guarded
from engine.process import keep_to_itself

__all__ = ["explain"]

_PLACE = "standard output"


def explain(
    address: str,
    /,
    *,
    policy: Path | None = None,
    source: str | None = None,
    tenant: str | None = None,
    campaign: str | None = None,
    routing_domain: str | None = None,
    secrets: Annotated[bool, Parameter(negative="--no-secrets")] = True,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Print route, site, ready queue, TLS and AUTH for mail to an address, and each option of the path with
    the file and line (or the hook) that set it and what it overrode.

    The policy is loaded and its hooks are asked; DNS, the policy's URLs and its key sources are asked, too.
    Nothing is sent, and no running relay is touched. A secret is never shown: its name, version and age are.

    Parameters
    ----------
    address
        An address, or a domain alone.
    policy
        The policy file; without one the shipped default.
    source
        This egress source alone, instead of every source of the pool.
    tenant
        The tenant of the message.
    campaign
        The campaign of the message.
    routing_domain
        Where a hook would send the message instead of its domain.
    secrets
        Fetch the password, to say its version and age.
    json
        One JSON object instead of text.
    """

    from engine.tripwire import Tripwire

    keep_to_itself()
    tripwire = Tripwire()

    async def run() -> None:
        from engine.cli.explanation import Question, explained

        question = Question(address, source, tenant, campaign, routing_domain, secrets)
        found = await explained(policy, question, tripwire)
        if json:
            line = tripwire.json_lines(found.as_json().encode(), _PLACE)
            print(msgspec.json.format(line).decode())
        else:
            print(tripwire.text(found.as_text(), _PLACE))

    return guarded(lambda: trio.run(run), command="explain", tripwire=tripwire)
