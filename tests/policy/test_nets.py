"""Networks, listening addresses and smart hosts."""

from __future__ import annotations

from typing import Any

import pytest

from policy.nets import MxEntry, SocketAddress, parse_cidr_set, parse_host, parse_listen, parse_mx


def test_membership() -> None:
    networks = parse_cidr_set(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    for inside in ("127.0.0.1", "10.255.0.1", "2001:db8::5", "::ffff:10.0.0.1"):
        assert inside in networks
    for outside in ("127.0.0.2", "11.0.0.1", "2001:db9::1", "::1", "::ffff:11.0.0.1"):
        assert outside not in networks
    assert str(networks) == "127.0.0.1, 10.0.0.0/8, 2001:db8::/32"
    assert not parse_cidr_set([])
    assert parse_cidr_set(networks) is networks


def test_forms_that_lead_to_an_ipv4_address_are_caught_but_grant_nothing() -> None:
    loopback = parse_cidr_set(["127.0.0.0/8"])
    for form in ("::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "127.0.0.1"):
        assert loopback.catches(form)
    for form in ("::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"):
        assert form not in loopback, "a stranger can have such an address"
    assert not loopback.catches("2001:db8::1")
    assert not loopback.catches("192.0.2.1")


@pytest.mark.parametrize("value", ["127.0.0.1", None, 5, ["nonsense"], [5], [""], ["10.0.0.1/33"], [None]])
def test_wrong_networks(value: object) -> None:
    with pytest.raises(ValueError):
        parse_cidr_set(value)


def test_host_bits_are_explained() -> None:
    with pytest.raises(ValueError, match=r'did you mean "192\.168\.1\.0/24"'):
        parse_cidr_set(["192.168.1.1/24"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:2525", SocketAddress("127.0.0.1", 2525)),
        ("0.0.0.0:0", SocketAddress("0.0.0.0", 0)),
        ("[::1]:25", SocketAddress("::1", 25)),
    ],
)
def test_listening_addresses(text: str, address: SocketAddress) -> None:
    assert parse_listen(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "value",
    ["127.0.0.1", "localhost:25", "::1:25", "[::1]", "127.0.0.1:99999", "127.0.0.1:+25", ":25", 25, None],
)
def test_wrong_listening_addresses(value: object) -> None:
    with pytest.raises(ValueError):
        parse_listen(value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("mx.example", MxEntry("mx.example", None, None)),
        ("MX.Example.", MxEntry("mx.example", None, None)),
        ("mx.example:587", MxEntry("mx.example", None, 587)),
        ("10.0.0.1", MxEntry("10.0.0.1", "10.0.0.1", None)),
        ("10.0.0.1:2525", MxEntry("10.0.0.1", "10.0.0.1", 2525)),
        ("[10.0.0.1]", MxEntry("10.0.0.1", "10.0.0.1", None)),
        ("[10.0.0.1]:2525", MxEntry("10.0.0.1", "10.0.0.1", 2525)),
        ("[IPv6:::1]", MxEntry("::1", "::1", None)),
        ("[ipv6:2001:DB8::1]:25", MxEntry("2001:db8::1", "2001:db8::1", 25)),
        ("[::1]", MxEntry("::1", "::1", None)),
        ("::1", MxEntry("::1", "::1", None)),
        ("under_score.example", MxEntry("under_score.example", None, None)),
    ],
)
def test_smart_hosts(entry: str, expected: MxEntry) -> None:
    got = parse_mx(entry)
    assert (got.name, got.address, got.port) == (expected.name, expected.address, expected.port)
    assert got.label == entry
    assert parse_mx(got) is got


def test_a_name_with_an_address() -> None:
    got = parse_mx({"name": "MX.example", "addr": "10.0.0.1:2025"})
    assert got == MxEntry("mx.example", "10.0.0.1", 2025, "10.0.0.1:2025")


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            "a b",
            "mx.example:",
            "mx.example:0",
            "mx.example:99999",
            "[mx.example]",
            "[10.0.0.1",
            "10.0.0.256",
        ),
        *("-a.example", "a..b", "a\r\nb", "a\x00b", "/run/lmtp.sock", "x" * 64 + ".example", 25, None),
        *({"name": "a"}, {"name": "a", "addr": "b"}, {"name": "10.0.0.1", "addr": "10.0.0.1"}),
        {"name": "a", "addr": "10.0.0.1", "port": 25},
    ],
)
def test_wrong_smart_hosts(entry: Any) -> None:
    with pytest.raises(ValueError):
        parse_mx(entry)


def test_host_names() -> None:
    assert parse_host("Ärger.example") == "ärger.example"
    for wrong in ("a\u2028b", "a\x85b", "1.2.3.4", "", ".", "a@b", "a/b", ".".join(["x" * 50] * 6)):
        with pytest.raises(ValueError):
            parse_host(wrong)
