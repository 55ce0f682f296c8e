"""What is known about one client: for hooks, for the Received field, for records."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from engine.log import Record
from engine.mail.received import ReceivedStamp, protocol_name

from .meta import ConnectionMeta

if TYPE_CHECKING:
    from engine.net import Stream, TlsFacts

__all__ = ["Connection"]


class Connection:
    """One client's facts. The driver writes them; acceptance and records read them."""

    __slots__ = (
        "_stamps",
        "ehlo_domain",
        "esmtp",
        "hostname",
        "id",
        "local",
        "mechanism",
        "meta",
        "peer",
        "peer_text",
        "tls",
        "user",
    )

    def __init__(self, stream: Stream, hostname: str, meta: dict[str, Any]) -> None:
        self.id = os.urandom(16).hex()
        self.hostname = hostname
        self.peer = stream.peer[0]
        self.peer_text = _socket_text(stream.peer)
        self.local = _socket_text(stream.local)
        self.ehlo_domain = ""
        self.esmtp = False
        self.user: str | None = None
        """Whom the client authenticated as, None before it did."""
        self.mechanism: str | None = None
        self.tls: TlsFacts | None = None
        self._stamps: dict[bool, ReceivedStamp] = {}
        self.meta = ConnectionMeta(
            {
                **meta,
                "reception_protocol": "ESMTP",
                "received_from": self.peer_text,
                "received_via": self.local,
                "hostname": hostname,
            }
        )

    def greeted(self, domain: str, *, esmtp: bool) -> None:
        """EHLO or HELO was accepted."""
        self.ehlo_domain = domain
        self.esmtp = esmtp
        self._stamps.clear()
        self.meta.put("ehlo_domain", domain)

    def secured(self, tls: TlsFacts) -> None:
        """TLS began; what the client said before does not count any more (S9)."""
        self.ehlo_domain = ""
        self.esmtp = False
        self.user = self.mechanism = None
        self.tls = tls
        self._stamps.clear()
        self.meta.forget()
        self.meta.put("tls_protocol_version", tls.version)
        self.meta.put("tls_cipher", tls.cipher)

    def logged_in(self, authz: str, authn: str, mechanism: str) -> None:
        """AUTH succeeded."""
        self.user = authn
        self.mechanism = mechanism
        self._stamps.clear()
        self.meta.put("authz_id", authz)
        self.meta.put("authn_id", authn)

    def stamp(self, smtputf8: bool) -> ReceivedStamp:
        """The maker of this session's Received fields, in its present state."""
        stamp = self._stamps.get(smtputf8)
        if stamp is None:
            tls = self.tls
            stamp = self._stamps[smtputf8] = ReceivedStamp(
                hostname=self.hostname,
                ehlo_domain=self.ehlo_domain,
                peer=self.peer,
                protocol=protocol_name(
                    esmtp=self.esmtp,
                    tls=tls is not None,
                    authenticated=self.user is not None,
                    smtputf8=smtputf8,
                ),
                tls_version=tls.version if tls is not None else "",
                tls_cipher=tls.cipher if tls is not None else "",
            )
        return stamp

    def record(self, kind: str, now: float | None = None) -> Record:
        """A log record of `kind` with everything in it that concerns the connection."""
        record = Record(
            type=kind,
            timestamp=time.time() if now is None else now,
            reception_protocol="ESMTP",
            session_id=self.id,
            peer_name=self.ehlo_domain,
            peer_addr=self.peer,
            smtp_auth_user=self.user,
            smtp_auth_mechanism=self.mechanism,
        )
        tls = self.tls
        if tls is not None:
            record.tls_cipher = tls.cipher
            record.tls_protocol_version = tls.version
        return record


def _socket_text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
