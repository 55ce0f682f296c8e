"""TLS contexts for outgoing sessions: what is trusted, for which path.

Verified modes check the chain and the name by RFC 9525: subjectAltName only, no common name; an
IP target needs an IP entry and sends no SNI. TLS 1.2 is the least (RFC 8996, 9325); OpenSSL's
security level 2 refuses SHA-1 signatures and RSA keys under 2,048 bits. A private CA given for a
path *replaces* the system store for that path (reliability C24 to C26).

Contexts are expensive (loading the system store costs milliseconds) and shared; a context is
never shared between two trust settings, so a resumed session cannot cross one (C27).
"""

from __future__ import annotations

import ssl
from collections import OrderedDict

from engine.errors import TlsError

__all__ = ["TlsContexts"]

_KEPT = 64


class TlsContexts:
    """A small cache of client contexts, keyed by verification and CA bundle."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[bool, bytes | None], ssl.SSLContext] = OrderedDict()

    def get(self, *, verify: bool, ca_pem: bytes | None) -> ssl.SSLContext:
        """The context for these settings. `ca_pem`: a PEM bundle that replaces the system store.

        Raises: TlsError when the bundle holds no usable certificate.
        """
        key = (verify, ca_pem if verify else None)
        context = self._cache.get(key)
        if context is not None:
            self._cache.move_to_end(key)
            return context
        context = _make(verify, ca_pem if verify else None)
        self._cache[key] = context
        if len(self._cache) > _KEPT:
            self._cache.popitem(last=False)
        return context


def _make(verify: bool, ca_pem: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers("DEFAULT:!aNULL:!eNULL:!EXPORT:@SECLEVEL=2")
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    context.hostname_checks_common_name = False
    if ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (ssl.SSLError, ValueError, UnicodeDecodeError):
        raise TlsError("tls_ca holds no PEM certificate that can be read", stage="STARTTLS") from None
    if not context.cert_store_stats().get("x509"):
        raise TlsError("tls_ca holds no certificate", stage="STARTTLS")
    return context
