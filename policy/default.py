"""The policy that runs when none is given: a relay for this machine, delivering by MX."""

import policy


@policy.on("init")
def init() -> None:
    """Take mail from this machine on port 2525; keep spool and logs below ./var."""
    policy.define_spool(path="var/spool")
    policy.configure_local_logs(log_dir="var/log")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["127.0.0.1", "::1"])
