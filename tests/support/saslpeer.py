"""A `FakePeer` that really authenticates, with the server's halves of our own mechanisms."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from engine.smtp import Auth, AuthLookup, Binding, Context, Reply
from engine.smtp.exchange import ServerExchange
from policy.scramkeys import derive
from policy.secret import Secret

from .peer import FakePeer

__all__ = ["SaslPeer", "offering"]

_UNKNOWN = derive("SHA-256", b"nobody", b"salt of nobodies", 4096)


def offering(*mechanisms: str) -> list[str]:
    """Capabilities with these mechanisms."""
    return ["PIPELINING", "AUTH " + " ".join(mechanisms)]


@dataclass
class SaslPeer(FakePeer):
    """For one connection at a time. `users`: name -> password or token; `logins`: who came in, how."""

    users: dict[str, str] = field(default_factory=lambda: {"scott": "tiger"})
    binding: Binding | None = None
    logins: list[tuple[str, str]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    _exchange: ServerExchange | None = None

    def answer(self, word: str, line: str, default: str) -> str:
        if word in self.replies or (word != "AUTH" and self._exchange is None):
            return super().answer(word, line, default)
        if self._exchange is None:
            _, mechanism, *initial = line.split(" ")
            self.tried.append(mechanism)
            context = Context(nonce=secrets.token_hex(12), binding=self.binding, host="peer.example")
            self._exchange = ServerExchange(mechanism, context)
            turn = self._exchange.begin(initial[0].encode() if initial else b"")
        else:
            turn = self._exchange.line(line.encode())
        if isinstance(turn, AuthLookup):
            stored = self.users.get(turn.authcid)
            turn = self._exchange.known(None if stored is None else Secret(stored), _UNKNOWN)
        if isinstance(turn, bytes):
            return turn.decode().removesuffix("\r\n")
        exchange, self._exchange = self._exchange, None
        if isinstance(turn, Reply):
            return turn.encode().decode().removesuffix("\r\n")
        assert isinstance(turn, Auth)
        shown = turn.password or turn.token
        right = turn.proven
        if right is None:
            right = shown is None or shown == Secret(self.users.get(turn.authcid, ""))
        if right:
            self.logins.append((turn.mechanism, turn.authcid or turn.authzid))
            return "235 2.7.0 ok"
        parting = exchange.parting(Reply(535, "5.7.8", "no"))
        if parting is not None:
            self._exchange = exchange
            return parting.decode().removesuffix("\r\n")
        return "535 5.7.8 no"
