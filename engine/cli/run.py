"""``posthorn run``: the relay in the foreground."""

from __future__ import annotations

from pathlib import Path

import trio

from engine.cli.report import guarded
from engine.log.diagnostics import diagnostics

__all__ = ["run"]


def run(
    policy: Path | None = None,
    /,
    *,
    log_level: str = "info",
    log_format: str = "auto",
) -> int:
    """Run the relay in the foreground until SIGTERM or Ctrl-C.

    Without a policy the shipped default runs: SMTP on 127.0.0.1:2525, relaying for this machine
    only, spool and logs below ./var, delivery by MX.

    Parameters
    ----------
    policy
        The policy file (Python).
    log_level
        Diagnostics on standard error: debug, info, warning or error.
    log_format
        auto (human-readable), plain, or json.
    """
    from engine.app import serve
    from policy.load import load_policy

    def run_it() -> None:
        trio.run(serve, load_policy(policy))

    with diagnostics(level=log_level, style=log_format):
        return guarded(run_it, command="run")
