"""Pins: which public keys a peer's certificates may have, by SHA-256 of SubjectPublicKeyInfo (RFC 7469)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from engine.net import key_pin

__all__ = ["Pinned", "pinned"]

Pinned: TypeAlias = Literal["leaf", "issuer"]


def pinned(chain: Sequence[bytes], pins: Sequence[str]) -> Pinned | None:
    """Whose key in `chain` (DER, the peer's own certificate first) is among `pins`; None: nobody's.

    An issuer counts only in a chain that was verified: without that anybody may send the pinned
    authority's certificate along. The caller gives no more of a chain than counts.
    """
    for number, certificate in enumerate(chain):
        if key_pin(certificate) in pins:
            return "issuer" if number else "leaf"
    return None
