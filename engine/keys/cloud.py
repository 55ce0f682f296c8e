"""What the secret managers of the three clouds have in common: an SDK that blocks, and may not be installed.

The SDKs are synchronous and run in threads, a few for each client, that is, for each server: one that hangs
holds up its own secrets only. Whoever waits does so for a bounded time and leaves the thread behind; the
SDK's own time-outs end it. How a machine proves who it is, proxies included, is the SDK's business and its
documentation's. Clients remember a login, also that there is none, so one that failed in it is replaced.

These libraries log whole answers, the secret in them, at their debug level, and as warnings what a server
said and what they could not parse. So their loggers are shut. No text of an exception of theirs is
repeated: it may quote anything. What failed is told once, by the key ring.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any
from urllib.parse import urlsplit

import trio

from policy.secret import Secret

from .address import is_loopback
from .source import SourceFailure, Watch, unwatched

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "CloudSource", "LoginFailure", "check_endpoint", "refused"]

SECONDS = 4.5
"""For one read; just under what a delivery waits."""
CONNECT_SECONDS = 2.0
READ_SECONDS = 4.0
_THREADS = 4
"""At once for one client. Whoever waits for one of them does so within `SECONDS`, too."""
_CLIENTS = 100
_LOGIN_PAUSE = 30.0
"""Seconds that a client lasts at least whose login fails: to make one takes a tenth of a second of work."""
_MAKING_PAUSE = 2.0
"""Seconds after a client could not be made in which nobody tries again, however many secrets are wanted."""


class LoginFailure(SourceFailure):
    """How this machine logs in is at fault. The SDK may never look at it again, a new client does."""


class _Client:
    """One client of the SDK, and who may use it. `made`: monotonic time of the last attempt to make it;
    `failure`: why that failed."""

    def __init__(self) -> None:
        self.limiter = trio.CapacityLimiter(_THREADS)
        self.making = threading.Lock()
        self.client: Any = None
        self.failure: SourceFailure | None = None
        self.made = 0.0


class CloudSource(ABC):
    """The part of a source that is the same for each of them; they say how to read. `watch`: is told of the
    login that is in the environment."""

    fresh_for: float | None = None
    extra = ""
    """The extra of the package that installs the SDK."""
    modules: tuple[str, ...] = ()
    """Those of the SDK that are used."""
    loggers: tuple[str, ...] = ()
    """Whose lines hold answers; those below them, too."""
    login: tuple[str, ...] = ()
    """The variables of the environment that are secrets."""

    def __init__(self, *, seconds: float = SECONDS, watch: Watch = unwatched) -> None:
        self._seconds = seconds
        self._watch = watch
        self._clients: OrderedDict[Hashable, _Client] = OrderedDict()

    async def read(self, ref: Any) -> Secret:
        for name in self.login:
            if value := os.environb.get(os.fsencode(name)):
                self._watch((type(self), name), f"env:{name}", Secret(value))
        client = self._client(self.server(ref))
        found: Secret | SourceFailure | None = None
        with trio.move_on_after(self._seconds):
            found = await trio.to_thread.run_sync(
                self._attempt, ref, client, abandon_on_cancel=True, limiter=client.limiter
            )
        if found is None:
            raise SourceFailure(f"no answer in {self._seconds:g} s")
        if isinstance(found, SourceFailure):
            raise found
        return found

    @abstractmethod
    def server(self, ref: Any) -> Hashable:
        """What a client is made for: references with the same share it."""

    @abstractmethod
    def make(self, ref: Any) -> Any:
        """A client of the SDK for `server(ref)`, in a thread. Raises: what `ask` does."""

    @abstractmethod
    def ask(self, ref: Any, client: Any) -> Secret:
        """The value, in a thread. Raises: SourceFailure, or what the SDK raises."""

    @abstractmethod
    def judge(self, error: Exception) -> SourceFailure:
        """What an exception of the SDK means, in the thread it was raised in. Must not repeat its text."""

    @classmethod
    def absent(cls) -> str:
        """That the SDK is not installed, or nothing. Looks for it without importing it."""
        for name in cls.modules:
            try:
                found = importlib.util.find_spec(name) is not None
            except (ImportError, ValueError):  # of what it is in; of a module that was made by hand
                found = False
            if not found:
                return cls._absence(name)
        return ""

    @classmethod
    def _absence(cls, name: str) -> str:
        return f'the SDK is not installed ({name}); right would be: pip install "posthorn[{cls.extra}]"'

    def module(self, name: str) -> Any:
        """A module of the SDK. Raises: SourceFailure naming the extra when it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError:
            raise SourceFailure(self._absence(name)) from None

    def _client(self, server: Hashable) -> _Client:
        found = self._clients.get(server)
        if found is None:
            found = self._clients[server] = _Client()
            if len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(server)
        return found

    def _made(self, ref: Any, client: _Client) -> Any:
        """The SDK's client. It may be shared; making it may not. Raises: SourceFailure."""
        with client.making:
            if client.client is not None:
                return client.client
            if client.failure is None or time.monotonic() - client.made >= _MAKING_PAUSE:
                _shut(self.loggers)
                try:
                    client.client, client.failure = self.make(ref), None
                except Exception as error:
                    client.failure = self._judged(error).bare()
                # Importing may have opened some: variables like GOOGLE_SDK_PYTHON_LOGGING_SCOPE do.
                _shut(self.loggers)
                client.made = time.monotonic()
            if client.failure is not None:
                raise client.failure.bare()
            return client.client

    def _judged(self, error: Exception) -> SourceFailure:
        if isinstance(error, SourceFailure):
            return error
        try:
            return self.judge(error)
        except Exception:
            return SourceFailure(f"the SDK failed ({type(error).__name__})")

    def _attempt(self, ref: Any, client: _Client) -> Secret | SourceFailure:
        try:
            secret = self.ask(ref, self._made(ref, client))
        except Exception as error:
            failure = self._judged(error)
        else:
            return secret if secret.reveal() else SourceFailure("the value is empty", definite=True)
        if failure.denied or isinstance(failure, LoginFailure):
            with client.making:
                if time.monotonic() - client.made >= _LOGIN_PAUSE:
                    client.client = None
        return failure.bare()


def _shut(names: tuple[str, ...]) -> None:
    below = tuple(f"{name}." for name in names)
    for name in [
        *names,
        *(known for known in list(logging.root.manager.loggerDict) if known.startswith(below)),
    ]:
        each = logging.getLogger(name)
        if each.level < logging.CRITICAL and (name in names or each.level):
            each.setLevel(logging.CRITICAL)


def check_endpoint(address: str) -> None:
    """https, or http to this machine only. Raises: SourceFailure."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise SourceFailure(f"plain http to {parts.hostname} would show the secret to the network; use https")


def refused(status: int, code: str, *, gone: bool = False, retry_after: float = 0.0) -> SourceFailure:
    """The refusal of a server. `code`: its own word for it, shown if it is one word. `gone`: there is no such
    secret, or no such version."""
    word = (
        f" {code}" if code and len(code) <= 60 and code.replace("_", "").isalnum() and code.isascii() else ""
    )
    at = f"({status}{word})"
    if gone:
        return SourceFailure(f"there is no such secret, or no such version of it {at}", definite=True)
    if status == 429:
        return SourceFailure(f"the rate limit is reached {at}", retry_after=retry_after)
    if status in (401, 403):
        return SourceFailure(f"permission denied {at}", denied=True)
    what = "the service failed" if status >= 500 else "refused"
    return SourceFailure(f"{what} {at}", retry_after=retry_after)
