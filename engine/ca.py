"""A certificate authority for one run: for the demo, experiments, load tools and tests. Never for mail."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from time import CLOCK_REALTIME, clock_gettime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["ThrowAwayCa"]

_LIFE = timedelta(days=7)


class ThrowAwayCa:
    """Makes server certificates; its key lives in memory only. `pem`: its certificate."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Posthorn throw-away CA")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            # Verifiers in strict mode (Python 3.13 on) want it.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def server_context(self, *hosts: str, expired: timedelta | None = None) -> ssl.SSLContext:
        """A server's TLS context with a certificate for `hosts`, localhost and the loopback addresses.
        `expired`: for how long it has not been valid any more."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sink.posthorn.invalid")])
        names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName("sink.posthorn.invalid")]
        for address in sorted({*hosts, "127.0.0.1", "::1"} - {"localhost"}):
            try:
                names.append(x509.IPAddress(ip_address(address)))
            except ValueError:
                names.append(x509.DNSName(address))
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(subject, self._name, key.public_key(), expired)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name)
        return context


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    expired: timedelta | None = None,
) -> x509.CertificateBuilder:
    # The real date, also where a test has a clock of its own: that is what certificates are judged by.
    now = datetime.fromtimestamp(clock_gettime(CLOCK_REALTIME), UTC)
    if expired is not None:
        now -= expired + _LIFE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFE)
    )
