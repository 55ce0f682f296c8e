"""Bounce classes: what a reply means, by regular expressions from files.

    import policy

    policy.configure_bounce_classifier([policy.BOUNCES])

A class is one word for a kind of refusal, such as ``QuotaIssues``. It stands in the record of the refusal,
and rules on replies can ask for it. It changes nothing in how the mail is retried. See docs/bounces.md.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import PolicyError, Wrong, a_type, caller
from .hooks import registering
from .shaping.patterns import LONGEST, Pattern, Patterns

__all__ = ["BOUNCES", "UNCATEGORIZED", "BounceClasses", "configure_bounce_classifier"]

BOUNCES = "posthorn:bounces"
"""Names the rules that come with the product."""

UNCATEGORIZED = "Uncategorized"
"""The class of a reply that no rule fits."""

_DATA = Path(__file__).parent / "data"
_SHIPPED = (_DATA / "bounce-texts.toml", _DATA / "bounce-codes.toml")
_KEPT = 1024
"""Replies whose class is remembered, and as many that have none: junk must not push out the others."""


class BounceClasses:
    """The expressions of all files, in order; the first that is found in a reply gives its class.

    `rules`: class and expression, each good for `Pattern`. Thread-safe.
    """

    def __init__(self, rules: Sequence[tuple[str, str]]) -> None:
        self._patterns = Patterns([text for _, text in rules])
        self._names = [name for name, _ in rules]
        self.names = tuple(dict.fromkeys([*self._names, UNCATEGORIZED]))
        """Every class that a reply can have."""
        self._known: dict[str, str] = {}
        self._unknown: dict[str, str] = {}

    def of(self, line: str) -> str:
        """The class of a reply on one line, ``CODE [E.S.D ]TEXT``, of which the first 2,048 octets count."""
        line = line[:LONGEST]
        name = self._known.get(line) or self._unknown.get(line)
        if name is None:
            first = self._patterns.first(line.encode("utf-8", "replace")[:LONGEST])
            name = UNCATEGORIZED if first is None else self._names[first]
            kept = self._unknown if first is None else self._known
            if len(kept) >= _KEPT:
                kept.clear()
            kept[line] = name
        return name


def configure_bounce_classifier(files: Sequence[str | Path]) -> None:
    """Give replies a class by these files, which are read here, once; earlier files win.

    Relative paths begin beside the policy file. Call it while the policy is loaded or in `init`, once, and
    before `policy.shaping.setup` where rules ask for a class. Without it every record says ``Uncategorized``.
    Raises: PolicyError with file and place of the first mistake.
    """
    where = caller()
    table = registering.get()
    if table.bounces is not None:
        raise PolicyError(
            "configure_bounce_classifier: called a second time; give all files in one list", where
        )
    if isinstance(files, (str, bytes, Path)) or not isinstance(files, Sequence) or not files:
        raise PolicyError(
            f"configure_bounce_classifier: takes a list of files, not {a_type(files) if files else 'none'}; "
            'right would be [policy.BOUNCES] or ["bounces.toml", policy.BOUNCES]',
            where,
        )
    rules: list[tuple[str, str]] = []
    directory = Path(where.rpartition(":")[0]).parent
    for entry in files:
        if not isinstance(entry, (str, Path)) or not str(entry):
            raise PolicyError(
                f"configure_bounce_classifier: the list holds {a_type(entry)}, which is no file", where
            )
        if str(entry) == BOUNCES:
            for path in _SHIPPED:
                rules += _read(path, BOUNCES, where)
        elif str(entry).startswith("posthorn:"):
            raise PolicyError(
                f'configure_bounce_classifier: "{entry}" does not come with the product; known is '
                f'"{BOUNCES}"',
                where,
            )
        else:
            rules += _read(directory / entry, str(entry), where)
    table.bounces = BounceClasses(rules)


def _read(path: Path, name: str, where: str) -> Iterator[tuple[str, str]]:
    try:
        content = path.read_bytes().decode()
        data: Any = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except OSError as error:
        raise PolicyError(f"{name}: cannot be read: {error.strerror or error}", where) from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"{name}: is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}", where
        ) from None
    rules = data.get("rules") if isinstance(data, dict) and data.keys() == {"rules"} else None
    if not isinstance(rules, dict):
        raise PolicyError(
            f'{name}: has one table, "rules", with lists of regular expressions by class; right would be '
            '[rules] and QuotaIssues = ["mailbox full"]',
            where,
        )
    for kind, patterns in rules.items():
        if not kind or not kind.isprintable():
            raise PolicyError(f"{name}: rules: {kind!r} is no name of a class", where)
        if not isinstance(patterns, list):
            raise PolicyError(
                f"{name}: rules.{kind}: is no list of regular expressions but {a_type(patterns)}", where
            )
        for number, text in enumerate(patterns, 1):
            try:
                Pattern(text)
            except Wrong as wrong:
                raise PolicyError(f"{name}: rules.{kind}, expression {number}: {wrong}", where) from None
            yield kind, text
