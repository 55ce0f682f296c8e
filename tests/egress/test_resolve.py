"""What DNS says becomes sites, plans and refusals; against static zones and a stopped clock."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from engine.egress.dns import HostsFile, Memo
from engine.egress.resolve import Candidate, Resolver
from engine.egress.site import MxHost, NoRoute, Site, mx_list_site
from engine.egress.targets import DEFAULT_PROHIBITED, OwnHosts
from engine.errors import ResolveError
from policy.nets import CidrSet, parse_cidr_set, parse_mx
from tests.support.fakedns import REFUSED, SERVFAIL, TIMEOUT, StaticDns, Zones

ZONES: Zones = {
    "example.com": {"MX": ["20 mx2.example.com.", "10 MX1.Example.COM."]},
    "mx1.example.com": {"A": ["198.51.100.1"], "AAAA": ["2001:db8:1::1"]},
    "mx2.example.com": {"A": ["198.51.100.2"]},
    "twin.example": {"MX": ["10 mx1.example.com.", "20 mx2.example.com."]},
    "null.example": {"MX": ["0 ."]},
    "halfnull.example": {"MX": ["0 .", "10 mx1.example.com."]},
    "implicit.example": {"A": ["198.51.100.3"]},
    "implicit6.example": {"AAAA": ["2001:db8::3"]},
    "empty.example": {},
    "halfdead.example": {"A": SERVFAIL},
    "servfail.example": {"MX": SERVFAIL, "A": ["198.51.100.4"]},
    "refused.example": {"MX": REFUSED},
    "slow.example": {"MX": TIMEOUT},
    "alias.example": {"CNAME": ["example.com."]},
    "junk.example": {"MX": ["10 192.0.2.7.", "10 bad\\032name.example.", "20 mx2.example.com."]},
    "alljunk.example": {"MX": ["10 192.0.2.7."]},
    "targets.example": {"MX": ["10 gone.example.com.", "10 broken.example.com.", "20 mx2.example.com."]},
    "broken.example.com": {"A": SERVFAIL, "AAAA": SERVFAIL},
    "onlybroken.example": {"MX": ["10 gone.example.com.", "20 broken.example.com."]},
    "onlygone.example": {"MX": ["10 gone.example.com."]},
    "evil.example": {"MX": ["10 evil1.example.", "20 evil2.example.", "30 mx2.example.com."]},
    "evil1.example": {"A": ["127.0.0.1", "169.254.169.254"], "AAAA": ["::ffff:10.0.0.1", "::1"]},
    "evil2.example": {"A": ["10.1.2.3"]},
    "allevil.example": {"MX": ["10 evil1.example.", "20 evil2.example.", "30 localhost."]},
    "internal.example": {"MX": ["10 evil2.example."]},
}


def resolver(zones: Zones = ZONES, **options: Any) -> Resolver:
    options.setdefault("rng", random.Random(7))
    return Resolver(StaticDns(zones), **options)


async def site(found: Resolver, domain: str, *, route: bool = False) -> Site:
    answer = await found.site_for(domain, route=route)
    assert isinstance(answer, Site), answer
    return answer


async def refusal(found: Resolver, domain: str, *, route: bool = False) -> NoRoute:
    answer = await found.site_for(domain, route=route)
    assert isinstance(answer, NoRoute), answer
    return answer


def smart(*entries: object) -> Site:
    return mx_list_site([parse_mx(entry) for entry in entries])


def addresses(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.address for candidate in candidates]


# Sites


async def test_an_mx_set_in_canonical_order() -> None:
    found = await site(resolver(), "example.com")
    assert found.hosts == (MxHost(10, "mx1.example.com"), MxHost(20, "mx2.example.com"))
    assert found.name == "(mx1|mx2).example.com"


async def test_domains_behind_the_same_mx_set_are_one_site() -> None:
    dns = resolver()
    one, twin, alias = [await site(dns, name) for name in ("example.com", "twin.example", "alias.example")]
    assert one == twin == alias


async def test_letter_case_final_dot_and_idna_do_not_make_another_site() -> None:
    zones = {"xn--bcher-kva.example": {"MX": ["10 mx1.example.com."]}}
    dns = resolver({**ZONES, **zones})
    assert await site(dns, "EXAMPLE.com.") == await site(dns, "example.com")
    assert await site(dns, "BÜCHER.example") == await site(dns, "xn--bcher-kva.example")


@pytest.mark.parametrize(
    ("domain", "code", "enhanced"),
    [
        ("nowhere.example", 550, "5.1.2"),
        ("empty.example", 550, "5.1.2"),
        ("null.example", 556, "5.1.10"),
        ("alljunk.example", 550, "5.4.4"),
        ("127.0.0.1", 550, "5.1.2"),
        ("8.8.8.8", 550, "5.1.2"),
        ("localhost", 550, "5.1.2"),
        ("a.LOCALHOST", 550, "5.1.2"),
        ("example.com:2525", 550, "5.1.2"),
        ("[127.0.0.1]", 550, "5.4.4"),
        ("[10.0.0.1]", 550, "5.4.4"),
        ("[IPv6:::ffff:127.0.0.1]", 550, "5.4.4"),
        ("[IPv6:fe80::1]", 550, "5.4.4"),
        ("[8.8.8.8]:25", 550, "5.1.2"),
        ("[nonsense]", 550, "5.1.2"),
        ("a b", 550, "5.1.2"),
    ],
)
async def test_destinations_that_are_refused_for_good(domain: str, code: int, enhanced: str) -> None:
    answer = await refusal(resolver(), domain)
    assert (answer.code, answer.enhanced, answer.permanent) == (code, enhanced, True), answer
    assert answer.text.isprintable()


@pytest.mark.parametrize(
    "domain", ["servfail.example", "refused.example", "slow.example", "halfdead.example"]
)
async def test_no_answer_is_never_taken_for_does_not_exist(domain: str, autojump_clock: MockClock) -> None:
    with pytest.raises(ResolveError):
        await resolver().site_for(domain)


@pytest.mark.parametrize("domain", ["implicit.example", "implicit6.example"])
async def test_the_domain_itself_when_mx_is_answered_empty(domain: str) -> None:
    found = await site(resolver(), domain)
    assert found.hosts == (MxHost(1, domain),)
    assert found.name == domain


async def test_a_null_mx_among_others_is_ignored() -> None:
    assert (await site(resolver(), "halfnull.example")).name == "mx1.example.com"


async def test_addresses_and_malformed_names_as_mx_targets_are_skipped() -> None:
    assert (await site(resolver(), "junk.example")).hosts == (MxHost(20, "mx2.example.com"),)


async def test_at_most_100_mx_records_are_considered() -> None:
    zones = {"many.example": {"MX": [f"{i} mx{i}.many.example." for i in range(1000, 0, -1)]}}
    found = await site(resolver(zones), "many.example")
    assert [host.preference for host in found.hosts] == list(range(1, 101))


async def test_a_public_literal_is_a_site() -> None:
    found = await site(resolver(), "[8.8.8.8]")
    assert (found.kind, found.name, found.route) == ("literal", "8.8.8.8", False)


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("127.0.0.1:2600", "127.0.0.1:2600"),
        ("[10.0.0.1]:25", "10.0.0.1:25"),
        ("192.168.1.10", "192.168.1.10"),
        ("example.com:2525", "(mx1|mx2).example.com:2525"),
        ("localhost:2525", "localhost:2525"),
    ],
)
async def test_what_only_a_route_may_say(domain: str, name: str) -> None:
    found = await site(resolver(), domain, route=True)
    assert found.name == name and found.route
    await refusal(resolver(), domain)


@pytest.mark.parametrize("domain", ["nowhere.example", "empty.example", "alljunk.example", "not a name"])
async def test_a_routes_mistakes_defer(domain: str) -> None:
    answer = await refusal(resolver(), domain, route=True)
    assert (answer.code, answer.enhanced, answer.permanent) == (451, "4.4.4", False)


async def test_a_null_mx_is_final_even_for_a_route() -> None:
    assert (await refusal(resolver(), "null.example", route=True)).permanent


async def test_our_own_name_and_everything_worse_is_dropped() -> None:
    own = OwnHosts(names=frozenset({"mx2.example.com"}))
    assert (await site(resolver(own=own), "example.com")).name == "mx1.example.com"
    own = OwnHosts(names=frozenset({"mx1.example.com", "implicit.example"}))
    for domain in ("example.com", "implicit.example"):
        answer = await refusal(resolver(own=own), domain)
        assert (answer.code, answer.enhanced) == (550, "5.4.6")


# Cache


async def test_the_site_is_there_without_waiting_until_its_ttl_ends(autojump_clock: MockClock) -> None:
    dns = StaticDns({"example.com": {"MX": ["10 mx1.example.com."], "ttl": 60}})
    found = Resolver(dns)
    assert found.cached_site("example.com") is None
    first = await site(found, "example.com")
    await trio.sleep(59)
    assert found.cached_site("example.com") is first
    assert found.cached_site("example.com", route=True) is None
    await trio.sleep(1)
    assert found.cached_site("example.com") is None
    await site(found, "example.com")
    assert dns.asked["example.com", "MX"] == 2


@pytest.mark.parametrize(("ttl", "lives"), [(0, 5), (7 * 86400, 86400)])
async def test_ttl_is_clamped(ttl: int, lives: float, autojump_clock: MockClock) -> None:
    found = Resolver(StaticDns({"example.com": {"MX": ["10 mx1.example.com."], "ttl": ttl}}))
    await site(found, "example.com")
    await trio.sleep(lives - 1)
    assert found.cached_site("example.com") is not None
    await trio.sleep(1)
    assert found.cached_site("example.com") is None


async def test_a_failure_is_remembered_for_30_seconds(autojump_clock: MockClock) -> None:
    zones: dict[str, dict[str, Any]] = {"example.com": {"MX": SERVFAIL}}
    dns = StaticDns(zones)
    found = Resolver(dns)
    for _ in range(3):
        with pytest.raises(ResolveError, match="SERVFAIL"):
            await found.site_for("example.com")
        await trio.sleep(9)
    assert dns.asked["example.com", "MX"] == 1
    zones["example.com"] = {"MX": ["10 mx1.example.com."]}
    await trio.sleep(4)
    await site(found, "example.com")


async def test_many_callers_share_one_lookup(autojump_clock: MockClock) -> None:
    dns = StaticDns(ZONES, seconds=1)
    found = Resolver(dns)
    sites: list[Site] = []

    async def one() -> None:
        sites.append(await site(found, "example.com"))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(one)
    assert dns.asked["example.com", "MX"] == 1
    assert len({each.key for each in sites}) == 1 and len(sites) == 50


async def test_a_cancelled_first_caller_leaves_the_lookup_to_the_next(autojump_clock: MockClock) -> None:
    dns = StaticDns(ZONES, seconds=1)
    found = Resolver(dns)
    sites: list[Site] = []

    async def impatient() -> None:
        with trio.move_on_after(0.5):
            await site(found, "example.com")

    async def patient() -> None:
        sites.append(await site(found, "example.com"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await wait_all_tasks_blocked()
        nursery.start_soon(patient)
        nursery.start_soon(patient)
    assert len(sites) == 2
    assert dns.asked["example.com", "MX"] == 2


async def test_a_lookup_has_5_seconds_not_counting_the_wait_for_a_slot(autojump_clock: MockClock) -> None:
    zones = {f"d{i}.example": {"MX": ["10 mx1.example.com."]} for i in range(20)}
    dns = StaticDns(zones, seconds=4)
    found = Resolver(dns, lookups_at_once=2)
    async with trio.open_nursery() as nursery:
        for name in zones:
            nursery.start_soon(site, found, name)
    assert dns.most_at_once == 2
    assert trio.current_time() == pytest.approx(40)
    with pytest.raises(ResolveError, match="5 s"):
        start = trio.current_time()
        await resolver().site_for("slow.example")
    assert trio.current_time() - start == pytest.approx(5)


async def test_the_cache_is_bounded_and_forgets_the_least_used() -> None:
    zones = {f"d{i}.example": {"MX": ["10 mx1.example.com."]} for i in range(5)}
    found = resolver(zones, cache_entries=3)
    for i in range(3):
        await site(found, f"d{i}.example")
    assert found.cached_site("d0.example")
    await site(found, "d3.example")
    assert found.cached_site("d0.example") and not found.cached_site("d1.example")


async def test_long_answers_take_the_room_of_many() -> None:
    """Whoever has one zone has any number of domains, each with 64 KiB of hosts."""
    hosts = {"MX": [f"{i} mail-exchanger-number-{i}.many.example." for i in range(1000)]}
    zones: dict[str, Any] = {f"d{i}.example": hosts for i in range(20)}
    zones["short.example"] = {"MX": ["10 mx1.example.com."]}
    dns = StaticDns(zones)
    found = Resolver(dns, cache_entries=400)
    for i in range(20):
        await site(found, f"d{i}.example")
        await site(found, "short.example")
    assert dns.asked["short.example", "MX"] == 1
    assert 1 < len(found._answers) < 4 and len(found._sites) < 20
    assert found._answers._weight <= 400 and found._sites._weight <= 400
    assert found.cached_site("d19.example") and not found.cached_site("d0.example")


@pytest.mark.parametrize("weigh", [None, len])
async def test_what_a_memo_holds_is_what_it_counts(weigh: Any, clock: MockClock) -> None:
    memo: Memo[int, str] = Memo(20, weigh)

    async def ask(text: str, ttl: float) -> tuple[str, float]:
        await trio.lowlevel.checkpoint()
        if not text:
            raise ResolveError("no answer", stage="resolve")
        return text, ttl

    rng = random.Random(7)
    for _ in range(400):
        text = "x" * rng.choice([0, 1, 3, 9, 50])
        with contextlib.suppress(ResolveError):
            await memo.fetch(rng.randrange(40), partial(ask, text, rng.choice([5, 30])))
        await trio.sleep(rng.choice([0, 0, 0, 20]))
        held = [entry.weight for entry in memo._entries.values()]
        assert memo._weight == sum(held) and (sum(held) <= 20 or len(held) == 1)
    memo.clear()
    assert memo._weight == 0


# Plans


async def test_preferences_stay_in_order_and_equals_are_shuffled() -> None:
    zones: Zones = {
        "many.example": {"MX": [*(f"10 a{i}.many.example." for i in range(4)), "20 b.many.example."]},
        **{f"a{i}.many.example": {"A": [f"198.51.100.{i}"]} for i in range(4)},
        "b.many.example": {"A": ["198.51.100.200"]},
    }
    found = resolver(zones)
    target = await site(found, "many.example")
    orders = set()
    for _ in range(30):
        plan = await found.plan(target)
        got = addresses(plan.candidates)
        assert got[-1] == "198.51.100.200"
        assert sorted(got[:4]) == [f"198.51.100.{i}" for i in range(4)]
        orders.add(tuple(got))
    assert len(orders) > 10


async def test_the_addresses_of_one_host_are_shuffled_too() -> None:
    found = resolver({"many.example": {"A": [f"198.51.100.{i}" for i in range(5)]}})
    target = await site(found, "many.example")
    orders = {tuple(addresses((await found.plan(target)).candidates)) for _ in range(20)}
    assert len(orders) > 10


async def test_both_families_of_a_host_are_candidates_with_the_hosts_name() -> None:
    found = resolver()
    plan = await found.plan(await site(found, "example.com"))
    assert plan.refused is None
    assert set(addresses(plan.candidates[:2])) == {"198.51.100.1", "2001:db8:1::1"}
    assert plan.candidates[2] == Candidate("mx2.example.com", "198.51.100.2", 25, "mx2.example.com")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("Ipv4Only", ["198.51.100.1"]),
        ("Ipv6Only", ["2001:db8::1"]),
        ("Ipv4AndIpv6", ["198.51.100.1", "2001:db8::1"]),
        ("Ipv6ThenIpv4", ["2001:db8::1"]),
        ("Ipv4ThenIpv6", ["198.51.100.1"]),
    ],
)
async def test_lookup_strategies(strategy: Any, expected: list[str]) -> None:
    dns = StaticDns({"both.example": {"A": ["198.51.100.1"], "AAAA": ["2001:db8::1"]}})
    assert sorted(await Resolver(dns).addresses_for("both.example", strategy)) == expected
    assert len(dns.asked) == (2 if strategy == "Ipv4AndIpv6" else 1)


async def test_the_second_family_is_asked_when_the_first_fails_or_is_empty() -> None:
    zones: Zones = {
        "a.example": {"A": ["198.51.100.1"], "AAAA": SERVFAIL},
        "b.example": {"A": ["198.51.100.2"]},
    }
    found = resolver(zones)
    assert await found.addresses_for("a.example", "Ipv6ThenIpv4") == ["198.51.100.1"]
    assert await found.addresses_for("b.example", "Ipv6ThenIpv4") == ["198.51.100.2"]
    assert await found.addresses_for("nowhere.example", "Ipv6ThenIpv4") == []
    with pytest.raises(ResolveError):
        await found.addresses_for("a.example", "Ipv6Only")


async def test_one_targets_failure_does_not_fail_the_others() -> None:
    found = resolver()
    plan = await found.plan(await site(found, "targets.example"))
    assert addresses(plan.candidates) == ["198.51.100.2"]
    assert len(plan.notes) == 2


async def test_nothing_left_is_temporary_if_any_target_had_no_answer() -> None:
    found = resolver()
    with pytest.raises(ResolveError, match="SERVFAIL"):
        await found.plan(await site(found, "onlybroken.example"))
    plan = await found.plan(await site(found, "onlygone.example"))
    assert plan.refused and (plan.refused.code, plan.refused.enhanced) == (550, "5.4.4")


async def test_forbidden_addresses_are_dropped_and_the_rest_used() -> None:
    found = resolver()
    plan = await found.plan(await site(found, "evil.example"))
    assert addresses(plan.candidates) == ["198.51.100.2"]
    assert len(plan.notes) == 5


async def test_only_forbidden_addresses_are_a_permanent_refusal() -> None:
    found = resolver()
    for prohibited in (DEFAULT_PROHIBITED, CidrSet()):
        plan = await found.plan(await site(found, "allevil.example"), prohibited_hosts=prohibited)
        assert plan.refused and (plan.refused.code, plan.refused.enhanced) == (550, "5.4.4")
        assert plan.refused.permanent and not plan.candidates


async def test_a_routing_domain_may_lead_to_private_addresses_but_not_to_link_local_ones() -> None:
    found = resolver()
    plan = await found.plan(await site(found, "internal.example", route=True))
    assert addresses(plan.candidates) == ["10.1.2.3"]
    plan = await found.plan(await site(found, "evil.example", route=True))
    assert set(addresses(plan.candidates)) == {
        "10.1.2.3", "127.0.0.1", "198.51.100.2", "::1", "::ffff:10.0.0.1"
    }  # fmt: skip
    plan = await found.plan(await site(found, "internal.example"))
    assert plan.refused and plan.refused.permanent


async def test_an_mx_list_is_used_as_written() -> None:
    found = resolver()
    target = smart(
        "mx2.example.com:2525", "127.0.0.1:2600", "gone.example.com", "mx1.example.com", "[169.254.0.9]"
    )
    for _ in range(5):
        plan = await found.plan(target, smtp_port=587)
        assert [(each.address, each.port) for each in plan.candidates] == [
            ("198.51.100.2", 2525),
            ("127.0.0.1", 2600),
            ("198.51.100.1", 587),
            ("2001:db8:1::1", 587),
            ("169.254.0.9", 587),
        ]


async def test_a_named_address_keeps_its_tls_name() -> None:
    plan = await resolver().plan(smart({"name": "mx.example", "addr": "10.0.0.1:2025"}))
    assert plan.candidates == [Candidate("10.0.0.1", "10.0.0.1", 2025, "mx.example")]


async def test_a_failing_smart_host_defers_and_never_bounces() -> None:
    found = resolver()
    plan = await found.plan(smart("gone.example.com"))
    assert plan.refused and (plan.refused.code, plan.refused.permanent) == (451, False)
    with pytest.raises(ResolveError):
        await found.plan(smart("broken.example.com"))
    plan = await found.plan(smart("broken.example.com", "127.0.0.1"))
    assert addresses(plan.candidates) == ["127.0.0.1"]


async def test_prohibited_and_skipped_hosts() -> None:
    found = resolver()
    target = await site(found, "example.com")
    plan = await found.plan(target, prohibited_hosts=parse_cidr_set(["198.51.100.1", "2001:db8:1::/48"]))
    assert addresses(plan.candidates) == ["198.51.100.2"]
    plan = await found.plan(target, skip_hosts=parse_cidr_set(["198.51.100.0/24"]))
    assert addresses(plan.candidates) == ["2001:db8:1::1"]
    plan = await found.plan(target, skip_hosts=parse_cidr_set(["0.0.0.0/0", "::/0"]))
    assert plan.refused and (plan.refused.code, plan.refused.enhanced) == (451, "4.4.4")
    plan = await found.plan(target, prohibited_hosts=parse_cidr_set(["0.0.0.0/0", "::/0"]))
    assert plan.refused and (plan.refused.code, plan.refused.enhanced) == (550, "5.4.4")
    plan = await found.plan(smart("127.0.0.1"), prohibited_hosts=parse_cidr_set(["127.0.0.0/8"]))
    assert plan.refused and not plan.refused.permanent


@pytest.mark.parametrize(
    ("host", "path", "source", "port"), [(None, 26, None, 26), (27, 26, None, 27), (27, 26, 28, 28)]
)
async def test_port_precedence(host: int | None, path: int, source: int | None, port: int) -> None:
    entry = "127.0.0.1" if host is None else f"127.0.0.1:{host}"
    plan = await resolver().plan(smart(entry), smtp_port=path, remote_port=source)
    assert plan.candidates[0].port == port


async def test_our_own_listener_ends_the_list() -> None:
    own = OwnHosts(listeners=frozenset({("198.51.100.2", 25)}))
    found = resolver(own=own)
    target = await site(found, "example.com")
    assert set(addresses((await found.plan(target)).candidates)) == {"198.51.100.1", "2001:db8:1::1"}
    assert len((await found.plan(target, smtp_port=2525)).candidates) == 3
    found.own = OwnHosts(listeners=frozenset({("198.51.100.1", 25)}))
    plan = await found.plan(target)
    assert plan.refused and (plan.refused.code, plan.refused.enhanced) == (550, "5.4.6")


async def test_who_can_lead_mail_back_to_our_own_listener() -> None:
    """DNS can, for a domain that policy named, too (N8). An `mx_list` is an operator's word: a listener of
    this relay may be meant, as the next station of the same mail."""
    own = OwnHosts(listeners=frozenset({("198.51.100.1", 25), ("198.51.100.2", 25)}))
    found = resolver(own=own)
    looping = await found.plan(await site(found, "example.com", route=True))
    assert looping.refused and (looping.refused.code, looping.refused.enhanced) == (451, "4.4.6")
    listed = await found.plan(smart("[198.51.100.1]:25"))
    assert addresses(listed.candidates) == ["198.51.100.1"]


async def test_limits_of_one_plan() -> None:
    zones: Zones = {
        "wide.example": {"MX": [f"10 h{i}.wide.example." for i in range(60)]},
        **{f"h{i}.wide.example": {"A": [f"198.51.100.{i}", f"203.0.113.{i}"]} for i in range(60)},
    }
    dns = StaticDns(zones)
    found = Resolver(dns, rng=random.Random(1))
    target = await site(found, "wide.example")
    dns.asked.clear()
    plan = await found.plan(target)
    assert len(plan.candidates) == 10
    assert dns.asked.total() <= 20
    used: set[str] = set()
    for seed in range(10):
        found = Resolver(StaticDns(zones), rng=random.Random(seed))
        used.update(each.host for each in (await found.plan(target)).candidates)
    assert len(used) > 30


async def test_a_plan_takes_at_most_30_seconds(autojump_clock: MockClock) -> None:
    hosts = [f"h{i}.slow.example" for i in range(8)]
    zones: Zones = {
        "slow.example": {"MX": [*(f"20 {host}." for host in hosts), "10 quick.example."]},
        **{host: {"A": TIMEOUT, "AAAA": TIMEOUT} for host in hosts},
        "quick.example": {"A": ["198.51.100.1"]},
    }
    found = resolver(zones, lookups_at_once=1)
    target = await site(found, "slow.example")
    assert await found.addresses_for("quick.example") == ["198.51.100.1"]
    start = trio.current_time()
    plan = await found.plan(target)
    assert trio.current_time() - start == pytest.approx(30)
    assert addresses(plan.candidates) == ["198.51.100.1"]


async def test_an_address_twice_is_tried_once() -> None:
    zones: Zones = {
        "dup.example": {"MX": ["10 a.dup.example.", "20 b.dup.example."]},
        "a.dup.example": {"A": ["198.51.100.1"]},
        "b.dup.example": {"A": ["198.51.100.1", "198.51.100.2"]},
    }
    found = resolver(zones)
    plan = await found.plan(await site(found, "dup.example"))
    assert addresses(plan.candidates) == ["198.51.100.1", "198.51.100.2"]


async def test_the_hosts_file_serves_routes_only(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# comment\n10.9.8.7 Inside.example inside # tail\n::7 inside\nnonsense line\n")
    found = resolver(hosts=HostsFile(str(path)))
    assert await found.addresses_for("inside", route=True) == ["10.9.8.7", "::7"]
    assert await found.addresses_for("inside", "Ipv6Only", route=True) == ["::7"]
    assert await found.addresses_for("inside") == []
    assert (await site(found, "inside.example", route=True)).name == "inside.example"
    assert (await refusal(found, "inside.example")).enhanced == "5.1.2"
    plan = await found.plan(smart("inside:2525"))
    assert ("10.9.8.7", 2525) in {(each.address, each.port) for each in plan.candidates}


async def test_every_call_is_a_checkpoint() -> None:
    found = resolver()
    target = await site(found, "example.com")
    await found.plan(target)
    with assert_checkpoints():
        await found.site_for("example.com")
    with assert_checkpoints():
        await found.plan(target)
