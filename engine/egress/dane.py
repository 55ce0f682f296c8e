"""DANE for SMTP (RFC 7672): what TLSA records say of a peer's certificates. Pure but for the date.

Two uses of a certificate count (RFC 7672 3.1): DANE-EE (3) names the peer's own certificate or key, and then
neither names nor dates matter (3.1.1); DANE-TA (2) names an issuer that the peer sends along, and then the
chain up to it, its dates and a name are checked (3.1.2). All other records are *unusable*: they say that
there is TLS, and nothing of who speaks it.

How the records are found, and what it takes to believe them, is in tlsa.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from engine.certificates import key_info, read

from .tlsneed import Verdict

__all__ = ["DaneCheck", "Tlsa", "parse_tlsa", "usable"]

DANE_TA, DANE_EE = 2, 3
"""Certificate usages (RFC 6698 7.2, RFC 7218)."""
_CERTIFICATE, _KEY = 0, 1
"""Selectors: the whole certificate, or its SubjectPublicKeyInfo."""
_FULL, _SHA256, _SHA512 = 0, 1, 2
"""Matching types."""

_DIGESTS = {_SHA256: hashlib.sha256, _SHA512: hashlib.sha512}
_CHAIN_LIMIT = 16
"""Certificates of a peer that are looked at."""
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


class Tlsa(msgspec.Struct, frozen=True):
    """One TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        digits = self.data.hex()
        return f"{self.usage} {self.selector} {self.matching} {digits[:16]}{'...' if digits[16:] else ''}"

    def matches(self, certificate: x509.Certificate) -> bool:
        """Whether this record is of that certificate (RFC 6698 2.1.2, 2.1.3); its usage is not looked at."""
        return self.data == _presented(certificate, self.selector, self.matching)


def _presented(certificate: x509.Certificate, selector: int, matching: int) -> bytes:
    """What a record of this kind would have to say of the certificate."""
    selected = certificate.public_bytes(Encoding.DER) if selector == _CERTIFICATE else key_info(certificate)
    digest = _DIGESTS.get(matching)
    return selected if digest is None else digest(selected).digest()


def parse_tlsa(text: str) -> Tlsa:
    """A record as it stands in a zone: ``3 1 1 0123...``; white space inside the digits is ignored.

    Raises: ValueError.
    """
    words = text.split()
    if len(words) < 4 or not all(word.isascii() and word.isdigit() for word in words[:3]):
        raise ValueError("no TLSA record")
    usage, selector, matching = (int(word) for word in words[:3])
    return Tlsa(usage, selector, matching, bytes.fromhex("".join(words[3:])))


def usable(texts: Iterable[str]) -> tuple[Tlsa, ...]:
    """The records that can authenticate a peer, in a fixed order.

    Of records that differ in their digest alone the strongest digest counts (RFC 7671 9).
    """
    found: set[Tlsa] = set()
    for text in texts:
        try:
            record = parse_tlsa(text)
        except ValueError:
            continue
        if _is_usable(record):
            found.add(record)
    strongest: dict[tuple[int, int], int] = {}
    for record in found:
        kind = (record.usage, record.selector)
        strongest[kind] = max(strongest.get(kind, _FULL), record.matching)
    kept = (
        record for record in found if record.matching in (_FULL, strongest[record.usage, record.selector])
    )
    return tuple(sorted(kept, key=lambda one: (-one.usage, one.selector, one.matching, one.data)))


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (_CERTIFICATE, _KEY):
        return False
    digest = _DIGESTS.get(record.matching)
    if digest is not None:
        return len(record.data) == digest().digest_size
    if record.matching != _FULL:
        return False
    try:
        if record.selector == _CERTIFICATE:
            read(record.data)
        else:
            load_der_public_key(record.data)
    except _UNREADABLE:
        return False
    return True


class DaneCheck(msgspec.Struct, frozen=True):
    """A `PeerCheck` by TLSA records.

    `records`: usable ones. `names`: those of which the certificate must have one when an issuer is named
    (RFC 7672 3.2.2), in the subjectAltName as everywhere; the TLSA base domain is the first.
    """

    records: tuple[Tlsa, ...]
    names: tuple[str, ...]

    def __call__(self, chain: Sequence[bytes]) -> Verdict:
        """See `PeerCheck`."""
        base = self.names[0]
        try:
            certificates = [read(der) for der in chain[:_CHAIN_LIMIT]]
            if not certificates:
                return Verdict(False, f"DANE: the peer showed no certificate ({base})")
            return self._judged(certificates)
        except _UNREADABLE as error:
            return Verdict(False, f"DANE: a certificate of the peer cannot be read ({base}): {error}")

    def _judged(self, certificates: list[x509.Certificate]) -> Verdict:
        leaf, *others = certificates
        base = self.names[0]
        kinds = {(record.selector, record.matching) for record in self.records}
        own = {(*kind, _presented(leaf, *kind)) for kind in kinds}
        for record in self.records:
            if record.usage == DANE_EE and (record.selector, record.matching, record.data) in own:
                why = f"DANE: TLSA {record} of {base} matches the peer"
                return Verdict(True, why, name=next(iter(_names(leaf)), None))
        anchors = self._anchors(others)
        anchors.pop(leaf, None)
        if anchors:
            name = _first_name(leaf, self.names)
            found = _chain(leaf, others, list(anchors), name)
            if isinstance(found, str):
                record = next(iter(anchors.values()))
                return Verdict(
                    False, f"DANE: TLSA {record} of {base} matches an issuer, but for {name}: {found}"
                )
            return Verdict(
                True,
                f"DANE: TLSA {anchors[found[-1]]} of {base} matches an issuer; chain verified for {name}",
                min(one.not_valid_after_utc.timestamp() for one in found),
                next(iter(_names(leaf)), None),
            )
        key = hashlib.sha256(key_info(leaf)).hexdigest()
        listed = ", ".join(str(record) for record in self.records[:4])
        more = f" and {len(self.records) - 4} more" if len(self.records) > 4 else ""
        return Verdict(
            False,
            f"DANE: the peer is none of the TLSA records of {base} ({listed}{more}); its key is 3 1 1 {key}",
        )

    def _anchors(self, others: Sequence[x509.Certificate]) -> dict[x509.Certificate, Tlsa]:
        """The issuers that DANE-TA records name, each with its record: among what the peer sent, or a record
        itself if it is a whole certificate. The peer's own certificate is none (RFC 7671 5.2)."""
        named = [record for record in self.records if record.usage == DANE_TA]
        sent: dict[tuple[int, int, bytes], list[x509.Certificate]] = {}
        for kind in {(record.selector, record.matching) for record in named}:
            for one in others:
                sent.setdefault((*kind, _presented(one, *kind)), []).append(one)
        anchors: dict[x509.Certificate, Tlsa] = {}
        for record in named:
            if record.selector == _CERTIFICATE and record.matching == _FULL:
                anchors.setdefault(read(record.data), record)
            for issuer in sent.get((record.selector, record.matching, record.data), ()):
                anchors.setdefault(issuer, record)
        return anchors


def _names(leaf: x509.Certificate) -> list[str]:
    """Its DNS names; none where they cannot be read."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        return []
    return [name for name in found.get_values_for_type(x509.DNSName) if len(name) <= 253]


def _first_name(leaf: x509.Certificate, names: Sequence[str]) -> str:
    """The first of these names that the certificate has; the first of all if it has none. Whether it counts
    is for `_chain` to say."""
    has = {name.lower() for name in _names(leaf)}
    for name in names:
        if name in has or f"*.{name.partition('.')[2]}" in has:
            return name
    return names[0]


def _chain(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], anchors: list[x509.Certificate], name: str
) -> list[x509.Certificate] | str:
    """The certificates from `leaf`, a server of that name, to one of the anchors; or why there are none.

    A peer can send certificates that lead to each other in thousands of ways, all of which would be looked at
    while everything else stands still. So only a few of them count.
    """
    try:
        subject = x509.DNSName(name)
    except ValueError:
        return "no name that a certificate can have"
    between = _few(one for one in others if one not in anchors and not _is_self_signed(one))
    of_own_name = [one for one in between if one.subject == one.issuer]
    verifier = (
        PolicyBuilder()
        .store(Store(_few(anchors)))
        .extension_policies(ca_policy=_ISSUER, ee_policy=_SERVER)
        .build_server_verifier(subject)
    )
    try:
        return verifier.verify(leaf, [one for one in between if one not in of_own_name[1:]])
    except VerificationError as error:
        return str(error).removeprefix("validation failed: ").partition(" (encountered")[0]


def _few(certificates: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Of each name those with the first two keys: so many there are while a key is changed."""
    kept: dict[x509.Name, dict[bytes, x509.Certificate]] = {}
    for one in certificates:
        keys = kept.setdefault(one.subject, {})
        if len(keys) < 2:
            keys.setdefault(key_info(one), one)
    return [one for keys in kept.values() for one in keys.values()]


def _is_self_signed(certificate: x509.Certificate) -> bool:
    if certificate.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def _may_sign(policy: Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("an issuer whose key may not sign certificates")


def _is_server(
    policy: Policy, certificate: x509.Certificate, extension: x509.ExtendedKeyUsage | None
) -> None:
    allowed = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if extension is not None and not any(usage in allowed for usage in extension):
        raise ValueError("a certificate that is not for servers")


# The library's own policies are those of web browsers, and refuse ordinary certificates of mail servers.
_ISSUER = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
)
_SERVER = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _is_server)
)
