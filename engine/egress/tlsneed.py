"""What TLS a session must have before anything is said in it: one value, that can be tightened only.

It starts as what the egress path says (`TlsNeed.of`). What is learned of a host later, from DNS or from a
policy of its domain's owner, may add demands by `tightened`, and nothing takes one away: TLS that is
required stays required, a peer that must be authenticated stays so, pins and the path's own CA stay
(reliability P4). Who authenticates the peer may change in one way. A `check`, such as a match with TLSA
records, stands in for the *system's* roots, because a domain's owner who signed what the key is says more
than any of those (RFC 7672 3.1.1). It never stands in for a `tls_ca` or `tls_pins` that an operator wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from policy.egress import EgressPath

__all__ = ["PeerCheck", "TlsNeed", "Verdict"]


class Verdict(msgspec.Struct, frozen=True):
    """What a `PeerCheck` says of a peer. `why`: one phrase for records and errors, in both cases. `expires`:
    when the first certificate ends that it goes by, as `time.time`. `name`: the first that the peer's has."""

    ok: bool
    why: str
    expires: float = float("inf")
    name: str | None = None


class PeerCheck(Protocol):
    """Authenticates a peer by the certificates it showed, right after the handshake.

    Must be hashable, and equal only to what accepts the same peers: sessions are resumed between equal
    needs (reliability C27). Does not wait.
    """

    def __call__(self, chain: Sequence[bytes]) -> Verdict:
        """`chain`: certificates (DER) as the peer sent them, its own first; nothing of it was checked but
        that the peer holds the first one's key."""
        ...


class TlsNeed(msgspec.Struct, frozen=True):
    """See the module.

    `use`: TLS is spoken if the peer offers it. `required`: without it no mail goes to this host.
    `verify`: chain, dates and name are checked against `tls_ca`, or the system's roots without `own_ca`.
    `name`: the name to check and to send as SNI, None: the host's. `pins`: keys of which the peer, or (where
    `verify` found it) an issuer, must have one; beside everything else. `minimum` and `ciphers`: as the path
    has them. `implicit`: TLS is there from the first octet on. `check`: see `PeerCheck`; `sni`: the name
    to send when it stands in for the roots. `mode`: the path's `enable_tls`; `demand`: who asks for it, in
    words.
    """

    mode: str
    use: bool = True
    required: bool = False
    verify: bool = False
    own_ca: bool = False
    name: str | None = None
    pins: tuple[str, ...] = ()
    minimum: str = "TLSv1.2"
    ciphers: str | None = None
    implicit: bool = False
    check: PeerCheck | None = None
    sni: str | None = None
    demand: str = ""

    @classmethod
    def of(cls, path: EgressPath) -> TlsNeed:
        """What the path's own options say."""
        mode = path.enable_tls
        return cls(
            mode=mode,
            use=mode != "Disabled",
            required=mode in ("Required", "RequiredInsecure"),
            verify=mode in ("Required", "Opportunistic"),
            own_ca=path.tls_ca is not None,
            name=path.tls_server_name,
            pins=path.tls_pins or (),
            minimum=path.tls_minimum_version,
            ciphers=path.openssl_cipher_list,
            implicit=path.tls_implicit,
            demand=f"enable_tls is {mode}",
        )

    @property
    def authenticates(self) -> bool:
        """Whether a session under this need has a peer that proved who it is."""
        return self.verify or self.check is not None

    def tightened(
        self,
        why: str,
        *,
        required: bool = False,
        verify: bool = False,
        check: PeerCheck | None = None,
        sni: str | None = None,
    ) -> TlsNeed:
        """This need and more. `why`: who demands it, for records and errors, such as "DANE".

        `required`: TLS or no mail, also where the path says "Disabled". `verify`: that, and chain and name
        are checked; nothing more where a `check` already authenticates (DANE before MTA-STS, RFC 8461 2).
        `check`: that, and the peer is authenticated by it; `sni`: under which name it is asked for.
        Raises: ValueError for a second `check`.
        """
        if check is not None and self.check is not None:
            raise ValueError("two checks of one peer")
        check = check or self.check
        # Whoever demanded as much before is named, not who repeats it.
        adds = not self.required or ((verify or check is not None) and not self.authenticates)
        return msgspec.structs.replace(
            self,
            use=self.use or required or verify or check is not None,
            required=self.required or required or verify or check is not None,
            verify=(self.verify or verify) and (check is None or self.own_ca),
            check=check,
            sni=sni or self.sni,
            demand=why if adds else self.demand,
        )

    def name_for(self, host: str) -> str:
        """The name to check and to send as SNI (an address is never sent)."""
        if self.sni is not None and not self.verify:
            return self.sni
        return self.name or host
