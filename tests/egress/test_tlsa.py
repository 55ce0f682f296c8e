"""The way to TLSA records through DNSSEC, and what a session makes of them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import policy
from engine.egress.dane import DaneCheck, usable
from engine.egress.dial import NoHostReached
from engine.egress.dns import StubResolver
from engine.egress.mta_sts import narrowed, parse_policy
from engine.egress.resolve import Candidate, Resolver
from engine.egress.site import MxHost, NoRoute, Sts, make_site, mx_list_site
from engine.egress.tlsa import Dane, dane_for
from engine.egress.tlsneed import TlsNeed
from engine.errors import DaneImpossible, ResolveError, TlsRequired
from policy.egress import make_egress_path
from policy.nets import parse_mx
from tests.egress.dialing import NAME, inside, open_dial
from tests.support.bench import open_bench
from tests.support.fakedns import SERVFAIL, TIMEOUT, StaticDns, Zones, serve_dns
from tests.support.peer import FakePeer, open_peer
from tests.support.pki import Pki
from tests.support.tlsa import authority, chain_of, tlsa

MX = "mx.peer.example"
EE = "3 1 1 " + "ab" * 32
TA = "2 1 1 " + "cd" * 32
WHERE = Candidate(MX, "192.0.2.1", 25, MX)


def zones(**more: Any) -> dict[str, dict[str, Any]]:
    """A signed domain whose host has a TLSA record; `more`: other records of these names."""
    table: dict[str, dict[str, Any]] = {
        "peer.example": {"secure": True, "MX": [f"10 {MX}."]},
        MX: {"secure": True, "A": ["192.0.2.1"]},
        f"_25._tcp.{MX}": {"TLSA": [EE]},
    }
    names = {"domain": "peer.example", "host": MX, "tlsa": f"_25._tcp.{MX}"}
    for key, value in more.items():
        table[names.get(key, key)] = value
    return {name: zone for name, zone in table.items() if zone is not None}


async def ask(table: Zones, *, where: Candidate = WHERE, own_name: bool = False, **how: Any) -> Dane:
    resolver = Resolver(StaticDns(table, **how), lookup_seconds=0.1)
    site = await resolver.site_for("peer.example")
    return await dane_for(resolver, site, where, "peer.example", own_name=own_name)  # type: ignore[arg-type]


async def test_a_signed_way_to_a_usable_record() -> None:
    dane = await ask(zones())
    assert (dane.result, dane.base, dane.only_for) == ("ok", MX, "")
    assert dane.check is not None and dane.check.names == (MX,)
    assert dane.why == f"1 usable record of _25._tcp.{MX} TLSA"


@pytest.mark.parametrize(
    ("result", "more"),
    [
        ("insecure_chain", {"domain": {"MX": [f"10 {MX}."]}}),
        ("insecure_chain", {"host": {"secure": False, "A": ["192.0.2.1"]}}),
        ("not_applicable", {"tlsa": {"TLSA": [EE], "secure": False}}),
        ("not_applicable", {"tlsa": None}),
        ("not_applicable", {"tlsa": {}}),
        ("unusable", {"tlsa": {"TLSA": ["0 1 1 " + "ab" * 32, "3 1 9 00"]}}),
        ("ok", {"tlsa": {"TLSA": ["0 1 1 " + "ab" * 32, EE]}}),
    ],
)
async def test_what_is_demanded(result: str, more: dict[str, Any]) -> None:
    dane = await ask(zones(**more))
    assert dane.result == result
    assert (dane.check is not None) is (result == "ok")


@pytest.mark.parametrize("host", [{"secure": False, "A": ["192.0.2.1"]}])
async def test_tlsa_is_not_asked_for_where_the_way_is_not_signed(host: dict[str, Any]) -> None:
    """RFC 7672 2.1.2: name servers of unsigned zones often do not answer such a question at all."""
    dane = await ask(zones(host=host, tlsa={"TLSA": TIMEOUT}))
    assert dane.result == "insecure_chain"


@pytest.mark.parametrize("trouble", [SERVFAIL, TIMEOUT])
async def test_no_answer_is_no_absence(trouble: str) -> None:
    with pytest.raises(ResolveError, match=f"DANE: DNS lookup of _25._tcp.{MX} TLSA failed"):
        await ask(zones(tlsa={"TLSA": trouble}))
    with pytest.raises(ResolveError, match=f"DANE: DNS lookup of {MX} AAAA failed"):
        await ask(zones(host={"secure": False, "A": ["192.0.2.1"], "AAAA": trouble}))


async def test_a_host_whose_address_is_gone_since_the_plan_was_made_is_not_talked_to() -> None:
    """Not signed is what has an address that is not signed."""
    with pytest.raises(ResolveError, match=f"DANE: {MX} has no address now"):
        await ask(zones(host={"secure": True}))


async def test_a_host_whose_name_is_too_long_for_records_has_none() -> None:
    long = ".".join(["a" * 49] * 5)
    table = zones(
        domain={"secure": True, "MX": [f"10 {long}."]}, **{long: {"secure": True, "A": ["192.0.2.1"]}}
    )
    assert len(long) < 253 < len(f"_25._tcp.{long}")
    dane = await ask(table, where=Candidate(long, "192.0.2.1", 25, long))
    assert dane.result == "not_applicable" and "too long" in dane.why


async def test_one_family_without_an_answer_does_not_matter_when_the_other_is_signed() -> None:
    assert (await ask(zones(host={"secure": True, "A": ["192.0.2.1"], "AAAA": SERVFAIL}))).result == "ok"


async def test_the_port_is_the_one_that_is_connected_to() -> None:
    dane = await ask(zones(), where=Candidate(MX, "192.0.2.1", 2525, MX))
    assert dane.result == "not_applicable" and "_2525._tcp." in dane.why


async def test_without_mx_the_absence_must_be_signed() -> None:
    table = {"peer.example": {"secure": True, "A": ["192.0.2.1"]}, "_25._tcp.peer.example": {"TLSA": [EE]}}
    where = Candidate("peer.example", "192.0.2.1", 25, "peer.example")
    assert (await ask(table, where=where)).result == "ok"
    table["peer.example"]["secure"] = False
    assert (await ask(table, where=where)).result == "insecure_chain"


ALIAS = {"CNAME": ["real.other.example."]}
REAL: dict[str, Any] = {"A": ["192.0.2.1"], "secure": True}


@pytest.mark.parametrize(
    ("base", "more"),
    [
        # RFC 7672 2.2.2: the canonical name first, where all is signed; else the name itself.
        ("real.other.example", {"_25._tcp.real.other.example": {"TLSA": [EE]}}),
        (MX, {}),
        (MX, {"real.other.example": {**REAL, "secure": False}}),
        ("", {"host": {**ALIAS, "secure": False}}),
        ("", {"host": {**ALIAS, "secure": False}, "real.other.example": {**REAL, "secure": False}}),
    ],
)
async def test_a_host_that_is_an_alias(base: str, more: dict[str, Any]) -> None:
    dane = await ask(zones(**{"host": ALIAS | {"secure": True}, "real.other.example": REAL, **more}))
    assert dane.base == base and dane.result == ("ok" if base else "insecure_chain")


@pytest.mark.parametrize("own_name", [True, False])
async def test_a_certificate_of_an_alias_is_none_of_the_host_with_the_records(own_name: bool) -> None:
    """Any owner of a domain can have one, of an authority that the other's records name; and the name that
    credentials are bound to would be the other's."""
    table = zones(host=ALIAS | {"secure": True}, **{"real.other.example": REAL})
    table["_25._tcp.real.other.example"] = {"TLSA": [TA]}
    dane = await ask(table, own_name=own_name)
    assert dane.check is not None and dane.base == "real.other.example"
    assert dane.check.names == (
        ("real.other.example",) if own_name else ("real.other.example", "peer.example")
    )


async def test_an_address_has_no_records() -> None:
    dane = await ask(zones(), where=Candidate("192.0.2.1", "192.0.2.1", 25, MX))
    assert dane.result == "insecure_chain" and "an address" in dane.why


async def test_names_of_an_issuers_certificates() -> None:
    """RFC 7672 3.2.2, and what it means for who may share a session."""
    table = zones(tlsa={"TLSA": [TA]})
    dane = await ask(table)
    assert dane.check is not None and dane.check.names == (MX, "peer.example")
    assert dane.only_for == "peer.example"
    dane = await ask(table, own_name=True)  # a path that logs in
    assert dane.check is not None and dane.check.names == (MX,) and dane.only_for == ""


async def test_the_name_of_a_domain_that_is_an_alias() -> None:
    table = zones(
        domain={"secure": True, "CNAME": ["real.example."]},
        tlsa={"TLSA": [TA]},
        **{"real.example": {"secure": True, "MX": [f"10 {MX}."]}},
    )
    dane = await ask(table)
    assert dane.check is not None and dane.check.names == (MX, "peer.example", "real.example")


@pytest.mark.parametrize(("secure", "result"), [(True, "ok"), (False, "insecure_chain")])
async def test_an_mx_list_counts_where_the_policy_says_so(secure: bool, result: str) -> None:
    resolver = Resolver(StaticDns(zones(tlsa={"TLSA": [TA]})))
    site = mx_list_site([parse_mx(MX)], secure=secure)
    dane = await dane_for(resolver, site, WHERE, "peer.example")
    assert dane.result == result
    assert dane.check is None or dane.check.names == (MX,)


async def test_this_machine_is_not_asked_for() -> None:
    dns = StaticDns({}, doubt="it is far away")
    resolver = Resolver(dns)
    site = await resolver.site_for("localhost", route=True)
    assert not isinstance(site, NoRoute)
    where = Candidate("localhost", "127.0.0.1", 25, "localhost")
    dane = await dane_for(resolver, site, where, "localhost")
    assert dane.result == "insecure_chain" and not dns.asked


async def test_a_name_server_matters_where_it_is_asked_only() -> None:
    resolver = Resolver(StaticDns(zones(), doubt="it is far away"))
    dane = await dane_for(resolver, mx_list_site([parse_mx(MX)]), WHERE, "peer.example")
    assert dane.result == "insecure_chain" and "treat_mx_list_as_secure" in dane.why


async def test_the_hosts_file_has_no_signatures(tmp_path: Any) -> None:
    from engine.egress.dns import HostsFile

    (tmp_path / "hosts").write_text(f"192.0.2.1 {MX}\n")
    resolver = Resolver(StaticDns(zones()), hosts=HostsFile(str(tmp_path / "hosts")))
    site = make_site([MxHost(1, MX)], route=True, secure=True)
    assert (await dane_for(resolver, site, WHERE, "peer.example")).result == "insecure_chain"


async def test_a_route_from_before_the_domain_was_signed_is_not_used_any_more() -> None:
    """As after a change of the name server: "not secure" was the old one's word."""
    resolver = Resolver(StaticDns(zones()))
    site = make_site([MxHost(10, MX)])
    with pytest.raises(DaneImpossible, match="can be validated only since a moment ago"):
        await dane_for(resolver, site, WHERE, "peer.example")


# Who is believed


async def test_a_name_server_that_cannot_be_believed_is_an_error() -> None:
    with pytest.raises(DaneImpossible, match="validating name server on loopback, and it is far away"):
        await ask(zones(), doubt="it is far away")


@pytest.mark.parametrize("signed", [True, False])
async def test_the_ad_bit_is_read_from_the_wire(signed: bool) -> None:
    table = zones()
    for zone in table.values():
        zone["secure"] = signed
    async with serve_dns(table) as server:
        client = StubResolver([server])
        for name, kind in (
            ("peer.example", "MX"),
            (MX, "A"),
            (MX, "AAAA"),
            (f"_25._tcp.{MX}", "TLSA"),
            (f"_26._tcp.{MX}", "TLSA"),
        ):
            assert (await client.query(name, kind)).secure is signed  # type: ignore[arg-type]
        assert (await client.query(f"_25._tcp.{MX}", "TLSA")).records == ((0, EE),)


async def test_aliases_on_the_wire() -> None:
    table = zones(host=ALIAS | {"secure": True}, **{"real.other.example": REAL})
    async with serve_dns(table) as server:
        client = StubResolver([server])
        answer = await client.query(MX, "A")
        assert (answer.alias, answer.secure) == ("real.other.example", True)
        assert (await client.query(MX, "CNAME")).records == ((0, "real.other.example"),)


async def test_ad_from_elsewhere_does_not_count() -> None:
    """One server that is not on this machine is enough; to the one that is, nothing changed."""
    async with serve_dns(zones()) as server:
        client = StubResolver([server, "192.0.2.53"])
        assert not (await client.query("peer.example", "MX")).secure
        assert "192.0.2.53 is not on loopback" in await client.distrust()


@pytest.mark.parametrize(
    ("root", "doubt"),
    [
        ({"secure": True, "SOA": ["a. b. 1 2 3 4 5"]}, ""),
        ({"SOA": ["a. b. 1 2 3 4 5"]}, "does not validate: the root's SOA came without AD"),
        ({"SOA": SERVFAIL}, ""),
    ],
)
async def test_a_server_that_does_not_validate(root: dict[str, Any], doubt: str) -> None:
    async with serve_dns({".": root}) as server:
        client = StubResolver([server])
        found = await client.distrust()
        assert found == (f"the name server {server} {doubt}" if doubt else "")


async def test_every_server_has_to_validate() -> None:
    """One that does not is asked when the others refuse what was forged, and gives it."""
    root: dict[str, Any] = {"SOA": ["a. b. 1 2 3 4 5"]}
    refusing = zones(tlsa={"TLSA": SERVFAIL}, **{".": root | {"secure": True}})
    forged = zones(tlsa=None, **{".": root})
    for zone in forged.values():
        zone["secure"] = False
    async with serve_dns(refusing) as good, serve_dns(forged) as bad:
        for servers in ([good, bad], [bad, good]):
            client = StubResolver(servers)
            assert (await client.query(f"_25._tcp.{MX}", "TLSA")).status == "nxdomain"
            assert f"the name server {bad} does not validate" in await client.distrust()
            resolver = Resolver(client)
            site = await resolver.site_for("peer.example")
            with pytest.raises(DaneImpossible, match="does not validate"):
                await dane_for(resolver, site, WHERE, "peer.example")


async def test_a_server_that_is_not_there_is_not_waited_for_every_time() -> None:
    async with serve_dns(zones()) as server, serve_dns({".": {"SOA": TIMEOUT}}) as silent:
        client = StubResolver([server, silent])
        assert (await client.query("peer.example", "MX")).secure
        begun = time.monotonic()
        for _ in range(3):
            assert await client.distrust() == ""
        assert time.monotonic() - begun < 3.0


async def test_a_server_that_validated_something_is_not_asked_about_the_root() -> None:
    async with serve_dns({**zones(), ".": {"SOA": ["a. b. 1 2 3 4 5"]}}) as server:
        client = StubResolver([server])
        assert (await client.query("peer.example", "MX")).secure
        assert await client.distrust() == ""


# What a session makes of it


def hooks(peer: FakePeer, **path: Any) -> dict[str, Any]:
    config = policy.make_queue_config(
        protocol={"smtp": {"mx_list": [f"{MX}:{peer.port}"], "treat_mx_list_as_secure": True}},
        retry_interval=60,
    )
    made = make_egress_path(**{"enable_dane": True, "idle_timeout": 0.3, **path})
    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
        "get_egress_path_config": lambda domain, egress_source, site_name: made,
    }


def local(peer: FakePeer, *records: str, **host: Any) -> Resolver:
    """The peer under a signed name."""
    table: dict[str, Any] = {
        MX: {"secure": True, "A": ["127.0.0.1"], **host},
        f"_{peer.port}._tcp.{MX}": {"TLSA": list(records)},
        "peer.example": {"secure": True, "MX": [f"10 {MX}."]},
        "b.example": {"secure": True, "MX": [f"10 {MX}."]},
        "unsigned.example": {"MX": [f"10 {MX}."]},
    }
    return Resolver(StaticDns(table))


MODES = ("Opportunistic", "OpportunisticInsecure", "Required", "RequiredInsecure", "Disabled")


@pytest.mark.parametrize("mode", MODES)
async def test_a_match_lets_mail_out_in_every_mode(mode: str) -> None:
    context = Pki().server("whatever.example", days=(-9, -2))
    async with open_peer(tls=context) as peer:
        resolver = local(peer, tlsa(chain_of(context)[0], 3, 1, 1))
        async with open_bench(hooks(peer, enable_tls=mode), resolver=resolver) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
        assert (record.dane_result, record.tls_verified) == ("ok", True)
        assert record.tls_peer_name == "whatever.example"
        assert record.tls_why is not None and record.tls_why.startswith("DANE: TLSA 3 1 1 ")


@pytest.mark.parametrize("mode", MODES)
async def test_no_match_holds_it_in_every_mode(mode: str) -> None:
    async with open_peer(tls=Pki().server(MX)) as peer:
        path = {"enable_tls": mode}
        if mode.startswith("Opportunistic"):
            path |= {"opportunistic_tls_reconnect_on_failed_handshake": True}
        async with open_bench(hooks(peer, **path), resolver=local(peer, EE)) as b:
            await b.submit()
            record = await b.first()
        assert record.type == "TransientFailure" and record.cause == "tls" and record.num_attempts == 0
        assert record.content is not None and "none of the TLSA records of mx.peer.example" in record.content
        assert inside(peer) == [] and not peer.arrived


async def test_a_session_by_an_issuer_is_resumed_no_longer_than_its_certificates_last() -> None:
    middle = Pki(issuer=Pki())
    context = middle.server(MX, days=(-1, 0.01))
    async with open_peer(tls=context) as peer, open_dial() as dial:
        found = Dane("ok", "", DaneCheck(usable([tlsa(authority(middle), 2, 1, 1)]), (MX,)), MX)
        for resumed in (False, True):
            facts = (await dial(make_egress_path(), peer, dane=found)).stream.tls
            assert facts is not None and facts.resumed is resumed and facts.expires < time.time() + 900


@pytest.mark.parametrize("records", [[EE], ["0 0 1 " + "ab" * 32]])
async def test_no_starttls_is_no_way(records: list[str]) -> None:
    async with open_peer(capabilities=[]) as peer:
        async with open_bench(hooks(peer), resolver=local(peer, *records)) as b:
            await b.submit()
            record = await b.first()
        assert record.cause == "tls" and record.content is not None
        assert f"DANE for {MX} and the peer does not offer STARTTLS" in record.content
        assert not peer.arrived


def malformed() -> str:
    """A certificate of a version that there is not, as a record: the library finds more than a ValueError."""
    der = chain_of(Pki().server(MX))[0].public_bytes(Encoding.DER)
    return "2 0 0 " + der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020104"), 1).hex()


@pytest.mark.parametrize("text", ["0 0 1 " + "ab" * 32, malformed()])
async def test_unusable_records_mean_tls_with_anybody(text: str) -> None:
    async with open_peer(tls=Pki().server("other.example")) as peer:
        made = hooks(peer, enable_tls="OpportunisticInsecure")
        async with open_bench(made, resolver=local(peer, text)) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
        assert (record.dane_result, record.tls_verified) == ("unusable", False)


async def test_a_host_whose_records_cannot_be_had_is_not_talked_to() -> None:
    async with open_peer() as peer:
        resolver = local(peer)
        resolver._dns.zones[f"_{peer.port}._tcp.{MX}"]["TLSA"] = SERVFAIL  # type: ignore[attr-defined]
        async with open_bench(hooks(peer), resolver=resolver) as b:
            await b.submit()
            record = await b.first()
        assert record.type == "TransientFailure" and record.num_attempts == 1
        assert record.content is not None and "TLSA failed: SERVFAIL" in record.content
        assert not peer.commands


async def test_the_next_host_is_tried_instead() -> None:
    context = Pki().server(MX)
    async with open_peer() as bad, open_peer(tls=context) as good:
        resolver = local(good, tlsa(chain_of(context)[0], 3, 0, 2))
        resolver._dns.zones[f"_{bad.port}._tcp.{MX}"] = {"TLSA": SERVFAIL}  # type: ignore[attr-defined]
        made = hooks(good)
        config = policy.make_queue_config(
            protocol={
                "smtp": {
                    "mx_list": [f"{MX}:{bad.port}", f"{MX}:{good.port}"],
                    "treat_mx_list_as_secure": True,
                }
            }
        )
        made["get_queue_config"] = lambda domain, tenant, campaign, routing_domain: config
        async with open_bench(made, resolver=resolver) as b:
            await b.submit()
            await b.records("Delivery")
        assert not bad.commands and len(good.arrived) == 1


async def test_without_the_option_nothing_is_asked() -> None:
    async with open_peer() as peer:
        resolver = local(peer, EE)
        async with open_bench(hooks(peer, enable_dane=False), resolver=resolver) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
        assert record.dane_result is None
        assert not any(kind == "TLSA" for _, kind in resolver._dns.asked)  # type: ignore[attr-defined]


async def test_mail_is_held_while_the_name_server_cannot_be_believed() -> None:
    context = Pki().server(MX)
    async with open_peer(tls=context) as peer:
        resolver = local(peer, tlsa(chain_of(context)[0], 3, 1, 1))
        resolver._dns.doubt = "it is far away"  # type: ignore[attr-defined]
        async with open_bench(hooks(peer, hold_interval=0.2), resolver=resolver) as b:
            await b.submit()
            record = await b.first()
            assert (record.cause, record.num_attempts) == ("dane", 0) and not peer.commands
            resolver._dns.doubt = ""  # type: ignore[attr-defined]
            await b.records("Delivery")


async def test_sni_is_the_base_domain() -> None:
    seen: list[str | None] = []
    context = Pki().server("other.example")
    context.sni_callback = lambda sock, name, ctx: seen.append(name)
    async with open_peer(tls=context) as peer:
        resolver = local(peer, tlsa(chain_of(context)[0], 3, 1, 1))
        seen.clear()
        made = hooks(peer, tls_server_name="name.of.the.path.example")
        async with open_bench(made, resolver=resolver) as b:
            await b.submit()
            await b.records("Delivery")
    assert seen == [MX]


# Who shares what


def by_mx(peer: FakePeer, **path: Any) -> dict[str, Any]:
    made = make_egress_path(**{"enable_dane": True, "smtp_port": peer.port, "connection_limit": 1, **path})
    return {"get_egress_path_config": lambda domain, egress_source, site_name: made}


async def test_no_domain_inherits_from_another() -> None:
    """Two domains with the same hosts, of which one is signed: a demand for the one is none for the other,
    and the absence of one neither (egress 3.4, TRAP)."""
    async with open_peer(tls=Pki().server("other.example")) as peer:
        made = by_mx(peer, enable_tls="OpportunisticInsecure")
        async with open_bench(made, resolver=local(peer, EE)) as b:
            await b.submit("u@x.example", routing_domain="unsigned.example")
            (record,) = await b.records("Delivery")
            assert record.dane_result == "insecure_chain"
            await b.submit("u@y.example", routing_domain="peer.example")
            (failed,) = await b.records("TransientFailure")
            assert failed.cause == "tls"
            await b.submit("v@x.example", routing_domain="unsigned.example")
            await b.records("Delivery", 2)
            signed, unsigned = sorted(b.ready(), key=lambda one: not one.site.secure)
            assert signed.site.key == unsigned.site.key and signed.lease is unsigned.lease


@pytest.mark.parametrize(("usage", "sessions"), [(3, 1), (2, 4)])
async def test_a_certificate_of_one_domain_carries_no_mail_of_another(usage: int, sessions: int) -> None:
    """An issuer's record lets in whoever has a certificate for the domain: for that domain only."""
    middle = Pki(issuer=Pki())
    context = middle.server("peer.example", "b.example")
    certificate = authority(middle) if usage == 2 else chain_of(context)[0]
    async with open_peer(tls=context) as peer:
        resolver = local(peer, tlsa(certificate, usage, 1, 1))
        async with open_bench(by_mx(peer, idle_timeout=5), resolver=resolver) as b:
            for n, domain in enumerate(("peer", "b", "b", "peer", "b"), 1):
                await b.submit(f"u{n}@{domain}.local", routing_domain=f"{domain}.example")
                await b.records("Delivery", n)
            assert len({record.session_id for record in b.recorded("Delivery")}) == sessions
            for record in b.recorded("Delivery"):
                name = "peer" if "@peer" in str(record.recipient) else "b"
                assert usage == 3 or str(record.tls_why).endswith(f"chain verified for {name}.example")


async def test_a_certificate_of_a_domain_gets_no_password() -> None:
    """Whoever owns any domain with this host has one; the host itself is what the password is for."""
    middle = Pki(issuer=Pki())
    async with open_peer(tls=middle.server("peer.example")) as peer:
        resolver = local(peer, tlsa(authority(middle), 2, 1, 1))
        login = {"smtp_auth_plain_username": "scott", "smtp_auth_plain_password": {"key_data": "tiger"}}
        for number, path in enumerate((login, {}), 1):
            async with open_bench(by_mx(peer, **path), resolver=resolver) as b:
                await b.submit("u@x.example", routing_domain="peer.example")
                record = await b.first()
                assert record.type == ("TransientFailure", "Delivery")[number - 1]
                assert number == 2 or "matches an issuer, but for mx.peer.example" in str(record.content)


@pytest.mark.parametrize("mode", MODES)
def test_it_only_ever_tightens(mode: str) -> None:
    before = TlsNeed.of(make_egress_path(enable_tls=mode))  # type: ignore[arg-type]
    for result in ("insecure_chain", "not_applicable"):
        assert Dane(result, "").tightened(before) is before  # type: ignore[arg-type]
    unusable = Dane("unusable", "", base=MX).tightened(before)
    assert unusable.required and unusable.verify == before.verify


@pytest.mark.parametrize("mode", MODES)
def test_dane_comes_before_mta_sts(mode: str) -> None:
    """RFC 8461 2: a match is enough; where no record is usable the policy's demand stays (egress 3.3)."""
    policy = TlsNeed.of(make_egress_path(enable_tls=mode)).tightened("MTA-STS", verify=True)  # type: ignore[arg-type]
    checked = Dane("ok", "", DaneCheck(usable([EE]), (MX,)), MX).tightened(policy)
    assert checked.required and checked.check is not None and not checked.verify
    assert Dane("unusable", "", base=MX).tightened(policy).verify


async def test_a_host_that_a_policy_does_not_name_needs_a_record_that_matches() -> None:
    context = Pki().server("other.example")
    match = DaneCheck(usable([tlsa(chain_of(context)[0], 3, 1, 1)]), (NAME,))
    other = DaneCheck(usable([EE]), (NAME,))
    sts = Sts("enforce", unnamed=(NAME,))
    async with open_peer(tls=context) as peer, open_dial() as dial:
        path = make_egress_path(enable_dane=True)
        for dane in (Dane("not_applicable", "no TLSA"), Dane("unusable", "none usable", base=NAME), None):
            with pytest.raises(NoHostReached, match=r"does not name it, and no TLSA record says who it is"):
                await dial(path, peer, sts=sts, dane=dane)
        assert not peer.commands
        with pytest.raises(TlsRequired, match="none of the TLSA records"):
            await dial(path, peer, sts=sts, dane=Dane("ok", "", other, NAME))
        assert inside(peer) == []
        connection = await dial(path, peer, sts=sts, dane=Dane("ok", "", match, NAME))
        assert connection.stream.tls is not None and connection.stream.tls.verified


@pytest.mark.parametrize("dane", [True, False])
@pytest.mark.parametrize("secure", [True, False])
def test_where_a_host_may_do_without_being_named(secure: bool, dane: bool) -> None:
    policy = parse_policy(b"version: STSv1\r\nmode: enforce\r\nmx: mx.peer.example\r\nmax_age: 86400\r\n")
    site = make_site([MxHost(10, MX), MxHost(20, "other.example")], secure=secure)
    left = narrowed(site, "peer.example", policy, dane=dane)
    if secure and dane:
        assert left.hosts == site.hosts and left.sts == Sts("enforce", unnamed=("other.example",))
    else:
        assert [host.host for host in left.hosts] == [MX] and left.sts == Sts("enforce")
    assert left.secure is secure
