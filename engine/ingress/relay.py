"""Who may send where: the relay decision of one session. Pure.

A recipient is accepted when one of these holds:

- the client's address is in the listener's `relay_hosts`;
- the client logged in on this session and the listener says `relay_authenticated`;
- the sender's domain has `relay_from` with the client's address in it;
- the recipient's domain has `relay_to`.

Nothing else grants a right: not the EHLO name, a sender address by itself, reverse DNS or a
header (reliability S50, S51). What domains say comes from the `get_listener_domain` hook, is kept
for the session, and forgotten when the client logs in or starts TLS, for then the hook may answer
otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy.ingress import ListenerDomain
    from policy.nets import CidrSet

__all__ = ["RelayRules"]

_KEPT = 64
"""Domains remembered per session; one that asks about more is asked again."""


class RelayRules:
    """The rules for one client. `peer`: its IP address. Domains are in lower-case A-label form."""

    __slots__ = ("_authenticated", "_domains", "_grant_authenticated", "_peer", "_peer_ok")

    def __init__(self, peer: str, relay_hosts: CidrSet, *, relay_authenticated: bool = False) -> None:
        self._peer = peer
        self._peer_ok = peer in relay_hosts
        self._grant_authenticated = relay_authenticated
        self._authenticated = False
        self._domains: dict[str, ListenerDomain | None] = {}

    @property
    def anywhere(self) -> bool:
        """Whether the client may send to every domain, so that none need be looked up."""
        return self._peer_ok or (self._authenticated and self._grant_authenticated)

    def login(self) -> None:
        """The client authenticated: its rights are looked up anew."""
        self._authenticated = True
        self._domains.clear()

    def reset(self) -> None:
        """TLS began: the login, and what was learned before, do not count any more (S9)."""
        self._authenticated = False
        self._domains.clear()

    def unknown(self, *domains: str) -> list[str]:
        """Those of `domains` whose rules must be looked up and given to `learn`.

        Room is made here and not in `learn`: what one decision needs is never forgotten under it.
        """
        missing = [domain for domain in dict.fromkeys(domains) if domain and domain not in self._domains]
        if missing and len(self._domains) + len(missing) > _KEPT:
            self._domains.clear()
            return self.unknown(*domains)
        return missing

    def learn(self, domain: str, rules: ListenerDomain | None) -> None:
        """What the hook said about a domain that `unknown` named; None: nothing."""
        self._domains[domain] = rules

    def allows(self, sender_domain: str, recipient_domain: str) -> bool:
        """Whether a message from `sender_domain` (``""``: the null reverse-path) may go there."""
        if self.anywhere:
            return True
        sender = self._domains.get(sender_domain) if sender_domain else None
        if sender is not None and self._peer in sender.relay_from:
            return True
        recipient = self._domains.get(recipient_domain)
        return recipient is not None and recipient.relay_to
