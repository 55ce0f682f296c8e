"""The merged blocks of all files, and the look-up: which of them apply to one source and one site.

Later wins: `default`, the providers, the blocks of the site, those of the destination, those of the smart
hosts. In each of three groups (default; providers; site, destination and hosts) the blocks' options come
first and then what they say of the source, as in docs/shaping.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from ..egress import PATH, EgressPath
from ..errors import PolicyError, PolicyErrors, Wrong, did_you_mean
from ..nets import parse_mx
from ..units import Named
from .asked import Asked
from .cases import failing
from .names import Host, Match, host_of, is_address, name_key, name_keys, plain_name
from .read import Definition, Document
from .rules import Bounces, Rule
from .settings import AUTH, MAPS, PROTECTION, UNSET, Key, Layer, Origin, Setting, merged, put

__all__ = [
    "IMPLIED",
    "Block",
    "Found",
    "Overrides",
    "ShapingError",
    "Sites",
    "Table",
    "alone",
    "build",
]

Sites: TypeAlias = Mapping[str, frozenset[str]]
"""What DNS says of rolled-up blocks: a block's key, and the hosts behind it as `Asked.hosts` names them."""

Overrides: TypeAlias = Mapping[tuple[str, str], Sequence[tuple[Key, Setting]]]
"""What rules have set: by source and place (`Rule.place_of`), in the order in which they did."""

_TOGETHER = AUTH | PROTECTION | {"enable_tls"}
"""Options in which the blocks of several smart hosts of one list must agree: whatever is said to the one
may be said to any other."""

IMPLIED = {
    "provider_connection_limit": ("additional_connection_limits", "limit"),
    "provider_max_message_rate": ("additional_message_rate_throttles", "rate"),
    "provider_source_selection_rate": ("additional_source_selection_rates", "selection-rate"),
}
"""A provider's limit: the option it becomes an entry of, and the end of the entry's name."""


class ShapingError(PolicyErrors):
    """Shaping files cannot be used: everything that is wrong with them."""


class Block(msgspec.Struct, eq=False):
    """All definitions of one block, merged. `origin`: the first."""

    kind: str
    key: str
    origin: Origin
    rollup: bool
    layer: Layer
    sources: dict[str, Layer]
    match: tuple[Match, ...]
    rules: tuple[Rule, ...] = ()
    definitions: list[Definition] = []
    """What it was merged from, in order."""

    def take(self, later: Definition) -> None:
        """Put a later definition over this one."""
        self.definitions.append(later)
        if later.layer.replaces is not None:
            self.layer, self.sources, self.match = later.layer, dict(later.sources), later.match
            self.rules = later.rules
            return
        self.layer = merged(self.layer, later.layer)
        for source, layer in later.sources.items():
            before = self.sources.get(source)
            self.sources[source] = layer if before is None else merged(before, layer)
        self.match += later.match
        self.rules += later.rules


class Found(msgspec.Struct, frozen=True):
    """A path and where it comes from. `settings`: by option (and entry), with what each overrode. `blocks`:
    what applied, in order. `notes`: what a reader of the answer should know. `providers`: those
    that the destination belongs to. `taken_back`: what was said of an option, the latest first, and does not
    count because of a ``replace_base``, with its place."""

    path: EgressPath
    settings: dict[Key, Setting]
    blocks: tuple[Origin, ...]
    notes: tuple[str, ...] = ()
    providers: frozenset[str] = frozenset()
    taken_back: dict[Key, tuple[tuple[Setting, Origin], ...]] = {}


class Table:
    """Every block of a list of files. `sites` may be handed in again at any time."""

    def __init__(self, blocks: Iterable[Block], documents: Sequence[Document] = ()) -> None:
        self.blocks = tuple(blocks)
        self.documents = tuple(documents)
        """What it was merged from."""
        self.default: Block | None = None
        self.providers: list[Block] = []
        self.named: dict[str, Block] = {}
        """Blocks that are found by name: those without roll-up, and those of addresses."""
        self.rollups: dict[str, Block] = {}
        """Blocks that hold for everything behind the same hosts."""
        self._by_hosts: dict[frozenset[str], list[Block]] = {}
        for block in self.blocks:
            if block.kind == "default":
                self.default = block
            elif block.kind == "provider":
                self.providers.append(block)
            elif block.rollup and not is_address(block.key):
                self.rollups[block.key] = block
            else:
                self.named[block.key] = block
        self.rules: dict[str, Rule] = {rule.identity: rule for block in self.blocks for rule in block.rules}
        """All rules, by identity."""

    def take_sites(self, sites: Sites) -> None:
        """What DNS says of the rolled-up blocks. Without an answer a block is found by its name alone."""
        by_hosts: dict[frozenset[str], list[Block]] = {}
        for key, block in self.rollups.items():
            hosts = sites.get(key)
            if hosts:
                by_hosts.setdefault(hosts, []).append(block)
        self._by_hosts = by_hosts

    # -- which blocks ----------------------------------------------------------------------------

    def providers_of(self, domain: str, asked: Asked) -> list[Block]:
        """The providers that a destination belongs to, in the order of their definition."""
        name = name_keys(domain)[0]
        return [block for block in self.providers if _belongs(block.match, name, asked.hosts)]

    def providers_of_hosts(self, domain: str, hosts: Iterable[str]) -> list[Block]:
        """The same for hosts by name."""
        named = tuple(host_of(parse_mx(host)) for host in hosts)
        return self.providers_of(domain, Asked("", named))

    def _groups(
        self, domain: str, source: str, asked: Asked, notes: list[str]
    ) -> tuple[list[Block], list[Block], list[Block]]:
        """`default`; the providers; the blocks of site, destination and smart hosts."""
        names = name_keys(domain)
        near: list[Block] = []
        if not asked.smart:
            near += self._by_hosts.get(asked.names, ())
            near = _last(near, [self.rollups[name] for name in names if name in self.rollups])
        near = _last(near, [self.named[name] for name in names if name in self.named])
        if asked.smart:
            near = _last(near, self._smart(asked, source, notes))
        elif len(asked.hosts) == 1 and is_address(asked.hosts[0].block_names()[0]):
            near = _last(near, self._named(asked.hosts[0]))
        return ([self.default] if self.default else [], self.providers_of(domain, asked), near)

    def rules_for(self, domain: str, asked: Asked) -> tuple[Rule, ...]:
        """The rules that look at replies to mail for `domain` at a site, in the order of the blocks. Where
        `replace_base` takes back what was said before, rules are, too."""
        if not self.rules:
            return ()
        try:
            _, kept = _layers(self._groups(domain, "", asked, []), "")
        except PolicyError:
            return ()  # no path, so there is no mail
        return tuple(rule for block in kept for rule in block.rules)

    def find(self, domain: str, source: str, asked: Asked, overrides: Overrides | None = None) -> Found:
        """The path from `source` to a site, for mail to `domain`. `overrides`: what rules have set by now.

        Raises: PolicyError naming file and line, when the blocks that apply do not make a path.
        """
        notes: list[str] = []
        groups = self._groups(domain, source, asked, notes)
        layers, blocks = _layers(groups, source)
        settings: dict[Key, Setting] = {}
        for layer in layers:
            for key, setting in layer.settings.items():
                put(settings, key, setting)
        if overrides:
            for key, setting in _overriding(overrides, source, domain, asked, groups):
                put(settings, key, setting)
        for block in reversed(groups[1]):
            if block in blocks:
                # The provider's name goes into records, unless a block gives another.
                mark = Setting(block.key, block.origin)
                settings.setdefault(("provider_name", ""), mark)
        path = _path(settings, source, domain, blocks)
        return Found(
            path,
            settings,
            tuple(block.origin for block in blocks),
            tuple(notes),
            frozenset(block.key for block in groups[1]),
            _taken_back(groups, blocks, source),
        )

    def _named(self, host: Host) -> list[Block]:
        return [self.named[key] for key in host.block_names() if key in self.named]

    def _smart(self, asked: Asked, source: str, notes: list[str]) -> list[Block]:
        """The blocks of the hosts of an `mx_list`, the first host's last, so that it wins.

        Raises: PolicyError when they would send to one host what another's block says.
        """
        per_host = [self._named(host) for host in asked.hosts]
        for host in asked.hosts:
            for key in host.block_names():
                if key in self.rollups:
                    block = self.rollups[key]
                    notes.append(
                        f"{block.origin.where}: [{block.origin.block}] does not hold for the smart host "
                        f"{key}; right would be mx_rollup = false in it"
                    )
        told = [_told(blocks, source) for blocks in per_host]
        for host, one in zip(asked.hosts[1:], told[1:], strict=True):
            for option in _TOGETHER:
                mine, first = one.get(option), told[0].get(option)
                if (mine and mine.value) != (first and first.value):
                    setting = mine or first
                    assert setting is not None
                    raise PolicyError(
                        f"[{setting.origin.block}] {option}: the smart hosts {asked.hosts[0].key} and "
                        f"{host.key} stand in one mx_list, and their blocks differ in {option}: "
                        "it would be used for both; right would be the same in a block of each, or a queue "
                        "of its own",
                        setting.origin.where,
                    )
        found: list[Block] = []
        for blocks in reversed(per_host):
            found = _last(found, blocks)
        return found


def _overriding(
    overrides: Overrides, source: str, domain: str, asked: Asked, groups: Sequence[Sequence[Block]]
) -> list[tuple[Key, Setting]]:
    """What rules have set for this source and destination, for the domain alone last."""
    places = [f"provider:{block.key}" for block in groups[1]]
    places += [f"site:{asked.key}", *(f"block:{block.key}" for block in groups[2])]
    places.append(f"domain:{name_key(domain)}")
    return [one for place in places for one in overrides.get((source, place), ())]


def _belongs(match: Sequence[Match], domain: str, hosts: Sequence[Host]) -> bool:
    by_host = [one for one in match if one.kind != "DomainSuffix"]
    if any(one.kind == "DomainSuffix" and one.fits(domain) for one in match):
        return True
    if not by_host or not hosts:
        return False
    return all(any(one.fits(plain_name(name)) for one in by_host for name in host.names) for host in hosts)


def _last(blocks: list[Block], later: Sequence[Block]) -> list[Block]:
    """`later` behind `blocks`, each block once."""
    return [block for block in blocks if block not in later] + list(later)


def _told(blocks: Sequence[Block], source: str) -> dict[str, Setting]:
    """What one smart host's own blocks say, for this source."""
    layers, _ = _layers(([], [], list(blocks)), source)
    return {key[0]: setting for layer in layers for key, setting in layer.settings.items()}


def _layers(groups: Sequence[list[Block]], source: str) -> tuple[list[Layer], list[Block]]:
    """The layers that count, in order, and the blocks they come from. A block with `replace_base` makes all
    before it count no more, with what they say of sources."""
    every = [block for group in groups for block in group]
    first = max((i for i, block in enumerate(every) if block.layer.replaces is not None), default=0)
    kept = every[first:]
    layers: list[Layer] = []
    for group in groups:
        counting = [block for block in group if any(block is one for one in kept)]
        layers += [block.layer for block in counting]
        layers += [block.sources[source] for block in counting if source in block.sources]
    return layers, kept


def _taken_back(
    groups: Sequence[list[Block]], kept: Sequence[Block], source: str
) -> dict[Key, tuple[tuple[Setting, Origin], ...]]:
    """See `Found`."""
    found: dict[Key, list[tuple[Setting, Origin]]] = {}
    for block in (one for group in groups for one in group):
        counts = any(block is one for one in kept)
        by = block.layer.replaces if counts else kept[0].layer.replaces
        if by is None:
            continue
        for definition in block.definitions:
            if counts and definition.layer.replaces is by:
                break
            for layer in (definition.layer, definition.sources.get(source)):
                for key, setting in layer.settings.items() if layer is not None else ():
                    found.setdefault(key, []).insert(0, (setting, by))
    return {key: tuple(settings) for key, settings in found.items()}


def _path(settings: Mapping[Key, Setting], source: str, domain: str, blocks: Sequence[Block]) -> EgressPath:
    values: dict[str, Any] = {}
    maps: dict[str, dict[str, Any]] = {}
    for (option, entry), setting in settings.items():
        if setting.value is UNSET:
            continue
        if option in IMPLIED:
            option, end = IMPLIED[option]
            maps.setdefault(option, {})[f"shaping-provider-{entry}-{source}-{end}"] = setting.value
        elif option in MAPS:
            maps.setdefault(option, {})[entry] = setting.value
        else:
            values[option] = setting.value
    for option, entries in maps.items():
        values[option] = Named(entries)
    try:
        return PATH.made(values)
    except Wrong as wrong:
        about = [
            setting
            for (option, _), setting in settings.items()
            if option in str(wrong).replace(";", " ").split()
        ]
        place = about[0].origin.where if about else (blocks[-1].origin.where if blocks else "")
        shown = f"[{about[0].origin.block}] " if about else ""
        raise PolicyError(f"{shown}{wrong} (for {domain} from {source})", place) from None


# -- from files ----------------------------------------------------------------------------------


def build(
    documents: Sequence[Document], *, allow_auth_in_default: bool = False, bounces: Bounces | None = None
) -> Table:
    """Merge what files define, in their order. `bounces`: the policy's bounce classes.

    Raises: ShapingError with everything that is wrong."""
    problems = [problem for document in documents for problem in document.problems]
    blocks: dict[tuple[str, str, bool], Block] = {}
    latest: dict[str, bool] = {}
    for definition in (one for document in documents for one in document.definitions):
        rollup = definition.rollup
        if rollup is None:
            # Whoever does not say adds to the block that is there.
            rollup = latest.get(definition.key, True) if definition.kind == "domain" else True
        if definition.kind == "domain":
            latest[definition.key] = rollup
        if definition.kind == "default" and not allow_auth_in_default:
            problems += _auth_in_default(definition)
        held = rollup and not is_address(definition.key)
        rules = tuple(msgspec.structs.replace(rule, rollup=held) for rule in definition.rules)
        definition = msgspec.structs.replace(definition, rules=rules)
        identity = (definition.kind, definition.key, rollup)
        block = blocks.get(identity)
        if block is None:
            blocks[identity] = Block(
                definition.kind,
                definition.key,
                definition.origin,
                rollup,
                definition.layer,
                dict(definition.sources),
                definition.match,
                definition.rules,
                [definition],
            )
        else:
            block.take(definition)
    for block in blocks.values():
        if block.kind == "provider" and not block.match:
            problems.append(
                PolicyError(
                    f'[{block.origin.block}] has no "match", so nobody belongs to it; right would be '
                    'match = [{MXSuffix = ".example.com"}]',
                    block.origin.where,
                )
            )
    table = Table(blocks.values(), documents)
    if not any("smtp_auth" in str(problem) for problem in problems):
        problems += _half_logins(table)
    problems += _unknown_classes(table, bounces)
    if not problems:
        cases = (case for document in documents for case in document.cases)
        problems += failing(table, cases, bounces)
    if problems:
        raise ShapingError(_in_order(problems, documents))
    return table


def _in_order(problems: Sequence[PolicyError], documents: Sequence[Document]) -> list[PolicyError]:
    """By file, as the policy lists them, and by line."""
    order = {document.name: number for number, document in enumerate(documents)}

    def place(problem: PolicyError) -> tuple[int, int]:
        file, _, line = problem.where.rpartition(":")
        return order.get(file, len(order)), int(line) if line.isdigit() else 0

    return sorted(problems, key=place)


def _unknown_classes(table: Table, bounces: Bounces | None) -> Iterator[PolicyError]:
    for rule in table.rules.values():
        for name in rule.classes:
            if bounces is None:
                yield PolicyError(
                    f"[{rule.origin.block}] class: the policy has no bounce classes; right would be "
                    "policy.configure_bounce_classifier([policy.BOUNCES]) before policy.shaping.setup",
                    rule.origin.where,
                )
            elif name not in bounces.names:
                yield PolicyError(
                    f'[{rule.origin.block}] class="{name}": no rule of the bounce classifier gives it'
                    + did_you_mean(name, bounces.names),
                    rule.origin.where,
                )


def _auth_in_default(definition: Definition) -> Iterator[PolicyError]:
    for layer in (definition.layer, *definition.sources.values()):
        for (option, _), setting in layer.settings.items():
            if option in AUTH and setting.value is not UNSET:
                yield PolicyError(
                    f'[{setting.origin.block}] {option}: AUTH in "default" would be used at every next hop; '
                    "right would be a block of its own for the host, or allow_auth_in_default=True where "
                    "the files are named",
                    setting.origin.where,
                )


def _half_logins(table: Table) -> Iterator[PolicyError]:
    """Blocks that make no path with what `default` says. Where providers log in, too, only a look-up can
    tell."""
    for block in table.providers:
        for layer in (block.layer, *block.sources.values()):
            if any(option in AUTH for option, _ in layer.settings):
                return
    for block in (*table.named.values(), *table.rollups.values()):
        for source in ("", *block.sources):
            found = alone(table, block, source)
            if isinstance(found, PolicyError):
                yield found
                break


def alone(table: Table, block: Block, source: str) -> EgressPath | PolicyError:
    """The path that one block makes with what `default` says and nothing else, or why it makes none."""
    groups: tuple[list[Block], ...] = ([table.default] if table.default else [], [], [block])
    if block is table.default:
        groups = ([block], [], [])
    layers, blocks = _layers(groups, source)
    settings: dict[Key, Setting] = {}
    for layer in layers:
        for key, setting in layer.settings.items():
            put(settings, key, setting)
    try:
        return _path(settings, source, block.key, blocks)
    except PolicyError as problem:
        text = problem.problem.rpartition(" (for ")[0]
        return PolicyError(text + (f' (from source "{source}")' if source else ""), problem.where)
