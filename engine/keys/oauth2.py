"""Key source OAuth 2 (RFC 6749): an access token, fetched from a token endpoint and kept until it expires.

A token is asked for by refresh token, or without one by the client's own credentials. The ring does the
rest, as for every source: one request at a time for each reference, a refresh behind the scenes when
three quarters of a token's life are over, growing pauses while the endpoint fails. A token is used until
it expires and not a moment longer.

An endpoint that hands out a new refresh token with each access token (rotation, RFC 6749 6) is
followed, in memory only: the configured one is tried again after a restart, and as soon as it changes.

The request goes over verified TLS, or in clear text to this machine only; to the host that was named and
no other (a redirect is a failure); without proxies or other settings from the environment. Time and size
of the answer are bounded. Failures say host and code, and of the answer only the words that the RFC
defines; they leave as values, without the frames that hold secrets.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections import OrderedDict
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx2
import msgspec
import trio

from engine.errors import SecretUnavailable
from policy.files import must_be_regular
from policy.keysource import KeyRef, OAuth2Key
from policy.secret import Secret

from .address import is_loopback
from .source import Credential, Dated, Fetch, SourceFailure, Watch, unwatched

__all__ = ["OAuth2Source"]

_SECONDS = 4.5
"""For one request; just under what a delivery waits."""
_BODY_LIMIT = 1 << 17
_SHORTEST = 1.0
_LIFE = 300.0
"""Seconds for a token of which its endpoint does not say how long it lasts."""
_LONGEST_LIFE = 30 * 86400.0
_EARLY = 10.0
"""Seconds before its end in which a token is not presented any more: clocks and roads differ."""
_KEPT = 1000

_ERRORS = {
    "invalid_request": "the endpoint does not understand the request",
    "invalid_client": "client_id or client_secret is wrong",
    "invalid_grant": "the refresh token is wrong, expired or revoked",
    "unauthorized_client": "this client may not ask in this way",
    "unsupported_grant_type": "the endpoint does not know this way of asking",
    "invalid_scope": "the scope is not allowed",
}
"""RFC 6749 5.2."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class _Answer(msgspec.Struct):
    access_token: str = ""
    token_type: str = ""
    expires_in: int | float | str | None = None
    refresh_token: str | None = None


class _Refusal(msgspec.Struct):
    error: str = ""


_answer = msgspec.json.Decoder(_Answer)
_refusal = msgspec.json.Decoder(_Refusal)


class OAuth2Source:
    """Reads `OAuth2Key` references."""

    fresh_for: float | None = None

    def __init__(self, fetch: Fetch | None, *, seconds: float = _SECONDS, watch: Watch = unwatched) -> None:
        self._fetch = fetch
        self._watch = watch
        self._seconds = seconds
        self._contexts: OrderedDict[str | None, ssl.SSLContext] = OrderedDict()
        self._rotated: OrderedDict[OAuth2Key, tuple[str, Secret]] = OrderedDict()
        """Reference -> (version of the configured refresh token, the one that took its place)."""

    async def read(self, ref: OAuth2Key) -> Dated:
        found = await self._attempt(ref)
        if isinstance(found, SourceFailure):
            raise found
        return found

    async def _attempt(self, ref: OAuth2Key) -> Dated | SourceFailure:
        host = urlsplit(ref.endpoint).netloc
        try:
            answer: bytes | None = None
            with trio.move_on_after(self._seconds):
                request = await self._request(ref)
                answer = await self._post(ref, *request)
            if answer is None:
                return SourceFailure(f"no answer from {host} in time")
            return self._token(ref, answer, request[2])
        except SourceFailure as failure:
            return failure.bare()

    async def _request(self, ref: OAuth2Key) -> tuple[dict[str, str], dict[str, str], str]:
        """Form, headers, and the version of the configured refresh token."""
        parts = urlsplit(ref.endpoint)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SourceFailure(
                f"plain http to {parts.hostname} would show secrets to the network; use https"
            )
        form: dict[str, str] = {"grant_type": "client_credentials"}
        version = ""
        if ref.refresh_token is not None:
            given = await self._nested("refresh_token", ref.refresh_token)
            version = given.version
            token = given.secret
            rotated = self._rotated.get(ref)
            if rotated is not None and rotated[0] == version:
                token = rotated[1]
            form = {"grant_type": "refresh_token", "refresh_token": _text(token)}
        if ref.scope is not None:
            form["scope"] = ref.scope
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if ref.client_secret is None:
            form["client_id"] = ref.client_id
        else:
            secret = _text((await self._nested("client_secret", ref.client_secret)).secret)
            pair = f"{quote_plus(ref.client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return form, headers, version

    async def _nested(self, key: str, ref: KeyRef) -> Credential:
        if self._fetch is None:
            raise SourceFailure("there is no key ring to ask")
        try:
            return await self._fetch(ref)
        except SecretUnavailable as error:
            raise SourceFailure(f"{key}: {error}") from None

    async def _post(self, ref: OAuth2Key, form: dict[str, str], headers: dict[str, str], _: str) -> bytes:
        """The body of a 200. Raises: SourceFailure."""
        host = urlsplit(ref.endpoint).netloc
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            async with (
                httpx2.AsyncClient(
                    trust_env=False,
                    follow_redirects=False,
                    verify=await self._context(ref.ca),
                    timeout=self._seconds,
                ) as client,
                client.stream("POST", ref.endpoint, content=urlencode(form), headers=headers) as response,
            ):
                status = response.status_code
                after = _seconds(response.headers.get("Retry-After"))
                body = bytearray()
                with trio.CancelScope() as reading:  # what is left half read must be unwound from within
                    async for piece in response.aiter_raw():
                        body += piece
                        if len(body) > _BODY_LIMIT:
                            reading.cancel()
            if len(body) > _BODY_LIMIT:
                raise SourceFailure(f"the answer of {host} is larger than {_BODY_LIMIT} octets")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise SourceFailure(_fault(error, host)) from None
        if status == 200:
            return bytes(body)
        if 300 <= status < 400:
            raise SourceFailure(f"{host} redirects ({status}); not followed, the secrets would go too")
        what = _ERRORS.get(_parsed(_refusal, bytes(body)) or "", "")
        if not what:
            what = "its rate limit is reached" if status == 429 else "refused" if status < 500 else "failed"
        raise SourceFailure(f"{host} ({status}): {what}", retry_after=after)

    def _token(self, ref: OAuth2Key, body: bytes, version: str) -> Dated | SourceFailure:
        host = urlsplit(ref.endpoint).netloc
        try:
            answer: _Answer = _answer.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return SourceFailure(f"the answer of {host} is not what a token endpoint says")
        if answer.token_type and answer.token_type.lower() != "bearer":
            return SourceFailure(f"the token of {host} is no bearer token")
        if not _TOKEN.fullmatch(answer.access_token):
            return SourceFailure(f"the answer of {host} holds no access token")
        if answer.refresh_token and ref.refresh_token is not None:
            rotated = Secret(answer.refresh_token)
            self._watch(("refresh token", ref), f"{ref.name} (its refresh token)", rotated)
            self._rotated[ref] = (version, rotated)
            self._rotated.move_to_end(ref)
            if len(self._rotated) > _KEPT:
                self._rotated.popitem(last=False)
        life = _life(answer.expires_in)
        lasts = max(_SHORTEST, life - _EARLY)
        return Dated(Secret(answer.access_token), max(_SHORTEST, min(life * 0.75, lasts)), lasts)

    async def _context(self, ca: str | None) -> ssl.SSLContext:
        context = self._contexts.get(ca)
        if context is None:
            try:
                context = await trio.to_thread.run_sync(_make_context, ca)
            except (OSError, ValueError) as error:
                why = (not isinstance(error, ssl.SSLError) and getattr(error, "strerror", None)) or "no PEM"
                raise SourceFailure(f"cannot use the CA file {ca}: {why}") from None
            if ca is None:
                self._contexts[ca] = context  # a file may be replaced; reading it again costs little
        return context


def _make_context(ca: str | None) -> ssl.SSLContext:
    if ca is not None:
        must_be_regular(ca)
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _text(secret: Secret) -> str:
    try:
        return secret.reveal().decode()
    except UnicodeDecodeError:
        raise SourceFailure("a secret for the endpoint is not text") from None


def _parsed(decoder: msgspec.json.Decoder[_Refusal], body: bytes) -> str | None:
    try:
        return decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _life(expires_in: Any) -> float:
    try:
        seconds = float(expires_in)
    except (TypeError, ValueError):
        return _LIFE
    return min(seconds, _LONGEST_LIFE) if seconds > 0 else _LIFE


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 5 else 0.0


def _fault(error: Exception, host: str) -> str:
    """Why there is no answer, in words of our own."""
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer from {host} in time"
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"TLS to {host} failed: {each.verify_message}"
        if isinstance(each, ssl.SSLError):
            return f"TLS to {host} failed"
        each = each.__cause__ or each.__context__
    if isinstance(error, httpx2.ConnectError):
        return f"cannot reach {host}"
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.DecodingError):
        return f"the answer of {host} is not HTTP, or not whole"
    return f"the connection to {host} broke ({type(error).__name__})"
