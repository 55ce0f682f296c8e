"""What ``posthorn explain`` finds out, with the parts of the engine that would carry the mail."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from engine.app import hosts_of, own_hosts
from engine.cli.asked import AskedHooks, destination, routing_domain
from engine.cli.credentials import Credential, fetched
from engine.cli.provenance import Hook, Option, made_options, path_options
from engine.cli.remarks import doubt, nowhere
from engine.egress.circuitfile import CircuitFile, InUse, directory
from engine.egress.circuits import OpenCircuit
from engine.egress.dns import HostsFile, StubResolver
from engine.egress.mta_sts import DEMAND
from engine.egress.resolve import Candidate, Resolver
from engine.egress.routes import NoRouteNow, RouteFinder
from engine.egress.site import parse_endpoint
from engine.egress.sts import Policies, open_policies
from engine.egress.stsfetch import Fetcher
from engine.egress.stsstore import Store
from engine.egress.tlsa import dane_for
from engine.errors import ConfigError, DaneImpossible, ResolveError
from engine.keys import KeyRing, open_keys
from engine.model import QueueName
from engine.queues.limits import LocalLimits
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import ScheduledQueue
from engine.shaping import Automation, State, open_shaping
from engine.tripwire import Tripwire
from policy.ceilings import Ceilings, ceilings
from policy.egress import EgressPath, QueueConfig
from policy.load import load_policy
from policy.options import Made, noting
from policy.release import Release
from policy.runtime import Declarations, MtaStsDeclaration
from policy.secret import Secret
from policy.shaping import Found

__all__ = ["Explanation", "Question", "explained", "tls_text"]

_LABEL = 12
"""Width of the first column, at least."""
_HOSTS = 10
"""Hosts of a site whose TLSA records are shown."""


class Question(msgspec.Struct, frozen=True):
    """What the command line asked."""

    address: str
    source: str | None = None
    tenant: str | None = None
    campaign: str | None = None
    routing_domain: str | None = None
    secrets: bool = True


class Road(msgspec.Struct, frozen=True):
    """The way from one source. `key`: equal for all mail that shares connections, and for no other.
    `site_key`: the same for the exact hosts, whatever the source and the path."""

    source: str
    weight: int
    source_options: tuple[Option, ...]
    site: str
    site_key: str
    kind: str
    hosts: tuple[str, ...]
    ready_queue: str
    key: str
    tls: str
    mta_sts: str
    dane: tuple[str, ...]
    auth: str
    credential: Credential | None
    at_most: Ceilings
    options: tuple[Option, ...]
    notes: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Everything."""

    address: str
    queue: str
    policy: str
    queue_config: str
    queue_options: tuple[Option, ...]
    route: str
    pool: str
    roads: tuple[Road, ...]

    def as_json(self) -> str:
        """One JSON object."""
        return msgspec.json.encode(self).decode()

    def as_text(self) -> str:
        """For a terminal."""
        rows = [
            f"{self.address}",
            f"  queue         {self.queue}, {self.queue_config}",
            f"  route         {self.route}{self._queue_option('protocol')}",
            f"  pool          {self.pool}{self._queue_option('egress_pool')}",
            *_set_rows(self.queue_options, but=("protocol", "egress_pool")),
        ]
        for road in self.roads:
            rows += [
                f"from {road.source} (weight {road.weight})",
                *_set_rows(road.source_options, but=("name",)),
                f"  site          {road.site} ({', '.join(road.hosts)})",
                f"  ready queue   {road.ready_queue}, key {road.key}",
                f"  TLS           {road.tls}",
                *([f"  MTA-STS       {road.mta_sts}"] if road.mta_sts else []),
                *(f"  DANE          {text}" for text in road.dane),
                f"  AUTH          {road.auth}",
            ]
            if road.credential is not None:
                rows.append(f"  credential    {road.credential.as_text()}")
            rows.append(f"  at most       {road.at_most}")
            rows += _set_rows(road.options)
            unset = sum(option.set_by is None for option in road.options)
            rows.append(f"  and {unset} options that nobody set")
            rows += [f"  note          {note}" for note in road.notes]
        return "\n".join(rows)

    def _queue_option(self, name: str) -> str:
        """Who set an option of the queue."""
        found = [option.set_by for option in self.queue_options if option.name == name and option.set_by]
        return f"   {found[0]}" if found else ""


def _set_rows(options: Sequence[Option], but: Sequence[str] = ()) -> Iterator[str]:
    """The options that somebody set. `but`: those that are shown in another row."""
    found = [option for option in options if option.set_by is not None and option.name not in but]
    width = max((len(option.name) for option in found), default=0)
    width = max(width, _LABEL)
    for option in found:
        yield f"  {option.name:<{width}}  {option.value}   {option.set_by}"
        yield from (f"  {'':<{width}}  over {step.value}   {step}" for step in option.overrode)


async def explained(path: Path | None, question: Question, tripwire: Tripwire) -> Explanation:
    """Ask what the engine would ask. `tripwire` is told the secrets that were fetched for it.

    Raises: ConfigError, HookError, PolicyError."""
    with noting() as made:
        return await _explained(path, question, tripwire, made)


async def _explained(
    path: Path | None, question: Question, tripwire: Tripwire, made: Sequence[Made]
) -> Explanation:
    domain = destination(question.address, "ADDRESS")
    if question.routing_domain is not None:
        routing_domain(question.routing_domain)
    loaded = load_policy(path)
    declarations = await loaded.run_init()
    hooks = AskedHooks(loaded)
    resolver = Resolver(
        StubResolver(os.environ.get("POSTHORN_DNS_SERVERS", "").split()),
        hosts=HostsFile(),
        own=own_hosts(declarations),
    )
    seen: dict[str, tuple[Found | None, str]] = {}
    queue = ScheduledQueue(QueueName(domain, question.tenant, question.campaign, question.routing_domain))
    spool = declarations.spool
    state = State(spool.path, writes=False) if spool is not None else None
    file = CircuitFile.load(directory(spool.path, writes=False)) if spool is not None else None
    circuits = file.circuits() if file is not None else []
    async with (
        open_keys(hooks, tripwire=tripwire, fingerprint=file.key if file is not None else None) as keys,
        open_shaping(loaded.hooks.shapers, hosts_of(resolver), state, tell_dns=False) as shaping,
        _policies(declarations, resolver) as policies,
    ):
        finder = RouteFinder(hooks, resolver, LocalLimits(), policies)
        finder.observe = lambda source, found: seen.__setitem__(
            source,
            (found, hooks.where("get_egress_path_config") if hooks.has("get_egress_path_config") else ""),
        )
        try:
            routes = await finder.find(queue)
        except ResolveError as error:
            raise ConfigError(f"the destination cannot be resolved now: {error}") from None
        if isinstance(routes, NoRouteNow):
            raise ConfigError(f"there is no way to {queue.name.route}: {routes.outcome.reply.line}")
        source_hook = Hook.at(hooks.where("get_egress_source"))
        roads = [
            await _road(
                resolver,
                queue.name.route,
                ready,
                weight,
                seen[ready.source.name],
                made,
                source_hook,
                keys,
                (
                    *_stops(queue.name, ready, shaping.automation),
                    *_refused(ready, circuits),
                    *doubt(shaping.doubtful),
                    *_in_use(ready, file.in_use() if file is not None else ()),
                    *await nowhere(resolver, ready),
                ),
                await _mta_sts(queue.name, ready, policies),
                ceilings(ready.path, queue.config if queue.config is not None else QueueConfig()),
                secrets=question.secrets,
            )
            for ready, weight in zip(routes.all(), routes.weights(), strict=True)
            if question.source in (None, ready.source.name)
        ]
    if not roads:
        names = ", ".join(ready.source.name for ready in routes.all())
        raise ConfigError(
            f'the source "{question.source}" is not in the pool of this queue; its sources are {names}'
        )
    config = queue.config if queue.config is not None else QueueConfig()
    answered = hooks.asked.get("get_queue_config")
    where = answered.where if answered is not None else "defaults, no hook answers get_queue_config"
    return Explanation(
        question.address,
        str(queue.name),
        str(loaded.path),
        where,
        made_options(config, _made(config, made), Hook.at(where)),
        _route(queue.name, config, roads[0].kind),
        config.egress_pool,
        tuple(roads),
    )


@asynccontextmanager
async def _policies(declarations: Declarations, resolver: Resolver) -> AsyncIterator[Policies | None]:
    """MTA-STS as the relay has it: what it has written down is known, and nothing is written."""
    wanted = declarations.mta_sts or MtaStsDeclaration()
    if not wanted.enabled:
        yield None
        return
    fetcher = Fetcher(resolver, ca=wanted.ca, gateway=wanted.gateway)
    await fetcher.check()
    spool = declarations.spool
    store = Store(spool.path, writes=False) if spool is not None else None
    async with open_policies(resolver, fetcher, store) as policies:
        yield policies


async def _mta_sts(name: QueueName, ready: ReadyQueue, policies: Policies | None) -> str:
    """The domain's policy and what comes of it; empty where there can be none."""
    site = ready.site
    if site.kind != "mx":
        return ""
    if policies is None:
        return "not looked at: configure_mta_sts says enabled=False"
    if not ready.path.enable_mta_sts:
        return "not looked at: enable_mta_sts is False"
    domain = parse_endpoint(name.route).host
    kept = await policies.look(domain, route=site.route)
    if kept is None:
        return f"no policy: {policies.reason(domain, route=site.route)}"
    policy = kept.policy
    text = f"{policy.mode}, id {kept.id}, max_age {policy.max_age} s"
    if policy.mx:
        text += f", mx {' '.join(policy.mx)}"
    if site.sts is not None and site.sts.unnamed:
        text += f"; it does not name {' '.join(site.sts.unnamed)}"
        if policy.mode == "enforce" and site.hosts:
            text += ", used only if a TLSA record matches"
    return text + ("; nothing can be sent" if not site.hosts else "")


def _route(name: QueueName, config: QueueConfig, kind: str) -> str:
    if config.protocol.mx_list:
        return "smart hosts " + ", ".join(entry.label for entry in config.protocol.mx_list)
    what = f"the address {name.route}" if kind == "literal" else f"by MX of {name.route}"
    return what + (" (a routing domain)" if name.routing_domain else "")


def _stops(name: QueueName, ready: ReadyQueue, automation: Automation) -> tuple[str, ...]:
    """What rules on replies have brought to a standstill, as the relay wrote it down."""
    found = (
        automation.of_queue(name.route, name.tenant, name.campaign, ready.providers),
        automation.of_ready(ready.source.name, ready.site.key, ready.providers),
    )
    return tuple(one.text for one in found if one is not None)


def _refused(ready: ReadyQueue, circuits: Sequence[OpenCircuit]) -> Iterator[str]:
    """Logins of the path that the peer refused, as the relay wrote it down."""
    login = ready.path.login
    hosts = {name for host in ready.site.hosts for name in (host.host, host.reference_name)}
    now = trio.current_time()
    for one in circuits:
        if not one.refused or login is None or one.user != (login.username or "").casefold():
            continue
        if not hosts.isdisjoint(one.hosts):
            left = one.until - now
            when = f"no try for another {left:.0f} s" if left > 0 else "the next session tries"
            yield f"version {one.version} of the credential was refused at {one.said_by}, {when}: {one.text}"


def _in_use(ready: ReadyQueue, rows: Sequence[InUse]) -> Iterator[str]:
    """Which version the path logs in with while the newest is not in use, as the relay wrote it down."""
    login = ready.path.login
    hosts = {name for host in ready.site.hosts for name in (host.host, host.reference_name)}
    for one in rows:
        if login is not None and one.user == (login.username or "") and not hosts.isdisjoint(one.hosts):
            state = "is being tried" if one.trying else "waits for a trial"
            yield (
                f"version {one.active} of the credential is in use; {one.newest}, which the source has for "
                f"{one.age:.0f} s or longer, {state}"
            )


async def _road(
    resolver: Resolver,
    domain: str,
    ready: ReadyQueue,
    weight: int,
    seen: tuple[Found | None, str],
    made: Sequence[Made],
    source_hook: Hook,
    keys: KeyRing,
    stops: tuple[str, ...],
    mta_sts: str,
    at_most: Ceilings,
    *,
    secrets: bool,
) -> Road:
    path, site = ready.path, ready.site
    found, hook = seen
    return Road(
        ready.source.name,
        weight,
        made_options(ready.source, _made(ready.source, made), source_hook),
        site.name,
        site.key,
        site.kind,
        tuple(
            f"{host.host}{f':{host.port}' if host.port else ''}"
            + (f" preference {host.preference}" if site.kind == "mx" else "")
            for host in site.hosts
        ),
        ready.name,
        _key(ready, keys),
        tls_text(path) + (f"; {DEMAND}" if site.sts is not None and site.sts.mode == "enforce" else ""),
        mta_sts,
        await _dane_texts(resolver, ready, domain) if path.enable_dane else (),
        auth_text(path),
        await _credential(path, keys if secrets else None),
        at_most,
        path_options(path, found, _made(path, made), Hook.at(hook)),
        (*stops, *at_most.notes, *(found.notes if found is not None else ())),
    )


def _made(what: object, made: Sequence[Made]) -> Made | None:
    """The call of a policy that gave exactly this."""
    return next((one for one in made if one.what is what), None)


def _key(ready: ReadyQueue, keys: KeyRing) -> str:
    """A short name for all that must agree to share a connection: source, exact hosts and the whole path,
    with the login and the reference to its secret."""

    def plain(value: object) -> str:
        return keys.fingerprint(value) if isinstance(value, Secret) else str(value)

    path, default = ready.path, EgressPath()
    options = {
        name: value
        for name in path.__struct_fields__
        if (value := getattr(path, name)) != getattr(default, name)
    }
    secure = ready.site.secure and path.enable_dane
    agreed = msgspec.json.encode((ready.source, ready.site.key, options, secure), enc_hook=plain)
    return hashlib.blake2b(agreed, digest_size=12).hexdigest()


async def _dane_texts(resolver: Resolver, ready: ReadyQueue, domain: str) -> tuple[str, ...]:
    """What TLSA records demand of each host now."""
    path, site = ready.path, ready.site
    texts: list[str] = []
    for host in site.hosts[:_HOSTS]:
        port = ready.source.remote_port or host.port or path.port
        where = Candidate(host.host, host.host if host.literal else "", port, host.reference_name)
        logs_in = path.login is not None
        try:
            dane = await dane_for(
                resolver, site, where, domain, strategy=path.ip_lookup_strategy, own_name=logs_in
            )
            text = f"{dane.result}: {dane.why}"
        except (ResolveError, DaneImpossible) as error:
            text = f"no mail now: {error}"
        texts.append(f"{host.host}:{port} {text}")
    return tuple(texts)


def tls_text(path: EgressPath) -> str:
    """What `enable_tls` comes to, with the path's other demands."""
    mode = path.enable_tls
    roots = path.tls_ca.name if path.tls_ca is not None else "the system's roots"
    name = f" for {path.tls_server_name}" if path.tls_server_name else ""
    auth = path.login is not None
    certificate = f"a certificate trusted by {roots}{name}"
    if mode in ("RequiredInsecure", "OpportunisticInsecure"):
        certificate = "any certificate"
        if path.tls_pins is not None:
            certificate = "a certificate that nobody checks"
        elif auth and not path.allow_smtp_auth_plain_without_valid_certificate:
            certificate += " (which AUTH does not allow, so mail is held)"
    held = mode in ("Required", "RequiredInsecure") or (auth and not path.allow_smtp_auth_plain_without_tls)
    without = "mail is held" if held else "clear text"
    if mode == "Disabled":
        return f"Disabled: {without}"
    more = _tls_demands(path)
    if path.tls_implicit:
        return f"{mode}: TLS from the first octet on (port {path.port}) with {certificate}{more}"
    return f"{mode}: STARTTLS with {certificate}{more}; if it is not offered, {without}"


def _tls_demands(path: EgressPath) -> str:
    """What is asked of TLS besides, each with a comma ahead."""
    found = []
    if path.tls_pins is not None:
        whose = "its or an issuer's" if path.enable_tls == "Required" else "its own"
        pins = path.tls_pins[0] if len(path.tls_pins) == 1 else f"one of {len(path.tls_pins)} pins"
        found.append(f"{whose} key {pins}")
    if path.tls_minimum_version != "TLSv1.2":
        found.append(f"{path.tls_minimum_version} at least")
    if path.openssl_cipher_list is not None:
        found.append(f"in TLS 1.2 the ciphers {path.openssl_cipher_list}")
    if path.tls_certificate is not None:
        found.append(f"showing {path.tls_certificate.name} if asked")
    return "".join(f", {text}" for text in found)


def auth_text(path: EgressPath) -> str:
    login = path.login
    if login is None:
        return "none"
    allowed = [
        text
        for option, text in (
            (path.allow_smtp_auth_plain_without_tls, "also in clear text"),
            (path.allow_smtp_auth_plain_without_valid_certificate, "also to a host that was not verified"),
        )
        if option
    ]
    mechanisms = ", else ".join(login.mechanisms)
    who = f"as {login.username!r} with " if login.username is not None else ""
    bound = f"; {_bound_text(login.release_to)}" if login.release_to is not None else ""
    return f"{who}{mechanisms}, as offered; {' and '.join(allowed) or 'inside verified TLS only'}{bound}"


def _bound_text(release: Release) -> str:
    """Whom the credential may be told."""
    rules = [
        (release.names, f"as {' or '.join(release.names)}"),
        (release.addresses, f"at {release.addresses}"),
        (release.ports, f"at port {' or '.join(map(str, release.ports))}"),
        (release.pins, f"with the key {' or '.join(release.pins)}"),
        (release.tls_minimum_version, f"with {release.tls_minimum_version} at least"),
    ]
    return f"released only to a peer {', '.join(text for given, text in rules if given)}"


async def _credential(path: EgressPath, keys: KeyRing | None) -> Credential | None:
    key = path.login.reference if path.login is not None else None
    if key is None:
        return None
    return Credential(key.name, problem="not fetched") if keys is None else await fetched(keys, key)
