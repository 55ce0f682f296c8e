"""Rates and counts of a path, kept whatever is going on around them (egress specification 3, 7.6).

`max_connection_rate` counts every connection, also those that come to nothing; `max_message_rate`
every message of a ready queue's name, whatever its path; the queue's own rate before both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from engine.queues.limits import Rate
from tests.support.bench import AUTH, login, to
from tests.support.peer import DROP, PLAIN, FakePeer, Wire, open_peer


def gaps(times: list[float]) -> list[float]:
    return [round(after - before, 3) for before, after in pairwise(times)]


async def test_connections_no_faster_than_their_rate(bench: Any, clock: MockClock) -> None:
    path = {"max_connection_rate": "1/2s,max_burst=1", "max_deliveries_per_connection": 1}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit_many(6)
        await b.records("Delivery", 6, seconds=60)
        assert peer.connections == 6 and min(gaps(peer.times)) >= 2.0 and max(gaps(peer.times)) < 2.1


async def test_not_though_a_session_is_ready_meanwhile(bench: Any, clock: MockClock) -> None:
    """A session that becomes ready ends a back-off, and not the wait for a rate."""
    async with open_peer() as peer:
        peer.replies["."] = "250 ok"
        async with bench(to(peer, max_connection_rate="1/2s,max_burst=1", idle_timeout=1)) as b:
            for _ in range(12):
                await b.submit_many(5)
                await trio.sleep(1.1)
            await b.records("Delivery", 60, seconds=60)
            assert min(gaps(peer.times)) >= 2.0


@pytest.mark.parametrize("trouble", ["421 no", DROP])
async def test_connections_that_come_to_nothing_count(trouble: str, bench: Any, clock: MockClock) -> None:
    """Each candidate of a plan is a connection of its own."""
    refusing: dict[str, Any] = {"replies": {"connect": trouble}}
    async with open_peer(**refusing) as one, open_peer(**refusing) as two, open_peer(**refusing) as three:
        async with bench(to(one, two, three, max_connection_rate="1/min", idle_timeout=5)) as b:
            await b.submit_many(5)
            await trio.sleep(50)
            assert one.connections + two.connections + three.connections == 1
            assert "max_connection_rate" in b.log.records[0].content


async def test_a_second_try_in_clear_counts(bench: Any, clock: MockClock) -> None:
    """After a handshake that failed the same host is met once more: that is a connection like any other."""

    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS", *PLAIN)
        await wire.line()
        await wire.say("220 go")
        await wire.more()
        await wire.say("500 what?")

    async with open_peer(script) as peer:
        path = {
            "enable_tls": "Opportunistic",
            "opportunistic_tls_reconnect_on_failed_handshake": True,
            "max_connection_rate": "1/min",
            "idle_timeout": 5,
        }
        async with bench(to(peer, **path)) as b:
            await b.submit()
            await trio.sleep(50)
            assert peer.connections == 1
            await trio.sleep(60)
            assert peer.connections == 2 and min(gaps(peer.times)) >= 60


async def test_a_second_try_with_a_rotated_secret_counts(bench: Any, clock: MockClock) -> None:
    secrets = ["old", "new"]

    def secret() -> str:
        return secrets[0]

    async with open_peer(capabilities=[*PLAIN, "AUTH PLAIN"]) as peer:

        def judge(line: str) -> str:
            return "235 ok" if login(line) == ("scott", "new") else "535 no"

        peer.replies["AUTH"] = judge
        path = {
            **AUTH,
            "smtp_auth_plain_password": {"event_name": "secret", "event_args": []},
            "max_connection_rate": "1/min",
            "idle_timeout": 5,
        }
        async with bench({**to(peer, **path), "secret": secret}) as b:
            await b.submit()
            await b.first()
            del secrets[0]
            await trio.sleep(200)
            assert b.recorded("Delivery") and min(gaps(peer.times)) >= 60


@pytest.mark.parametrize("idle", [0.01, 30])
async def test_messages_no_faster_than_their_rate(idle: float, bench: Any, clock: MockClock) -> None:
    """The connection is kept for a short wait and closed for a long one; either way nothing fails."""
    async with open_peer() as peer:
        async with bench(to(peer, max_message_rate="10/s,max_burst=1", idle_timeout=idle)) as b:
            for i in range(12):
                await b.submit(f"u@d{i % 3}.example")
            await b.records("Delivery", 12, seconds=60)
            assert 1.09 < clock.current_time() < 1.5
            assert set(b.log.kinds()) == {"Delivery"}


async def test_messages_are_counted_across_paths(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer:
        hooks = to(peer)
        hooks["get_egress_path_config"] = lambda domain, egress_source, site_name: policy.make_egress_path(
            enable_tls="Disabled", max_message_rate="10/s,max_burst=1", provider_name=domain
        )
        async with bench(hooks) as b:
            for i in range(12):
                await b.submit(f"u@d{i % 3}.example")
            await b.records("Delivery", 12, seconds=60)
            assert 1.09 < clock.current_time() < 1.5


@pytest.mark.parametrize("limit", [1, 32])
async def test_a_slow_rate_opens_no_connection_without_a_message(
    limit: int, bench: Any, clock: MockClock
) -> None:
    path = {"connection_limit": limit, "max_message_rate": "1/20s,max_burst=1", "idle_timeout": 3}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit_many(20)
        await trio.sleep(200)
        assert peer.connections == len(peer.arrived) == peer.words().count("MAIL")
        assert 10 <= len(peer.arrived) <= 11


async def test_a_message_does_not_wait_for_the_turn_of_the_next(bench: Any, clock: MockClock) -> None:
    path = {"connection_limit": 1, "max_message_rate": "1/10s,max_burst=1", "idle_timeout": 60}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit_many(3)
        await b.records("Delivery")
        assert clock.current_time() < 1
        await b.records("Delivery", 3, seconds=60)
        assert peer.connections == 1


async def test_batches_of_one_message_count(bench: Any, clock: MockClock) -> None:
    path = {"max_message_rate": "1/2s,max_burst=1", "max_recipients_per_batch": 1, "idle_timeout": 10}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit([f"p{i}@example.com" for i in range(5)])
        await b.records("Delivery", 5, seconds=60)
        assert clock.current_time() >= 8


async def test_the_rate_of_a_queue(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer:
        async with bench(to(peer, queue={"max_message_rate": "10/s,max_burst=1"})) as b:
            await b.submit_many(12)
            await b.records("Delivery", 12, seconds=60)
            assert 1.09 < clock.current_time() < 1.5
            assert set(b.log.kinds()) == {"Delivery"}


async def test_waiting_for_the_rate_of_a_queue_costs_next_to_nothing(
    bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    take = Rate.take

    def counted(rate: Rate, now: float) -> float:
        nonlocal asked
        asked += 1
        return take(rate, now)

    async with open_peer() as peer:
        async with bench(to(peer, queue={"max_message_rate": "20/s,max_burst=1"})) as b:
            await b.submit_many(1000)
            await trio.sleep(1)
            monkeypatch.setattr(Rate, "take", counted)
            before = len(peer.arrived)
            await trio.sleep(2)
            assert asked < 50 * (len(peer.arrived) - before)


# Counts


@pytest.mark.parametrize("failures", [1, 3])
async def test_how_many_failures_put_off_the_whole_queue(failures: int, bench: Any, clock: MockClock) -> None:
    async def script(wire: Wire) -> None:
        await trio.sleep(1)
        await wire.say("554 no")

    option = {"consecutive_connection_failures_before_delay": failures, "connection_limit": 1}
    async with open_peer(script) as peer, bench(to(peer, **option)) as b:
        await b.submit_many(10)
        await b.records("TransientFailure", 10, seconds=20)
        assert peer.connections == failures


async def test_the_retry_interval_doubles_up_to_its_cap(bench: Any, clock: MockClock) -> None:
    queue = {"retry_interval": 100, "max_retry_interval": 300}
    async with open_peer(replies={"MAIL": "451 later"}) as peer, bench(to(peer, queue=queue)) as b:
        await b.submit()
        await b.records("TransientFailure", 5, seconds=2000)
        assert peer.connections == 5
        assert [record.num_attempts for record in b.log.records] == [1, 2, 3, 4, 5]
        for gap, wanted in zip(gaps(peer.times), [100, 200, 300, 300], strict=True):
            assert wanted - 3 <= gap <= wanted + 3


@pytest.mark.parametrize(
    "size", ["SIZE " + "9" * 5000, "SIZE ٣", "SIZE -5", "SIZE +5", "SIZE 1_0", "SIZE 0", "SIZE"]
)
async def test_a_size_that_is_no_number_is_no_limit(size: str, bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=[size]) as peer, bench(to(peer)) as b:
        await b.submit()
        assert (await b.first()).type == "Delivery"


async def test_what_the_peer_s_size_does_not_allow_is_not_tried(bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=["SIZE 100"]) as peer, bench(to(peer)) as b:
        await b.submit(body=b"Subject: x\r\n\r\n" + b"x" * 100 + b"\r\n")
        record = await b.first()
        assert (record.type, record.enhanced_code) == ("Bounce", "5.3.4") and "MAIL" not in peer.words()


@pytest.mark.parametrize("ignored", [False, True])
async def test_8_bit_mail_to_a_peer_that_does_not_take_it(
    ignored: bool, bench: Any, clock: MockClock
) -> None:
    async with open_peer(capabilities=["PIPELINING"]) as peer:
        async with bench(to(peer, ignore_8bit_checks=ignored)) as b:
            await b.submit(body="Subject: x\r\n\r\né\r\n".encode())
            await b.submit("é@example.com", smtputf8=True)
            await b.until(lambda: len(b.log.records) == 2)
            codes = {(record.type, record.enhanced_code) for record in b.log.records}
            if ignored:
                assert codes == {("Delivery", "2.0.0")}
            else:
                assert codes == {("Bounce", "5.6.3"), ("Bounce", "5.6.7")} and "MAIL" not in peer.words()


@pytest.mark.parametrize(
    ("strategy", "tried"),
    [("Ipv4Only", "127.0.0.1"), ("Ipv6Only", "::1"), ("Ipv4ThenIpv6", "127.0.0.1"), ("Ipv6ThenIpv4", "::1")],
)
async def test_which_addresses_of_a_host_are_tried(
    strategy: str, tried: str, bench: Any, clock: MockClock
) -> None:
    """A host with one address of each family; nobody listens at the newer one."""
    async with open_peer() as peer:
        queue = {"protocol": {"smtp": {"mx_list": [f"localhost:{peer.port}"]}}}
        async with bench(to(queue=queue, ip_lookup_strategy=strategy)) as b:
            await b.submit()
            record = await b.first()
            if tried == "::1":
                assert record.type == "TransientFailure"
                assert f"localhost[::1]:{peer.port}" in record.content and "127.0.0.1" not in record.content
            else:
                assert (record.type, record.peer_addr) == ("Delivery", tried)


async def test_which_port_goes_first(bench: Any, clock: MockClock) -> None:
    """The source's, else the one that was written with the host, else the path's."""
    async with open_peer() as path, open_peer() as host, open_peer() as source:
        expected: list[tuple[str, int | None, FakePeer]] = [
            ("127.0.0.1", None, path),
            (f"127.0.0.1:{host.port}", None, host),
            (f"127.0.0.1:{host.port}", source.port, source),
        ]
        for entry, remote_port, wanted in expected:
            hooks = to(
                smtp_port=path.port, queue={"egress_pool": "p", "protocol": {"smtp": {"mx_list": [entry]}}}
            )
            hooks["get_egress_pool"] = lambda name: policy.make_egress_pool(
                name=name, entries=[{"name": "s"}]
            )
            hooks["get_egress_source"] = lambda name, port=remote_port: policy.make_egress_source(
                name=name, remote_port=port
            )
            async with bench(hooks) as b:
                await b.submit()
                await b.records("Delivery")
                assert len(wanted.arrived) == 1


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("p.example", "s.example", "p.example"),
        (None, "s.example", "s.example"),
        (None, None, "relay.example"),
        ("[192.0.2.1]", None, "[192.0.2.1]"),
    ],
)
async def test_which_name_is_said(
    path: str | None, source: str | None, said: str, bench: Any, clock: MockClock
) -> None:
    async with open_peer() as peer:
        hooks = to(peer, queue={"egress_pool": "p"}, ehlo_domain=path, provider_name="prov")
        hooks["get_egress_pool"] = lambda name: policy.make_egress_pool(name=name, entries=[{"name": "s"}])
        hooks["get_egress_source"] = lambda name: policy.make_egress_source(
            name=name, ehlo_domain=source, source_address="127.0.0.7"
        )
        async with bench(hooks) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert peer.commands[0] == f"EHLO {said}"
            assert (record.source_address, record.provider_name) == ("127.0.0.7", "prov")
