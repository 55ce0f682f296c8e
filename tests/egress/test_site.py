"""Site names, keys, and the forms a destination may be written in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.egress.site import (
    BadName,
    Endpoint,
    MxHost,
    Site,
    address_site,
    host_name,
    make_site,
    mx_list_site,
    parse_endpoint,
    site_name,
)
from engine.errors import ConfigError
from policy.nets import MxEntry, parse_mx


def smart(*entries: object) -> Site:
    return mx_list_site([parse_mx(entry) for entry in entries])


YAHOO = ["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net", "mta7.am0.yahoodns.net"]
GMAIL = ["gmail-smtp-in.l.google.com", *(f"alt{i}.gmail-smtp-in.l.google.com" for i in range(1, 5))]


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (YAHOO, "(mta5|mta6|mta7).am0.yahoodns.net"),
        (GMAIL, "(alt1|alt2|alt3|alt4)?.gmail-smtp-in.l.google.com"),
        ([host + ":123" for host in YAHOO], "(mta5|mta6|mta7).am0.yahoodns.net:123"),
        (
            [YAHOO[0] + ":123", YAHOO[1] + ":456", YAHOO[2] + ":456"],
            "(mta5|mta6|mta7).am0.yahoodns.(net:123|net:456)",
        ),
        (["a.example.com", "example.com"], "a?.example.com"),
        (["example.com", "a.example.com"], "a?.example.com"),
        (["b.example.com", "a.example.com"], "(b|a).example.com"),
        (["MX.Example.COM."], "mx.example.com"),
        (["."], ""),
        ([], ""),
        (["mx1.foo.com", "mx2.bar.com"], "(mx1|mx2).(foo|bar).com"),
        (["a.b.c.example", "example"], "a?.b?.c?.example"),
    ],
)
def test_site_name(hosts: list[str], name: str) -> None:
    assert site_name(hosts) == name


def test_sites_with_the_same_text_but_other_hosts_have_other_keys() -> None:
    shared = [MxHost(10, "mx1.bar.com"), MxHost(10, "mx1.foo.com")]
    one = make_site([*shared, MxHost(10, "mx2.bar.com")])
    other = make_site([*shared, MxHost(10, "mx2.foo.com")])
    assert one.name == other.name == "(mx1|mx2).(bar|foo).com"
    assert one.key != other.key


def test_the_key_covers_preference_port_and_who_named_it_but_not_the_order_of_arrival() -> None:
    hosts = [MxHost(10, "a.example"), MxHost(20, "b.example")]
    site = make_site(hosts)
    assert make_site(reversed(hosts)) == site
    others = [
        make_site([MxHost(20, "a.example"), MxHost(20, "b.example")]),
        make_site([MxHost(10, "a.example", 2525), MxHost(20, "b.example")]),
        make_site(hosts, route=True),
        smart("a.example", "b.example"),
        smart("b.example", "a.example"),
    ]
    assert len({site.key, *(other.key for other in others)}) == 6


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("Example.COM.", Endpoint("example.com")),
        ("example.com:2525", Endpoint("example.com", 2525)),
        ("bücher.example", Endpoint("xn--bcher-kva.example")),
        ("_x.example", Endpoint("_x.example")),
        ("10.0.0.1", Endpoint("10.0.0.1", None, True)),
        ("10.0.0.1:2600", Endpoint("10.0.0.1", 2600, True)),
        ("[10.0.0.1]", Endpoint("10.0.0.1", None, True)),
        ("[10.0.0.1]:25", Endpoint("10.0.0.1", 25, True)),
        ("[10.0.0.1:25]", Endpoint("10.0.0.1", 25, True)),
        ("[IPv6:2001:DB8::1]", Endpoint("2001:db8::1", None, True)),
        ("[ipv6:2001:db8::1]:587", Endpoint("2001:db8::1", 587, True)),
        ("[2001:db8::1]", Endpoint("2001:db8::1", None, True)),
        ("[::1]:25", Endpoint("::1", 25, True)),
        ("::1", Endpoint("::1", None, True)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-" * 64 + ".example",
        "x." * 127 + "example",
        "[10.0.0.1:25]:26",
        "[10.0.0.1",
        "[10.0.0.1]x",
        "[10.0.0.1]:",
        "[example.com]",
        "[]",
        "[IPv6:10.0.0.1]",
        "[fe80::1%eth0]",
        "127.1",
        "example.com:0",
        "example.com:65536",
        "example.com:+25",
        "example.com:²",
        "example.com:",
        "a b.example",
        "exa\nmple.com",
        "\u0000",
        "a/b.example",
        "xn--" + "ü" * 5,
        "2001:db8::1:99999",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(BadName):
        parse_endpoint(text)


@given(st.text(max_size=40))
def test_any_text_is_an_endpoint_or_a_bad_name(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except BadName:
        return
    assert endpoint.literal or host_name(endpoint.host) == endpoint.host


def test_literal_sites_are_named_by_their_address() -> None:
    assert address_site(parse_endpoint("[10.0.0.1]")).name == "10.0.0.1"
    assert address_site(parse_endpoint("[10.0.0.1:25]")).name == "10.0.0.1:25"
    assert address_site(parse_endpoint("[IPv6:2001:DB8:0::1]")).name == "2001:db8::1"
    assert address_site(parse_endpoint("[IPv6:2001:db8::1]:25")).name == "[2001:db8::1]:25"
    one, other = (address_site(parse_endpoint(text), route=True) for text in ("10.0.0.1", "[10.0.0.1]"))
    assert one == other


def test_mx_list_keeps_order_labels_ports_and_names() -> None:
    site = smart(
        "b.example:2525", "[10.0.0.1]", {"name": "mx.example", "addr": "10.0.0.2:2025"}, "127.0.0.1:2600"
    )
    assert site.name == "mx_list:b.example:2525,[10.0.0.1],10.0.0.2:2025,127.0.0.1:2600"
    assert site.hosts == (
        MxHost(0, "b.example", 2525),
        MxHost(1, "10.0.0.1", None, True),
        MxHost(2, "10.0.0.2", 2025, True, "mx.example"),
        MxHost(3, "127.0.0.1", 2600, True),
    )
    names = [host.reference_name for host in site.hosts]
    assert names == ["b.example", "10.0.0.1", "mx.example", "127.0.0.1"]
    assert site.route


def test_an_mx_list_with_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match="entry 2"):
        smart("ok.example", MxEntry("xn--\u00fc.example", label="x"))
    with pytest.raises(ConfigError, match="empty"):
        smart()
