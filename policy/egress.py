"""How mail leaves: egress paths, sources, pools and queue configurations.

Each class is the one list of its constructor's options: names, types, defaults. What each option
means, its unit and where it is enforced is in docs/egress-paths.md; a test keeps the two together.
Durations are float seconds. The objects are frozen: compare them to see whether a refresh changed
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, Unpack, overload

import msgspec

from .arguments import EgressPathOptions, EgressPoolOptions, EgressSourceOptions, QueueConfigOptions
from .errors import Wrong, a_type
from .kinds import (
    AtMost,
    AuthName,
    Count,
    HostName,
    Ip,
    Key,
    NamedLimits,
    NamedRates,
    Networks,
    Number,
    Port,
    Rate,
    Seconds,
    ServerName,
    Text,
    Timeout,
)
from .login import Login, SmtpAuth
from .nets import CidrSet, MxEntry, parse_cidr_set, parse_mx
from .options import BOOL, Constructor, Kind, NotYet, Table, kinds_of
from .tlskinds import CipherList, LeastTls, Pins
from .units import Limit, Named

__all__ = [
    "IMPLICIT_PORT",
    "PATH",
    "PROHIBITED",
    "UNSPECIFIED",
    "EgressPath",
    "EgressPool",
    "EgressSource",
    "LookupStrategy",
    "MxEntry",
    "PoolEntry",
    "QueueConfig",
    "SmtpProtocol",
    "TlsMode",
    "make_egress_path",
    "make_egress_pool",
    "make_egress_source",
    "make_queue_config",
]

TlsMode: TypeAlias = Literal[
    "Opportunistic", "OpportunisticInsecure", "Required", "RequiredInsecure", "Disabled"
]
LookupStrategy: TypeAlias = Literal["Ipv4Only", "Ipv6Only", "Ipv4AndIpv6", "Ipv6ThenIpv4", "Ipv4ThenIpv6"]

UNSPECIFIED = "unspecified"
"""Name of the built-in pool and of its one source; no hook is asked about them."""

PROHIBITED = parse_cidr_set(["127.0.0.0/8", "0.0.0.0", "::1", "::"])
"""The default of `prohibited_hosts`: this machine itself."""

_SMTP_PORT = 25
IMPLICIT_PORT = 465
"""RFC 8314 7.3."""


def _refresh(value: Any) -> Literal["Ttl"]:
    if value == "Epoch":
        raise Wrong('"Epoch" (refresh when the configuration changes) is not supported yet')
    if value != "Ttl":
        raise Wrong("is none of its values" if isinstance(value, str) else f"is no text but {a_type(value)}")
    return "Ttl"


Refresh = Annotated[Literal["Ttl"], Kind('"Ttl"', _refresh)]


class EgressPath(msgspec.Struct, frozen=True, kw_only=True):
    """How to talk to one site from one source. The defaults are those of `make_egress_path`."""

    # How much at once, how fast
    connection_limit: AtMost = Limit(32)
    additional_connection_limits: NamedLimits = Named()
    max_connection_rate: Rate | None = None
    max_message_rate: Rate | None = None
    additional_message_rate_throttles: NamedRates = Named()
    source_selection_rate: Rate | None = None
    additional_source_selection_rates: NamedRates = Named()
    max_deliveries_per_connection: Count = 1024
    max_recipients_per_batch: Count = 100
    max_ready: Count = 1024
    consecutive_connection_failures_before_delay: Count = 100
    hold_interval: Timeout = 60.0
    # Where to
    smtp_port: Port = _SMTP_PORT
    prohibited_hosts: Networks = PROHIBITED
    skip_hosts: Networks = CidrSet()
    ip_lookup_strategy: LookupStrategy = "Ipv4AndIpv6"
    # TLS
    enable_tls: TlsMode = "Opportunistic"
    tls_ca: Key | None = None
    tls_server_name: ServerName | None = None
    enable_mta_sts: bool = True
    tls_pins: Pins | None = None
    tls_certificate: Key | None = None
    tls_private_key: Key | None = None
    tls_minimum_version: LeastTls = "TLSv1.2"
    openssl_cipher_list: CipherList | None = None
    tls_implicit: bool = False
    tls_prefer_openssl: bool = False
    opportunistic_tls_reconnect_on_failed_handshake: bool = False
    remember_broken_tls: Seconds | None = None
    enable_dane: bool = False
    # AUTH
    smtp_auth: SmtpAuth | None = None
    smtp_auth_plain_username: AuthName | None = None
    smtp_auth_plain_password: Key | None = None
    allow_smtp_auth_plain_without_tls: bool = False
    allow_smtp_auth_plain_without_valid_certificate: bool = False
    # The conversation
    ehlo_domain: HostName | None = None
    enable_pipelining: bool = True
    enable_pipelining_across_messages: bool = True
    enable_rset: bool = True
    ignore_8bit_checks: bool = False
    # How long to wait
    connect_timeout: Timeout = 60.0
    banner_timeout: Timeout = 60.0
    ehlo_timeout: Timeout = 300.0
    starttls_timeout: Timeout = 60.0
    auth_timeout: Timeout = 60.0
    mail_from_timeout: Timeout = 300.0
    rcpt_to_timeout: Timeout = 300.0
    data_timeout: Timeout = 300.0
    data_dot_timeout: Timeout = 600.0
    rset_timeout: Timeout = 5.0
    idle_timeout: Seconds = 60.0
    system_shutdown_timeout: Timeout = 60.0
    # This object's own life
    refresh_strategy: Refresh = "Ttl"
    refresh_interval: Timeout = 60.0
    provider_name: Text | None = None

    @property
    def port(self) -> int:
        """The port of hosts that have none: `smtp_port`; 465 instead of 25 with `tls_implicit`."""
        return IMPLICIT_PORT if self.tls_implicit and self.smtp_port == _SMTP_PORT else self.smtp_port

    @property
    def login(self) -> Login | None:
        """Who we are to the peer, in whichever form it was given; None: the path has no AUTH."""
        if self.smtp_auth is not None or self.smtp_auth_plain_username is None:
            return self.smtp_auth
        return Login(
            mechanisms=("PLAIN", "LOGIN"),
            username=self.smtp_auth_plain_username,
            password=self.smtp_auth_plain_password,
        )


class EgressSource(msgspec.Struct, frozen=True, kw_only=True):
    """The local end of outbound connections."""

    name: Text
    source_address: Ip | None = None
    ehlo_domain: HostName | None = None
    remote_port: Port | None = None
    ttl: Seconds = 60.0


class PoolEntry(msgspec.Struct, frozen=True):
    """A source in a pool. `weight`: its share of the messages; 0 leaves it out."""

    name: Text
    weight: Number = 1


_ENTRY = Table(kinds_of(PoolEntry)[0], required=frozenset({"name"}), noun="key")


def _entries(value: Any) -> tuple[PoolEntry, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, (list, tuple)):
        raise Wrong(f"is no list but {a_type(value)}")
    entries: list[PoolEntry] = []
    for index, item in enumerate(value):
        if not isinstance(item, (PoolEntry, Mapping)):
            raise Wrong(f"entries[{index}] is no mapping but {a_type(item)}")
        try:
            entry = item if isinstance(item, PoolEntry) else PoolEntry(**_ENTRY.read(item))
        except Wrong as wrong:
            raise Wrong(f"entries[{index}]: {wrong}", complete=True) from None
        if any(entry.name == other.name for other in entries):
            raise Wrong(f'entries[{index}] names "{entry.name}" a second time')
        entries.append(entry)
    return tuple(entries)


Entries = Annotated[
    tuple[PoolEntry, ...], Kind('a list like [{"name": "ip-1", "weight": 2}, {"name": "ip-2"}]', _entries)
]


class EgressPool(msgspec.Struct, frozen=True, kw_only=True):
    """Sources that share a stream of messages by weight."""

    name: Text
    entries: Entries = ()
    ttl: Seconds = 60.0


class SmtpProtocol(msgspec.Struct, frozen=True):
    """Delivery by SMTP: to `mx_list` in the order written, or by MX when it is empty.

    `treat_mx_list_as_secure`: the names of `mx_list` count as if signed DNS had given them, for DANE.
    """

    mx_list: tuple[MxEntry, ...] = ()
    treat_mx_list_as_secure: bool = False


def _mx_list(value: Any) -> tuple[MxEntry, ...]:
    if not isinstance(value, (list, tuple)):
        raise Wrong(f"is no list but {a_type(value)}")
    return tuple(parse_mx(entry) for entry in value)


_SMTP = Table(
    {
        "mx_list": Kind('a list of hosts such as ["mx.example:587", "[192.0.2.1]:25"]', _mx_list),
        "treat_mx_list_as_secure": BOOL,
    },
    noun="key",
)
_LATER = {
    "maildir_path": "delivery into a maildir",
    "custom": "a delivery protocol of your own",
    "custom_lua": "a delivery protocol of your own",
    "xfer": "transfer between nodes",
}


def _protocol(value: Any) -> SmtpProtocol:
    if isinstance(value, SmtpProtocol):
        return value
    if not isinstance(value, Mapping):
        raise Wrong(f"is no mapping but {a_type(value)}")
    for name, what in _LATER.items():
        if name in value:
            raise Wrong(f'"{name}" ({what}) is not supported yet', complete=True)
    if value.keys() != {"smtp"} or not isinstance(value["smtp"], Mapping):
        raise Wrong("is none of the known protocols")
    smtp = SmtpProtocol(**_SMTP.read(value["smtp"]))
    if smtp.treat_mx_list_as_secure and not smtp.mx_list:
        raise Wrong("treat_mx_list_as_secure is about an mx_list, and there is none", complete=True)
    return smtp


Protocol = Annotated[
    SmtpProtocol, Kind('{"smtp": {"mx_list": [...]}}, or {"smtp": {}} for delivery by MX', _protocol)
]


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How one scheduled queue retries, gives up, and sends."""

    egress_pool: Text = UNSPECIFIED
    protocol: Protocol = SmtpProtocol()
    retry_interval: Timeout = 1200.0
    max_retry_interval: Timeout | None = None
    max_age: Seconds = 604800.0
    max_message_rate: Rate | None = None
    reap_interval: Timeout = 600.0
    refresh_strategy: Refresh = "Ttl"
    refresh_interval: Timeout = 60.0


def _check_tls(path: EgressPath) -> None:
    mode = path.enable_tls
    if path.tls_implicit and mode not in ("Required", "RequiredInsecure"):
        raise Wrong(
            f'tls_implicit is TLS from the first octet on, and enable_tls="{mode}" is not; right would be '
            'enable_tls="Required" or "RequiredInsecure"'
        )
    if path.tls_pins is not None and mode not in ("Required", "RequiredInsecure"):
        raise Wrong(
            f'tls_pins says whose key alone is right, and enable_tls="{mode}" does without any; right would '
            'be enable_tls="Required" or "RequiredInsecure", or no tls_pins'
        )
    if (path.tls_certificate is None) != (path.tls_private_key is None):
        given, missing = "tls_certificate", "tls_private_key"
        if path.tls_certificate is None:
            given, missing = missing, given
        raise Wrong(f"{given} without {missing} is half a client certificate; give both or neither")
    if path.tls_certificate is not None and mode == "Disabled":
        raise Wrong(
            'tls_certificate is shown in TLS, and enable_tls="Disabled" has none; right would be '
            'enable_tls="Required", or no tls_certificate'
        )
    if path.openssl_cipher_list is not None and path.tls_minimum_version == "TLSv1.3":
        raise Wrong(
            'openssl_cipher_list chooses ciphers of TLS 1.2, and tls_minimum_version="TLSv1.3" does not '
            "speak it; give one of them"
        )


def _check_path(path: EgressPath) -> None:
    _check_tls(path)
    if path.tls_ca is not None and path.enable_tls not in ("Required", "Opportunistic"):
        raise Wrong(
            f'tls_ca says whom to trust, and enable_tls="{path.enable_tls}" trusts anybody; right would be '
            'enable_tls="Required" or "Opportunistic", or no tls_ca'
        )
    if path.smtp_auth is not None:
        if path.smtp_auth_plain_username is not None or path.smtp_auth_plain_password is not None:
            raise Wrong("smtp_auth and smtp_auth_plain_... are two logins; give one of them")
        if "EXTERNAL" in path.smtp_auth.mechanisms and path.tls_certificate is None:
            raise Wrong(
                'smtp_auth: "EXTERNAL" shows the client certificate of tls_certificate, and the path has none'
            )
        _check_release(path, path.smtp_auth)
    if path.smtp_auth_plain_username is None:
        if path.smtp_auth_plain_password is not None:
            raise Wrong("smtp_auth_plain_password without smtp_auth_plain_username; give both or neither")
    elif path.smtp_auth_plain_password is None:
        raise Wrong("smtp_auth_plain_username without smtp_auth_plain_password; give both or neither")


def _check_release(path: EgressPath, login: Login) -> None:
    release = login.release_to
    if release is None:
        return
    if release.needs_tls and path.enable_tls == "Disabled":
        raise Wrong(
            "smtp_auth: release_to demands what only TLS can show (names, pins, tls_minimum_version), and "
            'enable_tls="Disabled" has none; right would be enable_tls="Required"'
        )
    if release.names and path.enable_tls.endswith("Insecure"):
        raise Wrong(
            f'smtp_auth: release_to demands names, and enable_tls="{path.enable_tls}" verifies none; right '
            'would be enable_tls="Required"'
        )


PATH = Constructor(
    "make_egress_path",
    EgressPath,
    check=_check_path,
    not_yet={
        "openssl_cipher_suites": NotYet(
            "a choice of TLS 1.3 cipher suites, for which the ssl module has no means"
        ),
        "openssl_options": NotYet("OpenSSL's option flags"),
        "rustls_cipher_suites": NotYet("a choice of cipher suites", (None, [])),
        "use_lmtp": NotYet("LMTP", (False,)),
        "reconnect_strategy": NotYet("what follows when an idle connection was lost", ()),
        "try_next_host_on_transport_error": NotYet("the same message to the next host at once", (False,)),
        "dispatcher_progress_watchdog_timeout": NotYet("a watchdog beside the timeouts"),
        "dispatcher_wakeup_strategy": NotYet("how idle sessions are woken", ()),
        "maintainer_wakeup_strategy": NotYet("how ready queues are woken", ()),
        "low_memory_reduction_policy": NotYet("what leaves memory first", ()),
        "no_memory_reduction_policy": NotYet("what leaves memory last", ()),
        "readyq_pool_name": NotYet("named thread pools"),
        "aggressive_connection_opening": NotYet("connections without a message to send", (False,)),
    },
)
_SUSPENSION = "suspension of a source"
_SOURCE = Constructor(
    "make_egress_source",
    EgressSource,
    not_yet={
        "ha_proxy_server": NotYet("the PROXY protocol"),
        "ha_proxy_source_address": NotYet("the PROXY protocol"),
        "socks5_proxy_server": NotYet("SOCKS5"),
        "socks5_proxy_source_address": NotYet("SOCKS5"),
        "socks5_proxy_username": NotYet("SOCKS5"),
        "socks5_proxy_password": NotYet("SOCKS5"),
        "suspend_when_unplumbed": NotYet(_SUSPENSION + " whose address is missing"),
        "suspend_when_proxy_unhealthy": NotYet(_SUSPENSION + " whose proxy fails"),
    },
)
_POOL = Constructor("make_egress_pool", EgressPool)
_QUEUE = Constructor(
    "make_queue_config",
    QueueConfig,
    not_yet={
        "strategy": NotYet("the data structure of a scheduled queue", ()),
        "timerwheel_tick_interval": NotYet("the data structure of a scheduled queue"),
        "provider_name": NotYet("a label for metrics of scheduled queues"),
        "shrink_policy": NotYet("what leaves memory while a message waits", (None, [])),
    },
)


def make_egress_path(
    mapping: Mapping[str, Any] | None = None, /, **options: Unpack[EgressPathOptions]
) -> EgressPath:
    """How to talk to a site; what the `get_egress_path_config` hook returns.

    Options as keywords or in one mapping; docs/egress-paths.md describes each.
    Raises: PolicyError for an unknown, misspelt, ill-typed or not yet supported option.
    """
    return PATH(mapping, options)


@overload
def make_egress_source(**options: Unpack[EgressSourceOptions]) -> EgressSource: ...
@overload
def make_egress_source(mapping: Mapping[str, Any], /, **options: Any) -> EgressSource: ...
def make_egress_source(mapping: Mapping[str, Any] | None = None, /, **options: Any) -> EgressSource:
    """The local end of connections; what the `get_egress_source` hook returns. Raises: PolicyError."""
    return _SOURCE(mapping, options)


@overload
def make_egress_pool(**options: Unpack[EgressPoolOptions]) -> EgressPool: ...
@overload
def make_egress_pool(mapping: Mapping[str, Any], /, **options: Any) -> EgressPool: ...
def make_egress_pool(mapping: Mapping[str, Any] | None = None, /, **options: Any) -> EgressPool:
    """Sources and their weights; what the `get_egress_pool` hook returns. Raises: PolicyError."""
    return _POOL(mapping, options)


def make_queue_config(
    mapping: Mapping[str, Any] | None = None, /, **options: Unpack[QueueConfigOptions]
) -> QueueConfig:
    """Retry, expiry and route of a scheduled queue; what the `get_queue_config` hook returns.

    Raises: PolicyError.
    """
    return _QUEUE(mapping, options)
