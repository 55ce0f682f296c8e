"""engine/certificates.py: what is read of a stranger's certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from engine.certificates import subject_of


def test_a_subject_is_what_can_be_read_of_it_and_no_longer_than_records_can_bear() -> None:
    assert subject_of(b"no certificate") == () == subject_of(b"")
    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "é" * 60)] * 40)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin + timedelta(days=1))
    parts = subject_of(builder.sign(key, SHA256()).public_bytes(Encoding.DER))
    assert parts == ("OU=" + "é" * 60,) * 16
