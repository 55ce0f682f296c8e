"""Logging in to a next hop: what `smtp_auth` of an egress path takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from .errors import Wrong, a_type, did_you_mean
from .keysource import KeyRef, read_key
from .kinds import AuthName, Key
from .options import Kind, Table, kinds_of
from .release import ReleaseTo
from .units import Throttle, parse_throttle

__all__ = [
    "CERTIFICATE",
    "EVERY",
    "FAILURE_BUDGET",
    "MOST_FAILURES",
    "PASSWORD",
    "TOKEN",
    "Login",
    "Mechanisms",
    "SmtpAuth",
    "read_mechanisms",
]

CERTIFICATE = ("EXTERNAL",)
PASSWORD = (
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "PLAIN",
    "LOGIN",
)
TOKEN = ("OAUTHBEARER", "XOAUTH2")
_OLD = ("CRAM-MD5",)
"""Used only where a list names it."""

EVERY = (*CERTIFICATE, *PASSWORD[:4], *TOKEN, *_OLD, *PASSWORD[4:])
"""All mechanisms, the strongest first."""


def read_mechanisms(value: Any) -> tuple[str, ...]:
    """Names of mechanisms, brought into order. Raises: Wrong."""
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple):
        raise Wrong(f"is no list but {a_type(value)}")
    for name in value:
        if not isinstance(name, str):
            raise Wrong(f"holds {a_type(name)}")
        if name not in EVERY:
            raise Wrong(f'holds "{name}", which is none of them{did_you_mean(name, EVERY)}', complete=True)
    if not value:
        raise Wrong("is empty")
    return tuple(name for name in EVERY if name in value)


Mechanisms = Annotated[
    tuple[str, ...], Kind("a list of " + ", ".join(f'"{name}"' for name in EVERY), read_mechanisms)
]


FAILURE_BUDGET = Throttle(6, 3600.0)
"""What a peer may see unless a policy says otherwise. A guess below what known peers lock an account for."""
MOST_FAILURES = 100


def _budget(value: Any) -> Throttle:
    budget = parse_throttle(value)
    if budget.quantity > MOST_FAILURES or budget.max_burst is not None:
        raise Wrong(f"is more than {MOST_FAILURES}" if budget.max_burst is None else "has a max_burst")
    return budget


Budget = Annotated[
    Throttle, Kind(f'a rate of at most {MOST_FAILURES} in a period, such as "4/h" or "1/30min"', _budget)
]


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """Who we are to a peer, and how that may be shown. `mechanisms`: those allowed, the strongest first.
    `release_to`: whom the credential may be told; None: whoever the path leads to.
    `failure_budget`: failed logins of one user with one secret, whatever its version, that a peer may see in
    a period."""

    mechanisms: Mechanisms
    username: AuthName | None = None
    password: Key | None = None
    token: Key | None = None
    release_to: ReleaseTo | None = None
    failure_budget: Budget = FAILURE_BUDGET

    @property
    def reference(self) -> KeyRef | None:
        """Where the secret comes from; None when there is none (EXTERNAL)."""
        return self.password if self.password is not None else self.token


def _smtp_auth(value: Any) -> Login:
    if isinstance(value, Login):
        return value
    if not isinstance(value, Mapping):
        raise Wrong(f"is no mapping but {a_type(value)}")
    given = _TABLE.read(value)
    sources = [key for key in ("password", "token", "oauth2") if key in given]
    if len(sources) > 1:
        raise Wrong(f'"{sources[0]}" and "{sources[1]}" are two secrets for one login', complete=True)
    if "oauth2" in given:
        given["token"] = given.pop("oauth2")
    names: tuple[str, ...] | None = given.pop("mechanisms", None)
    if names is None:
        if not sources:
            raise Wrong('"password", "token", "oauth2" or "mechanisms" is missing', complete=True)
        names = PASSWORD if "password" in given else TOKEN
    for name in names:
        needed = "password" if name in (*PASSWORD, *_OLD) else "token" if name in TOKEN else None
        if needed is not None and needed not in given:
            raise Wrong(f'"{name}" needs "{needed}"', complete=True)
    if sources and "username" not in given:
        raise Wrong(f'"username" is missing beside "{sources[0]}"', complete=True)
    if "password" in given and not any(name in (*PASSWORD, *_OLD) for name in names):
        raise Wrong('"password" is used by none of the mechanisms', complete=True)
    if "token" in given and not any(name in TOKEN for name in names):
        raise Wrong('"token" is used by none of the mechanisms', complete=True)
    return Login(mechanisms=names, **given)


def _oauth2(value: Any) -> KeyRef:
    if not isinstance(value, Mapping) or "token_endpoint" not in value:
        raise Wrong('is no mapping with "token_endpoint" and "client_id"')
    return read_key(value)


_TABLE = Table(
    {
        **kinds_of(Login)[0],
        "oauth2": Kind('{"token_endpoint": URL, "client_id": ..., ...}', _oauth2, secret=True),
    },
    nullable=frozenset(
        {"mechanisms", "username", "password", "token", "oauth2", "release_to", "failure_budget"}
    ),
    noun="key",
)

SmtpAuth = Annotated[
    Login,
    Kind(
        '{"username": ..., "password": KEY}, {"username": ..., "token": KEY}, '
        '{"username": ..., "oauth2": {...}} or {"mechanisms": ["EXTERNAL"]}',
        _smtp_auth,
        secret=True,
    ),
]
