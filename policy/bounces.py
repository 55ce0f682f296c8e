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

from .errors import PolicyError, PolicyErrors, Wrong, a_type, caller
from .files import open_regular
from .hooks import registering
from .shaping.lines import json_lines, line_of, toml_lines
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

    `rules`: class and expression, each good for `Pattern`. Thread-safe. Raises: Wrong, as `Patterns`.
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
    Raises: PolicyError; PolicyErrors with all mistakes of the files, each with its place.
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
    problems: list[PolicyError] = []
    directory = Path(where.rpartition(":")[0]).parent
    for entry in files:
        if not isinstance(entry, (str, Path)) or not str(entry):
            raise PolicyError(
                f"configure_bounce_classifier: the list holds {a_type(entry)}, which is no file", where
            )
        if str(entry) == BOUNCES:
            for path in _SHIPPED:
                rules += _read(path, BOUNCES, problems)
        elif str(entry).startswith("posthorn:"):
            raise PolicyError(
                f'configure_bounce_classifier: "{entry}" does not come with the product; known is '
                f'"{BOUNCES}"',
                where,
            )
        else:
            rules += _read(directory / entry, str(entry), problems)
    if problems:
        raise PolicyErrors(problems, where)
    try:
        table.bounces = BounceClasses(rules)
    except Wrong as wrong:
        raise PolicyError(f"configure_bounce_classifier: {wrong}", where) from None


def _read(path: Path, name: str, problems: list[PolicyError]) -> Iterator[tuple[str, str]]:
    """What is right in a file; of the rest, `problems` are told."""

    def wrong(text: str, *path: str) -> None:
        # Scanned again for each mistake, of which there are few; in most files none.
        lines = json_lines(content) if as_json else toml_lines(content)
        problems.append(PolicyError(text, f"{name}:{line_of(lines, path)}"))

    as_json = path.suffix == ".json"
    try:
        with open_regular(path) as file:
            content = file.read().decode()
        data: Any = json.loads(content) if as_json else tomllib.loads(content)
    except OSError as error:
        problems.append(PolicyError(f"cannot be read: {error.strerror or error}", name))
        return
    except (ValueError, RecursionError) as error:
        problems.append(PolicyError(f"is no {'JSON' if as_json else 'TOML'}: {error}", name))
        return
    rules = data.get("rules") if isinstance(data, dict) and data.keys() == {"rules"} else None
    if not isinstance(rules, dict):
        text = (
            'has one table, "rules", with lists of regular expressions by class; right would be '
            '[rules] and QuotaIssues = ["mailbox full"]'
        )
        other = next((key for key in data if key != "rules"), "rules") if isinstance(data, dict) else ""
        wrong(text, other)
        return
    for kind, patterns in rules.items():
        if not kind or not kind.isprintable():
            wrong(f"rules: {kind!r} is no name of a class", "rules", kind)
        if not isinstance(patterns, list):
            text = f"rules.{kind}: is no list of regular expressions but {a_type(patterns)}"
            wrong(text, "rules", kind)
            continue
        for number, text in enumerate(patterns):
            try:
                Pattern(text)
            except Wrong as why:
                wrong(f"rules.{kind}, expression {number + 1}: {why}", "rules", kind, str(number))
            else:
                yield kind, text
