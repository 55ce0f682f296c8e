"""MTA-STS (RFC 8461): reading a domain's record and policy, and what a policy makes of its hosts. Pure.

A policy only ever takes hosts away and adds demands (reliability P4):

``enforce``  hosts that it does not name are not used; the others must show a certificate that verifies.
             What DANE authenticates needs neither (RFC 8461 section 2)
``testing``  mail goes as without it; what would have failed is in the record of the delivery
``none``     nothing

How it is fetched and remembered is in `sts`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Literal, TypeAlias

import msgspec

from engine.egress.site import Site, Sts, make_site, with_sts

__all__ = [
    "DEMAND",
    "LONGEST_AGE",
    "BadPolicy",
    "Policy",
    "judged",
    "narrowed",
    "parse_policy",
    "parse_record",
]

LONGEST_AGE = 31_557_600
"""Seconds; the most that `max_age` may be, about a year (RFC 8461 section 3.2)."""

DEMAND = "the domain's MTA-STS policy demands verified TLS"
"""Who asks for TLS, in errors and records."""

Mode: TypeAlias = Literal["enforce", "testing", "none"]
_MODES: dict[str, Mode] = {"enforce": "enforce", "testing": "testing", "none": "none"}

_RECORD = re.compile(r"v=STSv1[ \t]*;")
_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[\x21-\x3a\x3c\x3e-\x7e]+")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MX = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_AGE = re.compile(r"[0-9]{1,10}")


class BadPolicy(ValueError):
    """What a server said is no policy. The text says why and is safe to show."""


class Policy(msgspec.Struct, frozen=True):
    """What a domain's owner demands of those who send to it. `mx`: patterns in lower case; `max_age`: seconds
    that it may be remembered."""

    mode: Mode
    mx: tuple[str, ...]
    max_age: int

    def names(self, host: str) -> bool:
        """Whether an MX host is one of those that the policy names (RFC 8461 section 4.1): the name itself,
        or ``*.`` in place of its first label, and of that one alone."""
        return _named(host, self.mx)


def _named(host: str, patterns: Container[str]) -> bool:
    host = host.lower()
    _, dot, parent = host.partition(".")
    return host in patterns or (bool(dot) and f"*.{parent}" in patterns)


def parse_record(texts: Iterable[str]) -> str | None:
    """The `id` of the TXT records at ``_mta-sts`` of a domain; None when they announce no policy.

    Other records may stand there; of those that begin with ``v=STSv1;`` there must be one, and it must be
    well formed (RFC 8461 section 3.1). Blanks around ``;`` and at the end are no part of it.
    """
    found = [text for text in texts if _RECORD.match(text)]
    if len(found) != 1:
        return None
    version, *fields = (field.strip(" \t") for field in found[0].split(";"))
    if fields and not fields[-1]:
        fields.pop()
    if version != "v=STSv1" or not all(_FIELD.fullmatch(field) for field in fields):
        return None
    ids = [field[3:] for field in fields if field.startswith("id=")]
    return ids[0] if ids and _ID.fullmatch(ids[0]) else None


def parse_policy(content: bytes) -> Policy:
    """Read a policy file (RFC 8461 section 3.2). Lines end with LF or CR LF; of a field that stands twice the
    first counts, but for `mx`; unknown fields are passed over. Raises: BadPolicy."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise BadPolicy("it is not UTF-8") from None
    fields: dict[str, str] = {}
    mx: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r").strip(" \t")
        if not line:
            continue
        key, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _KEY.fullmatch(key):
            raise BadPolicy(f"line {number} is no field; right would be one such as mode: enforce")
        if key != "mx":
            fields.setdefault(key, value)
        elif _MX.fullmatch(value) and len(value) <= 255:
            mx.append(value.lower())
        else:
            raise BadPolicy(
                f"line {number}: mx is {_shown(value)}; right would be a host name or *.example.com"
            )
    if fields.get("version") != "STSv1":
        raise BadPolicy(f"version is {_value(fields, 'version')}; right would be STSv1")
    mode = _MODES.get(fields.get("mode", ""))
    if mode is None:
        raise BadPolicy(f"mode is {_value(fields, 'mode')}; right would be enforce, testing or none")
    if not _AGE.fullmatch(fields.get("max_age", "")):
        raise BadPolicy(f"max_age is {_value(fields, 'max_age')}; right would be seconds, such as 604800")
    if mode != "none" and not mx:
        raise BadPolicy(f"it has no mx, which mode: {mode} needs")
    return Policy(mode, tuple(dict.fromkeys(mx)), min(int(fields["max_age"]), LONGEST_AGE))


def narrowed(site: Site, domain: str, policy: Policy, *, dane: bool = False) -> Site:
    """The site as `domain` may use it under its policy. Two domains share a site, and with it connections,
    only where their policies come to the same for it. `dane`: the path has it, so that a host of a signed
    domain may do without being named.

    `hosts` is empty when the policy names none of them: then nothing may be sent now.
    """
    if policy.mode == "none" or site.kind != "mx":
        return site
    patterns = frozenset(policy.mx)  # there may be thousands of them
    strange = tuple(dict.fromkeys(host.host for host in site.hosts if not _named(host.host, patterns)))
    if policy.mode == "testing" or (dane and site.secure and strange):
        return with_sts(site, Sts(policy.mode, unnamed=strange))
    hosts = [host for host in site.hosts if host.host not in strange]
    if not hosts:
        return with_sts(site, Sts("enforce", unnamed=strange, domain=domain), hosts=())
    return with_sts(make_site(hosts, route=site.route, secure=site.secure), Sts("enforce"))


def judged(sts: Sts, host: str, *, dane: bool, tls: bool, verified: bool, why: str) -> str:
    """What the policy says of a session, for records. `dane`: a TLSA record matched, and then nobody looked
    at what the policy demands; `why`: why the peer is verified or not."""
    if dane and tls:
        return f"{sts.mode}: left to DANE" + (
            f", the policy does not name {host}" if host in sts.unnamed else ""
        )
    if host in sts.unnamed:
        return f"{sts.mode}: would fail, the policy does not name {host}"
    if tls and verified:
        return f"{sts.mode}: passed"
    return f"{sts.mode}: would fail, {'the peer is not verified' if tls else 'no TLS'} ({why})"


def _value(fields: dict[str, str], key: str) -> str:
    return _shown(fields[key]) if key in fields else "missing"


def _shown(text: str) -> str:
    return ascii(text[:80])
