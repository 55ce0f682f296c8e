"""Certificates: a peer's as it stands, and our own, chain and key from PEM into a TLS context, or a reason
for people."""

from __future__ import annotations

import os
import re
import ssl
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["in_date", "key_info", "leaf_of", "load_pair", "read", "subject_of"]

_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)

_PARTS, _PART = 16, 256
"""Parts of a subject, and characters of one: strangers choose both."""


def leaf_of(certificate: bytes) -> x509.Certificate:
    """The first certificate of a PEM chain. Raises: ValueError."""
    try:
        return x509.load_pem_x509_certificates(certificate)[0]
    except (ValueError, IndexError):
        raise ValueError("the certificate is no PEM certificate") from None


def read(der: bytes) -> x509.Certificate:
    """A certificate as a peer or a zone shows it. Raises: ValueError, whatever is wrong with it."""
    try:
        return x509.load_der_x509_certificate(der)
    except x509.InvalidVersion as error:  # the one that is no ValueError
        raise ValueError(str(error)) from None


def subject_of(der: bytes) -> tuple[str, ...]:
    """The parts of a certificate's subject as RFC 4514 writes them, such as ``CN=mx.example``; no more than
    records can bear, and none of a certificate that cannot be read."""
    try:
        return tuple(part.rfc4514_string()[:_PART] for part in list(read(der).subject)[:_PARTS])
    except (TypeError, ValueError):
        return ()


def key_info(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo as it stands in the certificate. The library would encode the key anew, which
    for RSASSA-PSS gives other octets (RFC 5280 4.1: version, serial number, signature, issuer, validity,
    subject, and then this)."""
    der = certificate.tbs_certificate_bytes
    at, _ = _contents(der, 0)
    if der[at] == 0xA0:  # a version is there, as in every certificate but one of version 1
        at = _contents(der, at)[1]
    for _ in range(5):
        at = _contents(der, at)[1]
    return der[at : _contents(der, at)[1]]


def _contents(der: bytes, at: int) -> tuple[int, int]:
    """Where the contents of the DER element at `at` begin and end."""
    length = der[at + 1]
    begin = at + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[at + 2 : begin])
    return begin, begin + length


def in_date(leaf: x509.Certificate, now: datetime) -> None:
    """Raises: ValueError when the certificate is not valid at this time."""
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ValueError(
            f"the certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%d} "
            f"to {leaf.not_valid_after_utc:%Y-%m-%d}, not now"
        )


def load_pair(context: ssl.SSLContext, certificate: bytes, private_key: bytes) -> None:
    """Put a PEM chain and its PEM private key (PKCS#8, PKCS#1 or SEC1, without a passphrase) into `context`.

    Raises: ValueError when they do not parse or do not belong together; it says nothing of the key's content.
    """
    if _ENCRYPTED.search(private_key):
        raise ValueError(
            "the private key is protected by a passphrase; right would be the key without one, as "
            "`openssl pkey -in KEY` writes it"
        )
    # The ssl module takes files only. An anonymous one in memory never touches a disk.
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(private_key.rstrip() + b"\n" + certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
    except ssl.SSLError as error:
        reason = getattr(error, "reason", None) or ""
        if "MISMATCH" in reason:
            raise ValueError("certificate and private key do not belong together") from None
        if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
            raise ValueError(f"the certificate is too weak ({reason.replace('_', ' ').lower()})") from None
        raise ValueError("the private key is no PEM key") from None
    finally:
        os.close(descriptor)


def _no_passphrase() -> bytes:
    # Without this the ssl module would ask for one on the terminal.
    return b""
