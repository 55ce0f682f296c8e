"""What is stored of a password so that SCRAM can check it (RFC 5802 3): not the password itself.

The text form is the one PostgreSQL stores: ``SCRAM-SHA-256$4096:SALT$STOREDKEY:SERVERKEY``, the last
three in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Any, Literal, TypeAlias

import msgspec

from .errors import PolicyError, Wrong, caller
from .secret import Secret

__all__ = ["HASHES", "MOST_ITERATIONS", "ScramHash", "ScramKeys", "derive", "new_scram_keys", "scram_keys"]

ScramHash: TypeAlias = Literal["SHA-1", "SHA-256"]

HASHES: dict[str, str] = {"SHA-1": "sha1", "SHA-256": "sha256"}
"""The name in a mechanism -> the name in hashlib."""

LEAST_ITERATIONS = 4096  # RFC 5802 5.1, RFC 7677 4
MOST_ITERATIONS = 600_000
"""About a third of a second of one core; OWASP's figure for PBKDF2 with SHA-256 (2023)."""
LEAST_SALT = 12

_TEXT = re.compile(r"SCRAM-(SHA-1|SHA-256)\$([0-9]{1,7}):([^:$]+)\$([^:$]+):([^:$]+)")
_RIGHT = 'right would be "SCRAM-SHA-256$4096:SALT$STOREDKEY:SERVERKEY" with the last three in base64'


class ScramKeys(msgspec.Struct, frozen=True):
    """Keys of one password for one hash. Whoever has them can pretend to be the server, and can try
    passwords; so they are `Secret`."""

    hash: ScramHash
    iterations: int
    salt: bytes
    stored_key: Secret
    server_key: Secret

    def stored(self) -> str:
        """The text to store, which `scram_keys` reads."""
        parts = (self.salt, self.stored_key.reveal(), self.server_key.reveal())
        salt, stored, server = (base64.b64encode(part).decode() for part in parts)
        return f"SCRAM-{self.hash}${self.iterations}:{salt}${stored}:{server}"

    def __repr__(self) -> str:
        return f"ScramKeys(SCRAM-{self.hash}, ***)"


def scram_keys(text: str | Secret) -> ScramKeys:
    """The keys that `text` describes; see the module. Raises: PolicyError, which shows nothing of it."""
    found = _attempt(text)
    if isinstance(found, Wrong):
        del text
        raise PolicyError(f"scram_keys: {found}; {_RIGHT}", caller())
    return found


def new_scram_keys(
    password: str | Secret, *, salt: bytes, iterations: int = LEAST_ITERATIONS, hash: ScramHash = "SHA-256"
) -> ScramKeys:
    """The keys of a password of printable ASCII; `salt` is new chance for each, ``os.urandom(16)``.

    Raises: PolicyError, which shows nothing of the password.
    """
    given = password.reveal() if isinstance(password, Secret) else password.encode("utf-8", "replace")
    del password
    printable = bool(given) and all(0x20 <= octet <= 0x7E for octet in given)
    if hash not in HASHES:
        wrong = 'hash is "SHA-256" or "SHA-1"'
    elif not printable:
        wrong = "the password is not printable ASCII; others must be prepared as RFC 4013 says"
    elif len(salt) < LEAST_SALT:
        wrong = f"the salt has less than {LEAST_SALT} octets"
    elif not LEAST_ITERATIONS <= iterations <= MOST_ITERATIONS:
        wrong = f"iterations is not between {LEAST_ITERATIONS} and {MOST_ITERATIONS}"
    else:
        return derive(hash, given, salt, iterations)
    del given
    raise PolicyError(f"new_scram_keys: {wrong}", caller())


def _attempt(text: Any) -> ScramKeys | Wrong:
    if isinstance(text, Secret):
        text = text.reveal().decode("utf-8", "replace")
    match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return Wrong("is not in the form of stored keys")
    try:
        salt, stored, server = (base64.b64decode(part, validate=True) for part in match.groups()[2:])
    except (binascii.Error, ValueError):
        return Wrong("holds a part that is not base64")
    hash_: ScramHash = "SHA-1" if match[1] == "SHA-1" else "SHA-256"
    size = hashlib.new(HASHES[hash_]).digest_size
    if len(stored) != size or len(server) != size:
        return Wrong(f"holds a key that is not {size} octets long")
    if len(salt) < LEAST_SALT:
        return Wrong(f"has a salt of less than {LEAST_SALT} octets")
    if not LEAST_ITERATIONS <= int(match[2]) <= MOST_ITERATIONS:
        return Wrong(f"has not between {LEAST_ITERATIONS} and {MOST_ITERATIONS} iterations")
    return ScramKeys(hash_, int(match[2]), salt, Secret(stored), Secret(server))


def derive(hash_: ScramHash, password: bytes, salt: bytes, iterations: int) -> ScramKeys:
    """The keys of a password (prepared already, RFC 4013). Takes as long as `iterations` says."""
    name = HASHES[hash_]
    salted = hashlib.pbkdf2_hmac(name, password, salt, iterations)
    stored = hashlib.new(name, hmac.digest(salted, b"Client Key", name)).digest()
    return ScramKeys(
        hash_, iterations, salt, Secret(stored), Secret(hmac.digest(salted, b"Server Key", name))
    )
