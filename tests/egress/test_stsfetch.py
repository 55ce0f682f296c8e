"""engine/egress/stsfetch: real HTTPS, and whatever a policy server may do wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engine.egress import stsfetch
from engine.egress.mta_sts import Policy
from engine.egress.resolve import Resolver
from engine.egress.stsfetch import LARGEST, Fetcher, NoPolicy
from engine.errors import ConfigError
from policy.nets import SocketAddress
from tests.support.certificates import Authority
from tests.support.fakedns import SERVFAIL, StaticDns, Zones
from tests.support.pki import Pki
from tests.support.policyserver import PolicyServer, serve_policies, text

NAME = "mta-sts.a.example"
GOOD = text("enforce", "mx.a.example")
PLAIN = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> str:
    return str(authority.write(tmp_path / "ca.pem"))


@pytest.fixture
def server(authority: Authority) -> Iterator[PolicyServer]:
    with serve_policies(authority.server_context(NAME)) as running:
        running.answers["a.example"] = GOOD
        yield running


def fetcher(ca: str | None, server: PolicyServer | None, zones: Zones | None = None) -> Fetcher:
    gateway = SocketAddress("127.0.0.1", server.port) if server is not None else None
    return Fetcher(Resolver(StaticDns(zones or {})), ca=ca, gateway=gateway)


async def failure(fetching: Fetcher, domain: str = "a.example", **options: Any) -> str:
    with pytest.raises(NoPolicy) as caught:
        await fetching.fetch(domain, **options)
    return str(caught.value)


async def test_a_policy(ca: str, server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert await fetcher(ca, server).fetch("a.example") == Policy("enforce", ("mx.a.example",), 604800)
    assert server.asked == [(NAME, "/.well-known/mta-sts.txt")]
    assert "Cookie" not in server.headers[0] and server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            (301, {"Location": "https://mta-sts.a.example/elsewhere"}, b""),
            "answers 301, and a redirect is not",
        ),
        ((204, PLAIN, b""), "answers 204; right would be 200"),
        ((203, PLAIN, GOOD), "answers 203"),
        ((500, PLAIN, GOOD), "answers 500"),
        ((200, {"Content-Type": "text/html"}, GOOD), "media type 'text/html'; right would be text/plain"),
        ((200, {}, GOOD), "media type ''"),
        ((200, PLAIN, GOOD + b"x: y\r\n" * 12000), f"more than {LARGEST} octets"),
        ((200, PLAIN, b"version: STSv1\n"), "is no policy: mode is missing"),
    ],
)
async def test_answers_that_are_none(ca: str, server: PolicyServer, answer: Any, why: str) -> None:
    server.answers["a.example"] = answer
    assert why in await failure(fetcher(ca, server))
    assert len(server.asked) == 1


async def test_the_media_type_may_have_parameters(ca: str, server: PolicyServer) -> None:
    server.answers["a.example"] = (200, {"Content-Type": "Text/Plain; charset=utf-8"}, GOOD)
    assert (await fetcher(ca, server).fetch("a.example")).mode == "enforce"


@pytest.mark.parametrize("wrong", ["name", "authority", "expired", "common name"])
async def test_the_certificate_is_verified(ca: str, tmp_path: Path, wrong: str) -> None:
    pki = Pki()
    if wrong != "authority":
        (tmp_path / "pki.pem").write_bytes(pki.pem)
        ca = str(tmp_path / "pki.pem")
    context = {
        "name": lambda: pki.server("a.example"),
        "authority": lambda: pki.server(NAME),
        "expired": lambda: pki.server(NAME, days=(-3, -1)),
        "common name": lambda: pki.server(common_name=NAME),
    }[wrong]()
    with serve_policies(context) as server:
        server.answers["a.example"] = GOOD
        assert "certificate is not valid" in await failure(fetcher(ca, server))
        assert server.asked == []


async def test_without_a_ca_the_system_s_roots_are_used(
    ca: str, server: PolicyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "certificate is not valid" in await failure(fetcher(None, server))
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    assert (await fetcher(None, server).fetch("a.example")).mode == "enforce"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
async def test_no_stranger_s_name_leads_into_our_own_network(ca: str, address: str) -> None:
    zones: Zones = {NAME: {"AAAA" if ":" in address else "A": [address]}}
    assert "has no address that may be asked" in await failure(fetcher(ca, None, zones))


async def test_the_address_that_was_looked_at_is_the_one_that_is_asked(
    ca: str, server: PolicyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's domain may be on this machine; names are resolved once, by our resolver."""
    monkeypatch.setattr(stsfetch, "_PORT", server.port)
    dns = StaticDns({NAME: {"A": ["127.0.0.9", "127.0.0.1"]}})
    fetching = Fetcher(Resolver(dns), ca=ca)
    assert (await fetching.fetch("a.example", route=True)).mode == "enforce", "the second address answers"
    assert dns.asked[NAME, "A"] == 1
    assert "is a loopback address" in await failure(fetching)
    assert dns.asked[NAME, "A"] == 1


@pytest.mark.parametrize(
    ("zones", "why"),
    [
        ({}, "mta-sts.a.example has no address"),
        ({NAME: {"A": SERVFAIL, "AAAA": SERVFAIL}}, "SERVFAIL"),
    ],
)
async def test_a_server_that_cannot_be_found(ca: str, zones: Zones, why: str) -> None:
    assert why in await failure(fetcher(ca, None, zones))


async def test_a_server_that_is_not_there(ca: str, server: PolicyServer) -> None:
    fetching = Fetcher(Resolver(StaticDns({})), ca=ca, gateway=SocketAddress("127.0.0.1", 1))
    assert "failed" in await failure(fetching)


@pytest.mark.parametrize("slow", ["silent", "dripping"])
async def test_a_slow_server_is_left(
    ca: str, authority: Authority, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence and drops alike: the fetch as a whole has its time."""
    monkeypatch.setattr(stsfetch, "SECONDS", 1.0)
    context = authority.server_context(NAME)

    async def serve(stream: trio.SocketStream) -> None:
        ssl_stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            if slow == "dripping":
                await ssl_stream.receive_some()
                await ssl_stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
                while True:
                    await ssl_stream.send_all(b"version")
                    await trio.sleep(0.1)
            await trio.sleep_forever()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        fetching = Fetcher(Resolver(StaticDns({})), ca=ca, gateway=SocketAddress("127.0.0.1", port))
        begun = time.monotonic()
        said = await failure(fetching)
        assert "no answer in time" in said or "did not answer in 1 s" in said
        assert time.monotonic() - begun < 5
        nursery.cancel_scope.cancel()


async def test_roots_are_read_once_for_a_crowd_and_stay_when_they_are_gone(
    ca: str, server: PolicyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str | None] = []
    make = stsfetch._make_context

    def counted(ca: str | None) -> Any:
        made.append(ca)
        return make(ca)

    monkeypatch.setattr(stsfetch, "_make_context", counted)
    fetching = fetcher(ca, server)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(fetching.fetch, "a.example")
    assert made == [ca]
    Path(ca).unlink()
    monkeypatch.setattr(stsfetch, "_ROOTS_KEPT", -1.0)
    assert (await fetching.fetch("a.example")).mode == "enforce"
    assert made == [ca, ca] and f"{ca} cannot be read" in caplog.text


async def test_what_a_server_says_is_cut_short(ca: str, authority: Authority) -> None:
    """Reasons are kept for each domain."""
    context = authority.server_context(NAME)

    async def serve(stream: trio.SocketStream) -> None:
        ssl_stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await ssl_stream.receive_some()
        await ssl_stream.send_all(b"HTTP/1.1 " + b"\0" * 90000 + b"\r\n\r\n")
        await ssl_stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        fetching = Fetcher(Resolver(StaticDns({})), ca=ca, gateway=SocketAddress("127.0.0.1", port))
        said = await failure(fetching)
        assert "illegal status line" in said and len(said) < 300
        nursery.cancel_scope.cancel()


async def test_a_crowd_of_slow_servers_makes_nobody_else_fail(
    ca: str, server: PolicyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a stranger who owns many domains could switch off the policies of others."""
    monkeypatch.setattr(stsfetch, "SECONDS", 1.0)
    monkeypatch.setattr(stsfetch, "AT_ONCE", 2)
    fetching = fetcher(ca, server)
    get = fetching._get
    slow: list[str] = []

    async def tardy(host: str, *rest: Any) -> bytes:
        if host != NAME:
            slow.append(host)
            await trio.sleep_forever()
        return await get(host, *rest)

    monkeypatch.setattr(fetching, "_get", tardy)
    await fetching.check()
    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(failure, fetching, f"slow{n}.example")
        await trio.testing.wait_all_tasks_blocked()
        assert len(slow) == 2
        assert (await fetching.fetch("a.example")).mode == "enforce"
        assert len(slow) == 4


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
async def test_a_ca_that_cannot_be_used_is_an_error_at_the_start(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"configure_mta_sts: ca=.*cannot be used.*right would be"):
        await fetcher(str(file), None).check()


async def test_a_ca_that_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="cannot be used: it is a FIFO"):
        await fetcher(str(tmp_path / "ca.pem"), None).check()
