"""What should happen to mail: the vocabulary of a Posthorn policy.

A policy is a Python file that says ``import policy`` and registers hooks. See docs/policy.md.

    import policy

    @policy.on("init")
    def init():
        policy.define_spool(path="var/spool")
        policy.configure_local_logs(log_dir="var/log")
        policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["127.0.0.1"])

Nothing here does any I/O or imports the engine, so a policy can be written, type-checked and tested
anywhere.
"""

from typing import TYPE_CHECKING

from . import shaping
from .bounces import BOUNCES, configure_bounce_classifier
from .egress import (
    EgressPath,
    EgressPool,
    EgressSource,
    QueueConfig,
    make_egress_path,
    make_egress_pool,
    make_egress_source,
    make_queue_config,
)
from .errors import PolicyError, PolicyLoadError
from .hooks import STOP, Reject, on
from .ingress import ListenerDomain, make_listener_domain
from .keysource import safe_segment
from .protocols import Address, ConnectionMeta, Message
from .runtime import (
    configure_local_logs,
    configure_memory,
    configure_mta_sts,
    define_spool,
    start_esmtp_listener,
)
from .scramkeys import ScramKeys, new_scram_keys, scram_keys
from .secret import Secret

__all__ = [
    "BOUNCES",
    "STOP",
    "Address",
    "ConnectionMeta",
    "EgressPath",
    "EgressPool",
    "EgressSource",
    "ListenerDomain",
    "Message",
    "PolicyError",
    "PolicyLoadError",
    "QueueConfig",
    "Reject",
    "ScramKeys",
    "Secret",
    "configure_bounce_classifier",
    "configure_local_logs",
    "configure_memory",
    "configure_mta_sts",
    "define_spool",
    "make_egress_path",
    "make_egress_pool",
    "make_egress_source",
    "make_listener_domain",
    "make_queue_config",
    "new_scram_keys",
    "on",
    "safe_segment",
    "scram_keys",
    "shaping",
    "start_esmtp_listener",
]


if not TYPE_CHECKING:  # a type checker would take it for leave to name anything

    def __getattr__(name):
        from .errors import did_you_mean

        raise AttributeError(f"module 'policy' has no attribute '{name}'{did_you_mean(name, __all__)}")
