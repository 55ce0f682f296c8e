"""A session with a peer, and the facts about it for records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.errors import ConnectionLost, PeerTimeout
from engine.smtp import ClientSession

if TYPE_CHECKING:
    import ssl

    from engine.net import Stream
    from engine.smtp import ClientEvent

    from .broker import Identity
    from .clientcert import ClientCertificate
    from .resumption import SessionKey
    from .tlsa import Dane

__all__ = ["Connection"]


class Connection:
    """See the module. `identity`: who was logged in, None without AUTH. `certificate`: what was at hand to be
    shown. `resumable`: under what its TLS session may be kept."""

    __slots__ = (
        "address",
        "auth_mechanism",
        "auth_user",
        "certificate",
        "client",
        "dane",
        "identity",
        "mx_name",
        "resumable",
        "source_address",
        "stream",
        "tls_why",
    )

    def __init__(self, stream: Stream, client: ClientSession, mx_name: str, address: str) -> None:
        self.stream = stream
        self.client = client
        self.mx_name = mx_name
        self.address = address
        self.source_address = stream.local[0]
        self.identity: Identity | None = None
        self.auth_user = ""
        self.auth_mechanism = ""
        self.tls_why = ""
        self.certificate: ClientCertificate | None = None
        self.resumable: tuple[SessionKey, ssl.SSLContext] | None = None
        self.dane: Dane | None = None
        """None: the path does not ask."""

    async def event(self, stage: str, seconds: float) -> ClientEvent:
        """The next protocol event, sending first what the session wants sent.

        Raises: PeerTimeout after `seconds`, ConnectionLost, RemoteProtocolError.
        """
        client, stream = self.client, self.stream
        with trio.move_on_after(seconds):
            while True:
                event = client.next_event()
                parts = client.data_to_send()
                if parts:
                    await stream.send_parts(parts)
                if event is not None:
                    return event
                data = await stream.receive_some(8192)
                if not data:
                    raise ConnectionLost("the peer closed the connection", stage=stage)
                client.receive_data(data)
        raise PeerTimeout(f"no answer within {seconds:g} s", stage=stage)
