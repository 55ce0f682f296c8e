"""Sockets: the only place that receives and sends.

Every call tries the system call first and waits (`engine.poller`) only when the kernel says EAGAIN. The same
class carries plain text and TLS: TLS is a non-blocking ``ssl.SSLSocket`` over the same descriptor, driven by
the same two waits; plain text goes by `engine._fast`, because an exception for each EAGAIN and the socket
object's own work cost more than the system call.

Cancellation: a cancelled send has sent an unknown part; the stream must then be closed. Timeouts
are cancel scopes at the call site; nothing here takes a ``timeout``.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

from ._fast import receive_now, send_now, send_parts_now
from .certificates import key_info, read
from .errors import ConnectError, ConnectionLost, TlsError
from .poller import Watch
from .smtp import Binding

__all__ = ["Connect", "Listener", "Stream", "TlsFacts", "connect", "end_point_binding", "open_listener"]

_FAIR_TURNS = 32
"""Receives that found data at once before the task lets others run (reliability Y2)."""

_TLS_JOIN = 64 * 1024
"""Parts up to this many octets are joined into one TLS write: fewer records, one copy."""

_CERTIFICATE_LIMIT = 8 * 1024
"""Octets of a peer's certificate (DER) whose sessions are worth keeping; a hundred names take 5,000."""

_DER = 2
"""How certificates are given as bytes: `_ssl.ENCODING_DER`, which has no public name before Python 3.13."""

Address = tuple[str, int]


class TlsFacts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a TLS session, for records and decisions.

    `verified`: the chain and the name (or address) were checked and passed.
    `why`: one phrase saying why it is or is not verified. `resumed`: the secrets of an earlier session were
    used again, and no certificate was sent. `pin`: ``leaf`` or ``issuer``, whose key was among the pins;
    None: there were none. `asked`: the peer asked for a certificate and got the context's; always False for
    a context without an ear for it (`engine/egress/tls.py`). `expires`: when the first certificate ends by
    which the peer was verified, as `time.time`. `subject`: whose certificate it is, in parts such as
    ``CN=mx.example``, checked or not; filled in by whoever looks at certificates.
    """

    version: str
    cipher: str
    verified: bool
    peer_name: str | None
    why: str
    resumed: bool = False
    pin: str | None = None
    asked: bool = False
    expires: float = float("inf")
    subject: tuple[str, ...] = ()


class Stream:
    """One TCP connection, plain or TLS.

    Not a checkpoint when the kernel answers at once (but every 32nd receive in a row is one).
    One task may receive while another sends; two tasks must not do the same thing at once.
    """

    __slots__ = ("_closed", "_fd", "_obstructed", "_sock", "_turns", "_watch", "local", "peer", "tls")

    def __init__(self, sock: socket.socket, peer: Address, local: Address) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        """The socket's descriptor while it carries plain text; -1 for TLS, and once it is closed: the number
        may then be another's."""
        self._watch = Watch(self._fd)
        self._obstructed = False
        """TLS cannot read on before it has sent something itself, for which there is no room: what the peer
        sent is there, and waiting for that would be no waiting."""
        self._turns = 0
        self._closed = False
        self.peer = peer
        self.local = local
        self.tls: TlsFacts | None = None

    async def receive_some(self, limit: int = 65536) -> bytes:
        """Some bytes, at most `limit`; ``b""`` at the end of the stream.

        Raises: ConnectionLost when the connection was reset or closed on our side.
        """
        while True:
            try:
                data = receive_now(self._fd, limit) if self._fd >= 0 else self._sock.recv(limit)
            except ssl.SSLWantReadError:
                data = None
            except ssl.SSLWantWriteError:
                self._watch.writable = False
                await self._watch.until_writable()
                continue
            except OSError as error:
                raise ConnectionLost(_reason(error)) from None
            if data is None:
                self._turns = 0
                self._watch.readable = False
                await self._watch.until_readable()
                continue
            self._turns += 1
            if self._turns >= _FAIR_TURNS:
                self._turns = 0
                await checkpoint()
            return data

    def receive_nowait(self, limit: int = 65536) -> bytes | None:
        """Like `receive_some`, but None when nothing is there now. Never waits."""
        try:
            data = receive_now(self._fd, limit) if self._fd >= 0 else self._sock.recv(limit)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLWantWriteError:
            self._watch.writable = False
            self._obstructed = True
            return None
        except OSError as error:
            raise ConnectionLost(_reason(error)) from None
        if data is None:
            self._watch.readable = False
        self._obstructed = False
        return data

    async def wait_readable(self) -> None:
        """Wait until the peer sent something or closed. TLS: the record may be no application data."""
        sock = self._sock
        if isinstance(sock, ssl.SSLSocket) and not self._closed and sock.pending():
            return
        if self._obstructed:
            self._obstructed = False
            await self._watch.until_writable()
            return
        if self._watch.readable:
            self._watch.look()
        await self._watch.until_readable()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`. Raises ConnectionLost."""
        sent = self._send(data)
        if sent == len(data):
            return
        view = memoryview(data)[sent or 0 :]
        while view:
            if sent is None:
                await self._watch.until_readable()
            elif not sent:
                await self._watch.until_writable()
            sent = self._send(view)
            view = view[sent or 0 :]

    def _send(self, data: bytes | bytearray | memoryview) -> int | None:
        """How much of `data` went out now; 0: there is no room; None: TLS must hear something first.
        Raises ConnectionLost."""
        try:
            sent = send_now(self._fd, data) if self._fd >= 0 else self._sock.send(data)
        except ssl.SSLWantWriteError:
            sent = 0
        except ssl.SSLWantReadError:
            self._watch.readable = False
            return None
        except OSError as error:
            raise ConnectionLost(_reason(error)) from None
        if not sent and len(data):
            self._watch.writable = False
        return sent

    async def send_unless_heard(self, data: bytes | memoryview, limit: int = 65536) -> bytes | None:
        """Send all of `data`, and listen while it does not go out.

        Returns: None when all of it was sent; else what the peer said meanwhile, at most `limit` octets
        (``b""``: it closed), and a part of `data` was not sent. Raises ConnectionLost, not before what had
        come was looked at.
        """
        view = memoryview(data)
        while view:
            try:
                sent = self._send(view)
            except ConnectionLost:
                # The kernel tells an error once; what came before it can still be read.
                with contextlib.suppress(ConnectionLost):
                    if last_words := self.receive_nowait(limit):
                        return last_words
                raise
            if sent is None:
                await self._watch.until_readable()
            elif sent:
                view = view[sent:]
            elif (heard := await self.room_or_heard(limit)) is not None:
                return heard
        return None

    async def room_or_heard(self, limit: int = 65536) -> bytes | None:
        """Wait until something can be sent, or the peer said something, which is returned.

        TLS: records that hold no application data are no words of the peer's.
        """
        while True:
            heard = self.receive_nowait(limit)
            if heard is not None:
                return heard
            if self._obstructed:
                self._obstructed = False
                await self._watch.until_writable()
                return None
            self._watch.look()
            if await self._watch.until_either():
                return None

    async def send_parts(self, parts: list[bytes]) -> None:
        """Send several buffers in order, in as few system calls as possible, copying none (plain)."""
        if len(parts) == 1:
            await self.send_all(parts[0])
            return
        if isinstance(self._sock, ssl.SSLSocket):
            await self._send_parts_tls(parts)
            return
        index = offset = 0
        while index < len(parts):
            try:
                there = send_parts_now(self._fd, parts, index, offset)
            except OSError as error:
                raise ConnectionLost(_reason(error)) from None
            if there == (index, offset):
                self._watch.writable = False
                await self._watch.until_writable()
            index, offset = there

    async def _send_parts_tls(self, parts: list[bytes]) -> None:
        batch: list[bytes] = []
        size = 0
        for part in parts:
            if size + len(part) > _TLS_JOIN and batch:
                await self.send_all(b"".join(batch))
                batch, size = [], 0
            if len(part) > _TLS_JOIN:
                await self.send_all(part)
            else:
                batch.append(part)
                size += len(part)
        if batch:
            await self.send_all(b"".join(batch))

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        server_side: bool = False,
        session: ssl.SSLSession | None = None,
        stage: str = "STARTTLS",
    ) -> None:
        """Do a TLS handshake on this connection; afterwards every byte goes through TLS.

        `session`: of an earlier connection under `context`, to be resumed if the peer wants that too.
        Raises: TlsError with a text for people, also when the peer went away. The stream is then unusable:
        close it.
        """
        self._fd = -1  # now: wrapping that fails closes the descriptor
        try:
            sock = context.wrap_socket(
                self._sock,
                server_side=server_side,
                server_hostname=server_hostname,
                do_handshake_on_connect=False,
                session=session,
            )
        except (OSError, ValueError) as error:
            self.close()  # it may still be a plain socket, and nothing more may go out in clear
            raise TlsError(f"cannot start TLS: {_reason(error)}", stage=stage) from None
        self._sock = sock
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._watch.readable = False
                await self._watch.until_readable()
            except ssl.SSLWantWriteError:
                self._watch.writable = False
                await self._watch.until_writable()
            except ssl.SSLCertVerificationError as error:
                text = f"certificate not trusted: {error.verify_message or error.reason}"
                raise TlsError(text, stage=stage) from None
            except ssl.SSLError as error:
                raise TlsError(f"TLS handshake failed: {_reason(error)}", stage=stage) from None
            except (OSError, ValueError) as error:
                raise TlsError(
                    f"connection lost in the TLS handshake: {_reason(error)}", stage=stage
                ) from None
        self.tls = _facts(sock, context, server_hostname)

    def binding(self) -> Binding | None:
        """What ties a login to this connection, by the certificate the peer showed; None without TLS."""
        sock = self._sock
        certificate = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        return end_point_binding(certificate) if certificate is not None else None

    def peer_chain(self) -> tuple[bytes, ...]:
        """The certificates the peer sent in the handshake (DER), its own first; none was checked here."""
        return _chain(self._sock, "get_unverified_chain")

    def verified_chain(self) -> tuple[bytes, ...]:
        """The certificates (DER) by which the peer was verified: its own, issuers, root; () if it was not.
        A resumed session has none."""
        return _chain(self._sock, "get_verified_chain")

    def peer_pin(self) -> str | None:
        """The hash of the key in the peer's own certificate (SubjectPublicKeyInfo), ``sha256//`` and base64;
        None without TLS, or for a kind of key that cannot be read."""
        sock = self._sock
        certificate = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        return key_pin(certificate) if certificate is not None else None

    def asked_name(self) -> str | None:
        """The name or address that the TLS handshake asked for, in lower case: in verified TLS, the peer."""
        name = self._sock.server_hostname if isinstance(self._sock, ssl.SSLSocket) else None
        return str(name).lower().removesuffix(".") if name is not None else None

    def session(self) -> ssl.SSLSession | None:
        """What a later connection needs to resume this TLS session; None while there is nothing, and for a
        peer with an outsize certificate. With TLS 1.3 it arrives after the handshake, ahead of what the peer
        says first."""
        sock = self._sock
        certificate = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        # A session holds the peer's certificate, and several times its size in what was read from it; of one
        # of 64 KiB the ssl module can make none.
        if not isinstance(sock, ssl.SSLSocket) or len(certificate or b"") > _CERTIFICATE_LIMIT:
            return None
        session = sock.session
        if session is None or not (session.has_ticket or (session.id and sock.version() == "TLSv1.2")):
            return None
        return session

    def end_tls(self) -> None:
        """Tell the peer that nothing more comes (close_notify, RFC 8446 6.1), before `close` and only where
        everything was said: a conversation that is broken off should look like it. Never waits, not for the
        peer's own either, and does nothing without TLS or when the alert does not go out at once."""
        if isinstance(self._sock, ssl.SSLSocket) and self.tls is not None and not self._closed:
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()

    def close(self) -> None:
        """Close at once; wakes every task waiting on this stream. Idempotent. See `end_tls`."""
        if not self._closed:
            self._closed = True
            self._fd = -1
            self._watch.close()
            self._sock.close()


class Listener:
    """A listening TCP socket."""

    __slots__ = ("_sock", "address")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.address: Address = _address(sock.getsockname())

    async def accept(self) -> Stream:
        """The next connection.

        Raises: OSError (EMFILE and friends: wait a little and call again), or
        `trio.ClosedResourceError` when the listener was closed. A peer that left the backlog
        again (ECONNABORTED) is skipped.
        """
        while True:
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                await wait_readable(self._sock)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError("this listener is closed") from None
                if error.errno != errno.ECONNABORTED:
                    raise
            else:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    local = _address(sock.getsockname())
                except OSError:
                    sock.close()
                    continue
                return Stream(sock, _address(peer), local)

    def close(self) -> None:
        """Stop listening; a task waiting in `accept` gets `trio.ClosedResourceError`. Idempotent."""
        if self._sock.fileno() >= 0:
            notify_closing(self._sock)
            self._sock.close()


def open_listener(host: str, port: int, *, backlog: int = 1024, reuse_port: bool = False) -> Listener:
    """Bind and listen on an IP address literal. Does not wait.

    Raises: OSError (address in use, no permission, not an address of this host).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return Listener(sock)


def end_point_binding(certificate: bytes) -> Binding | None:
    """The channel binding tls-server-end-point of a server's certificate (DER; RFC 5929 4.1): its hash, by
    the hash of its signature but SHA-256 for MD5 and SHA-1. None where the RFC defines none (Ed25519)."""
    try:
        algorithm = read(certificate).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name.replace("-", "_")
    return Binding("tls-server-end-point", hashlib.new(name, certificate).digest())


def key_pin(certificate: bytes) -> str | None:
    """``sha256//`` and base64 of the hash of a certificate's (DER) SubjectPublicKeyInfo; None if it cannot be
    read."""
    try:
        key = key_info(read(certificate))
    except ValueError:
        return None
    return "sha256//" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii")


class Connect(Protocol):
    """How connections are made: `connect`."""

    async def __call__(self, address: str, port: int, *, source_address: str | None = None) -> Stream:
        """See `connect`."""
        ...


async def connect(address: str, port: int, *, source_address: str | None = None) -> Stream:
    """Connect to an IP address literal, bound to `source_address` if given.

    Raises: ConnectError naming the system's reason.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ConnectError(_reason(error), stage="connect") from None
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source_address is not None:
            try:
                sock.bind((source_address, 0))
            except OSError as error:
                raise ConnectError(
                    f"cannot bind to source address {source_address}: {_reason(error)}", stage="bind"
                ) from None
        try:
            sock.connect((address, port))
        except BlockingIOError:
            await wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, errno.errorcode.get(code, str(code))) from None
        return Stream(sock, _address(sock.getpeername()), _address(sock.getsockname()))
    except OSError as error:
        sock.close()
        raise ConnectError(_reason(error), stage="connect") from None
    except BaseException:
        sock.close()
        raise


def _address(name: Any) -> Address:
    """(host, port) of a socket name; an IPv4-mapped IPv6 address is given as IPv4."""
    host = str(name[0])
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return host, int(name[1])


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        # The system's own words, without the "[Errno N]" that means nothing to an operator.
        return os.strerror(error.errno).lower()
    return str(error)


def _chain(sock: socket.socket, method: str) -> tuple[bytes, ...]:
    # Public from Python 3.13 on; before that only the C object has these, and gives no plain bytes.
    read: Callable[[], Any] | None = getattr(sock, method, None) or getattr(
        getattr(sock, "_sslobj", None), method, None
    )
    found = read() if read is not None else None
    return tuple(one if isinstance(one, bytes) else one.public_bytes(_DER) for one in found or ())


def _facts(sock: ssl.SSLSocket, context: ssl.SSLContext, name: str | None) -> TlsFacts:
    cipher = sock.cipher()
    verified = context.verify_mode == ssl.CERT_REQUIRED and (context.check_hostname or sock.server_side)
    peer_name: str | None = None
    if verified:
        certificate: Any = sock.getpeercert() or {}
        names = [str(value) for _, value in certificate.get("subjectAltName", ())]
        for group in certificate.get("subject", ()):
            names += [str(value) for key, value in group if key == "commonName"]
        peer_name = names[0] if names else None
    if sock.server_side:
        why = "server side" if not verified else "client certificate verified"
    elif verified:
        why = f"chain and name verified for {name}"
    else:
        why = "the path does not ask for verification"
    return TlsFacts(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        verified=verified,
        peer_name=peer_name,
        why=why,
        resumed=bool(sock.session_reused),
        asked=bool(getattr(sock, "posthorn_shown", False)),
    )
