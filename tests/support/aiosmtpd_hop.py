"""aiosmtpd as a next hop: STARTTLS and AUTH demanded, messages kept as octets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.ports import free_port

__all__ = ["AiosmtpdHop", "run_aiosmtpd"]


@dataclass
class AiosmtpdHop:
    """A running aiosmtpd. `messages`: sender, recipients, content, TLS version of each."""

    port: int
    messages: list[tuple[str, list[str], bytes, str]] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Called by aiosmtpd."""
        version = session.ssl["ssl_object"].version() if session.ssl else "none"
        self.messages.append((envelope.mail_from, envelope.rcpt_tos, bytes(envelope.content), version))
        return "250 2.0.0 taken"


@contextmanager
def run_aiosmtpd(context: ssl.SSLContext, *, user: str, password: str) -> Iterator[AiosmtpdHop]:
    """A server on a loopback port, in a thread of its own, until the block is left."""

    def login(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
        right = isinstance(given, LoginPassword) and given == LoginPassword(user.encode(), password.encode())
        return AuthResult(success=right, handled=right)

    hop = AiosmtpdHop(free_port())
    controller = Controller(
        hop,
        hostname="127.0.0.1",
        port=hop.port,
        server_hostname="aiosmtpd.example",
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=login,
    )
    controller.start()
    try:
        yield hop
    finally:
        controller.stop()
