"""What ``posthorn check`` finds in the shaping files of a policy, beyond what loading them refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from engine.shaping import HostsOf, Unresolved
from engine.shaping.remote import Client, FetchFailed, open_client
from policy.egress import IMPLICIT_PORT, UNSPECIFIED, EgressPath
from policy.errors import PolicyError
from policy.keysource import KeyRef
from policy.login import Login
from policy.nets import parse_host, parse_mx
from policy.shaping import Asked, Shaper, ShapingError, asked_by_name
from policy.shaping.names import Match, host_of, is_address, plain_name
from policy.shaping.settings import Origin
from policy.shaping.table import Block, Table, alone

if TYPE_CHECKING:
    from engine.cli.inspection import Inspection

__all__ = ["look_at_login", "review"]

_PATIENCE = 30.0
"""Seconds for all questions to DNS together."""
_ASKERS = 32
_TOLD = 10
"""Remarks of one kind that are made."""
_KEYS = ("smtp_auth", "smtp_auth_plain_password", "tls_ca", "tls_certificate", "tls_private_key")
"""Options that are, or hold, key sources."""


async def review(
    shaper: Shaper, found: Inspection, *, hosts_of: HostsOf | None, routes: HostsOf | None
) -> None:
    """Look at one list of files. `hosts_of` and `routes` ask DNS about domains, and about what a queue may
    name; None: neither URLs are read nor DNS is asked."""
    await _urls(shaper, found, read=hosts_of is not None)
    table = shaper.table
    files = ", ".join(file.name for file in shaper.files)
    found.facts.append(
        ("shaping", f"{len(table.blocks)} block{'' if len(table.blocks) == 1 else 's'} from {files}")
    )
    for text in (*_providers(table), *_names(table), *_replaced(table)):
        found.note(text)
    for block in table.blocks:
        await _demands(table, block, found)
        for where, key in _keys(block):
            found.look_at_key(where, key)
    await _sources(table, found)
    sites: dict[str, frozenset[str]] = {}
    if hosts_of is not None and routes is not None:
        sites = await _dns(shaper, found, hosts_of, routes)
    _with_providers(table, sites, found)


async def _urls(shaper: Shaper, found: Inspection, *, read: bool) -> None:
    """Read the URLs, so that what follows is about the whole."""
    urls = {file.name: file.url for file in shaper.files if file.url}
    if not urls:
        return
    content: dict[str, bytes] = {}

    async def fetch(client: Client, name: str) -> None:
        try:
            content[name] = await client.fetch(urls[name]) or b""
        except FetchFailed as failed:
            waits = "; mail waits until it was read once" if shaper.require_remote else ""
            found.note(f"{shaper.where}: {name} cannot be fetched now: {failed}{waits}")

    if read:
        async with open_client() as client, trio.open_nursery() as nursery:
            for name in urls:
                nursery.start_soon(fetch, client, name)
    else:
        found.note(f"{shaper.where}: not read, because of --offline: {', '.join(urls)}")
    try:
        shaper.use(shaper.build(content))
    except ShapingError as error:
        for problem in error.problems:
            found.problem(str(problem))
    shaper.unread = {}


# -- providers and names -------------------------------------------------------------------------


def _providers(table: Table) -> Iterator[str]:
    """Each pair of providers that one host, or one domain, can belong to."""
    conditions: dict[tuple[bool, str], list[tuple[Block, Match]]] = {}
    for provider in table.providers:
        for match in provider.match:
            conditions.setdefault(_about(match, match.text), []).append((provider, match))
    order = {id(provider): number for number, provider in enumerate(table.providers)}
    told: set[tuple[int, int]] = set()
    for provider in table.providers:
        for match in provider.match:
            for other, theirs in _sharing(conditions, match):
                first, last = sorted((order[id(provider)], order[id(other)]))
                if first == last or (first, last) in told:
                    continue
                told.add((first, last))
                if order[id(provider)] == first:
                    (one, mine), (later, its) = (provider, match), (other, theirs)
                else:
                    (one, mine), (later, its) = (other, theirs), (provider, match)
                what = "domain" if match.kind == "DomainSuffix" else "host"
                kind = "" if its.kind == mine.kind else f"{its.kind} "
                yield (
                    f"{later.origin.where}: [{later.origin.block}] and [{one.origin.block}] "
                    f'({one.origin.where}) overlap: {mine.kind} "{mine.text}" and {kind}"{its.text}" can '
                    f"be met by one {what}; both hold then, the later one over the earlier one"
                )


def _about(match: Match, name: str) -> tuple[bool, str]:
    """What a condition looks at (hosts, or recipient domains) and the name it looks for."""
    return (match.kind == "DomainSuffix", plain_name(name.removeprefix(".")))


def _sharing(
    conditions: dict[tuple[bool, str], list[tuple[Block, Match]]], match: Match
) -> Iterator[tuple[Block, Match]]:
    """The conditions that a name can meet beside `match`: those of its own name and of names above."""
    domains, name = _about(match, match.text)
    for found in conditions.get((domains, name), ()):
        exact = [one for one in (match, found[1]) if one.kind == "HostName"]
        if not exact or all(one.fits(name) for one in (match, found[1])):
            yield found
    while name := name.partition(".")[2]:
        for found in conditions.get((domains, name), ()):
            if found[1].kind != "HostName":
                yield found


def _names(table: Table) -> Iterator[str]:
    for block in (*table.named.values(), *table.rollups.values()):
        host = block.key.partition(":")[0]
        if "." not in block.key and ":" not in block.key and host != "localhost":
            yield (
                f'{block.origin.where}: the name of the block "{block.key}" has no dot; was it meant to be a '
                'domain, whose dots are read as tables without quotes, as in ["example.com"]?'
            )
            continue
        try:
            parse_host(host)
        except ValueError:
            if block.key in table.rollups:
                yield f'{block.origin.where}: the name of the block "{block.key}" is no domain and no host'


def _replaced(table: Table) -> Iterator[str]:
    """What a later file takes back of an earlier one, which whoever wrote that may not expect."""
    seen: dict[tuple[str, str], Origin] = {}
    for definition in (one for document in table.documents for one in document.definitions):
        key = (definition.kind, definition.key)
        before = seen.get(key)
        replaces = definition.layer.replaces
        if replaces is not None and before is not None and before.file != replaces.file:
            yield (
                f"{replaces.where}: [{replaces.block}] replace_base: what {before.where} and earlier "
                "files say of this block does not count, nor do default and providers for it"
            )
        seen[key] = definition.origin


# -- TLS, AUTH and secrets -----------------------------------------------------------------------


def _keys(block: Block) -> Iterator[tuple[str, KeyRef]]:
    for layer in (block.layer, *block.sources.values()):
        for (option, _), setting in layer.settings.items():
            value = setting.value.reference if isinstance(setting.value, Login) else setting.value
            if option in _KEYS and isinstance(value, KeyRef):
                yield f"{setting.origin.where}: [{setting.origin.block}] {option}", value


async def _demands(table: Table, block: Block, found: Inspection) -> None:
    """What a block asks for, together with `default`: a login that no TLS protects, or never happens; a
    client certificate that cannot be used."""
    for source in ("", *block.sources):
        result = alone(table, block, source)
        if isinstance(result, EgressPath):
            where = f"{block.origin.where}: [{block.origin.block}]"
            where += f' from source "{source}"' if source else ""
            look_at_login(result, where, found)
            if result.port == IMPLICIT_PORT and not result.tls_implicit:
                found.note(
                    f"{where}: port {IMPLICIT_PORT} begins with TLS, and without tls_implicit a greeting in "
                    "clear text is waited for there"
                )
            layers = (block.layer, block.sources[source]) if source else (block.layer,)
            if any(("tls_certificate", "") in layer.settings for layer in layers):
                await found.match_pair(where, result.tls_certificate, result.tls_private_key)
        elif block.kind == "provider":
            found.note(str(result))


def look_at_login(path: EgressPath, where: str, found: Inspection) -> None:
    """Whether TLS protects what a path logs in with, and whether it can at all. `where`: who says so."""
    if path.login is None:
        return
    right = 'right would be enable_tls = "Required"'
    if path.enable_tls == "Disabled":
        if path.allow_smtp_auth_plain_without_tls:
            found.note(f"{where}: the password is sent in clear text")
        else:
            found.problem(
                f'{where}: AUTH with enable_tls = "Disabled": the password is never sent, and mail is held; '
                f"{right}"
            )
    elif path.enable_tls.endswith("Insecure") and path.tls_pins is None:
        if path.allow_smtp_auth_plain_without_valid_certificate:
            found.note(f"{where}: the password is sent to a host that nobody verified")
        else:
            found.problem(
                f'{where}: AUTH with enable_tls = "{path.enable_tls}": no certificate is verified, so the '
                f"password is never sent inside TLS, and mail is held; {right}"
            )
    elif path.enable_tls == "Opportunistic":
        without = "goes out in clear text" if path.allow_smtp_auth_plain_without_tls else "stays here"
        found.note(
            f'{where}: AUTH with enable_tls = "Opportunistic": where STARTTLS is not offered, the password '
            f'{without}; enable_tls = "Required" says what is meant'
        )


def _with_providers(table: Table, sites: dict[str, frozenset[str]], found: Inspection) -> None:
    """What only a look-up can tell: whether a block and the providers of its hosts make a path together."""
    for key, block in (*table.rollups.items(), *table.named.items()):
        hosts = tuple(host_of(parse_mx(host)) for host in sorted(sites.get(key, ())))
        asked = Asked(key, hosts, False, key) if hosts else asked_by_name(key)
        providers = table.providers_of(key, asked)
        if not providers:
            continue
        names = " and ".join(f"[{one.origin.block}]" for one in providers)
        for source in dict.fromkeys(
            [UNSPECIFIED, *(name for one in (*providers, block) for name in one.sources)]
        ):
            try:
                path = table.find(key, source, asked).path
            except PolicyError as problem:
                found.problem(str(problem))
                break
            where = f"{block.origin.where}: [{block.origin.block}] with {names} from {source}"
            if path != alone(table, block, source):
                look_at_login(path, where, found)


async def _sources(table: Table, found: Inspection) -> None:
    """What is said of a source that the policy does not give holds for nobody."""
    told: set[str] = set()
    for block in table.blocks:
        for name, layer in block.sources.items():
            if name in told:
                continue
            told.add(name)
            why = await found.no_source(name)
            if why:
                origin = next((one.origin for one in layer.settings.values()), block.origin)
                found.note(f'{origin.where}: [{origin.block}] sources."{name}" holds for nobody: {why}')


# -- DNS -----------------------------------------------------------------------------------------


async def _dns(
    shaper: Shaper, found: Inspection, hosts_of: HostsOf, routes: HostsOf
) -> dict[str, frozenset[str]]:
    """Ask about all blocks. Gives the hosts of those with roll-up."""
    table = shaper.table
    sites: dict[str, frozenset[str]] = {}
    failed: dict[str, str] = {}
    missing: dict[str, str] = {}
    waiting = [(key, False) for key in table.rollups]
    waiting += [(key, True) for key in table.named if not is_address(key)]
    waiting.reverse()

    async def ask() -> None:
        while waiting:
            key, named = waiting.pop()
            try:
                if named:
                    await routes(key.partition(":")[0])
                else:
                    sites[key] = await hosts_of(key)
            except Unresolved as error:
                if not named:
                    failed[key] = str(error)
                elif error.missing:
                    missing[key] = str(error)

    with trio.move_on_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(min(_ASKERS, len(waiting))):
                nursery.start_soon(ask)
    hostless = [
        f'{block.origin.where}: "{key}" has no hosts to roll up: {failed[key]}; the block holds for its own '
        "name alone, and with mx_rollup = false for a host of that name"
        for key, block in table.rollups.items()
        if key in failed
    ]
    unsaid = [
        f'{block.origin.where}: DNS did not say in time which hosts stand behind "{key}"'
        for key, block in table.rollups.items()
        if key not in failed and key not in sites
    ]
    absent = [
        f"{table.named[key].origin.where}: [{table.named[key].origin.block}]: {why}, so nothing can be sent "
        "there now"
        for key, why in missing.items()
    ]
    for texts, what in (
        (hostless, "have no hosts to roll up"),
        (unsaid, "DNS said nothing of in time"),
        (absent, "name a host that DNS does not know"),
    ):
        for text in texts[:_TOLD]:
            found.note(text)
        if len(texts) > _TOLD:
            found.note(f"and {len(texts) - _TOLD:,} more blocks {what}")
    for text in _together(table, sites):
        found.note(text)
    shaper.use_sites(sites)
    return sites


def _together(table: Table, sites: dict[str, frozenset[str]]) -> Iterator[str]:
    """Blocks with the same hosts, and blocks whose hosts a provider has, too."""
    first: dict[frozenset[str], Block] = {}
    for key, block in table.rollups.items():
        hosts = sites.get(key)
        if not hosts:
            continue
        other = first.setdefault(hosts, block)
        if other is not block:
            yield (
                f"{block.origin.where}: [{block.origin.block}] has the same hosts as [{other.origin.block}] "
                f"({other.origin.where}); both hold for all mail to them, the later one over the earlier one"
            )
        for provider in table.providers_of_hosts(key, hosts):
            yield (
                f"{block.origin.where}: the hosts of [{block.origin.block}] belong to "
                f"[{provider.origin.block}] ({provider.origin.where}), too; the block holds over the provider"
            )
