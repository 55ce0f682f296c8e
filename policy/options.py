"""The machinery of every constructor: known and not yet supported options, and good error texts.

A `Struct` is the one list of a constructor's options. Each field's annotation says how its value is
read: ``bool``, a ``Literal``, or ``Annotated[type, Kind]`` (kinds.py). An option that is known to the
specification but has no mechanism yet is a row of `not_yet`; it is refused by name, never ignored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import msgspec

from .errors import PolicyError, Wrong, a_type, caller, did_you_mean

__all__ = ["Constructor", "Kind", "Made", "NotYet", "Table", "kinds_of", "noting"]

T = TypeVar("T")
_LISTED = 8
"""A table of at most this many keys is listed whole in the error about an unknown one."""


class Kind(msgspec.Struct, frozen=True):
    """How one option's value is read. `right`: what is right, for error texts. `read`: value to field,
    raises Wrong. `secret`: the value is never shown."""

    right: str
    read: Callable[[Any], Any]
    secret: bool = False


class NotYet(msgspec.Struct, frozen=True):
    """An option whose mechanism is not built. `what`: its meaning in a few words. `off`: the values that
    ask for nothing, which are accepted."""

    what: str
    off: tuple[Any, ...] = (None,)


def _same(value: Any, off: Any) -> bool:
    return type(value) is type(off) and bool(value == off)


class Table:
    """The options of one constructor, or the keys of one nested mapping.

    `nullable`: options for which None means "not given".
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        *,
        required: frozenset[str] = frozenset(),
        nullable: frozenset[str] = frozenset(),
        not_yet: Mapping[str, NotYet] | None = None,
        noun: str = "option",
    ) -> None:
        self.kinds = kinds
        self.required = required
        self.nullable = nullable
        self.not_yet = not_yet or {}
        self.noun = noun

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values as the fields want them.

        Raises: Wrong, naming each option that is wrong, its value and what would be right."""
        values, mistakes = {}, []
        for name, value in given.items():
            try:
                kind = self.kinds.get(name)
                if kind is None:
                    self._refuse(name, value)
                elif value is not None or name not in self.nullable:
                    values[name] = self._read(name, kind, value)
            except Wrong as wrong:
                mistakes.append(str(wrong))
        for name in self.kinds:
            if name in self.required and name not in given:
                right = self.kinds[name].right
                mistakes.append(f'{self.noun} "{name}" is missing; right would be {right}')
        if mistakes:
            raise Wrong(" -- and ".join(mistakes), complete=True)
        return values

    def _read(self, name: str, kind: Kind, value: Any) -> Any:
        try:
            return kind.read(value)
        except Wrong as wrong:
            shown = "" if kind.secret else f"={_shown(value)}"
            right = "" if wrong.complete else f"; right would be {kind.right}"
            raise Wrong(f"{name}{shown}: {wrong}{right}", complete=True) from None

    def _refuse(self, name: Any, value: Any) -> None:
        """Accepts a not yet supported option that is off, and raises for everything else."""
        later = self.not_yet.get(name)
        if later is None:
            known = [*self.kinds, *self.not_yet]
            hint = did_you_mean(name, known) if isinstance(name, str) else ""
            if not hint and len(known) <= _LISTED:
                hint = "; known are " + ", ".join(f'"{one}"' for one in known)
            raise Wrong(f"unknown {self.noun} {_shown(name)}{hint}", complete=True)
        if not any(_same(value, off) for off in later.off):
            others = [off for off in later.off if off is not None]
            hint = f"; {name}={others[0]!r} is accepted" if others else f"; leave {name} out"
            raise Wrong(f'{self.noun} "{name}" ({later.what}) is not supported yet{hint}', complete=True)


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Made(msgspec.Struct, frozen=True):
    """What a ``make_*`` function gave. `names`: the options that were given to it; `where`: ``file:line`` of
    the call."""

    what: Any
    names: tuple[str, ...]
    where: str


_notes: ContextVar[list[Made] | None] = ContextVar("made", default=None)


@contextmanager
def noting() -> Iterator[list[Made]]:
    """While the block runs, note what ``make_*`` functions give; for tools that explain who set an option."""
    notes: list[Made] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


class Constructor(Generic[T]):
    """A ``make_*`` function's body: options in, frozen Struct out.

    `check`: looks at the finished Struct as a whole; raises Wrong.
    """

    def __init__(
        self,
        name: str,
        struct: Callable[..., T],
        *,
        not_yet: Mapping[str, NotYet] | None = None,
        check: Callable[[T], None] | None = None,
    ) -> None:
        self.name = name
        self.struct = struct
        self._check = check
        kinds, nullable = kinds_of(struct)
        required = frozenset(
            field.name
            for field in msgspec.structs.fields(struct)  # type: ignore[arg-type]
            if field.required
        )
        self.table = Table(kinds, required=required, nullable=nullable, not_yet=not_yet)

    def __call__(self, mapping: Mapping[str, Any] | None, options: Mapping[str, Any]) -> T:
        """Build one. Raises: PolicyError with file and line of the policy."""
        try:
            if mapping is not None:
                options = self._merge(mapping, options)
            made = self.made(self.table.read(options))
        except Wrong as wrong:
            raise PolicyError(f"{self.name}: {wrong}", caller()) from None
        notes = _notes.get()
        if notes is not None:
            notes.append(Made(made, tuple(options), caller()))
        return made

    def made(self, values: Mapping[str, Any]) -> T:
        """Build one from values that were read already. Raises: Wrong when they do not go together."""
        made = self.struct(**values)
        if self._check is not None:
            self._check(made)
        return made

    def _merge(self, mapping: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(mapping, Mapping):
            raise Wrong(f"takes one mapping or keyword arguments, not {a_type(mapping)}")
        for name in options:
            if name in mapping:
                raise Wrong(f'option "{name}" is given twice, in the mapping and as a keyword')
        return {**mapping, **options}


def kinds_of(struct: Any) -> tuple[dict[str, Kind], frozenset[str]]:
    """Each field's Kind, and the fields that may be None; both from the annotations."""
    kinds, nullable = {}, set()
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in struct.__struct_fields__:
        hint = hints[field]
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            hint, *rest = (part for part in typing.get_args(hint) if part is not type(None))
            assert not rest, f"{field}: only `X | None` is understood"
            nullable.add(field)
        kinds[field] = _kind_of(hint)
    return kinds, frozenset(nullable)


def _kind_of(hint: Any) -> Kind:
    if hint is bool:
        return BOOL
    if typing.get_origin(hint) is typing.Literal:
        return _choice(typing.get_args(hint))
    return next(note for note in hint.__metadata__ if isinstance(note, Kind))


def _choice(choices: tuple[str, ...]) -> Kind:
    right = ("one of " if len(choices) > 1 else "") + ", ".join(f'"{choice}"' for choice in choices)

    def read(value: Any) -> str:
        if isinstance(value, str):
            if value in choices:
                return value
            raise Wrong(f"is none of its values{did_you_mean(value, choices)}")
        raise Wrong(f"is no text but {a_type(value)}")

    return Kind(right, read)


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise Wrong(f"is no bool but {a_type(value)}")


BOOL = Kind("True or False", _read_bool)
