"""``automation`` and ``test`` tables of a shaping file: from what was parsed to rules and tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeAlias, TypeVar

import msgspec

from ..egress import PATH
from ..errors import Wrong, a_type, did_you_mean
from ..nets import parse_mx
from ..options import Kind
from ..units import parse_duration, parse_throttle
from .asked import Asked
from .cases import Case
from .names import host_of, name_key
from .patterns import Pattern
from .rules import ACTIONS, COMMANDS, INTERNAL, Action, Failure, Rule, Threshold
from .settings import AUTH, MAPS, PROTECTION, UNSET, Key, Origin

__all__ = ["read_case", "read_rule"]

Problem: TypeAlias = Callable[[str, str], None]
"""Notes what is wrong: the key, and the text."""
T = TypeVar("T")

_MOST = 10_000
"""The largest number of a threshold: every match of its period is remembered."""
_KEYS = (
    "regex",
    "code",
    "enhanced_code",
    "command",
    "class",
    "match_internal",
    "trigger",
    "duration",
    "action",
    "mode",
)
_CONDITIONS = ("regex", "code", "enhanced_code", "class")
_CASE_KEYS = ("reply", "command", "address", "source", "hosts", "mx_list", "expect")
_TIGHTEN = (
    AUTH
    | PROTECTION
    | {"enable_mta_sts", "opportunistic_tls_reconnect_on_failed_handshake", "remember_broken_tls"}
)
"""Options that an order never sets; the last two are the ways back to clear text."""
_CODE = re.compile(r"[245][0-9]{2}|[245][0-9]x|[245]xx")
_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.(?:[0-9]{1,3}|\*)")
_REPLY = re.compile(r"([2-5][0-9]{2})[ -]?(?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?= |$))?")


class _Bad(Exception):
    """A problem was noted, and nothing more can be said of the table."""


class _Noting:
    """Passes on what is wrong, and knows whether anything was."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.any = False

    def __call__(self, key: str, text: str) -> None:
        self.any = True
        self._problem(key, text)


def _right(text: str) -> str:
    return f"; right would be {text}"


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _each(problem: Problem, key: str, value: Any, read: Callable[[Any], T], right: str) -> tuple[T, ...]:
    """One value or a list of them; those that are right."""
    found: list[T] = []
    values = _list(value)
    for one in values:
        try:
            found.append(read(one))
        except Wrong as wrong:
            problem(key, f"{key}: {wrong}" + ("" if wrong.complete else _right(right)))
    if not values:
        problem(key, f"{key}: the list is empty{_right(right)}")
    return tuple(found)


def _one(problem: Problem, key: str, value: Any, read: Callable[[Any], T], right: str) -> T | None:
    """A value that is no list."""
    try:
        return read(value)
    except Wrong as wrong:
        problem(key, f"{key}={value!r}: {wrong}" + ("" if wrong.complete else _right(right)))
        return None


def read_rule(
    table: Any, problem: Problem, origin: Origin, *, kind: str, block: str, rollup: bool, number: int
) -> Rule | None:
    """One rule, or None after noting all that is wrong. `number`: of equal rules in the block, which."""
    noting = _Noting(problem)
    try:
        rule = _rule(table, noting, origin, kind, block, rollup, number)
    except _Bad:
        return None
    return None if noting.any else rule


def _rule(
    table: Any, problem: Problem, origin: Origin, kind: str, block: str, rollup: bool, number: int
) -> Rule:
    if not isinstance(table, Mapping):
        problem(
            "",
            f"automation: a rule is a table, not {a_type(table)}" + _right(f"[[{origin.block}.automation]]"),
        )
        raise _Bad
    unknown = [key for key in table if key not in _KEYS]
    for key in unknown:
        problem(key, f'automation: unknown key "{key}"{did_you_mean(key, _KEYS)}')

    def missing(keys: tuple[str, ...], what: str) -> None:
        # A misspelt key was told already, and may be one of these.
        if not any(did_you_mean(key, keys) for key in unknown):
            problem("", f"automation: the rule has no {what}")

    if not any(key in table for key in _CONDITIONS):
        missing(_CONDITIONS, "condition; right would be regex, code, enhanced_code or class")
    patterns: tuple[Pattern, ...] = ()
    codes: tuple[str, ...] = ()
    enhanced: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    if "regex" in table:
        patterns = _each(problem, "regex", table["regex"], Pattern, '"too many connections", or a list')
    if "code" in table:
        codes = _each(problem, "code", table["code"], _code, '421, "45x" or "4xx", or a list')
    if "enhanced_code" in table:
        enhanced = _each(problem, "enhanced_code", table["enhanced_code"], _enhanced, '"4.7.0" or "4.7.*"')
    if "command" in table:
        commands = _each(
            problem, "command", table["command"], _command, ", ".join(f'"{c}"' for c in COMMANDS)
        )
    if "class" in table:
        classes = _each(problem, "class", table["class"], _class, '"SpamBlock", or a list')
    match_internal = table.get("match_internal", False)
    if not isinstance(match_internal, bool):
        problem(
            "match_internal",
            f"match_internal: is no bool but {a_type(match_internal)}{_right('true or false')}",
        )
    mode = table.get("mode", "enforce")
    if mode not in ("enforce", "shadow"):
        problem("mode", f"mode={mode!r}: is none of its values" + _right('"enforce" or "shadow"'))
    actions: tuple[Action, ...] = ()
    if "action" in table:
        actions = _each(problem, "action", table["action"], _action, '"Suspend", or a list')
    else:
        missing(("action",), f"action{_right('one of ' + ', '.join(ACTIONS))}")
    duration = 0.0
    if "duration" in table:
        duration = _one(problem, "duration", table["duration"], _duration, '"10 minutes"') or 0.0
    else:
        missing(("duration",), 'duration; right would be duration = "10 minutes"')
    threshold = _trigger(table.get("trigger", "Immediate"), problem)
    told = msgspec.json.encode([kind, block, rollup, dict(table), origin.file, number], order="sorted")
    return Rule(
        origin,
        blake2b(told, digest_size=12).hexdigest(),
        kind,
        block,
        rollup,
        patterns,
        codes,
        enhanced,
        commands,
        classes,
        match_internal,
        threshold,
        duration,
        mode == "shadow",
        actions,
    )


def _duration(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise Wrong("is no time")
    return seconds


def _code(value: Any) -> str:
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not _CODE.fullmatch(text):
        raise Wrong(f"{value!r} is no reply code")
    return text.rstrip("x")


def _enhanced(value: Any) -> str:
    if not isinstance(value, str) or not _ENHANCED.fullmatch(value):
        raise Wrong(f"{value!r} is no enhanced status code")
    return value


def _class(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Wrong(f"{value!r} is no bounce class")
    return value


def _command(value: Any) -> str:
    if value not in COMMANDS:
        hint = did_you_mean(value, COMMANDS) if isinstance(value, str) else ""
        raise Wrong(f"{value!r} is no command whose reply is looked at{hint}")
    return str(value)


def _trigger(value: Any, problem: Problem) -> Threshold | None:
    if value == "Immediate":
        return None
    right = _right('"Immediate" or { Threshold = "10/hr" }')
    if not isinstance(value, Mapping) or set(value) != {"Threshold"}:
        problem("trigger", f"trigger: {value!r} is none{right}")
        return None
    try:
        rate = parse_throttle(value["Threshold"])
    except Wrong as wrong:
        problem("trigger", f"trigger: Threshold={value['Threshold']!r}: {wrong}{right}")
        return None
    if rate.max_burst is not None or rate.local:
        problem(
            "trigger", f"trigger: Threshold={value['Threshold']!r}: a number of matches has no burst{right}"
        )
    if rate.quantity > _MOST:
        problem("trigger", f"trigger: a threshold counts to {_MOST} at most, not to {rate.quantity}{right}")
    return Threshold(rate.quantity, rate.period)


def _action(value: Any) -> Action:
    if isinstance(value, str):
        if value in ("SetConfig", "SetDomainConfig"):
            raise Wrong(
                f"{value} needs an option" + _right(f"{{ {value} = {{ name = ..., value = ... }} }}"),
                complete=True,
            )
        if value not in ACTIONS:
            hint = did_you_mean(value, ACTIONS) or _right("one of " + ", ".join(ACTIONS))
            raise Wrong(f'unknown action "{value}"{hint}', complete=True)
        return Action(value, value)
    if not isinstance(value, Mapping) or len(value) != 1:
        raise Wrong(f"an action is a name or a table with one key, not {a_type(value)}")
    ((kind, what),) = value.items()
    if kind not in ("SetConfig", "SetDomainConfig"):
        hint = did_you_mean(kind, ACTIONS) or _right("one of " + ", ".join(ACTIONS))
        raise Wrong(f'unknown action "{kind}" with values{hint}', complete=True)
    if not isinstance(what, Mapping) or set(what) != {"name", "value"}:
        raise Wrong(
            f"{kind} has a name and a value" + _right('{ name = "connection_limit", value = 1 }'),
            complete=True,
        )
    name, given = what["name"], what["value"]
    settings = _settings(kind, name, given)
    _tightens(kind, name, settings)
    return Action(kind, f"{kind} {name}={_shown(given)}", settings)


def _settings(what: str, name: Any, given: Any) -> tuple[tuple[Key, Any], ...]:
    """One option of the path, read as a block would. Raises: Wrong."""
    kinds = PATH.table.kinds
    if not isinstance(name, str) or name not in kinds:
        if isinstance(name, str) and name in PATH.table.not_yet:
            PATH.table.read({name: given})
        hint = did_you_mean(name, kinds) if isinstance(name, str) else ""
        raise Wrong(f'{what}: unknown option "{name}"{hint}', complete=True)
    spec: Kind = kinds[name]
    if given is None or given == {"unset": True}:
        return (((name, ""), UNSET),)
    try:
        value = spec.read(given)
    except Wrong as wrong:
        shown = "" if spec.secret else f"={_shown(given)}"
        right = "" if wrong.complete else _right(spec.right)
        raise Wrong(f"{what}: {name}{shown}: {wrong}{right}", complete=True) from None
    if name in MAPS:
        return tuple(((name, entry), one) for entry, one in value.items())
    return (((name, ""), value),)


def _tightens(kind: str, name: str, settings: tuple[tuple[Key, Any], ...]) -> None:
    """What a peer says must not change as whom we log in, or lead to less TLS. Raises: Wrong."""
    if name in _TIGHTEN or (name == "enable_tls" and settings[0][1] != "Required"):
        raise Wrong(
            f"{kind}: {name}: what a peer answers must not weaken TLS or change the login; right would be "
            'the option in a block, or enable_tls with "Required"',
            complete=True,
        )


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


# -- tests ---------------------------------------------------------------------------------------


def read_case(table: Any, problem: Problem, origin: Origin, domain: str) -> Case | None:
    """One test, or None after noting all that is wrong. `domain`: of the block it stands in, else ``""``."""
    noting = _Noting(problem)
    try:
        case = _case(table, noting, origin, domain)
    except _Bad:
        return None
    return None if noting.any else case


def _case(table: Any, problem: Problem, origin: Origin, domain: str) -> Case:
    if not isinstance(table, Mapping):
        problem("", f"test: a test is a table, not {a_type(table)}{_right('[[test]]')}")
        raise _Bad
    unknown = [key for key in table if key not in _CASE_KEYS]
    for key in unknown:
        problem(key, f'test: unknown key "{key}"{did_you_mean(key, _CASE_KEYS)}')
    texts = {key: table[key] for key in ("reply", "command", "address", "source") if key in table}
    for key, text in list(texts.items()):
        if not isinstance(text, str) or not text:
            problem(key, f"test: {key} is no text but {a_type(text)}")
            del texts[key]
    if "expect" not in table and not any(did_you_mean(key, ("expect",)) for key in unknown):
        problem(
            "", 'test: nothing is expected; right would be expect = "Suspend", or expect = { option = value }'
        )
    domain = texts.get("address", domain).rpartition("@")[2].lower()
    if not domain and ("address" in texts or "address" not in table):
        problem("", 'test: no address; right would be address = "user@example.com"')
    asked = _asked(table, problem, domain)
    source = texts.get("source", "unspecified")
    if "reply" not in table:
        return Case(origin, domain, source, asked, options=_options_expected(table, problem))
    return Case(origin, domain, source, asked, *_judged(texts, table, problem, domain, source, asked))


def _options_expected(table: Mapping[str, Any], problem: Problem) -> tuple[tuple[Key, Any], ...]:
    """Of a test without a reply."""
    if "expect" not in table:
        return ()
    expect = table["expect"]
    if not isinstance(expect, Mapping) or not expect:
        problem(
            "expect",
            f"test: expect={_shown(expect)}: without a reply, options are expected"
            + _right('{ enable_tls = "Required" }'),
        )
        return ()
    options: list[tuple[Key, Any]] = []
    for name, value in expect.items():
        try:
            options += _settings("expect", name, value)
        except Wrong as wrong:
            problem("expect", f"test: {wrong}")
    return tuple(options)


def _judged(
    texts: Mapping[str, str],
    table: Mapping[str, Any],
    problem: Problem,
    domain: str,
    source: str,
    asked: Asked,
) -> tuple[Failure, tuple[Action, ...]]:
    """The reply of a test, and what is expected of it."""
    line = texts.get("reply", "")
    found = _REPLY.match(line)
    if found is None and line:
        problem("reply", f"test: reply={_shown(line)}: is no reply{_right('421 4.7.0 Try again later')}")
    command = texts.get("command", "")
    if command and command not in COMMANDS:
        problem("command", f"test: command={_shown(command)}: is none{_right(', '.join(COMMANDS))}")
    expect = table.get("expect", "nothing")
    actions: tuple[Action, ...] = ()
    if expect not in ([], "nothing"):
        actions = _each(problem, "expect", expect, _expected, '"Suspend", a list of actions, or "nothing"')
    if found is None:
        raise _Bad
    failure = Failure(
        domain,
        source,
        asked,
        int(found[1]),
        found[2] or "",
        line,
        command,
        line[found.end() :].lstrip().startswith(INTERNAL.strip()),
    )
    return failure, actions


def _expected(value: Any) -> Action:
    if value in ("SetConfig", "SetDomainConfig"):
        return Action(value, value)
    return _action(value)


def _asked(table: Mapping[str, Any], problem: Problem, domain: str) -> Asked:
    smart = "mx_list" in table
    key = "mx_list" if smart else "hosts"
    names = table.get(key)
    if names is None:
        return Asked(domain, (), False, domain)
    try:
        if isinstance(names, str) or not names:
            raise Wrong("is no list of hosts")
        hosts = tuple(host_of(parse_mx(name)) for name in names)
    except (Wrong, TypeError) as wrong:
        problem(key, f"test: {key}: {wrong}" + _right('["mx.example.com"]'))
        return Asked(domain, (), False, domain)
    site = ",".join(names)
    return Asked(
        f"mx_list:{site}" if smart else site, hosts, smart, "|".join(name_key(name) for name in names)
    )
