"""What may be written for each option, for editors and type checkers. Not used at run time.

A test compares the names with the Structs that are the real list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Literal, Required, TypeAlias, TypedDict

from .keysource import KeyRef
from .nets import CidrSet, MxEntry, SocketAddress
from .units import Floor, Limit, Throttle

if TYPE_CHECKING:
    from .egress import LookupStrategy, PoolEntry, SmtpProtocol, TlsMode
    from .ingress import TraceHeaders
    from .login import Login

__all__ = [
    "EgressPathOptions",
    "EgressPoolOptions",
    "EgressSourceOptions",
    "ListenerDomainOptions",
    "ListenerOptions",
    "LogOptions",
    "MtaStsOptions",
    "QueueConfigOptions",
    "SpoolOptions",
]

_Duration: TypeAlias = float | str
_Size: TypeAlias = int | str
_Rate: TypeAlias = str | Throttle
_Floor: TypeAlias = int | str | Floor
_Key: TypeAlias = str | Mapping[str, Any] | KeyRef
_Networks: TypeAlias = CidrSet | Iterable[str | IPv4Address | IPv6Address | IPv4Network | IPv6Network]
_Mx: TypeAlias = str | MxEntry | Mapping[Literal["name", "addr"], str]


class _ReleaseTo(TypedDict, total=False):
    names: Sequence[str]
    addresses: _Networks
    ports: Sequence[int]
    pins: Sequence[str]
    tls_minimum_version: str


class _SmtpAuth(TypedDict, total=False):
    mechanisms: Sequence[str]
    username: str
    password: _Key
    token: _Key
    oauth2: Mapping[str, Any]
    release_to: _ReleaseTo
    failure_budget: _Rate


class EgressPathOptions(TypedDict, total=False):
    """Of `make_egress_path`."""

    connection_limit: int | str | Limit
    additional_connection_limits: Mapping[str, int | str | Limit]
    max_connection_rate: _Rate | None
    max_message_rate: _Rate | None
    additional_message_rate_throttles: Mapping[str, _Rate]
    source_selection_rate: _Rate | None
    additional_source_selection_rates: Mapping[str, _Rate]
    max_deliveries_per_connection: int
    max_recipients_per_batch: int
    max_ready: int
    consecutive_connection_failures_before_delay: int
    hold_interval: _Duration
    smtp_port: int
    prohibited_hosts: _Networks
    skip_hosts: _Networks
    ip_lookup_strategy: LookupStrategy
    enable_tls: TlsMode
    tls_ca: _Key | None
    tls_server_name: str | None
    enable_mta_sts: bool
    tls_pins: Sequence[str] | None
    tls_certificate: _Key | None
    tls_private_key: _Key | None
    tls_minimum_version: str
    openssl_cipher_list: str | None
    tls_implicit: bool
    tls_prefer_openssl: bool
    opportunistic_tls_reconnect_on_failed_handshake: bool
    remember_broken_tls: _Duration | None
    enable_dane: bool
    smtp_auth: _SmtpAuth | Login | None
    smtp_auth_plain_username: str | None
    smtp_auth_plain_password: _Key | None
    allow_smtp_auth_plain_without_tls: bool
    allow_smtp_auth_plain_without_valid_certificate: bool
    ehlo_domain: str | None
    enable_pipelining: bool
    enable_pipelining_across_messages: bool
    enable_rset: bool
    ignore_8bit_checks: bool
    connect_timeout: _Duration
    banner_timeout: _Duration
    ehlo_timeout: _Duration
    starttls_timeout: _Duration
    auth_timeout: _Duration
    mail_from_timeout: _Duration
    rcpt_to_timeout: _Duration
    data_timeout: _Duration
    data_dot_timeout: _Duration
    rset_timeout: _Duration
    idle_timeout: _Duration
    system_shutdown_timeout: _Duration
    refresh_strategy: Literal["Ttl"]
    refresh_interval: _Duration
    provider_name: str | None


class EgressSourceOptions(TypedDict, total=False):
    """Of `make_egress_source`."""

    name: Required[str]
    source_address: str | IPv4Address | IPv6Address | None
    ehlo_domain: str | None
    remote_port: int | None
    ttl: _Duration


class _Entry(TypedDict, total=False):
    name: Required[str]
    weight: int


class EgressPoolOptions(TypedDict, total=False):
    """Of `make_egress_pool`."""

    name: Required[str]
    entries: Sequence[_Entry | PoolEntry]
    ttl: _Duration


class _Smtp(TypedDict, total=False):
    mx_list: Sequence[_Mx]
    treat_mx_list_as_secure: bool


class _Protocol(TypedDict):
    smtp: _Smtp


class QueueConfigOptions(TypedDict, total=False):
    """Of `make_queue_config`."""

    egress_pool: str
    protocol: _Protocol | SmtpProtocol
    retry_interval: _Duration
    max_retry_interval: _Duration | None
    max_age: _Duration
    max_message_rate: _Rate | None
    reap_interval: _Duration
    refresh_strategy: Literal["Ttl"]
    refresh_interval: _Duration


class ListenerDomainOptions(TypedDict, total=False):
    """Of `make_listener_domain`."""

    relay_to: bool
    relay_from: _Networks


class ListenerOptions(TypedDict, total=False):
    """Of `start_esmtp_listener`."""

    listen: str | SocketAddress
    hostname: str | None
    banner: str
    relay_hosts: _Networks
    relay_authenticated: bool
    auth_mechanisms: Sequence[str] | None
    allow_auth_without_tls: bool
    batch_handling: Literal["BifurcateAlways", "BatchByDomain"]
    tls_certificate: _Key | None
    tls_private_key: _Key | None
    max_connections: int
    max_connections_per_peer: int
    max_errors: int
    max_message_size: _Size
    max_recipients_per_message: int
    max_messages_per_connection: int
    line_length_hard_limit: _Size
    invalid_line_endings: Literal["Deny", "Fix"]
    client_timeout: _Duration
    data_processing_timeout: _Duration
    trace_headers: Mapping[str, Any] | TraceHeaders
    meta: Mapping[str, Any]


class SpoolOptions(TypedDict, total=False):
    """Of `define_spool`."""

    path: Required[str]
    name: str
    kind: Literal["LocalDisk"]
    segment_size: _Size
    min_free_space: _Floor
    min_free_inodes: _Floor


class MemoryOptions(TypedDict, total=False):
    """Of `configure_memory`."""

    limit: _Floor


class MtaStsOptions(TypedDict, total=False):
    """Of `configure_mta_sts`."""

    enabled: bool
    ca: str | None
    gateway: str | SocketAddress | None


class LogOptions(TypedDict, total=False):
    """Of `configure_local_logs`."""

    log_dir: Required[str]
    max_file_size: _Size
    max_segment_duration: _Duration | None
    compression_level: int
    back_pressure: int
    meta: Sequence[str]
    headers: Sequence[str]
