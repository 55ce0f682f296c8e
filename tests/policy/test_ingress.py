"""Listeners and listener domains."""

from __future__ import annotations

from typing import Any

import pytest

import policy
from policy.ingress import LISTENER, ListenerDeclaration, ListenerDomain, TraceHeaders
from policy.nets import SocketAddress


def listener(**options: Any) -> ListenerDeclaration:
    return LISTENER(None, options)


def test_the_default_serves_only_this_machine() -> None:
    default = listener()
    assert default.listen == SocketAddress("127.0.0.1", 2025)
    assert "127.0.0.1" in default.relay_hosts
    assert "::1" in default.relay_hosts
    assert "192.0.2.1" not in default.relay_hosts
    assert not default.relay_authenticated
    assert not default.allow_auth_without_tls
    assert default.max_message_size == 50 * 1024 * 1024
    assert default.client_timeout == 300.0


def test_options() -> None:
    made = listener(
        listen="[::]:25",
        hostname="mx.example",
        max_message_size="10 MiB",
        trace_headers={"received_header": False, "supplemental_header": False},
        meta={"x_zone": ["a", 1]},
        invalid_line_endings="Fix",
    )
    assert made.listen == SocketAddress("::", 25)
    assert made.max_message_size == 10 << 20
    assert made.trace_headers == TraceHeaders(received_header=False)
    assert made.meta == {"x_zone": ["a", 1]}


def test_meta_is_a_copy() -> None:
    meta = {"x": [1]}
    made = listener(meta=meta)
    meta["x"].append(2)
    assert made.meta == {"x": [1]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"invalid_line_endings": "Allow"}, "smuggling"),
        ({"invalid_line_endings": "Denny"}, "none of its values"),
        ({"tls_certificate": "/c.pem"}, "belong together"),
        ({"tls_private_key": "/k.pem"}, "belong together"),
        ({"line_length_hard_limit": 998}, "RFC 5321"),
        ({"banner": "a\r\n250 b"}, "control character"),
        ({"hostname": "a b"}, "hostname"),
        ({"listen": "0.0.0.0"}, "has no port"),
        ({"meta": {"x": object()}}, "JSON"),
        ({"meta": {1: "x"}}, "mapping of names"),
        ({"trace_headers": {"supplemental_header": True}}, "not supported yet"),
        ({"trace_headers": {"recieved_header": True}}, 'did you mean "received_header"'),
        ({"allow_xclient": True}, "not supported yet"),
        ({"peer": {"10.0.0.0/8": {}}}, "not supported yet"),
        ({"relay_hosts": "127.0.0.1"}, "list of networks"),
        ({"max_connections": 0}, "out of range"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        listener(**options)
    assert says in str(caught.value)


def test_listener_domain() -> None:
    assert policy.make_listener_domain() == ListenerDomain()
    assert not ListenerDomain().relay_to
    assert not ListenerDomain().relay_from
    made = policy.make_listener_domain(relay_to=True, relay_from=["10.0.0.0/8"])
    assert made.relay_to
    assert "10.1.2.3" in made.relay_from
    assert policy.make_listener_domain({"log_oob": "Ignore", "log_arf": False}) == ListenerDomain()
    with pytest.raises(policy.PolicyError, match="not supported yet"):
        policy.make_listener_domain({"log_oob": "LogThenDrop"})
