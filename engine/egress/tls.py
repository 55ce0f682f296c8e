"""TLS contexts for outgoing sessions: what is trusted and what is shown, for which path.

Verified modes check the chain and the name by RFC 9525: subjectAltName only, no common name; an
IP target needs an IP entry and sends no SNI. TLS 1.2 is the least (RFC 8996, 9325) unless a path names an
older one; OpenSSL's
security level 2 refuses SHA-1 signatures and RSA keys under 2,048 bits. A private CA given for a
path *replaces* the system store for that path (reliability C24 to C26).

Contexts are expensive (loading the system store costs milliseconds) and shared; a context is
never shared between two settings, so a resumed session cannot cross one (C27). When the system store
changes they are made anew: an authority that is trusted no more must not stay so until a restart.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import msgspec
import trio

from engine.errors import TlsError
from policy.tlskinds import OBSOLETE

from .clientcert import ClientCertificate

__all__ = ["TlsContexts", "TlsSetting"]

_LOOK = 900.0
"""Seconds between two looks whether the system store changed."""
_CERTIFICATES = 16_384
"""In all contexts together. One of the system's roots has some 150, takes 0.8 MiB, and 40 ms to be made; one
of a private authority takes 20 KiB and a millisecond."""
_OWN_WEIGHT = 4
"""What a context is without them, in certificates."""
_LEAST = {
    "TLSv1.0": ssl.TLSVersion.MINIMUM_SUPPORTED,
    "TLSv1.1": ssl.TLSVersion.MINIMUM_SUPPORTED,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
"""The ssl module warns of older ones by name, and warnings cannot be kept back in a thread: which it was is
looked at after the handshake (`secure`)."""
_HANDSHAKE, _CERTIFICATE = 22, 11
"""A record's type and a message's (RFC 8446 B.1, B.3)."""
_EMPTY = 8
"""Octets of a Certificate message with none in it, at most (RFC 5246 7.4.2: 7; RFC 8446 4.4.2: 8)."""


_Store: TypeAlias = tuple[tuple[int, ...], ...]


class TlsSetting(msgspec.Struct, frozen=True):
    """What one context is made for.

    `ca_pem`: a bundle that replaces the system store; only with `verify`. `minimum`: as
    `tls_minimum_version`; `ciphers`: as `openssl_cipher_list`. `certificate`: what to show when the
    peer asks for one.
    """

    verify: bool
    ca_pem: bytes | None = None
    minimum: str = "TLSv1.2"
    ciphers: str | None = None
    certificate: ClientCertificate | None = None


class TlsContexts:
    """The client contexts, by what they are made for.

    One that a connection has is found for as long as the connection lasts. Others are kept while all of them
    hold no more certificates than `_CERTIFICATES`; then those go first that were not asked for for longest,
    and `gone` is told, for whoever holds something that is of no use any more.
    """

    def __init__(self, gone: Callable[[ssl.SSLContext], None] = lambda context: None) -> None:
        self._gone = gone
        self._kept: OrderedDict[TlsSetting, tuple[ssl.SSLContext, int]] = OrderedDict()
        self._weight = 0
        self._living: WeakValueDictionary[TlsSetting, ssl.SSLContext] = WeakValueDictionary()
        self._making = trio.Lock()
        self._looked = float("-inf")
        self._store: _Store = ()

    async def get(self, setting: TlsSetting) -> ssl.SSLContext:
        """The context for this setting. A new one is made in a thread, because that may take a tenth of a
        second; one at a time, so that all sessions of one setting share one.

        Raises: TlsError when the bundle holds no usable certificate.
        """
        if setting.verify and setting.ca_pem is None:
            await self._look()
        context = self._living.get(setting)
        if context is None:
            async with self._making:
                context = self._living.get(setting)
                if context is None:
                    context = self._living[setting] = await _in_thread(setting)
        self._keep(setting, context)
        return context

    async def _look(self) -> None:
        """Forget what was made of a system store that is not there any more.

        Nothing is made meanwhile: else it were forgotten, too, or were of a store that was never seen.
        """
        now = trio.current_time()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        async with self._making:
            store = await trio.to_thread.run_sync(_store)
            if store != self._store:
                self._store = store
                for setting in list(self._living):
                    if setting.verify and setting.ca_pem is None:
                        self._forget(setting)

    def _forget(self, setting: TlsSetting) -> None:
        """It is not found any more, whoever has it."""
        self._living.pop(setting, None)
        if setting in self._kept:
            self._let_go(setting)

    def _keep(self, setting: TlsSetting, context: ssl.SSLContext) -> None:
        if setting in self._kept:
            self._kept.move_to_end(setting)
            return
        weight = _OWN_WEIGHT + context.cert_store_stats()["x509"]
        self._kept[setting] = (context, weight)
        self._weight += weight
        while self._weight > _CERTIFICATES and len(self._kept) > 1:
            self._let_go(next(iter(self._kept)))

    def _let_go(self, setting: TlsSetting) -> None:
        context, weight = self._kept.pop(setting)
        self._weight -= weight
        self._gone(context)


def _store() -> _Store:
    """What tells one state of the system store from another."""
    paths = ssl.get_default_verify_paths()
    found: list[tuple[int, ...]] = []
    for path in (paths.cafile, paths.capath):
        try:
            status = os.stat(path or "")
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        except OSError:
            found.append(())
    return tuple(found)


async def _in_thread(setting: TlsSetting) -> ssl.SSLContext:
    return await trio.to_thread.run_sync(_make, setting)


def _make(setting: TlsSetting) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _LEAST[setting.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    level, ciphers = 2, setting.ciphers or "DEFAULT"
    if setting.minimum in OBSOLETE:
        # They sign by SHA-1, so `secure` looks at what the level no longer does. Without DHE nobody can make
        # us agree on a small group (Logjam).
        level, ciphers = 0, setting.ciphers or "DEFAULT:!DHE"
    context.set_ciphers(f"{ciphers}:!aNULL:!eNULL:!EXPORT:@SECLEVEL={level}")
    if setting.certificate is not None:
        try:
            setting.certificate.load(context)
        except ValueError as wrong:
            raise TlsError(f"tls_certificate: {wrong}", stage="STARTTLS") from None
        context._msg_callback = _heard  # type: ignore[attr-defined]
    if not setting.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    context.hostname_checks_common_name = False
    if setting.ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(cadata=setting.ca_pem.decode("ascii"))
    except (ssl.SSLError, ValueError, UnicodeDecodeError):
        raise TlsError("tls_ca holds no PEM certificate that can be read", stage="STARTTLS") from None
    if not context.cert_store_stats().get("x509"):
        raise TlsError("tls_ca holds no certificate", stage="STARTTLS")
    return context


def _heard(
    sock: ssl.SSLSocket, direction: str, version: Any, content_type: Any, msg_type: Any, data: bytes
) -> None:
    """Notes on the socket whether a certificate was asked for and shown, which the ssl module does not say
    in any other way; `Stream.start_tls` reads it."""
    if direction == "write" and content_type == _HANDSHAKE and msg_type == _CERTIFICATE:
        sock.posthorn_shown = len(data) > _EMPTY  # type: ignore[attr-defined]
