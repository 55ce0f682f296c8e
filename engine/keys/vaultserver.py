"""One Vault or OpenBao server over HTTP: the typed face of hvac, for whatever runs in a thread.

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
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3
from hvac.adapters import RawAdapter  # type: ignore[import-untyped]

from policy.files import must_be_regular
from policy.secret import Secret

from .address import is_loopback
from .bounded import BoundedAdapter, Bounds
from .source import MAX_SECRET, SourceFailure

__all__ = ["Place", "Refused", "Reply", "Server", "check", "check_address", "decode", "parse"]

_CONNECT_SECONDS = 2.0
_BODY_LIMIT = MAX_SECRET
_ANSWER_LIMIT = _BODY_LIMIT + (1 << 18)
"""Octets of one answer with all its headers, interim answers and chunk sizes."""
_JSON_DEPTH = 32
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)
"""A text, in which brackets mean nothing, or a bracket."""
_LONGEST_RETRY_AFTER = 86400.0  # what more digits than a day has count as; the ring has a limit of its own

_MEANING = {
    400: "bad request",
    412: "the node is behind its cluster",
    472: "a disaster recovery standby answered",
    473: "a performance standby answered",
    501: "Vault is not initialised",
}


class _SealStatus(msgspec.Struct):
    sealed: bool = False


_seal = msgspec.json.Decoder(_SealStatus)


class Place(msgspec.Struct, frozen=True):
    """Where to ask; the reference with the environment filled in."""

    address: str
    namespace: str | None
    ca: str | None


class Reply(msgspec.Struct, frozen=True):
    status: int
    body: Secret
    retry_after: float = 0.0


def check_address(address: str) -> None:
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


def check(server: Server, reply: Reply, path: str) -> None:
    """Nothing for a success. Raises: SourceFailure that says which refusal it was."""
    status, at = reply.status, f"({reply.status} at {path})"
    if status == 200:
        return
    if status == 204:
        raise SourceFailure(f"the server has no value there {at}", definite=True)
    if status == 404:
        raise Refused(f"nothing there: wrong mount, path or namespace, or no value {at}", definite=True)
    if status in (401, 403):
        raise Refused(
            f"permission denied: token wrong or expired, or its policy forbids this {at}", denied=True
        )
    if 300 <= status < 400:
        reason = "the server redirects elsewhere; not followed, the token would go too"
    elif status == 429:
        reason = "the server's rate limit is reached"
    elif status == 503:
        reason = f"Vault is {'sealed' if server.sealed() else 'unavailable'}"
    else:
        reason = _MEANING.get(status, "the server failed" if status >= 500 else "refused")
    raise SourceFailure(f"{reason} {at}", retry_after=reply.retry_after)


class Refused(SourceFailure):
    """The server says no to this path: another KV version's path may be the right one."""


def decode(decoder: msgspec.json.Decoder[Any], body: Secret, what: str) -> Any:
    answer = parse(decoder, body.reveal())
    if answer is None:
        raise SourceFailure(f"the answer is not what {what} looks like")
    return answer


def parse(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw) -> Any:
    """What `text` says, or None. The decoder's complaint may quote it and goes no further."""
    if isinstance(text, bytes) and _too_deep(text):
        return None
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _too_deep(text: bytes) -> bool:
    """Whether JSON is nested deeper than any answer of Vault (reliability V9)."""
    depth = 0
    for found in _STRUCTURE.finditer(text):
        if found[0] in (b"[", b"{"):
            depth += 1
            if depth > _JSON_DEPTH:
                return True
        elif found[0] in (b"]", b"}"):
            depth -= 1
    return False


class _Token(requests.auth.AuthBase):
    """Adds the token to a request; shows nothing of it meanwhile."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Vault-Token"] = self._token.reveal().decode("ascii")
        return request


class _NoToken(requests.auth.AuthBase):
    """For a login."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class Server:
    """One server for the length of one read. `token` None: a login. `seconds`: for all its answers."""

    def __init__(self, place: Place, token: Secret | None, seconds: float) -> None:
        self._bounds = Bounds(time.monotonic() + seconds, _ANSWER_LIMIT)
        session = requests.Session()
        adapter = BoundedAdapter(self._bounds)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.trust_env = False  # no proxies, no .netrc, no REQUESTS_CA_BUNDLE
        session.verify = place.ca or _system_store()
        session.auth = _Token(token) if token is not None else _NoToken()
        session.headers["Accept-Encoding"] = "identity"
        self._ca = place.ca
        self._session = session
        self._http: Any = RawAdapter(
            base_uri=place.address,
            namespace=place.namespace,
            session=session,
            allow_redirects=False,
            ignore_exceptions=True,
        )
        self._host = urlsplit(place.address).netloc

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, **parameters: int) -> Reply:
        """Raises: SourceFailure when there is no whole answer in time."""
        return self._ask("get", path, params=parameters or None)

    def post(self, path: str, fields: Mapping[str, str | Secret]) -> Reply:
        """Send `fields` as JSON. Raises: as `get`."""
        plain = {
            name: value if isinstance(value, str) else value.reveal().decode()
            for name, value in fields.items()
        }
        return self._ask("post", path, json=plain)

    def _ask(self, method: str, path: str, **how: Any) -> Reply:
        try:
            if self._ca is not None:
                must_be_regular(self._ca, directory=True)
            left = self._bounds.left()
            timeout = (min(_CONNECT_SECONDS, left), left)
            response = self._http.request(method, path, stream=True, timeout=timeout, **how)
            try:
                body = Secret(b"".join(self._chunks(response)))
            finally:
                response.close()
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceFailure(self._fault(error)) from None
        return Reply(int(response.status_code), body, _seconds(response.headers.get("Retry-After")))

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
        words = None if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
        return f"cannot use {what}: {words or 'not found or unusable'}"

    def _too_large(self) -> str:
        return f"the answer of {self._host} is larger than {_BODY_LIMIT} octets"

    def sealed(self) -> bool:
        """Whether the server says that it is sealed; False when it does not answer that."""
        try:
            return bool(decode(_seal, self.get("/v1/sys/seal-status").body, "a seal status").sealed)
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
