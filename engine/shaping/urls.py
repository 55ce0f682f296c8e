"""What the URLs of all lists say. Each URL has one owner, here, however many lists name it.

It is fetched once a minute, whoever wants it, and written down under a name made from the whole URL: two
lists may name one place with different queries. One that fails keeps the content it had.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from policy.shaping.read import read

from .remote import Fetches, FetchFailed

if TYPE_CHECKING:
    from policy.shaping import Shaper

    from .state import State

__all__ = ["START", "Urls"]

logger = logging.getLogger("posthorn.shaping")

FETCH = 60.0
"""Seconds between two looks at the URLs."""
SOON = 5.0
"""The same while one of them was never put in force."""
START = 5.0
"""Seconds that a start waits for them."""


class Urls:
    """See the module. `client`: None only where no list names a URL. `state`: None keeps nothing."""

    def __init__(self, shapers: Sequence[Shaper], client: Fetches | None, state: State | None) -> None:
        self._client = client
        self._state = state
        self._names: dict[str, str] = {}
        self._users: dict[str, list[Shaper]] = {}
        for shaper in shapers:
            for file in shaper.files:
                if file.url:
                    self._names[file.url] = file.name
                    self._users.setdefault(file.url, []).append(shaper)
        self._content: dict[str, bytes] = {}
        self._failing: dict[str, str] = {}

    def of(self, shaper: Shaper) -> dict[str, bytes]:
        """What is known of the URLs in one list, by the names that the list has for them."""
        return {
            file.name: self._content[file.url]
            for file in shaper.files
            if file.url and file.url in self._content
        }

    async def start(self) -> None:
        """Fetch all, with a limit to how long it may take; of those that cannot be had, what they said
        before the restart is in use."""
        if not self._names:
            return
        with trio.move_on_after(START):
            await self._fetch_all()
        if self._state is None:
            return
        for url, name in self._names.items():
            if url in self._content:
                continue
            content = await trio.to_thread.run_sync(self._state.remote, url)
            if content is None or (await trio.to_thread.run_sync(read, name, content)).problems:
                continue
            self._content[url] = content
            logger.warning("%s: what it said last, before the restart, is in use", name)

    async def watch(self, changed: Callable[[Shaper], Awaitable[object]]) -> None:
        """Fetch again every minute, and tell of each list of which something is new."""
        while self._names:
            waited_for = any(shaper.unread for users in self._users.values() for shaper in users)
            await trio.sleep(SOON if waited_for else FETCH)
            before = dict(self._content)
            await self._fetch_all()
            new = [url for url, content in self._content.items() if before.get(url) is not content]
            # Each once, in the order of the policy.
            for shaper in dict.fromkeys(user for url in new for user in self._users[url]):
                await changed(shaper)

    async def _fetch_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for url in self._names:
                nursery.start_soon(self._fetch, url)

    async def _fetch(self, url: str) -> None:
        assert self._client is not None
        name = self._names[url]
        try:
            content = await self._client.fetch(url)
            if content is not None:
                document = await trio.to_thread.run_sync(read, name, content)
                if document.problems:
                    self._client.forget(url)
                    raise FetchFailed(f"what it says is refused: {document.problems[0]}")
        except trio.Cancelled:
            # It may be here and on its way to a thread: without this it would never be sent again.
            self._client.forget(url)
            raise
        except Exception as failed:
            why = str(failed)
            if not isinstance(failed, FetchFailed):
                # A barrier: whatever a URL says must not end the relay.
                logger.exception("%s", name)
                self._client.forget(url)
                why = f"internal error ({type(failed).__name__}), see the diagnostics"
            self._failed(url, why)
            return
        if self._failing.pop(url, None) is not None:
            logger.info("%s can be used again", name)
        if content is not None:
            self._content[url] = content
            if self._state is not None:
                await trio.to_thread.run_sync(self._state.keep_remote, url, content)

    def _failed(self, url: str, why: str) -> None:
        name = self._names[url]
        if self._failing.get(url) != why:
            self._failing[url] = why
            if url in self._content:
                text = "what it said last stays in use"
            elif any(shaper.require_remote for shaper in self._users[url]):
                text = "mail waits until it was read once"
            else:
                text = "it is taken for empty"
            logger.warning("%s cannot be used: %s; %s", name, why, text)
        for shaper in self._users[url]:
            if name in shaper.unread:
                shaper.unread = {**shaper.unread, name: why}
