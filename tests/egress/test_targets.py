"""Addresses that must not be connected to, in every disguise."""

from __future__ import annotations

import pytest

from engine.egress.dns import is_local_address
from engine.egress.targets import DEFAULT_PROHIBITED, OwnHosts, forbidden, is_default_prohibited
from policy.nets import parse_cidr_set

NEVER_FOR_NAMES = ["0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1"]
LOCAL = ["127.0.0.1", "127.255.0.9"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.10", "100.64.0.1", "100.127.9.9"]
PUBLIC = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "11.0.0.0", "223.255.255.255", "2001:4860::8888"]
SIX_NEVER = ["::", "fe80::1", "ff02::1"]
SIX_PRIVATE = ["::1", "fc00::1", "fdff::1", "fec0::1"]


def disguises(address: str) -> list[str]:
    a, b, c, d = (int(part) for part in address.split("."))
    tail = f"{a:02x}{b:02x}:{c:02x}{d:02x}"
    return [address, f"::ffff:{address}", f"::{address}", f"2002:{tail}::1", f"64:ff9b::{tail}"]


def all_disguises(addresses: list[str]) -> list[str]:
    return [form for address in addresses for form in disguises(address)]


@pytest.mark.parametrize("address", [*all_disguises(NEVER_FOR_NAMES), *SIX_NEVER])
def test_never_by_name(address: str) -> None:
    assert forbidden(address, "public")
    assert forbidden(address, "route")
    assert forbidden(address, "literal") is None


@pytest.mark.parametrize("address", [*all_disguises(LOCAL + PRIVATE), *SIX_PRIVATE])
def test_only_where_an_operator_sends_it(address: str) -> None:
    assert forbidden(address, "public")
    assert forbidden(address, "route") is None


@pytest.mark.parametrize("address", [*PUBLIC, "2002:0808:0808::1", "64:ff9b::808:808"])
def test_public_addresses_are_open(address: str) -> None:
    assert forbidden(address, "public") is None


def test_the_default_list_is_known_in_any_order() -> None:
    assert is_default_prohibited(parse_cidr_set(["::", "::1", "127.0.0.0/8", "0.0.0.0"]))
    assert not is_default_prohibited(parse_cidr_set(["127.0.0.0/8"]))
    for form in disguises("127.0.0.1"):
        assert DEFAULT_PROHIBITED.catches(form)


def test_own_listeners_are_an_address_and_a_port() -> None:
    own = OwnHosts(listeners=frozenset({("192.0.2.1", 25)}))
    assert own.owns("192.0.2.1", 25)
    assert own.owns("::ffff:192.0.2.1", 25)
    assert not own.owns("192.0.2.1", 2525)
    assert not own.owns("192.0.2.2", 25)
    assert not OwnHosts().owns("192.0.2.1", 25)


def test_a_wildcard_listener_owns_every_address_of_this_machine() -> None:
    mine = {"192.0.2.1", "2001:db8::1"}
    four = OwnHosts(listeners=frozenset({("0.0.0.0", 25)}), is_local=mine.__contains__)
    assert four.owns("192.0.2.1", 25) and four.owns("::ffff:192.0.2.1", 25)
    for address, port in (("192.0.2.2", 25), ("192.0.2.1", 26), ("2001:db8::1", 25)):
        assert not four.owns(address, port)
    both = OwnHosts(listeners=frozenset({("::", 25)}), is_local=mine.__contains__)
    assert both.owns("192.0.2.1", 25) and both.owns("2001:db8::1", 25)


def test_the_kernel_knows_its_own_addresses() -> None:
    assert is_local_address("127.0.0.1")
    assert not is_local_address("192.0.2.1")
    assert not is_local_address("not an address")
