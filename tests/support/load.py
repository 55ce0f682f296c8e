"""Many messages at once, from a client that goes on when the relay dies and comes back."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.rawclient import RawClient

__all__ = ["Load", "content_of", "recipient_of", "run_load"]

_FILLING = b"".join(
    b"line %02d of a message of about one KiB, nothing special in it\r\n" % n for n in range(16)
)


def recipient_of(number: int, attempt: int) -> str:
    """The one recipient of a message; it tells which one it is."""
    return f"n{number}-{attempt}@domain-{number % 5}.example"


def content_of(recipient: str) -> bytes:
    """The whole message for a recipient."""
    return b"To: %b\r\nSubject: load\r\n\r\n%b" % (recipient.encode(), _FILLING)


class Load:
    """`total` messages, each submitted until one attempt got its 250.

    `accepted`: recipients whose message got its 250. Attempts that broke off get a new name, so a message
    that was taken although the client never heard of it can be told apart.
    """

    def __init__(self, port: int, total: int, patience: float) -> None:
        self.accepted: set[str] = set()
        self.failures: list[str] = []
        self._port = port
        self._total = total
        self._patience = patience
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []

    def wait(self, *, seconds: float) -> None:
        """Wait until all is submitted. Raises: AssertionError when that fails."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not self.failures, self.failures
        assert len(self.accepted) == self._total, f"{len(self.accepted)} of {self._total} were accepted"

    def run(self, sessions: int) -> None:
        for _ in range(sessions):
            thread = threading.Thread(target=self._session, daemon=True)
            self._threads.append(thread)
            thread.start()

    def abandon(self) -> None:
        """Submit no more."""
        self._total = 0
        for thread in self._threads:
            thread.join(10)

    def _session(self) -> None:
        client: RawClient | None = None
        try:
            for number in self._numbers:
                if number >= self._total:
                    return
                for attempt in itertools.count():
                    recipient = recipient_of(number, attempt)
                    try:
                        if client is None:
                            client = self._connect()
                        code, text = client.deliver("load@sender.example", recipient, content_of(recipient))
                    except OSError:
                        client = self._close(client)
                        continue
                    if code == 250:
                        self.accepted.add(recipient)
                        break
                    if code // 100 == 5 or self._total == 0:
                        self.failures.append(f"{recipient}: {code} {text!r}")
                        return
                    client = self._close(client)
                    time.sleep(0.02)
        except AssertionError as error:
            self.failures.append(str(error))
        finally:
            self._close(client)

    def _connect(self) -> RawClient:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return RawClient(self._port)
            except (OSError, ValueError):
                assert time.monotonic() < deadline, f"nobody listens on {self._port}"
                assert self._total, "abandoned"
                time.sleep(0.02)

    @staticmethod
    def _close(client: RawClient | None) -> None:
        if client is not None:
            with contextlib.suppress(OSError):
                client.__exit__()


@contextmanager
def run_load(port: int, total: int, *, sessions: int, patience: float = 60.0) -> Iterator[Load]:
    """Begin to submit in the background. `patience`: seconds the relay may be away."""
    load = Load(port, total, patience)
    load.run(sessions)
    try:
        yield load
    finally:
        load.abandon()
