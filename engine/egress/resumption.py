"""TLS sessions to resume, kept so that none is ever used for anything but what it was made for.

A resumed session shows no certificate: it is as good as the checks of the connection that it comes from.
So it is found again only under the same `SessionKey`, which holds everything that a check could depend on
(reliability C27): the host, the name and address, what the path and others demand of TLS, the CA's content
(by its context), the certificate that we show, the source we connect from, and as whom we log in. What
was found out then is the result now. Each is used once, so that nobody on the wire can tell that two
connections belong together (RFC 8446 C.4), and for an hour at most, or until a certificate ends by which
the peer was verified. Posthorn sends no early data.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import msgspec
import trio

if TYPE_CHECKING:
    from engine.net import TlsFacts
    from policy.egress import EgressPath

    from .clientcert import ClientCertificate
    from .tlsneed import TlsNeed

__all__ = ["Kept", "SessionKey", "Sessions"]

_ALL = 4096
"""Sessions; one takes about 17 KiB, and 50 KiB with the longest certificate that counts."""
_EACH = 8
"""Sessions per key: so many connections may begin at once without a whole handshake."""
_LONGEST = 3600.0


class SessionKey(msgspec.Struct, frozen=True):
    """What must agree. `path` brings the login; `login`: the version of its secret. `name`: is checked."""

    path: EgressPath
    need: TlsNeed
    host: str
    name: str
    address: str
    port: int
    source_address: str | None
    certificate: ClientCertificate | None
    login: str


class Kept(msgspec.Struct, frozen=True):
    """A session, the context that it belongs to, what was found out, and until when (`trio.current_time`)."""

    session: ssl.SSLSession
    context: ssl.SSLContext
    facts: TlsFacts
    until: float


class Sessions:
    """See the module. One for the engine."""

    def __init__(self) -> None:
        self._kept: OrderedDict[SessionKey, deque[Kept]] = OrderedDict()
        self._count = 0

    def take(self, key: SessionKey, context: ssl.SSLContext) -> Kept | None:
        """The newest usable session, which is then nobody else's."""
        stack = self._kept.get(key)
        now = trio.current_time()
        while stack:
            kept = stack.pop()
            self._count -= 1
            if not stack:
                del self._kept[key]
            if kept.until > now and kept.context is context:
                return kept
        return None

    def drop(self, context: ssl.SSLContext) -> None:
        """A context is not used any more. Its sessions would keep it in memory, and could not be resumed."""
        for key, stack in list(self._kept.items()):
            if all(kept.context is context for kept in stack):
                del self._kept[key]
            elif any(kept.context is context for kept in stack):
                self._kept[key] = deque((one for one in stack if one.context is not context), maxlen=_EACH)

    def keep(
        self,
        key: SessionKey,
        session: ssl.SSLSession,
        context: ssl.SSLContext,
        facts: TlsFacts,
        lasts: float,
    ) -> None:
        """Keep one for `lasts` seconds, an hour at most and no longer than the peer wants it."""
        hint = session.ticket_lifetime_hint if session.has_ticket else session.timeout
        lasts = min(lasts, _LONGEST, hint or _LONGEST)
        if lasts <= 0.0:
            return
        stack = self._kept.get(key)
        if stack is None:
            stack = self._kept[key] = deque()
        stack.append(Kept(session, context, facts, trio.current_time() + lasts))
        self._kept.move_to_end(key)
        self._count += 1
        if len(stack) > _EACH:
            stack.popleft()
            self._count -= 1
        while self._count > _ALL:
            self._count -= len(self._kept.popitem(last=False)[1])
