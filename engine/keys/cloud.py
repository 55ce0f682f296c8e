"""What the secret managers of the three clouds have in common: an SDK that blocks, and may not be installed.

The SDKs are synchronous and run in threads, a few for each cloud: one that hangs holds up its own secrets
only. Whoever waits does so for a bounded time and leaves the thread behind; the SDK's own time-outs end it.
How a machine proves who it is, proxies included, is the SDK's business and its documentation's.

At their debug level these libraries log whole answers, the secret in them, so those levels are shut off. No
text of an exception of theirs is repeated: it may quote anything.
"""

from __future__ import annotations

import importlib
import logging
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from urllib.parse import urlsplit

import trio

from policy.secret import Secret

from .address import is_loopback
from .source import SourceFailure

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "CloudSource", "check_endpoint", "refused"]

SECONDS = 4.5
"""For one read; just under what a delivery waits."""
CONNECT_SECONDS = 2.0
READ_SECONDS = 4.0
_THREADS = 4
_CLIENTS = 100


class CloudSource(ABC):
    """The part of a source that is the same for each of them; they say how to read."""

    fresh_for: float | None = None
    extra = ""
    """The extra of the package that installs the SDK."""
    loggers: tuple[str, ...] = ()
    """Whose debug lines hold answers."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._clients: OrderedDict[Hashable, Any] = OrderedDict()
        self._making = threading.Lock()

    async def read(self, ref: Any) -> Secret:
        found: Secret | SourceFailure | None = None
        with trio.move_on_after(self._seconds):
            found = await trio.to_thread.run_sync(
                self._attempt, ref, abandon_on_cancel=True, limiter=self._limiter
            )
        if found is None:
            raise SourceFailure(f"no answer in {self._seconds:g} s")
        if isinstance(found, SourceFailure):
            raise found
        return found

    @abstractmethod
    def ask(self, ref: Any) -> Secret:
        """The value, in a thread. Raises: SourceFailure, ImportError, or what the SDK raises."""

    @abstractmethod
    def judge(self, error: Exception) -> SourceFailure:
        """What an exception of the SDK means. Must not repeat its text."""

    def client(self, what: Hashable, make: Callable[[], Any]) -> Any:
        """The SDK's client for `what`, made once; in a thread. Clients may be shared, making them may not."""
        with self._making:
            found = self._clients.get(what)
            if found is None:
                found = self._clients[what] = make()
                if len(self._clients) > _CLIENTS:
                    self._clients.popitem(last=False)
            self._clients.move_to_end(what)
            return found

    def module(self, name: str) -> Any:
        """A module of the SDK. Raises: SourceFailure naming the extra when it is not installed."""
        for each in self.loggers:
            if logging.getLogger(each).level < logging.WARNING:
                logging.getLogger(each).setLevel(logging.WARNING)
        try:
            return importlib.import_module(name)
        except ImportError:
            raise SourceFailure(
                f'the SDK is not installed ({name}); right would be: pip install "posthorn[{self.extra}]"'
            ) from None

    def _attempt(self, ref: Any) -> Secret | SourceFailure:
        try:
            secret = self.ask(ref)
        except SourceFailure as failure:
            return failure.bare()
        except Exception as error:
            try:
                return self.judge(error).bare()
            except Exception:
                return SourceFailure(f"the SDK failed ({type(error).__name__})")
        return secret if secret.reveal() else SourceFailure("the value is empty", definite=True)


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
