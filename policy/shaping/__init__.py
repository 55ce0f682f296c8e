"""Egress paths from files: merged, looked up, with the line that each option came from.

    import policy

    policy.shaping.setup([policy.shaping.SHIPPED, "shaping.toml"])

The files are TOML or JSON; docs/shaping.md describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import PolicyError, caller
from ..hooks import on, registering
from .asked import Asked, asked_by_name
from .names import Host
from .orders import Orders, Stop, Stops
from .rules import Failure
from .shaper import SHIPPED, Shaper, ShapingFile, asking, parse_files
from .table import Found, ShapingError, Sites, Table

__all__ = [
    "SHIPPED",
    "Asked",
    "Failure",
    "Found",
    "Host",
    "Orders",
    "Shaper",
    "ShapingError",
    "ShapingFile",
    "Sites",
    "Stop",
    "Stops",
    "Table",
    "asked_by_name",
    "asking",
    "load",
    "setup",
]


def setup(
    files: Sequence[str | Path],
    *,
    allow_auth_in_default: bool = False,
    require_remote: bool = True,
    automation: Literal["enforce", "shadow"] = "enforce",
) -> Shaper:
    """Answer `get_egress_path_config` from these files and URLs, later ones over earlier ones.

    Relative paths begin beside the policy file. `allow_auth_in_default`: AUTH options may stand in
    ``default``, so that every next hop is sent the password. `require_remote`: mail waits until each URL was
    read once; with False what could not be read is taken for empty. `automation`: with ``"shadow"`` the rules
    of the files only report what they would have done.
    Raises: PolicyError with file, line and key for the first mistake.
    """
    shaper = load(
        files,
        allow_auth_in_default=allow_auth_in_default,
        require_remote=require_remote,
        automation=automation,
    )
    on("get_egress_path_config")(shaper)
    return shaper


def load(
    files: Sequence[str | Path],
    *,
    allow_auth_in_default: bool = False,
    require_remote: bool = True,
    automation: Literal["enforce", "shadow"] = "enforce",
) -> Shaper:
    """As `setup`, but registers no hook: call the result in a hook of your own, with the hook's arguments."""
    where = caller()
    directory = Path(where.rpartition(":")[0]).parent
    if automation not in ("enforce", "shadow"):
        raise PolicyError(
            f'shaping: automation={automation!r} is none of its values; right would be "enforce" or "shadow"',
            where,
        )
    try:
        shaper = Shaper(
            parse_files(files, directory),
            allow_auth_in_default=allow_auth_in_default,
            require_remote=require_remote,
            where=where,
            shadow=automation == "shadow",
            bounces=registering.get().bounces,
        )
    except ShapingError as error:
        raise ShapingError(error.problems, where) from None
    except ValueError as wrong:
        raise PolicyError(f"shaping: {wrong}", where) from None
    registering.get().shapers.append(shaper)
    return shaper
