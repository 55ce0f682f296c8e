"""The service: one watcher per `Shaper` of the policy.

A watcher looks at the files once a second, reads in a thread what changed or what URLs say now (`urls`), and
puts the whole in force or, if anything in it is wrong, nothing: what was in force stays, and the log says
once what is wrong. It asks DNS which hosts stand behind the blocks
with roll-up, again after a minute where DNS could not say; a block without an answer holds for its own name.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from os import stat
from typing import TypeAlias

import trio

from policy.errors import PolicyError
from policy.shaping import Shaper, ShapingError, Table

from .automation import Automation
from .remote import Fetches, open_client
from .state import State
from .urls import START, Urls

__all__ = ["HostsOf", "ShapingService", "Unresolved", "open_shaping"]

logger = logging.getLogger("posthorn.shaping")

LOOK = 1.0
"""Seconds between two looks at the files."""
QUIET = 0.25
"""Seconds that a changed file must look the same before it is read."""
ASK_AGAIN = 60.0
"""Seconds after which DNS is asked again where it could not say."""
ASK_ALL = 300.0
"""Seconds after which DNS is asked again about every block; answers that live longer come from its cache."""
_ASKERS = 32
"""Questions to DNS at once."""
_TOLD = 10
"""Mistakes of one change that are logged."""

Signature: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class Unresolved(Exception):
    """DNS has no hosts for a block. `later`: it could not say now, so asking again may help. `missing`: no
    host of that name is known, neither as MX nor by an address."""

    def __init__(self, reason: str, *, later: bool, missing: bool = False) -> None:
        super().__init__(reason)
        self.later = later
        self.missing = missing


HostsOf: TypeAlias = Callable[[str], Awaitable[frozenset[str]]]
"""The hosts that take a domain's mail. Raises: Unresolved."""


class _Watcher:
    """See the module. `changed`: called when something new is in force."""

    def __init__(
        self,
        shaper: Shaper,
        hosts_of: HostsOf,
        urls: Urls,
        automation: Automation,
        tell_dns: bool,
    ) -> None:
        self._tell_dns = tell_dns
        self._automation = automation
        self.changed: Callable[[], None] = lambda: None
        self._shaper = shaper
        self._hosts_of = hosts_of
        self._urls = urls
        self._paths = [file.path for file in shaper.files if file.path is not None]
        self._seen: Signature = ()
        self._sites: dict[str, frozenset[str]] = {}
        self._unresolved: dict[str, str] = {}
        self._hostless: set[str] = set()
        """Blocks of which DNS said that there are no hosts."""
        self._news: list[str] = []
        self._ask = trio.Event()
        self._reading = trio.Lock()

    async def start(self) -> None:
        """The first look, with a limit to how long DNS may take."""
        self._seen = await trio.to_thread.run_sync(self._signature)
        await self.read(starting=True)
        with trio.move_on_after(START) as scope:
            await self.resolve(list(self._shaper.table.rollups))
        if scope.cancelled_caught and self._tell_dns:
            logger.warning(
                "DNS did not say within %g s which hosts stand behind every block; until it does, a "
                "block holds for its own name",
                START,
            )
        self._say()

    def _say(self) -> None:
        blocks, files = self._shaper.table.blocks, self._shaper.files
        logger.info(
            "in force: %d block%s from %s",
            len(blocks),
            "" if len(blocks) == 1 else "s",
            ", ".join(one.name for one in files),
        )

    # -- files -----------------------------------------------------------------------------------

    def _signature(self) -> Signature:
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                status = stat(path)
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                found.append(None)
        return tuple(found)

    async def _look(self) -> Signature:
        return await trio.to_thread.run_sync(self._signature, abandon_on_cancel=True)

    async def watch_files(self) -> None:
        """Read again whenever a file was changed, and nobody is writing it any more: the first half of a file
        may read well, and say nothing of the TLS and the login that the other half demands."""
        while True:
            await trio.sleep(LOOK)
            seen = await self._look()
            if seen == self._seen:
                continue
            await trio.sleep(QUIET)
            if await self._look() == seen and await self.read(as_seen=seen):
                self._seen = seen

    async def url_changed(self, *, watched: bool) -> None:
        """Read again. Where files are `watched` and one is being changed, both are read when that is done."""
        await self.read(as_seen=self._seen if watched else None)

    async def read(self, *, starting: bool = False, as_seen: Signature | None = None) -> bool:
        """Read what changed, and put the whole in force if nothing in it is wrong. `as_seen`: how the files
        look; False when they look otherwise after they were read, which was for nothing then."""
        shaper = self._shaper
        async with self._reading:
            remote = self._urls.of(shaper)
            table: Table | None = None
            refused: Sequence[PolicyError] = ()
            try:
                table = await trio.to_thread.run_sync(shaper.build, remote, abandon_on_cancel=True)
            except ShapingError as error:
                refused = error.problems
            except Exception:
                # A barrier: whatever a file says must not end the relay.
                logger.exception("a change cannot be read, and what was in force before stays")
            if as_seen is not None and await self._look() != as_seen:
                return False
            if table is None:
                self._refuse(refused, remote)
                return True
            had = shaper.unread
            shaper.unread = {url: why for url, why in had.items() if url not in remote}
            same = [id(one) for one in table.documents] == [id(one) for one in shaper.table.documents]
            if same and len(had) == len(shaper.unread):
                return True
            shaper.use(table)
            self._automation.reloaded(shaper)
        if not starting:
            self._say()
            self._ask.set()
            self.changed()
        return True

    def _refuse(self, problems: Sequence[PolicyError], remote: Mapping[str, bytes]) -> None:
        if not problems:
            return
        logger.error("a change is refused, and what was in force before stays in force")
        for problem in problems[:_TOLD]:
            logger.error("%s", problem)
        if len(problems) > _TOLD:
            logger.error("and %d more mistakes", len(problems) - _TOLD)
        why = f"a change is refused: {problems[0]}"
        had = self._shaper.unread
        self._shaper.unread = {url: why if url in remote else was for url, was in had.items()}

    # -- DNS -------------------------------------------------------------------------------------

    async def watch_dns(self) -> None:
        """Ask again: at once after a change, soon where there was no answer, now and then about all."""
        all_at = trio.current_time() + ASK_ALL
        while True:
            with trio.move_on_after(ASK_AGAIN):
                await self._ask.wait()
            self._ask = trio.Event()
            rollups = self._shaper.table.rollups
            if trio.current_time() >= all_at:
                all_at = trio.current_time() + ASK_ALL
                due = list(rollups)
            else:
                due = [key for key in rollups if key not in self._sites]
            before = dict(self._sites)
            await self.resolve(due)
            if self._sites != before:
                self.changed()

    async def resolve(self, keys: Sequence[str]) -> None:
        """Ask DNS about blocks, and put the answers in force, also when the asking is broken off."""
        waiting = list(reversed(keys))
        before = dict(self._sites)

        async def ask() -> None:
            while waiting:
                await self._resolve(waiting.pop())

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(_ASKERS, len(waiting))):
                    nursery.start_soon(ask)
        finally:
            rollups = self._shaper.table.rollups
            self._sites = {key: hosts for key, hosts in self._sites.items() if key in rollups}
            self._unresolved = {key: why for key, why in self._unresolved.items() if key in rollups}
            self._hostless &= rollups.keys()
            self._tell_news()
            if self._sites != before:
                self._shaper.use_sites(dict(self._sites))

    async def _resolve(self, key: str) -> None:
        try:
            self._sites[key] = await self._hosts_of(key)
        except Unresolved as error:
            if error.later and key in self._sites:
                return  # what it said last goes on
            self._sites.pop(key, None)
            why = str(error)
            if self._unresolved.get(key) != why:
                self._unresolved[key] = why
                block = self._shaper.table.rollups.get(key)
                self._news.append(
                    f'{block.origin.where if block is not None else ""}: block "{key}" has no hosts to roll '
                    f"up: {why}; it holds for its own name"
                    + (" until DNS can say" if error.later else ", and mx_rollup = false would say so")
                )
            if not error.later:
                self._hostless.add(key)
        else:
            self._unresolved.pop(key, None)
            self._hostless.discard(key)

    def _tell_news(self) -> None:
        """Log what DNS could not say this time: a name server that is out must not bury the log."""
        news, self._news = self._news, []
        if self._tell_dns:
            for text in news[:_TOLD]:
                logger.warning("%s", text)
            if len(news) > _TOLD:
                logger.warning("and %d more blocks have no hosts to roll up", len(news) - _TOLD)

    @property
    def doubtful(self) -> int:
        """Blocks with roll-up of which it is not known which hosts stand behind them."""
        known = self._sites.keys() | self._hostless
        return sum(key not in known for key in self._shaper.table.rollups)


class ShapingService:
    """All watchers, and what their rules bring about. `changed` is called whenever something new is in
    force."""

    def __init__(self, watchers: Sequence[_Watcher], automation: Automation) -> None:
        self._watchers = watchers
        self.automation = automation

    @property
    def doubtful(self) -> int:
        """Blocks with roll-up of which DNS has not said which hosts stand behind them."""
        return sum(watcher.doubtful for watcher in self._watchers)

    def tell(self, changed: Callable[[], None]) -> None:
        """Who is to be told of a change; from now on."""
        self.automation.paths_changed = changed
        for watcher in self._watchers:
            watcher.changed = changed


@asynccontextmanager
async def open_shaping(
    shapers: Sequence[Shaper],
    hosts_of: HostsOf,
    state: State | None = None,
    *,
    client: Fetches | None = None,
    watch: bool = True,
    tell_dns: bool = True,
) -> AsyncIterator[ShapingService]:
    """Keep the shapers of a policy up to date; leaving the block ends that. With none it costs nothing.

    `state`: where is kept what must outlive a restart. `client`: fetches the URLs. `watch`: False looks at
    the files only once. `tell_dns`: False does not log about which blocks DNS has no answer.

    The start waits a few seconds for URLs and for DNS, so that the first mail meets what they say.
    """
    async with AsyncExitStack() as stack:
        if client is None and any(file.url for shaper in shapers for file in shaper.files):
            client = await stack.enter_async_context(open_client())
        automation = Automation(shapers, state)
        urls = Urls(shapers, client, state)
        watchers = {shaper: _Watcher(shaper, hosts_of, urls, automation, tell_dns) for shaper in shapers}
        nursery = await stack.enter_async_context(trio.open_nursery())
        await urls.start()
        async with trio.open_nursery() as first:
            for watcher in watchers.values():
                first.start_soon(watcher.start)
        await automation.start()
        if shapers:
            nursery.start_soon(automation.run)
        nursery.start_soon(urls.watch, lambda shaper: watchers[shaper].url_changed(watched=watch))
        for watcher in watchers.values():
            if watch:
                nursery.start_soon(watcher.watch_files)
            nursery.start_soon(watcher.watch_dns)
        yield ShapingService(tuple(watchers.values()), automation)
        nursery.cancel_scope.cancel()
