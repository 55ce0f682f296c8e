"""A certificate of our own: chain and key from PEM into a TLS context, or a reason for people."""

from __future__ import annotations

import os
import re
import ssl
from typing import TYPE_CHECKING

from cryptography import x509

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["in_date", "leaf_of", "load_pair"]

_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)


def leaf_of(certificate: bytes) -> x509.Certificate:
    """The first certificate of a PEM chain. Raises: ValueError."""
    try:
        return x509.load_pem_x509_certificates(certificate)[0]
    except (ValueError, IndexError):
        raise ValueError("the certificate is no PEM certificate") from None


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
