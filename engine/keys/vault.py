"""Key source HashiCorp Vault, or OpenBao: one field of a secret in a KV engine, version 1 or 2.

hvac is synchronous and untyped; `_Server` is the typed wrapper, and only `VaultSource.read` calls it, in a
thread under a limiter of the server's own, so a server that hangs holds up nobody else's secrets. What a
reference leaves out is read from the environment at each fetch: VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE and
VAULT_CACERT. Other variables, proxies, ``~/.vault-token`` and ``.netrc`` are not looked at.

What each answer means (observed with OpenBao 2.7; reliability V3, V10), and whether it is definite, that is,
whether it says something about the value:

| answer                  | reason given                                    | definite                    |
|-------------------------|-------------------------------------------------|-----------------------------|
| no connection, time-out | cannot reach ..., no answer                     | no                          |
| 3xx                     | redirects; not followed, the token would go too | no                          |
| 400, 412, 472, 473, 5xx | by code; 503 asks whether it is sealed          | no                          |
| 401, 403                | permission denied: the token or its policy      | no: a token can expire      |
| 429                     | rate limit; `Retry-After` is kept               | no                          |
| 404                     | nothing there, or this version is deleted       | yes                         |
| 200                     | field missing, empty, or not text               | yes                         |
| 204                     | no value                                        | yes                         |
| neither HTTP nor JSON   | the answer is not ...                           | no: not Vault's             |

Reasons hold code and path, never an answer's body, never the token. What an answer says is kept in `Secret`
and `msgspec.Raw`, which show nothing; failures leave the thread as values, without the frames and the causes
that an exception would bring along.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
import requests
import trio
import urllib3
from hvac.adapters import RawAdapter  # type: ignore[import-untyped]

from policy.keysource import VaultKey
from policy.secret import Secret

from .address import is_loopback
from .bounded import BoundedAdapter, Bounds
from .source import MAX_SECRET, SourceFailure

__all__ = ["VaultSource"]

_SECONDS = 4.5
"""For one read, detection of the KV version included; just under what a delivery waits."""
_CONNECT_SECONDS = 2.0
_THREADS_PER_SERVER = 4
_BODY_LIMIT = MAX_SECRET
_ANSWER_LIMIT = _BODY_LIMIT + (1 << 18)
"""Octets of one answer with all its headers, interim answers and chunk sizes."""
_LONGEST_RETRY_AFTER = 86400.0  # what more digits than a day has count as; the ring has a limit of its own
_MOUNTS_KEPT = 1000

_Version = Literal[1, 2]

_MEANING = {
    400: "bad request",
    412: "the node is behind its cluster",
    472: "a disaster recovery standby answered",
    473: "a performance standby answered",
    501: "Vault is not initialised",
}


class _V1(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None


class _V2Data(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    metadata: dict[str, msgspec.Raw] | None = None


class _V2(msgspec.Struct):
    data: _V2Data | None = None


class _Mount(msgspec.Struct):
    options: dict[str, Any] | None = None


class _MountAnswer(msgspec.Struct):
    data: _Mount | None = None


class _SealStatus(msgspec.Struct):
    sealed: bool = False


_text = msgspec.json.Decoder(str)
_v1 = msgspec.json.Decoder(_V1)
_v2 = msgspec.json.Decoder(_V2)
_mount = msgspec.json.Decoder(_MountAnswer)
_seal = msgspec.json.Decoder(_SealStatus)


class _Settings(msgspec.Struct, frozen=True):
    """Where and as whom to ask; the reference with the environment filled in."""

    address: str
    token: Secret
    namespace: str | None
    ca: str | None


class _Reply(msgspec.Struct, frozen=True):
    status: int
    body: Secret
    retry_after: float = 0.0


class VaultSource:
    """Reads `VaultKey` references."""

    fresh_for: float | None = None

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._limiters: dict[str, trio.CapacityLimiter] = {}
        self._versions: OrderedDict[tuple[str, str | None, str], _Version] = OrderedDict()

    async def read(self, ref: VaultKey) -> Secret:
        settings = _settings(ref)
        limiter = self._limiters.get(settings.address)
        if limiter is None:
            limiter = self._limiters[settings.address] = trio.CapacityLimiter(_THREADS_PER_SERVER)
        mount = (settings.address, settings.namespace, ref.mount)
        version: int | None = ref.kv_version or self._versions.get(mount)
        answer = await trio.to_thread.run_sync(
            _attempt, ref, settings, version, self._seconds, abandon_on_cancel=True, limiter=limiter
        )
        if isinstance(answer, SourceFailure):
            if answer.definite:
                self._versions.pop(mount, None)  # a mount can be replaced by one of the other version
            raise answer
        secret, found = answer
        self._versions[mount] = found
        self._versions.move_to_end(mount)
        if len(self._versions) > _MOUNTS_KEPT:
            self._versions.popitem(last=False)
        return secret


def _settings(ref: VaultKey) -> _Settings:
    address = ref.address or os.environ.get("VAULT_ADDR", "")
    if not address:
        raise SourceFailure("no server: neither vault_address nor the environment's VAULT_ADDR is set")
    _check_address(address)
    token = ref.token or Secret(os.environb.get(b"VAULT_TOKEN", b""))
    if not token.reveal():
        raise SourceFailure("no token: neither vault_token nor the environment's VAULT_TOKEN is set")
    if not all(0x21 <= octet <= 0x7E for octet in token.reveal()):
        raise SourceFailure("the token holds characters that no token has (a line end?)")
    namespace = ref.namespace or os.environ.get("VAULT_NAMESPACE") or None
    if namespace is not None and not (namespace.isascii() and namespace.isprintable()):
        raise SourceFailure("the namespace holds characters that no namespace has")
    for part in (ref.mount, ref.path):
        if any(segment in ("", ".", "..") for segment in part.split("/")) or not part.isprintable():
            raise SourceFailure("mount or path is not a plain path")
    return _Settings(address.rstrip("/"), token, namespace, ref.ca or os.environ.get("VAULT_CACERT") or None)


def _check_address(address: str) -> None:
    """https, or http to this machine only (reliability V7). Shows no address: it may hold a password."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise SourceFailure("the server's address is no URL like https://vault.example.com:8200")
    if parts.username is not None or parts.query or parts.fragment:
        raise SourceFailure("the server's address holds a user, a query or a fragment")
    if parts.scheme == "http" and not is_loopback(host):
        raise SourceFailure(f"plain http to {host} would show the token to the network; use https")


def _attempt(
    ref: VaultKey, settings: _Settings, version: int | None, seconds: float
) -> tuple[Secret, _Version] | SourceFailure:
    """One read, in a thread. Gives the value and the KV version that was right, or why there is none."""
    try:
        return _read(ref, settings, version, seconds)
    except SourceFailure as failure:
        return failure.bare()


def _read(ref: VaultKey, settings: _Settings, version: int | None, seconds: float) -> tuple[Secret, _Version]:
    server = _Server(settings, seconds)
    try:
        if version is None:
            version = _detect(server, ref.mount)
        if version == 1:
            return _read_v1(server, ref), 1
        if version == 2:
            return _read_v2(server, ref), 2
        # The token may not look at its mount: the secret itself tells. Of two refusals, version 2's is shown.
        try:
            return _read_v2(server, ref), 2
        except _Refused as failure:
            try:
                return _read_v1(server, ref), 1
            except _Refused:
                raise failure from None
    finally:
        server.close()


def _detect(server: _Server, mount: str) -> _Version | None:
    path = f"/v1/sys/internal/ui/mounts/{quote(mount)}"
    reply = server.get(path)
    if reply.status in (401, 403, 404):
        return None
    _check(server, reply, path)
    answer = _decode(_mount, reply.body, "mount information")
    options = answer.data.options if answer.data is not None else None
    return 2 if options is not None and options.get("version") == "2" else 1


def _read_v2(server: _Server, ref: VaultKey) -> Secret:
    path = f"/v1/{quote(ref.mount)}/data/{quote(ref.path)}"
    reply = server.get(path)
    if reply.status == 404:
        found = _parse(_v2, reply.body.reveal())
        if found is not None and found.data is not None and found.data.metadata is not None:
            raise SourceFailure(f"the newest version is deleted (404 at {path})", definite=True)
    _check(server, reply, path)
    answer = _decode(_v2, reply.body, "KV version 2")
    return _field(answer.data.data if answer.data is not None else None, ref, path)


def _read_v1(server: _Server, ref: VaultKey) -> Secret:
    path = f"/v1/{quote(ref.mount)}/{quote(ref.path)}"
    reply = server.get(path)
    _check(server, reply, path)
    return _field(_decode(_v1, reply.body, "KV version 1").data, ref, path)


def _field(fields: dict[str, msgspec.Raw] | None, ref: VaultKey, path: str) -> Secret:
    if not fields or ref.key not in fields:
        raise SourceFailure(f'the secret has no field "{ref.key}" (200 at {path})', definite=True)
    value = _parse(_text, fields[ref.key])
    if value is None:
        raise SourceFailure(f'the field "{ref.key}" is not text (200 at {path})', definite=True)
    if not value:
        raise SourceFailure(f'the field "{ref.key}" is empty (200 at {path})', definite=True)
    return Secret(value)


def _check(server: _Server, reply: _Reply, path: str) -> None:
    """Nothing for a success. Raises: SourceFailure that says which refusal it was."""
    status, at = reply.status, f"({reply.status} at {path})"
    if status == 200:
        return
    if status == 204:
        raise SourceFailure(f"the server has no value there {at}", definite=True)
    if status == 404:
        raise _Refused(f"nothing there: wrong mount, path or namespace, or no value {at}", definite=True)
    if status in (401, 403):
        raise _Refused(f"permission denied: token wrong or expired, or its policy forbids this {at}")
    if 300 <= status < 400:
        reason = "the server redirects elsewhere; not followed, the token would go too"
    elif status == 429:
        reason = "the server's rate limit is reached"
    elif status == 503:
        reason = f"Vault is {'sealed' if server.sealed() else 'unavailable'}"
    else:
        reason = _MEANING.get(status, "the server failed" if status >= 500 else "refused")
    raise SourceFailure(f"{reason} {at}", retry_after=reply.retry_after)


class _Refused(SourceFailure):
    """The server says no to this path: another KV version's path may be the right one."""


def _decode(decoder: msgspec.json.Decoder[Any], body: Secret, what: str) -> Any:
    answer = _parse(decoder, body.reveal())
    if answer is None:
        raise SourceFailure(f"the answer is not what {what} looks like")
    return answer


def _parse(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw) -> Any:
    """What `text` says, or None. The decoder's complaint may quote it and goes no further."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class _Token(requests.auth.AuthBase):
    """Adds the token to a request; shows nothing of it meanwhile."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Vault-Token"] = self._token.reveal().decode("ascii")
        return request


class _Server:
    """One server for the length of one read. The typed face of hvac."""

    def __init__(self, settings: _Settings, seconds: float) -> None:
        self._bounds = Bounds(time.monotonic() + seconds, _ANSWER_LIMIT)
        session = requests.Session()
        adapter = BoundedAdapter(self._bounds)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.trust_env = False  # no proxies, no .netrc, no REQUESTS_CA_BUNDLE
        session.verify = settings.ca or _system_store()
        session.auth = _Token(settings.token)
        session.headers["Accept-Encoding"] = "identity"
        self._ca = settings.ca
        self._session = session
        self._http: Any = RawAdapter(
            base_uri=settings.address,
            namespace=settings.namespace,
            session=session,
            allow_redirects=False,
            ignore_exceptions=True,
        )
        self._host = urlsplit(settings.address).netloc

    def close(self) -> None:
        self._session.close()

    def get(self, path: str) -> _Reply:
        """Raises: SourceFailure when there is no whole answer in time."""
        try:
            left = self._bounds.left()
            response = self._http.get(path, stream=True, timeout=(min(_CONNECT_SECONDS, left), left))
            try:
                body = Secret(b"".join(self._chunks(response)))
            finally:
                response.close()
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceFailure(self._fault(error)) from None
        return _Reply(int(response.status_code), body, _seconds(response.headers.get("Retry-After")))

    def _chunks(self, response: Any) -> Iterator[bytes]:
        left = _BODY_LIMIT
        while chunk := response.raw.read(65536):
            left -= len(chunk)
            if left < 0:
                raise SourceFailure(self._too_large())
            yield chunk

    def _fault(self, error: Exception) -> str:
        """Why there is no answer. In words of our own: an exception's may quote the answer."""
        if self._bounds.too_large:
            return self._too_large()
        if self._bounds.overdue or isinstance(error, requests.exceptions.Timeout):
            return f"no answer from {self._host} in time"
        if isinstance(error, requests.exceptions.SSLError):
            return f"TLS to {self._host} failed: {_certificate_fault(error)}"
        if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError):
            return _network_fault(error, self._host)
        # What is left comes from opening the CA file, before any connection.
        what = f"CA file {self._ca}" if self._ca else "the system's CA certificates"
        number = 0 if isinstance(error, ssl.SSLError) else getattr(error, "errno", 0)
        return f"cannot use {what}: {os.strerror(number) if number else 'not found or unusable'}"

    def _too_large(self) -> str:
        return f"the answer of {self._host} is larger than {_BODY_LIMIT} octets"

    def sealed(self) -> bool:
        """Whether the server says that it is sealed; False when it does not answer that."""
        try:
            return bool(_decode(_seal, self.get("/v1/sys/seal-status").body, "a seal status").sealed)
        except SourceFailure:
            return False


def _system_store() -> str | bool:
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; its date form and nonsense count as 0."""
    if text is None or not (text.isascii() and text.isdigit()):
        return 0.0
    return float(text) if len(text) <= 5 else _LONGEST_RETRY_AFTER


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what it wraps; urllib3 hides the cause in `reason` and in arguments."""
    found: list[BaseException] = []
    todo: list[Any] = [error]
    while todo and len(found) < 20:
        each = todo.pop(0)
        if isinstance(each, BaseException) and not any(each is other for other in found):
            found.append(each)
            todo += [getattr(each, "reason", None), each.__cause__, each.__context__, *each.args]
    return found


def _certificate_fault(error: BaseException) -> str:
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return each.verify_message
        reason = getattr(each, "reason", None)
        if isinstance(each, ssl.SSLError) and isinstance(reason, str):  # a name of OpenSSL's
            return reason.replace("_", " ").lower()
    return "the handshake failed"


def _network_fault(error: BaseException, host: str) -> str:
    """Whether there is no way there, or an answer that is none."""
    chain = _chain(error)
    for each in chain:
        if isinstance(each, OSError) and not isinstance(each, ssl.SSLError) and each.errno:
            what = os.strerror(each.errno) if each.errno > 0 else "the name cannot be resolved"
            return f"cannot reach {host}: {what}"
    for each in chain:
        if isinstance(each, http.client.RemoteDisconnected | http.client.IncompleteRead | EOFError):
            return f"{host} closed the connection before its answer was complete"
        if isinstance(each, http.client.HTTPException):
            return f"the answer of {host} is not HTTP"
    return f"cannot reach {host}: {type(error).__name__}"
