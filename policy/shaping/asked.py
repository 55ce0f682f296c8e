"""What a path is asked for: a site and its hosts."""

from __future__ import annotations

import msgspec

from ..errors import Wrong
from ..nets import parse_mx
from .names import Host, host_of

__all__ = ["Asked", "asked_by_name"]


class Asked(msgspec.Struct, frozen=True):
    """The site a path is asked for. `key`: tells sites apart. `smart`: the hosts are an `mx_list`."""

    site_name: str
    hosts: tuple[Host, ...] = ()
    smart: bool = False
    key: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The set of hosts, as `Sites` has it: without preferences, with ports."""
        return frozenset(host.key for host in self.hosts)


def asked_by_name(site_name: str) -> Asked:
    """What a site's name alone tells: the hosts of an ``mx_list:``, or one single host."""
    smart = site_name.startswith("mx_list:")
    texts = site_name[len("mx_list:") :].split(",") if smart else [site_name]
    try:
        hosts = tuple(host_of(parse_mx(text)) for text in texts)
    except Wrong:  # several hosts, factored
        hosts = ()
    return Asked(site_name, hosts, smart, site_name)
