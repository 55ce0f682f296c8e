"""Whether a host is this machine: plain http may carry a secret there and nowhere else (reliability V7)."""

from __future__ import annotations

from ipaddress import ip_address

__all__ = ["is_loopback"]


def is_loopback(host: str) -> bool:
    """For the host of a URL."""
    if host == "localhost":
        return True  # but not names below it: a name server may be asked for those, RFC 6761 or not
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
