"""TLS contexts for outgoing sessions: what is trusted and what is shown, for which path.

Verified modes check the chain and the name by RFC 9525: subjectAltName only, no common name; an
IP target needs an IP entry and sends no SNI. TLS 1.2 is the least (RFC 8996, 9325); OpenSSL's
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
from typing import Any, TypeAlias

import msgspec
import trio

from engine.errors import TlsError

from .clientcert import ClientCertificate

__all__ = ["TlsContexts", "TlsSetting"]

_KEPT = 64
_LOOK = 900.0
"""Seconds between two looks whether the system store changed."""
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
    """A small cache of client contexts."""

    def __init__(self) -> None:
        self._cache: OrderedDict[TlsSetting, ssl.SSLContext] = OrderedDict()
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
        context = self._cache.get(setting)
        if context is None:
            async with self._making:
                context = self._cache.get(setting)
                if context is None:
                    context = self._cache[setting] = await _in_thread(setting)
                    if len(self._cache) > _KEPT:
                        self._cache.popitem(last=False)
        if setting in self._cache:
            self._cache.move_to_end(setting)
        return context

    async def _look(self) -> None:
        """Forget what was made of a system store that is not there any more."""
        now = trio.current_time()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        store = await trio.to_thread.run_sync(_store)
        if store != self._store:
            self._store = store
            for setting in [one for one in self._cache if one.verify and one.ca_pem is None]:
                del self._cache[setting]


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
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if setting.minimum == "TLSv1.3" else ssl.TLSVersion.TLSv1_2
    )
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(f"{setting.ciphers or 'DEFAULT'}:!aNULL:!eNULL:!EXPORT:@SECLEVEL=2")
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
