"""Settings, and the one law by which they are put over one another.

A *setting* is the value of one option with the place that gave it. A *layer* is what one block says, or one
source inside a block. Layers are put over one another, first the files of one block and then, at look-up, the
blocks that apply; both times by the same law, so it does not matter in which steps it is done:

- a setting takes the place of an earlier one of the same option;
- the options that are maps (`MAPS`) are merged entry by entry;
- `UNSET` takes an option, or one entry of a map, back to nothing;
- a layer that *replaces* discards everything before it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec

__all__ = ["AUTH", "MAPS", "PROTECTION", "UNSET", "Key", "Layer", "Origin", "Setting", "merged", "put"]

MAPS: Final = frozenset(
    {
        "additional_connection_limits",
        "additional_message_rate_throttles",
        "additional_source_selection_rates",
    }
)
"""Options that hold entries by name."""

AUTH: Final = frozenset(
    {
        "smtp_auth",
        "smtp_auth_plain_username",
        "smtp_auth_plain_password",
        "allow_smtp_auth_plain_without_tls",
        "allow_smtp_auth_plain_without_valid_certificate",
    }
)
"""Options that say who we are, or relax where the password may go."""

PROTECTION: Final = frozenset(
    {
        "enable_dane",
        "tls_ca",
        "tls_certificate",
        "tls_implicit",
        "tls_minimum_version",
        "tls_pins",
        "tls_private_key",
        "tls_server_name",
        "openssl_cipher_list",
    }
)
"""Options that say whom TLS trusts, how strong it is, and who we are in it."""

Key: TypeAlias = tuple[str, str]
"""An option and ``""``; of a map, the name of the entry; of a provider's limit, the name of the provider."""


class _Unset(enum.Enum):
    """Type of UNSET."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""The option is as if nobody had set it."""


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where something stands. `block`: as its header writes it. `source`: of a ``sources`` table.
    `rule`: of an option that a rule set, until when."""

    file: str
    line: int
    block: str
    source: str = ""
    rule: str = ""

    def __str__(self) -> str:
        inside = f' sources."{self.source}"' if self.source else ""
        rule = f" {self.rule}" if self.rule else ""
        return f"{self.file}:{self.line} [{self.block}]{inside}{rule}"

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


class Setting(msgspec.Struct, frozen=True):
    """One option's value, as the field of `EgressPath` wants it, or UNSET. `before`: what it overrode."""

    value: Any
    origin: Origin
    before: Setting | None = None

    def history(self) -> Iterator[Setting]:
        """This one and what it overrode, the latest first."""
        one: Setting | None = self
        while one is not None:
            yield one
            one = one.before


class Layer(msgspec.Struct):
    """What one block, or one source in it, says. `replaces`: the ``replace_base`` that is in force."""

    settings: dict[Key, Setting] = {}
    replaces: Origin | None = None


def put(settings: dict[Key, Setting], key: Key, setting: Setting) -> None:
    """Put one setting over `settings`."""
    option, entry = key
    if not entry and option in MAPS:
        for other in [one for one in settings if one[0] == option and one[1]]:
            del settings[other]
    before = settings.get(key)
    if before is not None:
        oldest = list(setting.history())
        for one in reversed(oldest):
            before = Setting(one.value, one.origin, before)
        setting = before
    settings[key] = setting


def merged(first: Layer, then: Layer) -> Layer:
    """`then` over `first`; neither is changed."""
    if then.replaces is not None:
        return then
    settings = dict(first.settings)
    for key, setting in then.settings.items():
        put(settings, key, setting)
    return Layer(settings, first.replaces)
