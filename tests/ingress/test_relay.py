"""Who may send where (reliability S50, S51)."""

from __future__ import annotations

import pytest

from engine.ingress.relay import RelayRules
from policy.ingress import ListenerDomain
from policy.nets import CidrSet, parse_cidr_set

LOOPBACK = parse_cidr_set(["127.0.0.1", "::1"])
PEER = "192.0.2.7"


def test_a_peer_of_relay_hosts_may_send_anywhere() -> None:
    rules = RelayRules("127.0.0.1", LOOPBACK)
    assert rules.anywhere
    assert rules.allows("", "example.com")


def test_a_stranger_may_not() -> None:
    rules = RelayRules(PEER, LOOPBACK)
    assert not rules.anywhere
    assert not rules.allows("example.org", "example.com")
    assert not RelayRules(PEER, CidrSet()).allows("", "")


@pytest.mark.parametrize("granted", [True, False])
def test_a_login_counts_only_where_the_listener_says_so(granted: bool) -> None:
    rules = RelayRules(PEER, LOOPBACK, relay_authenticated=granted)
    assert not rules.anywhere
    rules.login()
    assert rules.anywhere is granted
    rules.reset()
    assert not rules.anywhere


def test_relay_to_opens_the_recipient_domain_only() -> None:
    rules = RelayRules(PEER, LOOPBACK)
    rules.learn("ours.example", ListenerDomain(relay_to=True))
    assert rules.allows("anybody.example", "ours.example")
    assert rules.allows("", "ours.example")
    assert not rules.allows("ours.example", "theirs.example")


def test_relay_from_needs_the_sender_domain_and_the_network() -> None:
    domain = ListenerDomain(relay_from=parse_cidr_set(["192.0.2.0/24"]))
    inside, outside = RelayRules(PEER, LOOPBACK), RelayRules("198.51.100.1", LOOPBACK)
    for rules in (inside, outside):
        rules.learn("ours.example", domain)
    assert inside.allows("ours.example", "any.example")
    assert not inside.allows("other.example", "any.example")
    assert not inside.allows("", "ours.example")
    assert not outside.allows("ours.example", "any.example")


def test_lookups_are_remembered_and_forgotten_at_login_and_tls() -> None:
    rules = RelayRules(PEER, LOOPBACK)
    assert rules.unknown("", "a.example", "b.example") == ["a.example", "b.example"]
    rules.learn("a.example", None)
    rules.learn("b.example", ListenerDomain(relay_to=True))
    assert rules.unknown("a.example", "b.example") == []
    rules.login()
    assert rules.unknown("a.example", "b.example") == ["a.example", "b.example"]
    assert not rules.allows("", "b.example")
    rules.learn("a.example", None)
    rules.reset()
    assert rules.unknown("a.example") == ["a.example"]


def _decide(rules: RelayRules, sender: str, recipient: str, known: dict[str, ListenerDomain]) -> bool:
    for domain in rules.unknown(sender, recipient):
        rules.learn(domain, known.get(domain))
    return rules.allows(sender, recipient)


def test_memory_is_bounded_and_no_decision_loses_what_it_needs() -> None:
    known = {"ours.example": ListenerDomain(relay_from=parse_cidr_set([PEER]))}
    rules = RelayRules(PEER, LOOPBACK)
    for number in range(300):
        assert _decide(rules, "ours.example", f"{number}.example", known), number
        assert len(rules._domains) <= 64
    assert rules.unknown("299.example") == []


def test_memory_made_free_by_the_sender_keeps_the_recipient() -> None:
    known = {"ours.example": ListenerDomain(relay_to=True)}
    rules = RelayRules(PEER, LOOPBACK)
    for number in range(300):
        assert _decide(rules, f"{number}.example", "ours.example", known), number


def test_a_domain_that_is_sender_and_recipient_is_asked_about_once() -> None:
    assert RelayRules(PEER, LOOPBACK).unknown("a.example", "a.example") == ["a.example"]
