"""A whole relay in a test: the real engine with the policy under test, in a small world of its own.

Real: listeners and their hooks, queues, shaping, automation, key ring, sessions, TLS, SMTP, records. Not
real: DNS is a table, next hops are `NextHop`s reached by pairs of sockets, secrets come from a table, the
spool is in memory, records go into a list. Certificates of a throw-away CA are trusted in place of the
system's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

import policy as vocabulary
from engine.app import Engine, Outside, open_engine
from engine.ca import ThrowAwayCa
from engine.egress.circuitfile import CircuitFile
from engine.egress.dns import Dns, HostsFile
from engine.egress.resolve import Resolver
from engine.egress.site import BadName, parse_endpoint
from engine.ingress.strangers import Strangers
from engine.keys import KeySource
from engine.keys.environment import put_back
from engine.log import Capture, Log, Record
from engine.log.records import LineEncoder
from engine.net import Listener, Stream
from engine.shaping import HostsOf, ShapingService, open_shaping
from engine.shaping.remote import FetchFailed
from engine.spool import MemorySpool, MemoryStore, Spool
from policy.errors import PolicyLoadError
from policy.hooks import EVENTS, HookTable, on, registering
from policy.load import LoadedPolicy, load_policy
from policy.runtime import Declarations, LogDeclaration, MtaStsDeclaration, SpoolDeclaration
from policy.shaping import Shaper
from policy.shaping.rules import Bounces
from policy.units import parse_duration

from .client import Client, Submission, deliver
from .clock import bare
from .hop import NextHop
from .journal import Journal
from .network import Network
from .secrets import Secrets
from .zones import StaticDns, Zones

__all__ = ["Policy", "Relay", "Web", "loaded", "open_relay"]

Policy = str | os.PathLike[str] | Mapping[str, Callable[..., Any]]
"""A policy file, or hooks by event; a name that is no event is a key source."""

_SENDER = "alice@sender.example"
_CONTENT = "Subject: hello\n\nHello\n"
_DAY = "1 day"


class Relay:
    """A running relay. `engine`: the engine itself; `journal`: its records; `dns`, `network`, `secrets`,
    `urls`: its world, which may be changed at any time; `ca`: who is trusted."""

    def __init__(self, engine: Engine, journal: Journal, world: _World, ca: ThrowAwayCa) -> None:
        self.engine = engine
        self.journal = journal
        self.network = world.network
        self.dns = world.zones
        self.secrets = world.secrets
        self.urls = world.urls
        self.ca = ca
        self._world = world

    # -- mail in ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def client(self, address: str = "127.0.0.1", *, listener: int = 0) -> AsyncIterator[Client]:
        """A client at `address` with a connection to one of the listeners, in the order of `init`; it has
        read the greeting."""
        stream = await self.network.call(self.engine.addresses[listener], address)
        try:
            client = Client(stream)
            client.greeting = await client.reply()
            yield client
        finally:
            await trio.aclose_forcefully(stream)

    async def submit(
        self,
        recipients: str | Sequence[str] = "bob@example.com",
        *,
        sender: str = _SENDER,
        content: str | bytes = _CONTENT,
        client: str = "127.0.0.1",
        listener: int = 0,
    ) -> Submission:
        """Hand in one message by SMTP, as a client at the address `client`. What the relay answers, also when
        it refuses, is returned and not raised."""
        listed = [recipients] if isinstance(recipients, str) else list(recipients)
        async with self.client(client, listener=listener) as session:
            return await deliver(session, sender, listed, content)

    # -- what becomes of it ----------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Messages in the relay now."""
        return self.engine.router.statistics().queued

    @property
    def held(self) -> dict[str, str]:
        """Queues that stand still, and why."""
        return dict(self.engine.router.statistics().held)

    def records(self, kind: str) -> list[Record]:
        """The records of a type so far: ``Delivery``, ``TransientFailure``, ``Bounce``, ..."""
        return self.journal.of(kind)

    def leaks(self) -> list[Record]:
        """Records so far whose line in the log would have shown a secret, had the tripwire not masked it: as
        it is, in base64, percent-encoded, ... A hook that puts one into metadata does that."""
        tripwire, encoder = self._world.tripwire, LineEncoder()
        assert tripwire is not None  # the engine has made one
        lines = [(record, encoder.encode([record])) for record in self.journal.records]
        return [record for record, line in lines if tripwire.json_lines(line, "a record of a test") != line]

    async def wait_for(self, kind: str, number: int = 1, *, within: float | str = _DAY) -> list[Record]:
        """Wait for so many records of a type. Raises: AssertionError if they do not come in time."""
        with trio.move_on_after(parse_duration(within)):
            return await self.journal.wait_for(kind, number)
        raise AssertionError(
            f"within {within} there were {len(self.journal.of(kind))} records of type {kind}, not {number}; "
            f"those there were: {self._said()}"
        )

    async def until(self, condition: Callable[[], object], *, within: float | str = _DAY) -> None:
        """Wait until something is true. Raises: AssertionError if it does not become so in time."""
        limit = parse_duration(within)
        pause = 0.005
        with trio.move_on_after(limit):
            while not condition():
                await trio.sleep(pause)
                pause = min(pause * 1.5, limit / 50)
            return
        raise AssertionError(f"within {within} it did not become true; the records were: {self._said()}")

    def _said(self) -> str:
        lines = [f"{record.type} {record.code} {record.content}" for record in self.journal.records[-10:]]
        return "; ".join(lines) or "none"

    async def wait(self, duration: float | str) -> None:
        """Let time pass: seconds, or text like ``"1 hour"``."""
        await trio.sleep(parse_duration(duration))


@asynccontextmanager
async def open_relay(
    policy: Policy,
    *,
    hops: Mapping[str, NextHop] | None = None,
    dns: Zones | None = None,
    secrets: Mapping[str, str | bytes] | Secrets | None = None,
    urls: Mapping[str, str | bytes] | None = None,
    ca: ThrowAwayCa | None = None,
    store: MemoryStore | None = None,
    real_keys: bool = False,
) -> AsyncIterator[Relay]:
    """A running relay; leaving the block stops it at once. Use it in a `scenario`, so that waiting costs
    nothing.

    `policy`: a file, or hooks by event. Without an `init` it gets a listener that relays for this machine.
    `hops`: who is reached at a host name or an IP address, with ``:PORT`` only there. A name gets an address
    and a record in `dns` by itself. Everywhere else connections are refused.
    `dns`: a zone table, see `StaticDns`.
    `secrets`: what key sources answer, see `Secrets`; literals and callbacks answer themselves.
    `urls`: content of shaping URLs.
    `ca`: who issues the certificates of hops with ``tls=True``; by default one is made.
    `store`: of a relay before this one, to play a restart.
    `real_keys`: key sources are read as in life (from Vault, files, ...), and `secrets` is not used.
    Raises: policy.PolicyError and engine.errors.ConfigError as a start would; ValueError for `hops` that are
    neither names nor addresses; what a hop's script raises.
    """
    ca = ca if ca is not None else ThrowAwayCa()
    zones = {name.lower().rstrip("."): dict(zone) for name, zone in (dns or {}).items()}
    network = Network()
    for hop, names in _placed(hops or {}, zones, network):
        hop.certify(ca, names)
    world = _World(
        network,
        StaticDns(zones),
        secrets if isinstance(secrets, Secrets) else Secrets(secrets),
        dict(urls or {}),
        store if store is not None else MemoryStore(),
    )
    world.key_sources = {} if real_keys else world.secrets.sources()
    with (
        tempfile.TemporaryDirectory(prefix="posthorn-") as directory,
        _trusting(ca, directory),
        put_back(),
        bare(),
    ):
        async with trio.open_nursery() as network.nursery:
            async with open_engine(_Moved(loaded(policy), f"{directory}/spool"), world) as engine:
                yield Relay(engine, world.journal, world, ca)
            network.nursery.cancel_scope.cancel()


def loaded(policy: Policy) -> LoadedPolicy:
    """The policy, with an `init` if it has none. Raises: policy.PolicyError."""
    if isinstance(policy, Mapping):
        found = LoadedPolicy(Path("policy"), HookTable(), Path())
    else:
        found = load_policy(os.fspath(policy))
    token = registering.set(found.hooks)
    try:
        for event, hook in policy.items() if isinstance(policy, Mapping) else ():
            on(event, keysource=event not in EVENTS)(hook)
        if not found.hooks.get("init"):
            on("init")(_init)
    finally:
        registering.reset(token)
    return found


def _init() -> None:
    vocabulary.define_spool(path="spool")
    vocabulary.start_esmtp_listener(listen="127.0.0.1:25", hostname="relay.example")


def _placed(
    hops: Mapping[str, NextHop], zones: dict[str, dict[str, Any]], network: Network
) -> list[tuple[NextHop, list[str]]]:
    """Put the hops into the network and into DNS; the names and addresses of each."""
    known: dict[int, tuple[NextHop, list[str]]] = {}
    free = iter(range(1, 255))
    for text, hop in hops.items():
        try:
            place = parse_endpoint(text)
        except BadName as error:
            raise ValueError(f"hops: {text!r} is neither a host name nor an address: {error}") from None
        _, names = known.setdefault(id(hop), (hop, []))
        names.append(place.host)
        if place.literal:
            addresses = [place.host]
        else:
            zone = zones.setdefault(place.host, {})
            if "A" not in zone and "AAAA" not in zone:
                zone["A"] = [f"192.0.2.{next(free)}"]  # RFC 5737
            addresses = [*zone.get("A", ()), *zone.get("AAAA", ())]
            names += addresses
        for address in addresses:
            network.hops[address, place.port] = hop
    return list(known.values())


class _World(Outside):
    """What such a relay reaches."""

    def __init__(
        self,
        network: Network,
        zones: StaticDns,
        secrets: Secrets,
        urls: dict[str, str | bytes],
        store: MemoryStore,
    ) -> None:
        self.network = network
        self.zones = zones
        self.secrets = secrets
        self.urls = urls
        self.store = store
        self.journal = Journal()
        self.key_sources: Mapping[type, KeySource] = {}

    @asynccontextmanager
    async def open_stores(
        self, spool: SpoolDeclaration, logs: Sequence[LogDeclaration], bounces: Bounces | None
    ) -> AsyncIterator[tuple[Log, Spool]]:
        self.journal.capture = Capture(
            [name for log in logs for name in log.meta], [name for log in logs for name in log.headers]
        )
        self.journal.bounces = bounces
        yield self.journal, MemorySpool(self.store)

    def pressure(self, limit: int) -> None:
        return None  # a test's process is no relay's, and looking four times a second makes an hour long

    def dns(self) -> Dns:
        return self.zones

    def hosts(self) -> HostsFile | None:
        return None

    @asynccontextmanager
    async def open_shaping(
        self, shapers: Sequence[Shaper], hosts_of: HostsOf, spool: SpoolDeclaration
    ) -> AsyncIterator[ShapingService]:
        # Looking at files every second would make an hour long.
        async with open_shaping(shapers, hosts_of, client=Web(self.urls), watch=False) as service:
            yield service

    @asynccontextmanager
    async def open_circuits(self, spool: SpoolDeclaration) -> AsyncIterator[CircuitFile | None]:
        yield _Circuits.load(_Memory(self.store.logins))

    async def strangers(self, spool: SpoolDeclaration) -> Strangers:
        return Strangers()

    @asynccontextmanager
    async def open_policies(
        self, wanted: MtaStsDeclaration, resolver: Resolver, spool: SpoolDeclaration
    ) -> AsyncIterator[None]:
        yield None  # a policy server would be asked by HTTPS, and here is no network

    async def connect(self, address: str, port: int, *, source_address: str | None = None) -> Stream:
        return await self.network.connect(address, port, source_address=source_address)

    def listen(self, host: str, port: int) -> Listener:
        return self.network.listen(host, port)


class _Memory:
    """What would be files beside the spool."""

    path = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def write(self, name: str, content: bytes) -> None:
        self._files[name] = content


class _Circuits(CircuitFile):
    """Without a thread: while one works nobody seems to, and the clock of a scenario would jump."""

    async def _store(self, *what: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.save(*what)


class Web:
    """Fetches shaping URLs from a table."""

    def __init__(self, urls: Mapping[str, str | bytes]) -> None:
        self._urls = urls

    async def fetch(self, url: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        if url not in self._urls:
            raise FetchFailed("the test has no content for it: urls={...} of open_relay")
        content = self._urls[url]
        return content.encode() if isinstance(content, str) else content

    def forget(self, url: str) -> None:
        pass


class _Moved(LoadedPolicy):
    """A policy whose spool is elsewhere: an engine may keep more beside it than messages."""

    def __init__(self, policy: LoadedPolicy, spool: str) -> None:
        vars(self).update(vars(policy))
        self._spool = spool

    async def run_init(self, mistakes: list[PolicyLoadError] | None = None) -> Declarations:
        declarations = await super().run_init(mistakes)
        if declarations.spool is not None:
            declarations.spool = msgspec.structs.replace(declarations.spool, path=self._spool)
        return declarations


@contextmanager
def _trusting(ca: ThrowAwayCa, directory: str) -> Iterator[None]:
    """While the block runs, OpenSSL trusts this CA by default and nobody else. Needs room in `directory`."""
    (Path(directory) / "ca.pem").write_bytes(ca.pem)
    before = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    os.environ.update(SSL_CERT_FILE=f"{directory}/ca.pem", SSL_CERT_DIR=f"{directory}/none")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
