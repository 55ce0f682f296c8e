"""One shaping file: from its text to the blocks it defines, and to what is wrong with it.

Every value is read as its option wants it, so that a mistake is found here, with file, line and key, and not
when mail asks. All mistakes of a file are collected. Texts never show the value of an option that may be a
secret.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from ..egress import PATH
from ..errors import PolicyError, Wrong, a_type, did_you_mean
from ..keyreach import reaches
from ..options import BOOL, Kind
from ..units import parse_limit, parse_throttle
from .cases import Case
from .lines import Lines, json_lines, line_of, toml_lines
from .names import Match, is_address, name_key, plain_name
from .read_rules import read_case, read_rule
from .rules import Rule
from .settings import MAPS, UNSET, Key, Layer, Origin, Setting, put

__all__ = ["META", "Definition", "Document", "read"]

BlockKind = Literal["default", "domain", "provider"]

_UNSET_TABLE = {"unset": True}

_LIMIT = Kind('a limit of at least 1: an integer, or text such as "1,000" or "local:20"', parse_limit)
_RATE = Kind('a rate such as "100/s", "20/30minute" or "local:5/h,max_burst=1"', parse_throttle)
_OF_PROVIDERS = {
    "provider_connection_limit": _LIMIT,
    "provider_max_message_rate": _RATE,
    "provider_source_selection_rate": _RATE,
}
META: dict[str, tuple[str, ...]] = {
    "default": ("sources", "automation", "test"),
    "domain": ("mx_rollup", "replace_base", "sources", "automation", "test"),
    "provider": ("match", "replace_base", "sources", "automation", "test", *_OF_PROVIDERS),
    "source": (),
    "provider source": (*_OF_PROVIDERS,),
}
"""What may stand in each kind of table besides the options of `make_egress_path`."""


class Definition(msgspec.Struct):
    """One block of one file. `key`: its name in the one spelling (names.py). `rollup`: `mx_rollup`, None when
    the file does not say."""

    kind: BlockKind
    key: str
    origin: Origin
    rollup: bool | None
    layer: Layer
    sources: dict[str, Layer]
    match: tuple[Match, ...]
    rules: tuple[Rule, ...] = ()


class Document(msgspec.Struct):
    """A file that was read. `problems`: what is wrong with it; it must not be used unless there are none."""

    name: str
    definitions: list[Definition]
    problems: list[PolicyError]
    cases: list[Case] = []


def read(name: str, content: bytes) -> Document:
    """Read one file. `name`: what errors call it; its ending chooses the language, TOML or JSON, and without
    one the content does."""
    reader = _Reader(name)
    try:
        text = content.decode("utf-8").replace("\r\n", "\n").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reader.problems.append(PolicyError("is not UTF-8", f"{name}:{line}"))
        return reader.document()
    reader.read(text)
    return reader.document()


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self._remote = "://" in name
        self.lines: Lines = {}
        self.definitions: list[Definition] = []
        self.problems: list[PolicyError] = []
        self.cases: list[Case] = []

    def document(self) -> Document:
        return Document(self.name, self.definitions, self.problems, self.cases)

    def _problem(self, path: tuple[str, ...], text: str) -> None:
        self.problems.append(PolicyError(text, f"{self.name}:{line_of(self.lines, path)}"))

    # -- the whole -------------------------------------------------------------------------------

    def read(self, text: str) -> None:
        ending = self.name.rpartition(".")[2].lower()
        as_json = ending == "json" or (ending != "toml" and text.lstrip().startswith("{"))
        try:
            data = _parse_json(text) if as_json else tomllib.loads(text)
        except (ValueError, _Twice, RecursionError) as error:
            last = text.rstrip().count("\n") + 1
            self.problems.append(_syntax(self.name, "JSON" if as_json else "TOML", error, last))
            return
        self.lines = json_lines(text) if as_json else toml_lines(text)
        for name, table in data.items():
            if name == "provider":
                self._providers(table)
            elif name == "test":
                self._cases((name,), table, "test", "")
            elif not isinstance(table, Mapping):
                if name == "replace_base" or name in PATH.table.kinds or name in META["domain"]:
                    self._problem(
                        (name,), f'"{name}" stands outside of every block; right would be ["default"]'
                    )
                else:
                    self._problem((name,), f'"{name}" is no block but {a_type(table)}')
            elif name == "default":
                self._block("default", name, (name,), table)
            else:
                self._block("domain", name, (name,), table)

    def _providers(self, table: Any) -> None:
        if not isinstance(table, Mapping):
            self._problem(("provider",), '"provider" holds blocks; right would be [provider."NAME"]')
            return
        for name, block in table.items():
            if isinstance(block, Mapping):
                self._block("provider", name, ("provider", name), block)
            else:
                self._problem(("provider", name), f'provider "{name}" is no block but {a_type(block)}')

    def _block(self, kind: BlockKind, name: str, path: tuple[str, ...], table: Mapping[str, Any]) -> None:
        shown = f'provider."{name}"' if kind == "provider" else f'"{name}"'
        key = name_key(name) if kind == "domain" else name
        if not key or not name.isprintable() or (" " in key and kind == "domain"):
            self._problem(
                path, f"{shown} is no name of a block; right would be a domain, a host or an address"
            )
            return
        origin = Origin(self.name, line_of(self.lines, path), shown)
        self.count = len(self.problems)
        definition = Definition(kind, key, origin, None, Layer(), {}, ())
        for option, value in table.items():
            at = (*path, option)
            if option == "mx_rollup" and kind == "domain":
                definition.rollup = self._bool(at, value)
            elif option == "replace_base" and kind != "default":
                if self._bool(at, value):
                    definition.layer.replaces = self._origin(at, shown)
            elif option == "sources":
                self._sources(definition, at, value, shown)
            elif option == "match" and kind == "provider":
                definition.match = self._match(at, value)
            elif option == "automation":
                definition.rules = self._rules(definition, at, value, table.get("mx_rollup") is not False)
            elif option == "test":
                self._cases(at, value, shown, name if kind == "domain" else "")
            else:
                self._option(definition.layer, kind, at, value, Origin(self.name, 0, shown), key)
        self.definitions.append(definition)

    def _rules(
        self, definition: Definition, path: tuple[str, ...], value: Any, rollup: bool
    ) -> tuple[Rule, ...]:
        found: list[Rule] = []
        shown = definition.origin.block
        seen: list[Any] = []
        for at, one in self._tables(path, value, f"[[{shown}.automation]]"):

            def problem(key: str, text: str, at: tuple[str, ...] = at) -> None:
                self._problem((*at, key), f"[{shown}] {text}")

            rule = read_rule(
                one,
                problem,
                self._origin(at, shown),
                kind=definition.kind,
                block=definition.key,
                rollup=rollup and not is_address(definition.key),
                number=seen.count(one),
            )
            seen.append(one)
            if rule is not None:
                found.append(rule)
        return tuple(found)

    def _cases(self, path: tuple[str, ...], value: Any, shown: str, domain: str) -> None:
        right = "[[test]]" if shown == "test" else f"[[{shown}.test]]"
        for at, one in self._tables(path, value, right):

            def problem(key: str, text: str, at: tuple[str, ...] = at) -> None:
                self._problem((*at, key), text)

            case = read_case(one, problem, self._origin(at, shown), domain)
            if case is not None:
                self.cases.append(case)

    def _tables(self, path: tuple[str, ...], value: Any, right: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        """The tables of a list, with their places."""
        if isinstance(value, (Mapping, str)) or not isinstance(value, Sequence):
            self._problem(
                path, f"{path[-1]}: is no list of tables but {a_type(value)}; right would be {right}"
            )
            return
        for number, one in enumerate(value):
            yield (*path, str(number)), one

    def _origin(self, path: tuple[str, ...], block: str, source: str = "") -> Origin:
        return Origin(self.name, line_of(self.lines, path), block, source)

    def _bool(self, path: tuple[str, ...], value: Any) -> bool | None:
        if isinstance(value, bool):
            return value
        self._problem(path, f"{path[-1]}: is no bool but {a_type(value)}; right would be true or false")
        return None

    def _sources(self, definition: Definition, path: tuple[str, ...], value: Any, shown: str) -> None:
        if not isinstance(value, Mapping):
            self._problem(path, f'sources: right would be [{shown}.sources."NAME"]')
            return
        kind = "provider source" if definition.kind == "provider" else "source"
        for source, table in value.items():
            at = (*path, source)
            if not isinstance(table, Mapping):
                self._problem(at, f'sources: "{source}" is no table; right would be [{shown}.sources."NAME"]')
                continue
            layer = definition.sources.setdefault(source, Layer())
            for option, given in table.items():
                place = Origin(self.name, 0, shown, source)
                self._option(layer, kind, (*at, option), given, place, definition.key)

    # -- one option ------------------------------------------------------------------------------

    def _option(
        self, layer: Layer, kind: str, path: tuple[str, ...], value: Any, place: Origin, block: str
    ) -> None:
        option = path[-1]
        unset = value is None or value == _UNSET_TABLE
        if option in META[kind]:
            spec, key = _OF_PROVIDERS[option], (option, block)
        elif option in PATH.table.kinds:
            spec, key = PATH.table.kinds[option], (option, "")
        elif option in PATH.table.not_yet:
            if not unset:
                try:
                    PATH.table.read({option: value})
                except Wrong as wrong:
                    said = str(wrong).replace(f"{option}=False is", f"{option} = false is")
                    self._problem(path, f"[{place.block}] {said}")
            return
        else:
            self._problem(path, f"[{place.block}] {_unknown(option, value, kind)}")
            return
        origin = Origin(place.file, line_of(self.lines, path), place.block, place.source)
        if unset:
            put(layer.settings, key, Setting(UNSET, origin))
        elif option in MAPS and isinstance(value, Mapping):
            self._entries(layer, spec, path, value, origin)
        else:
            found = self._value(spec, path, value, f"[{place.block}] {option}")
            if found is not None:
                put(layer.settings, key, Setting(found[0], origin))

    def _entries(
        self, layer: Layer, spec: Kind, path: tuple[str, ...], value: Mapping[str, Any], origin: Origin
    ) -> None:
        """A map: each entry is a setting of its own."""
        for name, given in value.items():
            at = (*path, name)
            key: Key = (path[-1], name)
            here = Origin(origin.file, line_of(self.lines, at), origin.block, origin.source)
            if given is None or given == _UNSET_TABLE:
                put(layer.settings, key, Setting(UNSET, here))
                continue
            found = self._value(spec, at, {name: given}, f"[{origin.block}] {path[-1]}")
            if found is not None:
                put(layer.settings, key, Setting(found[0][name], here))

    def _value(self, spec: Kind, path: tuple[str, ...], value: Any, what: str) -> tuple[Any] | None:
        """The value as the option wants it, or None after noting what is wrong with `what`."""
        try:
            found = spec.read(value)
            reached = reaches(found, public=path[-1] == "tls_ca") if self._remote else ""
            if reached:
                # Whoever may change what the URL says must not thereby get this machine or its secrets.
                raise Wrong(
                    f"what a URL says cannot {reached}; right would be Vault, a hook of the "
                    "policy, or the option in a file of this machine",
                    complete=True,
                )
            return (found,)
        except Wrong as wrong:
            shown = "" if spec.secret else f"={_short(value)}"
            words = "true or false" if spec is BOOL else spec.right
            right = "" if wrong.complete else f"; right would be {words}"
            text = f"{what}{shown}: {wrong}{right}"
        self._problem(path, text)
        return None

    # -- providers -------------------------------------------------------------------------------

    def _match(self, path: tuple[str, ...], value: Any) -> tuple[Match, ...]:
        right = 'right would be [{MXSuffix = ".example.com"}], with MXSuffix, HostName or DomainSuffix'
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, str):
            self._problem(path, f"match: is no list but {a_type(value)}; {right}")
            return ()
        found: list[Match] = []
        for number, item in enumerate(value):
            at = (*path, str(number))
            if not isinstance(item, Mapping) or len(item) != 1:
                self._problem(at, f"match: each condition has one key; {right}")
                found.append(_REFUSED)
                continue
            ((kind, text),) = item.items()
            if kind not in ("MXSuffix", "HostName", "DomainSuffix"):
                hint = did_you_mean(kind, ("MXSuffix", "HostName", "DomainSuffix"))
                self._problem(at, f'match: unknown condition "{kind}"{hint or "; " + right}')
            elif not isinstance(text, str) or not plain_name(text.removeprefix(".")):
                self._problem(at, f"match: {kind} is a host name or its end; {right}")
            else:
                found.append(Match(kind, text))
                continue
            found.append(_REFUSED)
        return tuple(found)


_REFUSED = Match("HostName", "")
"""Stands for a condition that was refused: to say also that there is none would be wrong."""


def _short(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _unknown(option: str, value: Any, kind: str) -> str:
    """What to say of an option that nobody knows in this kind of table."""
    if isinstance(value, Mapping) and kind in ("domain", "default"):
        if hint := did_you_mean(option, META[kind]):
            return f'unknown option "{option}"{hint}'
        return (
            f'"{option}" is a table, which no option is; a block name with dots stands in quotes, as in '
            '["example.com"]'
        )
    for other, names in META.items():
        if option in names and kind != other:
            places = {"domain": "a domain's block", "provider": "a block of a provider"}
            return f'"{option}" has no meaning here; it belongs into {places.get(other, "a block")}'
    known = [*PATH.table.kinds, *PATH.table.not_yet, *META[kind]]
    return f'unknown option "{option}"{did_you_mean(option, known)}'


class _Twice(ValueError):
    """A key stands twice in one object."""


def _parse_json(text: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Twice(f'"{twice}" stands twice in one object')
        return found

    data = json.loads(text, object_pairs_hook=pairs)
    if "\\u" in text:
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # It could be put into no record, log or command later on.
            raise _Twice(
                "holds half a character, an escape from \\ud800 to \\udfff without its pair"
            ) from None
    if not isinstance(data, dict):
        raise _Twice(f"is no object of blocks but {a_type(data)}")
    return data


def _syntax(name: str, language: str, error: Exception, last: int) -> PolicyError:
    """Where the parser stopped. Its text may quote a word of the file, never a value."""
    if isinstance(error, json.JSONDecodeError):
        return PolicyError(f"is no {language}: {error.msg}", f"{name}:{error.lineno}")
    text = str(error)
    if isinstance(error, tomllib.TOMLDecodeError):
        said, _, place = text.rpartition(" (at ")
        line = place.removeprefix("line ").partition(",")[0]
        if said:
            return PolicyError(f"is no {language}: {said}", f"{name}:{line if line.isdigit() else last}")
    if type(error) is ValueError:  # Python's own bound; its text speaks of Python
        text = "a number has thousands of digits"
    return PolicyError(f"is no {language}: {text or type(error).__name__}", name)
