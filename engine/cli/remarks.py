"""Remarks of ``posthorn explain``: what it could not find out, and what stands in the way."""

from __future__ import annotations

from engine.egress.resolve import Resolver
from engine.errors import ResolveError
from engine.queues.ready import ReadyQueue

__all__ = ["doubt", "nowhere"]

_HOSTS = 10
"""Hosts of a site that are looked up."""


def doubt(blocks: int) -> tuple[str, ...]:
    """Blocks that might hold for this mail, too."""
    if not blocks:
        return ()
    noun = "block that holds" if blocks == 1 else "blocks that hold"
    return (
        f"DNS did not say in time which hosts stand behind {blocks:,} {noun} for its whole site: whether "
        "more of them hold for this mail is not known",
    )


async def nowhere(resolver: Resolver, ready: ReadyQueue) -> list[str]:
    """Smart hosts that have no address now. Those of an MX have been looked at on the way here."""
    found: list[str] = []
    for host in ready.site.hosts[:_HOSTS] if ready.site.kind == "mx_list" else ():
        if host.literal:
            continue
        try:
            addresses = await resolver.addresses_for(host.host, ready.path.ip_lookup_strategy, route=True)
        except ResolveError as error:
            found.append(f"{host.host}: {error}")
        else:
            if not addresses:
                found.append(f"{host.host} has no address, so nothing can be sent there now")
    return found
