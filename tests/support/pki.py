"""Certificates as no public authority would issue them: one thing wrong at a time.

A `Pki` is a root. `Pki.server` makes a server context whose certificate is sound unless an argument
says otherwise.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

__all__ = ["CLIENT_AUTH", "SERVER_AUTH", "Pki", "key_pem", "rsa_key"]

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH

_SHA256_RSA = bytes.fromhex("2a864886f70d01010b")
_SHA1_RSA = bytes.fromhex("2a864886f70d010105")


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """An RSA key."""
    return rsa.generate_private_key(65537, bits)


class Pki:
    """An authority. `pem`: what to trust. With `issuer` an intermediate one, sent along by servers.

    `is_ca` False: its certificate does not say that it may issue any.
    """

    def __init__(self, *, key: Key | None = None, issuer: Pki | None = None, is_ca: bool = True) -> None:
        self.key = key or _key()
        self.name = _name("An intermediate authority" if issuer else "An authority")
        self._chain: list[x509.Certificate] = []
        signer = issuer or self
        builder = (
            _builder(self.name, signer.name, self.key, (-1, 7))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(signer._authority(), critical=False)
        )
        certificate = builder.sign(signer.key, hashes.SHA256())
        if issuer is not None:
            self._chain = [certificate, *issuer._chain]
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    def server(
        self, *names: str, given: tuple[bytes, bytes] | None = None, asks: Pki | None = None, **how: Any
    ) -> ssl.SSLContext:
        """A server's context with a new pair (arguments as for `pair`), or the `given` one. `asks`: clients
        are asked for a certificate of this authority, and may do without."""
        context = _context(*(given or self.pair(*names, **how)))
        if asks is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=asks.pem.decode())
        return context

    def pair(
        self,
        *names: str,
        common_name: str = "a server",
        days: tuple[float, float] = (-1, 7),
        key: Key | None = None,
        usage: Sequence[ObjectIdentifier] | None = (SERVER_AUTH,),
        self_signed: bool = False,
        sha1: bool = False,
    ) -> tuple[bytes, bytes]:
        """A chain and its key, PEM. `names`: DNS names and addresses; `days`: from when to when it is valid.

        `sha1` needs an authority with an RSA key.
        """
        key = key or _key()
        subject = _name(common_name)
        builder = _builder(subject, subject if self_signed else self.name, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if names:
            general = [_general_name(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        if not self_signed:
            builder = builder.add_extension(self._authority(), critical=False)
        certificate = builder.sign(key if self_signed else self.key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        if sha1:
            pem = self._signed_with_sha1(certificate)
        links = [link.public_bytes(serialization.Encoding.PEM) for link in self._chain]
        return b"".join([pem, *links]), key_pem(key)

    def client(self, common_name: str = "relay.example", **how: Any) -> tuple[bytes, bytes]:
        """Chain and key (PEM) of a client; arguments as for `pair`."""
        return self.pair(common_name=common_name, usage=(CLIENT_AUTH,), **how)

    def _signed_with_sha1(self, certificate: x509.Certificate) -> bytes:
        """The same certificate under the signature that the library refuses to make."""
        assert isinstance(self.key, rsa.RSAPrivateKey)
        whole = certificate.public_bytes(serialization.Encoding.DER).replace(_SHA256_RSA, _SHA1_RSA)
        signed = certificate.tbs_certificate_bytes.replace(_SHA256_RSA, _SHA1_RSA)
        signature = self.key.sign(signed, padding.PKCS1v15(), hashes.SHA1())
        return ssl.DER_cert_to_PEM_cert(whole.replace(certificate.signature, signature)).encode()


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, days: tuple[float, float]
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )


def key_pem(key: Key) -> bytes:
    """A private key as PEM, PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _context(chain: bytes, key: bytes) -> ssl.SSLContext:
    """A server that serves whatever it is given: judging is the client's part."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python 3.11.2 sets it, 3.11.4 does not
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(key + chain)
        file.flush()
        context.load_cert_chain(file.name)
    return context
