"""What is wrong with a chain of certificates that OpenSSL accepted at a low security level.

At level 2 it refuses keys of less than 112 bits of strength and signatures by SHA-1 (reliability C24). TLS
1.0 and 1.1 sign by SHA-1 themselves and need level 0; certificates are held to level 2 all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

__all__ = ["weakness"]

_DIGESTS = frozenset({"md5", "sha1"})


def weakness(chain: Sequence[bytes]) -> str:
    """What is weak in a verified chain (DER; the peer's own first, the root last), in OpenSSL's words; "" for
    nothing. The root's signature counts for nothing and is not looked at."""
    for number, content in enumerate(chain):
        whose = "EE" if number == 0 else "CA"
        try:
            certificate = x509.load_der_x509_certificate(content)
            key = certificate.public_key()
            digest = certificate.signature_hash_algorithm
        except (ValueError, UnsupportedAlgorithm):
            return f"{whose} certificate of a kind that cannot be judged"
        small = isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and key.key_size < 2048
        if small or (isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < 224):
            return f"{whose} certificate key too weak"
        if number < len(chain) - 1 and digest is not None and digest.name in _DIGESTS:
            return f"{whose} signature digest algorithm too weak"
    return ""
