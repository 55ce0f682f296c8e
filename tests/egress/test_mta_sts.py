"""engine/egress/mta_sts: records and policies from text (RFC 8461 sections 3 and 4), and sites under them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.egress.mta_sts import (
    LONGEST_AGE,
    BadPolicy,
    Policy,
    judged,
    narrowed,
    parse_policy,
    parse_record,
)
from engine.egress.site import MxHost, Site, Sts, address_site, make_site, mx_list_site, parse_endpoint
from policy.nets import parse_mx


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; id=1; "], "1"),
        (["v=STSv1; id=1 ;\t "], "1"),
        (["v=STSv1; id=1 "], "1"),
        (["v=STSv1 ;\tid=1"], "1"),
        (["v=STSv1; more=a-thing:x; id=1"], "1"),
        (["v=spf1 -all", "v=STSv1; id=1;", "other"], "1"),
        (["v=STSv1; id=1; id=2"], "1"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], None),
        (["v=STSv1; id=1;", "v=STSv1;"], None),
        (["v=STSv1; id=1;", "v=STSv1"], "1"),  # which does not begin with v=STSv1; and so is none
        ([], None),
        (["v=STSv1"], None),
        (["v=STSv1;"], None),
        (["v=STSv2; id=1"], None),
        (["v=STSv10; id=1"], None),
        (["V=STSv1; id=1"], None),
        (["v=stsv1; id=1"], None),
        (["id=1; v=STSv1"], None),
        ([" v=STSv1; id=1"], None),
        (["v=STSv1; id="], None),
        (["v=STSv1; id=a-b"], None),
        (["v=STSv1; id=" + "a" * 32], "a" * 32),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv1; id = 1"], None),
        (["v=STSv1;; id=1"], None),
        (["v=STSv1; id=1;;"], None),
        (["v=STSv1; id=1; -x=1"], None),
        (["v=STSv1; id=1; x=a=b"], None),
        (["v=STSv1; id=\u0661"], None),
        (["v=STSv1; id=1\n"], None),
    ],
)
def test_records(texts: list[str], found: str | None) -> None:
    assert parse_record(texts) == found


EXAMPLE = b"""version: STSv1
mode: enforce
mx: mail.example.com
mx: *.example.net
mx: backupmx.example.com
max_age: 604800
"""


def test_the_example_of_the_rfc_with_either_line_end() -> None:
    expected = Policy("enforce", ("mail.example.com", "*.example.net", "backupmx.example.com"), 604800)
    assert parse_policy(EXAMPLE) == expected
    assert parse_policy(EXAMPLE.replace(b"\n", b"\r\n")) == expected
    assert parse_policy(EXAMPLE.rstrip(b"\n")) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version: STSv1\nmode: none\nmax_age: 0", Policy("none", (), 0)),
        (b"max_age:1\nmx:A.Example\nmode:testing\nversion:STSv1\n", Policy("testing", ("a.example",), 1)),
        (
            b"version:\tSTSv1 \nmode: enforce\t\nmode: none\nmx: a.b\nmx: a.b\nmax_age: 9\nmax_age: 8\n\n",
            Policy("enforce", ("a.b",), 9),
        ),
        (
            "version: STSv1\nmode: none\nmax_age: 9999999999\nx-note: g\u00fcnstig: ja\n".encode(),
            Policy("none", (), LONGEST_AGE),
        ),
    ],
)
def test_policies(content: bytes, expected: Policy) -> None:
    assert parse_policy(content) == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "version is missing; right would be STSv1"),
        (EXAMPLE.replace(b"STSv1", b"STSv2"), "version is 'STSv2'"),
        (EXAMPLE.replace(b"STSv1", b"stsv1"), "version is 'stsv1'"),
        (EXAMPLE.replace(b"mode: enforce\n", b""), "mode is missing"),
        (
            EXAMPLE.replace(b"enforce", b"Enforce"),
            "mode is 'Enforce'; right would be enforce, testing or none",
        ),
        (EXAMPLE.replace(b"604800", b"1 week"), "max_age is '1 week'"),
        (EXAMPLE.replace(b"604800", b"12345678901"), "max_age is"),
        (EXAMPLE.replace(b"604800", b"-1"), "max_age is '-1'"),
        (EXAMPLE.replace(b"604800", "\u0661".encode()), "max_age is"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n", "it has no mx, which mode: enforce needs"),
        (EXAMPLE.replace(b"*.example.net", b"*"), r"line 4: mx is '\*'"),
        (EXAMPLE.replace(b"*.example.net", b"*.*.example.net"), "line 4: mx"),
        (EXAMPLE.replace(b"*.example.net", b"a.*.net"), "line 4: mx"),
        (EXAMPLE.replace(b"*.example.net", b".example.net"), "line 4: mx"),
        (EXAMPLE.replace(b"*.example.net", b"m*.example.net"), "line 4: mx"),
        (EXAMPLE.replace(b"*.example.net", b"a b"), "line 4: mx"),
        (EXAMPLE.replace(b"*.example.net", b""), "line 4: mx"),
        (EXAMPLE.replace(b"\n", b"\r"), "version is"),
        (b"<html>\nnot found</html>", "line 1 is no field"),
        (EXAMPLE + b"\xff: x\n", "it is not UTF-8"),
    ],
)
def test_what_is_no_policy_says_why(content: bytes, why: str) -> None:
    with pytest.raises(BadPolicy, match=why):
        parse_policy(content)


@given(
    st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(EXAMPLE.split(b"\n"))).map(b"\n".join)
)
def test_nothing_but_a_policy_or_a_reason_comes_out(content: bytes) -> None:
    try:
        policy = parse_policy(content)
    except BadPolicy:
        return
    assert policy.mode == "none" or policy.mx


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("mail.example.com", True),
        ("MAIL.example.COM", True),
        ("mail2.example.com", False),
        ("a.mail.example.com", False),
        ("mx1.example.net", True),
        ("Mx1.Example.net", True),
        ("a.mx1.example.net", False),
        ("example.net", False),
        ("net", False),
        (".example.net", True),  # no host name: never reaches here
    ],
)
def test_a_wildcard_is_one_label(host: str, named: bool) -> None:
    assert Policy("enforce", ("mail.example.com", "*.example.net"), 1).names(host) is named


# -- sites ---------------------------------------------------------------------------------------


def site(*names: str, route: bool = False) -> Site:
    return make_site((MxHost(10 * (i + 1), name) for i, name in enumerate(names)), route=route)


def enforce(*mx: str) -> Policy:
    return Policy("enforce", mx, 1)


def test_enforce_takes_away_what_it_does_not_name() -> None:
    both = site("a.x.example", "b.y.example")
    one = narrowed(both, "d.example", enforce("*.x.example"))
    assert [host.host for host in one.hosts] == ["a.x.example"] and one.name == "a.x.example"
    assert one.sts == Sts("enforce") and one.key not in (both.key, site("a.x.example").key)


def test_none_left_is_a_site_of_the_domain_alone() -> None:
    both = site("a.x.example", "b.y.example")
    none = narrowed(both, "d.example", enforce("c.example"))
    assert none.hosts == () and none.name == both.name
    assert none.sts == Sts("enforce", ("a.x.example", "b.y.example"), "d.example")
    assert none.key != narrowed(both, "e.example", enforce("c.example")).key


def test_domains_of_one_site_do_not_inherit_each_other_s_mode() -> None:
    both = site("a.x.example", "b.x.example")
    testing = narrowed(both, "t.example", Policy("testing", ("*.x.example",), 1))
    strict = narrowed(both, "e.example", enforce("*.x.example"))
    off = narrowed(both, "n.example", Policy("none", (), 1))
    other = narrowed(both, "o.example", Policy("testing", ("a.x.example",), 1))
    assert off is both
    assert len({one.key for one in (both, testing, strict, other)}) == 4
    assert {one.name for one in (both, testing, strict, other)} == {both.name}
    assert other.hosts == both.hosts and other.sts == Sts("testing", ("b.x.example",))
    # The same demands on the same hosts are one site, whoever makes them in whatever words.
    assert narrowed(both, "f.example", enforce("a.x.example", "b.x.example")) == strict
    assert narrowed(site("a.x.example", "b.x.example", route=True), "e.example", enforce("*.x.example")).route


def test_what_no_mx_led_to_has_no_policy() -> None:
    smart = mx_list_site([parse_mx("mx.example:25")])
    assert narrowed(smart, "d.example", enforce("other.example")) is smart
    literal = address_site(parse_endpoint("[192.0.2.1]"))
    assert narrowed(literal, "d.example", enforce("other.example")) is literal


@pytest.mark.parametrize(
    ("host", "tls", "verified", "said"),
    [
        ("a.x.example", True, True, "testing: passed"),
        ("b.x.example", True, True, "testing: would fail, the policy does not name b.x.example"),
        ("a.x.example", True, False, "testing: would fail, the peer is not verified (because)"),
        ("a.x.example", False, False, "testing: would fail, no TLS (because)"),
    ],
)
def test_testing_says_what_would_have_been(host: str, tls: bool, verified: bool, said: str) -> None:
    sts = Sts("testing", ("b.x.example",))
    assert judged(sts, host, dane=False, tls=tls, verified=verified, why="because") == said


def test_what_dane_authenticated_is_not_said_to_have_passed() -> None:
    """Neither the chain nor the name were looked at."""
    sts = Sts("testing", ("b.x.example",))
    for host, said in (
        ("a.x.example", "testing: left to DANE"),
        ("b.x.example", "testing: left to DANE, the policy does not name b.x.example"),
    ):
        assert judged(sts, host, dane=True, tls=True, verified=True, why="") == said
