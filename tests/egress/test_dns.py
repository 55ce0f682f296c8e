"""The real stub resolver against a real server on loopback."""

from __future__ import annotations

from pathlib import Path

import dns.message
import dns.rrset
import pytest
import trio

from engine.egress.dns import Answer, HostsFile, StubResolver
from engine.egress.resolve import Resolver
from engine.egress.site import Site
from engine.errors import ConfigError, ResolveError
from tests.support.fakedns import REFUSED, SERVFAIL, TIMEOUT, Zones, serve_dns
from tests.support.ports import free_port

ZONES: Zones = {
    "example.com": {"MX": ["10 mx1.example.com.", "20 MX2.example.com."], "ttl": 77},
    "mx1.example.com": {"A": ["198.51.100.1", "198.51.100.2"], "AAAA": ["2001:db8::1"]},
    "alias.example": {"CNAME": ["example.com."]},
    "null.example": {"MX": ["0 ."]},
    "odd.example": {"MX": ["10 a\\032b.example."]},
    "many.example": {"MX": [f"{i} mail-exchanger-number-{i}.many.example." for i in range(100)]},
    "broken.example": {"MX": SERVFAIL},
    "closed.example": {"MX": REFUSED},
    "slow.example": {"MX": TIMEOUT},
    **{f"c{i}.example": {"CNAME": [f"c{i + 1}.example."]} for i in range(12)},
    "c12.example": {"A": ["198.51.100.9"]},
}


async def test_answers() -> None:
    async with serve_dns(ZONES) as server:
        client = StubResolver([server])
        mx = await client.query("example.com", "MX")
        assert (mx.status, mx.ttl) == ("found", 77)
        assert sorted(mx.records) == [(10, "mx1.example.com"), (20, "MX2.example.com")]
        assert sorted((await client.query("alias.example", "MX")).records) == sorted(mx.records)
        a = await client.query("mx1.example.com", "A")
        assert sorted(a.records) == [(0, "198.51.100.1"), (0, "198.51.100.2")]
        assert (await client.query("mx1.example.com", "AAAA")).records == ((0, "2001:db8::1"),)
        assert (await client.query("null.example", "MX")).records == ((0, ""),)
        assert await client.query("mx1.example.com", "MX") == Answer("empty", (), 300)
        assert (await client.query("nowhere.example", "A")).status == "nxdomain"
        assert (await client.query("c4.example", "A")).records == ((0, "198.51.100.9"),)


async def test_long_answers_come_by_tcp() -> None:
    async with serve_dns(ZONES) as server:
        assert len((await StubResolver([server]).query("many.example", "MX")).records) == 100


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("broken.example", "MX", "SERVFAIL"),
        ("closed.example", "MX", "REFUSED"),
        ("c0.example", "A", "8 aliases"),
    ],
)
async def test_failures_say_why(name: str, kind: str, says: str) -> None:
    async with serve_dns(ZONES) as server:
        with pytest.raises(ResolveError, match=says):
            await StubResolver([server]).query(name, kind)  # type: ignore[arg-type]


async def test_a_silent_server_is_given_up_and_cancellation_is_prompt() -> None:
    async with serve_dns(ZONES) as server:
        resolver = Resolver(StubResolver([server]), lookup_seconds=0.1)
        with pytest.raises(ResolveError, match=r"no answer in 0\.1 s"):
            await resolver.site_for("slow.example")
        with trio.move_on_after(0.1) as scope:
            await Resolver(StubResolver([server])).site_for("slow.example")
        assert scope.cancelled_caught


async def test_a_dead_server_names_itself() -> None:
    port = free_port()
    client = StubResolver([f"127.0.0.1:{port}"])
    assert client._resolver is not None
    client._resolver.timeout, client._resolver.lifetime = 0.1, 0.2
    with pytest.raises(ResolveError, match=f"127.0.0.1@{port}: timed out"):
        await Resolver(client).site_for("example.com")


async def test_garbage_and_strangers_do_not_end_the_wait() -> None:
    udp = trio.socket.SOCK_DGRAM
    with trio.socket.socket(type=udp) as server, trio.socket.socket(type=udp) as stranger:
        await server.bind(("127.0.0.1", 0))
        await stranger.bind(("127.0.0.1", 0))

        async def answer() -> None:
            wire, peer = await server.recvfrom(4096)
            query = dns.message.from_wire(wire)
            good = dns.message.make_response(query)
            good.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", "198.51.100.1"))
            lie = dns.message.make_response(query)
            lie.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", "203.0.113.66"))
            await stranger.sendto(lie.to_wire(), peer)
            lie.id = (query.id + 1) & 0xFFFF
            await server.sendto(lie.to_wire(), peer)
            await server.sendto(b"\x00garbage", peer)
            await server.sendto(good.to_wire(), peer)

        client = StubResolver([f"127.0.0.1:{server.getsockname()[1]}"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            found = await client.query("example.com", "A")
    assert found.records == ((0, "198.51.100.1"),)


async def test_resolv_conf_is_read_and_a_missing_one_is_a_temporary_failure(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    client = StubResolver(resolv_conf=str(path))
    with pytest.raises(ResolveError, match="no name server"):
        await client.query("example.com", "MX")
    async with serve_dns(ZONES) as server:
        address, _, port = server.partition(":")
        path.write_text(f"nameserver {address}\n")
        configured = await client._configured()
        assert configured is not None and [str(each) for each in configured.nameservers] == ["127.0.0.1"]
        configured.port = int(port)
        assert (await client.query("example.com", "MX")).status == "found"


@pytest.mark.parametrize("server", ["ns.example.com", "127.0.0.1:x", ""])
def test_servers_are_addresses(server: str) -> None:
    with pytest.raises(ConfigError, match=r"name server .*POSTHORN_DNS_SERVERS"):
        StubResolver([server])


async def test_a_missing_hosts_file_is_an_empty_one(tmp_path: Path) -> None:
    assert await HostsFile(str(tmp_path / "none")).addresses("x") == ()


async def test_whole_road_over_the_wire() -> None:
    async with serve_dns(ZONES) as server:
        resolver = Resolver(StubResolver([server]))
        site = await resolver.site_for("alias.example")
        assert isinstance(site, Site) and site.name == "(mx1|mx2).example.com"
        plan = await resolver.plan(site)
        assert {each.address for each in plan.candidates} == {"198.51.100.1", "198.51.100.2", "2001:db8::1"}
