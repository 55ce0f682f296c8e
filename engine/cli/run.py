"""``posthorn run``: the relay in the foreground."""

from __future__ import annotations

from pathlib import Path

from engine.cli.report import guarded
from engine.signals import Signals, Stopped

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
        Diagnostics on standard error: debug, info, warning or error; also by room, as in
        info,egress=debug,spool=warning.
    log_format
        auto (human-readable), plain, or json.
    """
    with Signals() as signals:
        try:
            return _run(signals, policy, log_level, log_format)
        except Stopped:
            return 0


def _run(signals: Signals, policy: Path | None, log_level: str, log_format: str) -> int:
    # Most of the time of a start goes into these; they come when the signals are heard.
    import trio

    from engine.app import serve
    from engine.log.diagnostics import diagnostics
    from engine.tripwire import Tripwire
    from policy.load import load_policy

    tripwire = Tripwire()

    def run_it() -> None:
        loaded = load_policy(policy)
        if not signals.note_only():
            trio.run(lambda: serve(loaded, signals=signals, tripwire=tripwire))

    with diagnostics(level=log_level, style=log_format, tripwire=tripwire):
        return guarded(run_it, command="run", tripwire=tripwire)
