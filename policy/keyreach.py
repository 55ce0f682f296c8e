"""What of this machine a key source reaches: who writes it decides to whom a secret of ours is sent.

A policy and the files beside it may name anything. What a URL says may change with nobody here looking, so
it must not hand a file, a variable or the service's own Vault token to a server of its choice.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .keysource import AwsKey, AzureKey, CommandKey, CredentialKey, EnvKey, FileKey, GoogleKey, VaultKey

__all__ = ["reaches"]

_KINDS: tuple[tuple[type, str], ...] = (
    (CommandKey, "run a program of this machine (exec)"),
    (FileKey, "read a file of this machine as a secret"),
    (EnvKey, "read an environment variable of this machine (env)"),
    (CredentialKey, "read a systemd credential of this machine"),
)


def reaches(value: Any, *, public: bool = False) -> str:
    """What an option's value would do on this machine, in the words of an error; empty when it does nothing
    of the kind. Looks at everything inside the value. `public`: a file is no secret (a CA bundle)."""
    for kind, what in _KINDS:
        if isinstance(value, kind) and not (public and kind is FileKey):
            return what
    if (
        isinstance(value, VaultKey)
        and value.address is not None
        and value.token is None
        and value.auth is None
    ):
        return "send this machine's Vault token to a vault_address"
    if isinstance(value, AzureKey) or (isinstance(value, AwsKey | GoogleKey) and value.endpoint is not None):
        return "log in for this machine at a server that it names"
    if isinstance(value, msgspec.Struct):
        inner = (reaches(getattr(value, name)) for name in value.__struct_fields__)
        return next((what for what in inner if what), "")
    return ""
