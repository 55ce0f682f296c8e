"""Who set an option, for ``posthorn explain``: a line of a file or of the policy; and what that overrode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from policy.egress import EgressPath
from policy.options import Made
from policy.shaping import Found
from policy.shaping.settings import UNSET, Origin, Setting
from policy.shaping.shown import shown, shown_key
from policy.shaping.table import IMPLIED

__all__ = ["Hook", "Option", "Step", "made_options", "path_options"]

_DEFAULT = EgressPath()


class Hook(msgspec.Struct, frozen=True):
    """A hook that answered. `name`: as it is called, with brackets."""

    file: str
    line: int
    name: str

    @classmethod
    def at(cls, where: str) -> Hook:
        """From ``file:line in name()``; what is not of that form is all file."""
        found = re.fullmatch(r"(.+):(\d+) in (.+)", where)
        return cls(found[1], int(found[2]), found[3]) if found is not None else cls(where, 0, "")


class Step(msgspec.Struct, frozen=True):
    """One place that gave an option a value, in words.

    In a shaping file `block` and, in a ``sources`` table, `source` say where; `rule`: a rule on replies set
    it, until when, or ``replace_base`` took back what was said before. `replaced_by`: what took this back, as
    ``file:line``. In a policy `hook` is the hook that was asked, and the line is that of the call which gave
    the option, or of the hook itself where that is not known.
    """

    value: str
    file: str
    line: int = 0
    block: str = ""
    source: str = ""
    rule: str = ""
    replaced_by: str = ""
    hook: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        if self.hook:
            return f"{where} in {self.hook}"
        if not self.block:
            return where
        inside = f' sources."{self.source}"' if self.source else ""
        rule = f" {self.rule}" if self.rule else ""
        back = f", taken back by replace_base {self.replaced_by}" if self.replaced_by else ""
        return f"{where} [{self.block}]{inside}{rule}{back}"


class Option(msgspec.Struct, frozen=True):
    """One option: who set it, and what that overrode, the latest first."""

    name: str
    value: str
    set_by: Step | None = None
    overrode: tuple[Step, ...] = ()


def made_options(what: msgspec.Struct, made: Made | None, hook: Hook) -> tuple[Option, ...]:
    """The options of what a hook gave. `made`: the call that made it, None: whatever is no default counts as
    set by the hook."""
    return tuple(
        Option(field.name, shown(value), by if _given(field, value, made) else None)
        for field in msgspec.structs.fields(what)
        for value in [getattr(what, field.name)]
        for by in [_by(shown(value), made, hook)]
    )


def _given(field: Any, value: object, made: Made | None) -> bool:
    if made is not None:
        return field.name in made.names
    default = (
        field.default_factory()
        if field.default is msgspec.NODEFAULT and not field.required
        else field.default
    )
    return bool(field.required or value != default)


def _by(value: str, made: Made | None, hook: Hook) -> Step:
    """The line of the policy that gave an option."""
    if made is None:
        return Step(value, hook.file, hook.line, hook=hook.name)
    file, _, line = made.where.rpartition(":")
    return Step(value, file, int(line), hook=hook.name)


def path_options(path: EgressPath, found: Found | None, made: Made | None, hook: Hook) -> tuple[Option, ...]:
    """Every option of a path; those that somebody set know who. `found`: what shaping files said, where a
    hook asked them or is their own."""
    settings: dict[str, list[tuple[str, Setting]]] = {}
    taken_back: dict[str, list[tuple[str, tuple[Step, ...], Origin]]] = {}
    if found is not None:
        for key, setting in found.settings.items():
            settings.setdefault(_option(key[0]), []).append((shown_key(key), setting))
        for key, old in found.taken_back.items():
            steps = tuple(_step(one, replaced_by=by.where) for one, by in old)
            taken_back.setdefault(_option(key[0]), []).append((shown_key(key), steps, old[0][1]))
    options: list[Option] = []
    for name in EgressPath.__struct_fields__:
        value = getattr(path, name)
        here, back = settings.get(name, []), taken_back.get(name, [])
        by_hook = made is not None and name in made.names
        if by_hook or (
            (found is None or value != getattr(found.path, name)) and value != getattr(_DEFAULT, name)
        ):
            over = [_step(one) for _, setting in here for one in setting.history()]
            over += [step for _, steps, _ in back for step in steps]
            options.append(
                Option(name, shown(value), _by(shown(value), made if by_hook else None, hook), tuple(over))
            )
        elif here or back:
            options += _from_files(name, value, here, back)
        else:
            options.append(Option(name, shown(value)))
    return tuple(options)


def _from_files(
    name: str,
    value: object,
    settings: Sequence[tuple[str, Setting]],
    taken_back: Sequence[tuple[str, tuple[Step, ...], Origin]],
) -> list[Option]:
    """An option that files set, or each of its entries."""
    more = {label: (steps, by) for label, steps, by in taken_back}
    options: list[Option] = []
    for label, setting in settings:
        first, *before = (_step(one) for one in setting.history())
        back = setting.value is UNSET and label == name
        steps, _ = more.pop(label, ((), None))
        text = f"{shown(value)} (default)" if back else first.value
        options.append(Option(label, text, first, (*before, *steps)))
    for label, (steps, by) in more.items():
        text = f"{shown(value)} (default)" if label == name else "not set"
        first = Step(text, by.file, by.line, by.block, by.source, "replace_base")
        options.append(Option(label, text, first, steps))
    return options


def _option(name: str) -> str:
    """A provider's limit is an entry of another option."""
    return IMPLIED[name][0] if name in IMPLIED else name


def _step(setting: Setting, replaced_by: str = "") -> Step:
    origin = setting.origin
    return Step(
        shown(setting.value),
        origin.file,
        origin.line,
        origin.block,
        origin.source,
        origin.rule,
        replaced_by,
    )
