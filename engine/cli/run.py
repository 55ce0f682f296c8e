"""``posthorn run``: the relay in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from engine.cli.report import guarded
from engine.process import keep_to_itself
from engine.signals import Signals, Stopped

__all__ = ["run"]


def run(
    policy: Path | None = None,
    /,
    *,
    log_level: str = "info",
    log_format: str = "auto",
    core_dumps: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run the relay in the foreground until SIGTERM or Ctrl-C.

    Without a policy the shipped default runs: SMTP on 127.0.0.1:2525, relaying for this machine
    only, spool and logs below ./var, delivery by MX.

    Parameters
    ----------
    policy
        The policy file (Python).
    log_level
        Diagnostics on standard error: debug, info, warning or error; also by room, as in
        info,egress=debug,spool=warning.
    log_format
        auto (human-readable), plain, or json.
    core_dumps
        Leave core dumps as the system has them, and let debuggers of the same user look: for finding a
        fault. Both show every secret. Without it there are none.
    """
    with Signals() as signals:
        try:
            exposed = (
                "--core-dumps: whoever reads a core dump of this process, or its memory, reads every secret"
            )
            return _run(signals, policy, log_level, log_format, exposed if core_dumps else keep_to_itself())
        except Stopped:
            return 0


def _run(signals: Signals, policy: Path | None, log_level: str, log_format: str, exposed: str) -> int:
    # Most of the time of a start goes into these; they come when the signals are heard.
    import logging

    import trio

    from engine.app import serve
    from engine.log.diagnostics import diagnostics
    from engine.tripwire import Tripwire
    from policy.load import load_policy

    tripwire = Tripwire()

    def run_it() -> None:
        if exposed:
            logging.getLogger("posthorn").warning("%s", exposed)
        loaded = load_policy(policy)
        if not signals.note_only():
            trio.run(lambda: serve(loaded, signals=signals, tripwire=tripwire))

    with diagnostics(level=log_level, style=log_format, tripwire=tripwire):
        return guarded(run_it, command="run", tripwire=tripwire)
