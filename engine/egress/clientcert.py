"""The certificate that we show to a next hop: fetched, checked, and replaced while we run.

Chain and key come from two key sources, which may be changed one after the other. A new pair is taken when
it parses, belongs together and is in date; until then the one before stays in use (reliability V12).
"""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from engine.certificates import in_date, leaf_of, load_pair
from engine.errors import SecretUnavailable

if TYPE_CHECKING:
    from cryptography import x509

    from engine.keys import KeyRing
    from policy.egress import EgressPath
    from policy.keysource import KeyRef
    from policy.secret import Secret

__all__ = ["ClientCertificate", "ClientCertificates"]

logger = logging.getLogger("posthorn.egress")

_KEPT = 1024


class ClientCertificate:
    """A pair that may be shown. Equal to another when it came from equal contents."""

    __slots__ = ("_chain", "_key", "leaf", "subject", "versions")

    def __init__(self, chain: Secret, key: Secret, versions: tuple[str, str]) -> None:
        """Raises: ValueError when chain and key are no pair."""
        self._chain = chain
        self._key = key
        self.versions = versions
        """Which contents of both sources these are."""
        self.leaf: x509.Certificate = leaf_of(chain.reveal())
        self.subject = self.leaf.subject.rfc4514_string()
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def load(self, context: ssl.SSLContext) -> None:
        """Put it into `context`. Raises: ValueError."""
        load_pair(context, self._chain.reveal(), self._key.reveal())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientCertificate) and other.versions == self.versions

    def __hash__(self) -> int:
        return hash(self.versions)


class ClientCertificates:
    """The pairs in use, by where they come from. One for the engine."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._pairs: dict[tuple[KeyRef, KeyRef], ClientCertificate] = {}
        self._warned: dict[tuple[KeyRef, KeyRef], tuple[str, str]] = {}

    async def get(self, path: EgressPath) -> ClientCertificate | None:
        """What to show on this path now; None when it has no `tls_certificate`.

        Raises: SecretUnavailable when a source cannot be read, and when what it gives is no usable pair.
        """
        if path.tls_certificate is None or path.tls_private_key is None:
            return None
        sources = (path.tls_certificate, path.tls_private_key)
        chain = await self._keys.fetch(sources[0])
        key = await self._keys.fetch(sources[1])
        versions = (chain.version, key.version)
        kept = self._pairs.get(sources)
        try:
            if kept is None or kept.versions != versions:
                kept = self._taken(sources, ClientCertificate(chain.secret, key.secret, versions))
            in_date(kept.leaf, datetime.now(UTC))
        except ValueError as wrong:
            text = f"tls_certificate {sources[0].name}, tls_private_key {sources[1].name}: {wrong}"
            if kept is None or kept.versions == versions or not _is_in_date(kept):
                raise SecretUnavailable(text) from None
            if self._warned.get(sources) != versions:
                self._warned[sources] = versions
                logger.warning("%s; the pair read before stays in use", text)
        return kept

    def current(self, path: EgressPath, shown: ClientCertificate | None) -> bool:
        """Whether a session that showed this may go on: its sources hold nothing newer of use (C45)."""
        if shown is None or path.tls_certificate is None or path.tls_private_key is None:
            return True
        sources = (path.tls_certificate, path.tls_private_key)
        chain, key = self._keys.cached(sources[0]), self._keys.cached(sources[1])
        if chain is None or key is None:
            return False
        return (chain.version, key.version) in (shown.versions, self._warned.get(sources))

    def _taken(self, sources: tuple[KeyRef, KeyRef], new: ClientCertificate) -> ClientCertificate:
        in_date(new.leaf, datetime.now(UTC))
        if sources not in self._pairs and len(self._pairs) >= _KEPT:
            oldest = next(iter(self._pairs))
            del self._pairs[oldest]
            self._warned.pop(oldest, None)
        self._pairs[sources] = new
        return new


def _is_in_date(pair: ClientCertificate) -> bool:
    try:
        in_date(pair.leaf, datetime.now(UTC))
    except ValueError:
        return False
    return True
