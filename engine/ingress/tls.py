"""The certificate a listener shows: from key sources, or made on the spot.

A pair is taken only when it parses, belongs together and is in date; until a new pair is right
the old one stays in use (reliability V12). Sources are read again every five minutes.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.certificates import in_date, leaf_of, load_pair
from engine.errors import SecretUnavailable, TlsError
from engine.net import end_point_binding

if TYPE_CHECKING:
    from engine.keys import KeyRing
    from engine.smtp import Binding
    from policy.keysource import KeyRef

__all__ = ["ServerTls", "self_signed", "server_context"]

logger = logging.getLogger("posthorn.ingress")

_KEPT = 300.0
"""Seconds a context serves before its sources are asked again."""

_AGAIN = 30.0
"""Seconds before sources that failed are asked again."""

_SELF_SIGNED_DAYS = 397


class ServerTls:
    """The TLS contexts of one listener.

    Without a certificate a self-signed one for `hostname` is made at the first use: clients that
    verify will not take it, opportunistic ones are protected against listeners on the wire.
    """

    def __init__(
        self, keys: KeyRing, hostname: str, certificate: KeyRef | None, private_key: KeyRef | None
    ) -> None:
        self._keys = keys
        self._hostname = hostname
        self._certificate = certificate
        self._private_key = private_key
        self._context: ssl.SSLContext | None = None
        self._until = float("-inf")
        self._pair: tuple[bytes, bytes] | None = None
        self.binding: Binding | None = None
        """What a login is tied to by the certificate of the present context."""
        self._lock = trio.Lock()

    async def context(self) -> ssl.SSLContext:
        """The context for a handshake now. A checkpoint only when the sources are asked.

        Raises: TlsError when there is no usable pair; the text names the key sources.
        """
        context = self._context
        if context is not None and trio.current_time() < self._until:
            return context
        async with self._lock:
            if self._context is None or trio.current_time() >= self._until:
                await self._renew()
            if self._context is None:
                raise TlsError("no certificate to show", stage="STARTTLS")
            return self._context

    async def _renew(self) -> None:
        try:
            certificate, private_key = await self._read()
            if (certificate, private_key) != self._pair:
                self._context = server_context(certificate, private_key, datetime.now(UTC))
                self._pair = (certificate, private_key)
                leaf = leaf_of(certificate)
                self.binding = end_point_binding(leaf.public_bytes(serialization.Encoding.DER))
            self._until = trio.current_time() + _KEPT
        except (SecretUnavailable, ValueError) as error:
            self._until = trio.current_time() + _AGAIN
            text = str(error)
            if isinstance(error, ValueError):  # the other kind names the source itself
                where = (ref.name for ref in (self._certificate, self._private_key) if ref is not None)
                text = f"{' and '.join(where)}: {error}"
            if self._context is None:
                raise TlsError(text, stage="STARTTLS") from None
            logger.warning("%s; the certificate read before stays in use", text)

    async def _read(self) -> tuple[bytes, bytes]:
        if self._certificate is None or self._private_key is None:
            return self._pair or self_signed(self._hostname, datetime.now(UTC))
        certificate = await self._keys.fetch(self._certificate)
        private_key = await self._keys.fetch(self._private_key)
        return certificate.secret.reveal(), private_key.secret.reveal()


def server_context(certificate: bytes, private_key: bytes, now: datetime) -> ssl.SSLContext:
    """A server context for a PEM chain and its PEM private key, TLS 1.2 or later.

    Raises: ValueError when they do not parse, do not belong together or are not in date.
    """
    in_date(leaf_of(certificate), now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, certificate, private_key)
    return context


def self_signed(hostname: str, now: datetime) -> tuple[bytes, bytes]:
    """A new self-signed certificate and its key, PEM, for `hostname` (a name or an IP address)."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters; the subject alternative name is what counts.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    alternative: x509.GeneralName
    try:
        alternative = x509.IPAddress(ipaddress.ip_address(hostname.strip("[]")))
    except ValueError:
        alternative = x509.DNSName(hostname.encode("idna").decode("ascii"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
