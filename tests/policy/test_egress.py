"""Paths, sources, pools and queue configurations as wholes."""

from __future__ import annotations

from typing import Any

import pytest

import policy
from policy.egress import PROHIBITED, EgressPath, PoolEntry, SmtpProtocol
from policy.keysource import LiteralKey
from policy.nets import MxEntry
from policy.units import Throttle


def refused(**options: Any) -> str:
    with pytest.raises(policy.PolicyError) as caught:
        policy.make_egress_path(**options)
    return str(caught.value)


def test_a_path_with_everything() -> None:
    path = policy.make_egress_path(
        connection_limit="1,000",
        max_connection_rate="10/s",
        max_message_rate="local:100/s,max_burst=5",
        remember_broken_tls="3 days",
        connect_timeout="500ms",
        idle_timeout=0,
        prohibited_hosts=[],
        skip_hosts=["192.0.2.0/24"],
        tls_ca="/etc/ca.pem",
        tls_server_name="MX.Example",
        ehlo_domain="[192.0.2.1]",
        smtp_auth_plain_username="scott",
        smtp_auth_plain_password={"key_data": "tiger"},
        provider_name="example",
    )
    assert path.connection_limit == 1000
    assert path.max_message_rate == Throttle(100, 1.0, 5, True)
    assert path.remember_broken_tls == 259200.0
    assert path.connect_timeout == 0.5
    assert path.idle_timeout == 0.0
    assert "192.0.2.7" in path.skip_hosts
    assert not path.prohibited_hosts
    assert path.tls_server_name == "mx.example"
    assert path.ehlo_domain == "[192.0.2.1]"
    assert isinstance(path.smtp_auth_plain_password, LiteralKey)
    assert path.smtp_auth_plain_password.data.reveal() == b"tiger"
    assert "tiger" not in repr(path)
    assert path == policy.make_egress_path({name: getattr(path, name) for name in path.__struct_fields__})


def test_defaults_that_matter() -> None:
    path = policy.make_egress_path()
    assert path == EgressPath()
    assert path.enable_tls == "Opportunistic"
    assert path.data_dot_timeout == 600.0
    assert path.idle_timeout == 60.0
    assert path.prohibited_hosts is PROHIBITED
    assert not path.allow_smtp_auth_plain_without_tls
    assert not path.allow_smtp_auth_plain_without_valid_certificate


def test_a_path_is_frozen_and_hashable() -> None:
    path = policy.make_egress_path(smtp_auth_plain_username="a", smtp_auth_plain_password={"key_data": "b"})
    with pytest.raises(AttributeError):
        path.smtp_port = 26  # type: ignore[misc]
    assert hash(path) == hash(
        policy.make_egress_path(smtp_auth_plain_username="a", smtp_auth_plain_password={"key_data": "b"})
    )


def test_user_and_password_come_together() -> None:
    assert "smtp_auth_plain_username without" in refused(smtp_auth_plain_username="scott")
    assert "smtp_auth_plain_password without" in refused(smtp_auth_plain_password={"key_data": "tiger"})


@pytest.mark.parametrize(
    "option", ["ehlo_domain", "smtp_auth_plain_username", "tls_server_name", "provider_name"]
)
@pytest.mark.parametrize("text", ["a\r\nMAIL FROM:<x>", "a\nb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b", ""])
def test_nothing_that_reaches_the_wire_holds_a_control_character(option: str, text: str) -> None:
    assert option in refused(**{option: text})


@pytest.mark.parametrize(
    "name", ["a b", "ärger.example", "[mx.example]", "[10.0.0.1", "a..b", "1.2.3.4", "x" * 256]
)
def test_names_that_cannot_follow_ehlo(name: str) -> None:
    assert "ehlo_domain" in refused(ehlo_domain=name)


def test_source() -> None:
    source = policy.make_egress_source(
        name="ip-1", source_address="2001:DB8::1", remote_port=26, ttl="5 minutes"
    )
    assert source.source_address == "2001:db8::1"
    assert source.ttl == 300.0
    for wrong in ("[::1]", "::1%eth0", "mx.example", "10.0.0.0/8"):
        with pytest.raises(policy.PolicyError, match="source_address"):
            policy.make_egress_source(name="x", source_address=wrong)


def test_pool() -> None:
    pool = policy.make_egress_pool(
        name="p", entries=[{"name": "a", "weight": 2}, {"name": "b"}, PoolEntry("c", 0)]
    )
    assert pool.entries == (PoolEntry("a", 2), PoolEntry("b", 1), PoolEntry("c", 0))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("a", "is no list"),
        ([5], "entries[0] is no mapping"),
        ([{"name": "a"}, {"name": "a"}], 'entries[1] names "a" a second time'),
        ([{"name": "a", "weight": -1}], "entries[0]: weight=-1"),
        ([{"name": "a", "wieght": 1}], 'did you mean "weight"'),
        ([{"weight": 1}], 'entries[0]: key "name" is missing'),
    ],
)
def test_wrong_pools(entries: Any, says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.make_egress_pool(name="p", entries=entries)
    assert says in str(caught.value)


def test_queue_config() -> None:
    config = policy.make_queue_config(
        protocol={"smtp": {"mx_list": ["127.0.0.1:2600", "mx.example"], "treat_mx_list_as_secure": True}},
        retry_interval="5 minutes",
        max_age=0,
    )
    assert config.protocol.mx_list == (
        MxEntry("127.0.0.1", "127.0.0.1", 2600, "127.0.0.1:2600"),
        MxEntry("mx.example", None, None, "mx.example"),
    )
    assert config.protocol.treat_mx_list_as_secure is True
    assert config.retry_interval == 300.0
    default = policy.make_queue_config()
    assert default.protocol == SmtpProtocol()
    assert default.max_age == 604800.0
    assert default.egress_pool == "unspecified"


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ("smtp", "is no mapping"),
        ({}, "none of the known protocols"),
        ({"smtp": {}, "x": 1}, "none of the known protocols"),
        ({"smtp": {"mx_lst": []}}, 'did you mean "mx_list"'),
        ({"smtp": {"mx_list": "mx.example"}}, "is no list"),
        ({"smtp": {"mx_list": ["mx.example:0"]}}, "is no port"),
        ({"smtp": {"mx_list": ["/run/x.sock"]}}, "not supported yet"),
        ({"smtp": {"mx_list": ["unix:/run/x.sock"]}}, "delivery to a Unix socket is not supported yet"),
        ({"smtp": {"treat_mx_list_as_secure": True}}, "about an mx_list, and there is none"),
        ({"smtp": {"mx_list": ["mx.example"], "treat_mx_list_as_secure": "yes"}}, "is no bool"),
        ({"maildir_path": "x"}, "not supported yet"),
        ({"custom_lua": {}}, "not supported yet"),
        ({"custom": {}}, "not supported yet"),
        ({"xfer": {}}, "not supported yet"),
    ],
)
def test_wrong_protocols(protocol: Any, says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.make_queue_config(protocol=protocol)
    assert says in str(caught.value)


@pytest.mark.parametrize("option", ["retry_interval", "refresh_interval", "reap_interval"])
def test_intervals_of_nothing_are_refused(option: str) -> None:
    with pytest.raises(policy.PolicyError, match="above 0"):
        policy.make_queue_config({option: 0})
