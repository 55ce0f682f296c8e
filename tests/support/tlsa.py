"""TLSA records for certificates, and the certificates a server sends."""

from __future__ import annotations

import _ssl  # type: ignore[import-not-found]
import contextlib
import hashlib
import ssl
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.pki import Pki

__all__ = ["authority", "chain_of", "tlsa"]


def chain_of(context: ssl.SSLContext) -> list[x509.Certificate]:
    """What a server with this context sends, its own certificate first; by a handshake in memory."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    trusting.set_ciphers("DEFAULT:@SECLEVEL=0")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client: Any = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    read = getattr(client, "get_unverified_chain", None) or client._sslobj.get_unverified_chain
    found = [one if isinstance(one, bytes) else one.public_bytes(_ssl.ENCODING_DER) for one in read()]
    return [x509.load_der_x509_certificate(one) for one in found]


def authority(pki: Pki) -> x509.Certificate:
    """Its own certificate."""
    return x509.load_pem_x509_certificate(pki.pem)


def tlsa(certificate: x509.Certificate, usage: int, selector: int, matching: int) -> str:
    """The record for this certificate, as it stands in a zone."""
    selected = certificate.public_bytes(Encoding.DER)
    if selector == 1:
        key = certificate.public_key()
        selected = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = {
        0: bytes,
        1: lambda data: hashlib.sha256(data).digest(),
        2: lambda data: hashlib.sha512(data).digest(),
    }
    return f"{usage} {selector} {matching} {digest[matching](selected).hex()}"
