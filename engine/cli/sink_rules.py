"""How a sink misbehaves: rules such as ``rcpt=450 4.2.0 not now;every=3``."""

from __future__ import annotations

import math
import re

import msgspec

from engine.errors import ConfigError
from policy.errors import did_you_mean

__all__ = ["STAGES", "Rule", "Rules", "parse_rule"]

STAGES = ("connect", "ehlo", "helo", "starttls", "auth", "mail", "rcpt", "data", "dot", "rset", "quit")

_OPTIONS = ("every", "first", "delay")
_OPTION = re.compile(r";\s*([A-Za-z]+)=([^;\s]*)\s*\Z")
_REPLY = re.compile(r"([2-5][0-9][0-9])(?: ([\x20-\x7e\x80-\U0010ffff]*))?\Z")


class Rule(msgspec.Struct):
    """One rule. `code` 0: the ordinary reply. `drop`: close without a word. `hang`: never answer.

    `every`: applies to each n-th time this stage is reached; `first`: only to the first n times
    (0: no limit); `delay`: seconds before the answer. `times`: how often the stage was reached.
    """

    stage: str
    code: int = 0
    reply: bytes = b""
    drop: bool = False
    hang: bool = False
    every: int = 1
    first: int = 0
    delay: float = 0.0
    times: int = 0

    def applies(self) -> bool:
        """Count this time, and say whether the rule applies to it."""
        self.times += 1
        return self.times % self.every == 0 and (not self.first or self.times <= self.first)


Rules = dict[str, list[Rule]]
"""By stage. The first rule that applies is the one."""


def parse_rule(text: str) -> Rule:
    """A rule from ``STAGE=ACTION[;every=N][;first=N][;delay=SECONDS]``.

    ACTION is a reply (``450 4.2.0 not now``; a ``\\n`` written out begins a further line), ``drop``,
    ``hang`` or ``delay=SECONDS``.

    Raises: ConfigError saying what would be right.
    """
    stage, equals, action = text.partition("=")
    stage = stage.strip().lower()
    if stage not in STAGES or not equals:
        raise ConfigError(
            f'reply rule "{text}": right would be STAGE=CODE TEXT with STAGE one of {", ".join(STAGES)}'
        )
    rule = Rule(stage)
    while found := _OPTION.search(action):
        name, number = found.groups()
        if name not in _OPTIONS:
            # A reply may hold such a thing itself; what looks misspelt would be sent instead of obeyed.
            if meant := did_you_mean(name, _OPTIONS):
                raise ConfigError(f'reply rule "{text}": ;{name}= is not known{meant}')
            break
        _set(rule, name, number, text)
        action = action[: found.start()]
    action = action.strip()
    if action in ("drop", "hang"):
        setattr(rule, action, True)
    elif action.startswith("delay="):
        _set(rule, "delay", action[6:], text)
    else:
        _set_reply(rule, action, text)
    return rule


def _set(rule: Rule, name: str, number: str, text: str) -> None:
    try:
        if name == "delay":
            rule.delay = float(number)
        else:
            setattr(rule, name, int(number))
    except ValueError:
        right = "seconds, as in delay=0.5" if name == "delay" else f"a whole number, as in {name}=3"
        raise ConfigError(
            f'reply rule "{text}": {name}={number} is no number that fits; right would be {right}'
        ) from None
    if rule.every < 1 or rule.first < 0 or not 0.0 <= rule.delay < math.inf:
        least = "at least 1" if name == "every" else "at least 0, and finite"
        raise ConfigError(f'reply rule "{text}": {name}={number} does not fit; right would be {least}')


def _set_reply(rule: Rule, action: str, text: str) -> None:
    lines = action.split("\\n")
    found = _REPLY.match(lines[0])
    if not found or any(not line.isprintable() for line in lines):
        raise ConfigError(
            f'reply rule "{text}": behind the "=" right would be CODE TEXT, drop, hang or delay=SECONDS'
        )
    code, first = found.group(1), found.group(2) or ""
    texts = [first, *lines[1:]]
    rule.code = int(code)
    parts = [f"{code}-{line}\r\n" for line in texts[:-1]] + [f"{code} {texts[-1]}\r\n"]
    rule.reply = "".join(parts).encode()
