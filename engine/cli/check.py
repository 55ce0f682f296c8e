"""``posthorn check``: load and validate a policy without starting anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from engine.cli.report import guarded

if TYPE_CHECKING:
    from engine.hooks import Hooks

__all__ = ["check"]

_SAMPLE = ("example.com", "unspecified", "mx.example.com")
"""What the egress hooks are asked with, so that a misspelt option shows before the first message."""


def check(policy: Path | None = None, /) -> int:
    """Load a policy, run its `init` without acting on it, and ask its egress hooks about example.com.

    No socket, spool or log is opened, no secret is fetched. Exit status 0 when all is well, 2 when not.

    Parameters
    ----------
    policy
        The policy file (Python); without one the shipped default is checked.
    """
    return guarded(lambda: trio.run(_check, policy), command="check")


async def _check(path: Path | None) -> None:
    from engine.errors import HookError
    from engine.hooks import Hooks
    from policy.load import load_policy

    loaded = load_policy(path)
    declarations = await loaded.run_init()
    shown = loaded.path
    if declarations.spool is None:
        raise HookError(f'{shown}: init defines no spool; call policy.define_spool(path="var/spool") in it')
    hooks = Hooks(loaded.hooks)
    domain, source, site = _SAMPLE
    config = await hooks.call("get_queue_config", domain, None, None, None)
    path_config = await hooks.call("get_egress_path_config", domain, source, site)
    print(f"{shown}: ok")
    print(f"  spool      {declarations.spool.path}")
    for log in declarations.logs:
        print(f"  log        {log.log_dir}")
    for listener in declarations.listeners:
        print(f"  listener   {listener.listen}, relays for {listener.relay_hosts}")
    if not declarations.listeners:
        print("  listener   none: nothing can be submitted; call policy.start_esmtp_listener(...) in init")
    if config is not None:
        hosts = ", ".join(entry.label for entry in config.protocol.mx_list)
        print(f"  route      {domain}: {'smart hosts ' + hosts if hosts else 'by MX'}")
    if path_config is not None:
        user = path_config.smtp_auth_plain_username
        auth = (
            f"AUTH as {user!r}, password from {path_config.smtp_auth_plain_password.name}"
            if user
            else "no AUTH"
        )
        print(f"  path       {domain}: enable_tls={path_config.enable_tls}, {auth}")
    for note in loaded.notes:
        print(f"  note       {note}")
    if path_config is not None and path_config.smtp_auth_plain_username and await _unconditional(hooks):
        print(
            "  note       two unrelated destinations both get credentials: make the path hook look at "
            "the domain or the site, or every next hop is sent a password"
        )


async def _unconditional(hooks: Hooks) -> bool:
    """Whether an unrelated destination gets credentials from the path hook, too."""
    other = await hooks.call("get_egress_path_config", "another.example", "unspecified", "mx.another.example")
    return other is not None and other.smtp_auth_plain_username is not None
