"""How mail comes in: SMTP listeners, and the domains they accept mail for.

As in egress.py each class is the one list of its constructor's options. docs/policy.md describes
them; durations are float seconds, sizes octets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Unpack

import msgspec

from .arguments import ListenerDomainOptions
from .errors import Wrong, a_type
from .kinds import Count, HostName, Key, ListenAddress, Networks, Size, Text, Timeout
from .login import Mechanisms
from .nets import CidrSet, SocketAddress, parse_cidr_set
from .options import Constructor, Kind, NotYet, Table, kinds_of

__all__ = ["LISTENER", "ListenerDeclaration", "ListenerDomain", "TraceHeaders", "make_listener_domain"]


class TraceHeaders(msgspec.Struct, frozen=True):
    """Which header fields are added to accepted mail. `received_header`: the Received field."""

    received_header: bool = True


_TRACE = Table(
    kinds_of(TraceHeaders)[0],
    not_yet={
        "supplemental_header": NotYet("the supplemental trace header", (False,)),
        "header_name": NotYet("the supplemental trace header"),
        "include_meta_names": NotYet("the supplemental trace header", (None, [])),
    },
    noun="key",
)


def _trace(value: Any) -> TraceHeaders:
    if isinstance(value, TraceHeaders):
        return value
    if not isinstance(value, Mapping):
        raise Wrong(f"is no mapping but {a_type(value)}")
    return TraceHeaders(**_TRACE.read(value))


def _meta(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Wrong("is no mapping of names to values")
    try:
        copy: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, msgspec.MsgspecError):
        raise Wrong("holds something other than JSON values") from None
    return copy


def _line_endings(value: Any) -> str:
    if value in ("Deny", "Fix"):
        return str(value)
    if value == "Allow":
        raise Wrong("would pass on the bare line ends that SMTP smuggling is made of, and is refused")
    raise Wrong("is none of its values")


Trace = Annotated[TraceHeaders, Kind('{"received_header": True} or {"received_header": False}', _trace)]
Meta = Annotated[dict[str, Any], Kind("a mapping of names to JSON values", _meta)]
LineEndings = Annotated[Literal["Deny", "Fix"], Kind('one of "Deny", "Fix"', _line_endings)]


class ListenerDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """One SMTP listener. The defaults are those of `start_esmtp_listener`."""

    listen: ListenAddress = SocketAddress("127.0.0.1", 2025)
    hostname: HostName | None = None
    banner: Text = "ESMTP Posthorn"
    # Who may do what
    relay_hosts: Networks = parse_cidr_set(["127.0.0.1", "::1"])
    relay_authenticated: bool = False
    auth_mechanisms: Mechanisms | None = None
    allow_auth_without_tls: bool = False
    tls_certificate: Key | None = None
    tls_private_key: Key | None = None
    # How much
    max_connections: Count = 10_000
    max_connections_per_peer: Count = 100
    max_errors: Count = 20
    max_message_size: Size = 52_428_800
    max_recipients_per_message: Count = 1000
    max_messages_per_connection: Count = 1000
    line_length_hard_limit: Size = 65_536
    invalid_line_endings: LineEndings = "Deny"
    # How long
    client_timeout: Timeout = 300.0
    data_processing_timeout: Timeout = 60.0
    # What becomes of a message
    batch_handling: Literal["BifurcateAlways", "BatchByDomain"] = "BifurcateAlways"
    trace_headers: Trace = TraceHeaders()
    meta: Meta = {}


def _check_listener(listener: ListenerDeclaration) -> None:
    if (listener.tls_certificate is None) != (listener.tls_private_key is None):
        raise Wrong("tls_certificate and tls_private_key belong together; give both or neither")
    if listener.line_length_hard_limit < 1000:
        raise Wrong("line_length_hard_limit is below the 1000 octets that RFC 5321 4.5.3.1.6 promises")


LISTENER = Constructor(
    "start_esmtp_listener",
    ListenerDeclaration,
    check=_check_listener,
    not_yet={
        "tls_required_client_ca": NotYet("client certificates"),
        "deferred_spool": NotYet("a 250 before the message is on disk", (False,)),
        "deferred_queue": NotYet("processing after the 250", (False,)),
        "data_buffer_size": NotYet("the size of reads"),
        "allow_xclient": NotYet("XCLIENT", (False,)),
        "require_proxy_protocol": NotYet("the PROXY protocol", (False,)),
        "peer": NotYet("options by remote address", (None, {})),
        "via": NotYet("options by local address", (None, {})),
    },
)


class ListenerDomain(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener does for one domain. The defaults grant nothing."""

    relay_to: bool = False
    """Accept mail for recipients in this domain from anybody."""
    relay_from: Networks = CidrSet()
    """Peers that may relay anywhere when the sender is in this domain."""


_DOMAIN = Constructor(
    "make_listener_domain",
    ListenerDomain,
    not_yet={
        "log_oob": NotYet("reading of delivery reports", (False, "Ignore")),
        "log_arf": NotYet("reading of feedback reports", (False, "Ignore")),
    },
)


def make_listener_domain(
    mapping: Mapping[str, Any] | None = None, /, **options: Unpack[ListenerDomainOptions]
) -> ListenerDomain:
    """What a listener does for one domain; what the `get_listener_domain` hook returns.

    Raises: PolicyError.
    """
    return _DOMAIN(mapping, options)
