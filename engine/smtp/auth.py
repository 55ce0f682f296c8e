"""The table of SASL mechanisms, and the base64 they travel in (RFC 4954)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Literal

import msgspec

from policy.secret import Secret

from .oauth import BearerClient, BearerServer, XOauth2Client, XOauth2Server
from .plain import (
    CramMd5Client,
    CramMd5Server,
    ExternalClient,
    ExternalServer,
    LoginClient,
    LoginServer,
    PlainClient,
    PlainServer,
)
from .sasl import ClientMechanism, Context, SaslError, ServerMechanism
from .scram import scram_client, scram_server

__all__ = ["MECHANISMS", "Mechanism", "client_mechanism", "decode_base64", "server_mechanism"]


class Mechanism(msgspec.Struct, frozen=True):
    """One row. `needs`: what the client must have. `binds`: it needs a channel binding.
    `random`: the server's half needs a nonce; the client's of SCRAM does as well."""

    client: Callable[[str, Secret, Context], ClientMechanism]
    server: Callable[[Context], ServerMechanism]
    needs: Literal["password", "token", "certificate"]
    binds: bool = False
    random: bool = False


def _scram(name: str) -> Mechanism:
    return Mechanism(scram_client(name), scram_server(name), "password", name.endswith("-PLUS"), True)


MECHANISMS: dict[str, Mechanism] = {
    "EXTERNAL": Mechanism(ExternalClient, ExternalServer, "certificate"),
    "SCRAM-SHA-256-PLUS": _scram("SCRAM-SHA-256-PLUS"),
    "SCRAM-SHA-1-PLUS": _scram("SCRAM-SHA-1-PLUS"),
    "SCRAM-SHA-256": _scram("SCRAM-SHA-256"),
    "SCRAM-SHA-1": _scram("SCRAM-SHA-1"),
    "OAUTHBEARER": Mechanism(BearerClient, BearerServer, "token"),
    "XOAUTH2": Mechanism(XOauth2Client, XOauth2Server, "token"),
    "CRAM-MD5": Mechanism(CramMd5Client, CramMd5Server, "password", random=True),
    "PLAIN": Mechanism(PlainClient, PlainServer, "password"),
    "LOGIN": Mechanism(LoginClient, LoginServer, "password"),
}
"""Name -> the mechanism; the strongest first."""

_NOTHING = Context()


def client_mechanism(name: str, user: str, secret: Secret, context: Context = _NOTHING) -> ClientMechanism:
    """The client's half of a mechanism of the table. `secret`: a password or a token."""
    return MECHANISMS[name].client(user, secret, context)


def server_mechanism(name: str, context: Context = _NOTHING) -> ServerMechanism:
    """The server's half of a mechanism of the table."""
    return MECHANISMS[name].server(context)


def decode_base64(text: bytes) -> bytes:
    """Strict base64; ``=`` alone is the empty response (RFC 4954 4). Raises: SaslError."""
    if text == b"=":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("not base64") from None
