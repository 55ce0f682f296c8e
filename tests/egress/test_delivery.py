"""engine/egress router, session, settle, dial together, against a peer that does what the test says."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support import bench as support
from tests.support.peer import DROP, HANG, FakePeer, Wire, open_peer


def to(*peers: FakePeer, queue: dict[str, Any] | None = None, **path: Any) -> support.HookSet:
    """Hooks that route everything to these peers and have failed messages tried again almost at once."""
    return support.to(*peers, queue={"retry_interval": 0.05, **(queue or {})}, **path)


async def test_a_message_arrives_byte_for_byte(bench: Any) -> None:
    body = b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nno final line end"
    async with open_peer() as peer, bench(to(peer)) as b:
        await b.submit(body=body)
        (record,) = await b.records("Delivery")
        assert peer.arrived[0].data == body + b"\r\n"
        assert (peer.arrived[0].sender, peer.arrived[0].recipients) == (
            "alice@sender.example",
            ["bob@example.com"],
        )
        assert record.code == 250 and record.peer_addr == "127.0.0.1" and record.session_id
        assert b.spool.statistics().messages == 0


async def test_a_run_of_messages_travels_pipelined_over_few_connections(bench: Any) -> None:
    async with open_peer() as peer, bench(to(peer, connection_limit=1)) as b:
        for _ in range(50):
            await b.submit()
        await b.records("Delivery", 50)
        assert peer.connections == 1
        assert len(peer.arrived) == 50


async def test_a_host_that_stumbles_over_pipelining_is_spoken_to_plainly(bench: Any) -> None:
    async with open_peer(stumbles=True) as peer:
        hooks = to(peer, connection_limit=1, mail_from_timeout=0.2, rset_timeout=0.2)
        async with bench(hooks) as b:
            for _ in range(10):
                await b.submit()
            await b.records("Delivery", 10)
            assert len(peer.arrived) == 10
            assert "TransientFailure" not in b.log.kinds()
            assert b.router.services.stumblers.has("127.0.0.1")


async def test_pipelining_across_messages_can_be_switched_off(bench: Any) -> None:
    async with open_peer(stumbles=True) as peer:
        async with bench(to(peer, connection_limit=1, enable_pipelining_across_messages=False)) as b:
            for _ in range(5):
                await b.submit()
            await b.records("Delivery", 5)
            assert peer.connections == 1 and not b.router.services.stumblers.has("127.0.0.1")


@pytest.mark.parametrize("ahead", [False, True], ids=["plain", "PIPELINING"])
async def test_without_pipelining_nothing_is_sent_ahead(ahead: bool, bench: Any, clock: MockClock) -> None:
    early: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.greet("PIPELINING" if ahead else "8BITMIME")
        while True:
            word = await wire.word()
            with trio.move_on_after(1):  # whatever comes before the reply
                await wire.more()
            early.append(bytes(wire.buffer))
            await wire.say("354 go ahead" if word == "DATA" else "250 ok")
            if word == "DATA":
                await wire.data()
                await wire.say("250 ok")

    async with open_peer(script) as peer, bench(to(peer, connection_limit=1)) as b:
        for _ in range(5):
            await b.submit()
        await b.records("Delivery", 5, seconds=60)
    assert len(early) >= 15 and any(early) is ahead


async def test_a_4xx_is_retried_by_the_schedule(bench: Any) -> None:
    async with open_peer(replies={"RCPT": ["451 4.2.1 later", "250 ok"]}) as peer, bench(to(peer)) as b:
        await b.submit()
        (failure,) = await b.records("TransientFailure")
        assert (failure.code, failure.num_attempts) == (451, 1)
        assert failure.next_due is not None and failure.next_due > time.time() - 1
        (delivery,) = await b.records("Delivery")
        assert delivery.num_attempts == 1


async def test_a_5xx_bounces_that_recipient_only(bench: Any) -> None:
    def rcpt(line: str) -> str:
        return "550 5.1.1 who?" if "eve" in line else "250 ok"

    async with open_peer(replies={"RCPT": rcpt}) as peer, bench(to(peer)) as b:
        await b.submit(["eve@example.com", "bob@example.com"])
        (bounce,) = await b.records("Bounce")
        (delivery,) = await b.records("Delivery")
        assert bounce.recipient == "eve@example.com" and delivery.recipient == "bob@example.com"
        assert b.spool.statistics().messages == 0


async def test_only_recipients_without_a_result_are_tried_again(bench: Any) -> None:
    answers = {"bob": ["450 4.2.1 busy", "250 ok"], "carol": ["250 ok"]}

    def rcpt(line: str) -> str:
        name = "bob" if "bob" in line else "carol"
        return answers[name].pop(0)

    async with open_peer(replies={"RCPT": rcpt}) as peer, bench(to(peer)) as b:
        await b.submit(["bob@example.com", "carol@example.com"])
        await b.records("Delivery", 2)
        assert [a.recipients for a in peer.arrived] == [["carol@example.com"], ["bob@example.com"]]


async def test_a_lost_answer_to_the_dot_is_uncertain_and_retried(bench: Any) -> None:
    async with open_peer(replies={".": [DROP, "250 taken"]}) as peer, bench(to(peer)) as b:
        await b.submit()
        (failure,) = await b.records("TransientFailure")
        assert "twice" in failure.content and failure.num_attempts == 1
        await b.records("Delivery")
        assert len(peer.arrived) == 2
        assert b.router.settler.counters.uncertain == 1


async def test_a_silent_peer_meets_the_time_limit_of_the_stage(bench: Any) -> None:
    async with open_peer(replies={"MAIL": [HANG, "250 ok"]}) as peer:
        async with bench(to(peer, mail_from_timeout=0.1)) as b:
            await b.submit()
            (failure,) = await b.records("TransientFailure")
            assert failure.code == 421 and "MAIL FROM" in failure.content
            await b.records("Delivery")


async def test_a_reused_session_that_died_is_no_attempt(bench: Any) -> None:
    """The peer closes after each message; the next one simply goes over a new connection."""
    async with open_peer(replies={".": "421 4.3.2 taken? no, bye"}) as peer:
        peer.replies["."] = "250 taken"
        async with bench(to(peer, enable_pipelining_across_messages=False, connection_limit=1)) as b:
            count = 0

            def mail(line: str) -> str:
                nonlocal count
                count += 1
                return DROP if count == 2 else "250 ok"

            peer.replies["MAIL"] = mail
            await b.submit()
            await b.records("Delivery")
            await b.submit()
            await b.records("Delivery", 2)
            assert "TransientFailure" not in b.log.kinds()
            assert peer.connections == 2


async def test_no_host_reached_is_retried_and_names_each_host(bench: Any) -> None:
    async with open_peer() as peer:
        async with bench(to(peer)) as b:
            peer.replies["connect"] = "554 5.3.2 no"
            await b.submit()
            (failure,) = await b.records("TransientFailure")
            assert failure.code == 451 and "127.0.0.1" in failure.content and "554" in failure.content
            peer.replies["connect"] = "220 hello"
            await b.records("Delivery")


async def test_the_next_host_is_tried(bench: Any) -> None:
    async with open_peer(replies={"connect": "421 4.3.2 busy"}) as one, open_peer() as two:
        async with bench(to(one, two)) as b:
            await b.submit()
            await b.records("Delivery")
            assert one.connections == 1 and len(two.arrived) == 1


async def test_required_tls_that_is_not_offered_holds_without_an_attempt(bench: Any) -> None:
    async with open_peer() as peer, bench(to(peer, enable_tls="Required", hold_interval=0.1)) as b:
        await b.submit()
        (record,) = await b.records("TransientFailure")
        assert record.cause == "tls" and "STARTTLS" in record.content and record.num_attempts == 0
        assert "MAIL" not in peer.words()
        assert b.router.statistics().held
        await b.records("TransientFailure", 3)


AUTH = {**support.AUTH, "hold_interval": 0.1}


async def test_a_refused_login_holds_and_the_mail_goes_out_after_the_repair(bench: Any) -> None:
    async with open_peer(
        capabilities=["AUTH PLAIN LOGIN"], replies={"AUTH": "535 5.7.8 wrong, AHNjb3R0AHRpZ2Vy"}
    ) as peer:
        async with bench(to(peer, **AUTH)) as b:
            await b.submit()
            await b.submit()
            records = await b.records("TransientFailure", 2)
            assert all(r.cause == "login-refused" and r.num_attempts == 0 for r in records)
            assert "535" in records[0].content
            assert not any("tiger" in r.content or "AHNjb3R0AHRpZ2Vy" in r.content for r in b.log.records)
            assert "MAIL" not in peer.words() and "Bounce" not in b.log.kinds()
            peer.replies["AUTH"] = "235 2.7.0 ok"
            (delivery, _) = await b.records("Delivery", 2)
            assert (delivery.smtp_auth_user, delivery.smtp_auth_mechanism) == ("scott", "PLAIN")


async def test_a_wrong_password_is_not_repeated_at_every_host(bench: Any) -> None:
    refusing: dict[str, Any] = {"capabilities": ["AUTH PLAIN"], "replies": {"AUTH": "535 no"}}
    async with open_peer(**refusing) as one, open_peer(**refusing) as two:
        async with bench(to(one, two, **{**AUTH, "hold_interval": 30})) as b:
            for _ in range(20):
                await b.submit()
            await b.records("TransientFailure")
            await trio.sleep(0.1)
            assert one.words().count("AUTH") == 1 and two.words().count("AUTH") == 0


async def test_auth_is_never_skipped_when_it_is_not_offered(bench: Any) -> None:
    async with open_peer() as peer, bench(to(peer, **AUTH)) as b:
        await b.submit()
        (record,) = await b.records("TransientFailure")
        assert record.cause == "auth-not-offered" and "MAIL" not in peer.words()


async def test_credentials_do_not_leave_without_tls_unless_named(bench: Any) -> None:
    path = {**AUTH, "allow_smtp_auth_plain_without_tls": False}
    async with open_peer(capabilities=["AUTH PLAIN"]) as peer, bench(to(peer, **path)) as b:
        await b.submit()
        (record,) = await b.records("TransientFailure")
        assert record.cause == "tls" and "AUTH" not in peer.words()


async def test_domains_with_different_credentials_never_share_a_connection(bench: Any) -> None:
    async with open_peer(capabilities=["AUTH PLAIN", "PIPELINING"]) as peer:
        hooks = to(peer)

        def path(domain: str, egress_source: str, site_name: str) -> object:
            return policy.make_egress_path(
                enable_tls="Disabled",
                **{**AUTH, "smtp_auth_plain_username": domain, "smtp_auth_plain_password": {"key_data": "x"}},
            )

        hooks["get_egress_path_config"] = path
        async with bench(hooks) as b:
            for i in range(20):
                await b.submit(f"bob@{'one' if i % 2 else 'two'}.example")
            for record in await b.records("Delivery", 20):
                assert record.smtp_auth_user == str(record.recipient).rsplit("@")[1]


async def test_the_connection_limit_counts_across_keys(bench: Any) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"], replies={}) as peer:
        hooks = to(peer)

        def path(domain: str, egress_source: str, site_name: str) -> object:
            return policy.make_egress_path(
                enable_tls="Disabled",
                connection_limit=2,
                idle_timeout=0.05,
                max_deliveries_per_connection=3,
                **{**AUTH, "smtp_auth_plain_username": domain},
            )

        hooks["get_egress_path_config"] = path
        async with bench(hooks) as b:
            for i in range(60):
                await b.submit(f"bob@d{i % 4}.example")
            await b.records("Delivery", 60)
            assert peer.most_open <= 2


async def test_deliveries_per_connection_are_limited(bench: Any) -> None:
    async with open_peer() as peer:
        async with bench(to(peer, connection_limit=1, max_deliveries_per_connection=4)) as b:
            for _ in range(12):
                await b.submit()
            await b.records("Delivery", 12)
            assert peer.connections >= 3


async def test_recipients_beyond_the_batch_follow_in_another_transaction(bench: Any) -> None:
    people = [f"p{i}@example.com" for i in range(25)]
    async with open_peer() as peer, bench(to(peer, max_recipients_per_batch=10)) as b:
        await b.submit(people)
        await b.until(lambda: b.spool.statistics().messages == 0)
        assert [len(a.recipients) for a in peer.arrived] == [10, 10, 5]
        assert peer.connections == 1


async def test_too_many_recipients_are_sent_again_at_once_and_uncounted(bench: Any) -> None:
    seen = 0

    def rcpt(line: str) -> str:
        nonlocal seen
        seen += 1
        return "452 4.5.3 too many" if 3 <= seen <= 5 else "250 ok"

    async with open_peer(replies={"RCPT": rcpt}) as peer, bench(to(peer)) as b:
        await b.submit([f"p{i}@example.com" for i in range(5)])
        await b.until(lambda: b.spool.statistics().messages == 0)
        assert sum(len(a.recipients) for a in peer.arrived) == 5
        assert "TransientFailure" not in b.log.kinds()


async def test_a_full_ready_queue_delays_nothing_at_random(bench: Any) -> None:
    async with open_peer() as peer, bench(to(peer, max_ready=8, connection_limit=2)) as b:
        for i in range(200):
            await b.submit("bob@example.com", tenant=f"t{i % 3}")
        await b.records("Delivery", 200)
        assert b.router.statistics().waiting == 0


async def test_a_hook_that_fails_loses_nothing(bench: Any) -> None:
    async with open_peer() as peer:
        hooks = to(peer)
        good = hooks["get_queue_config"]
        broken = True

        def config(domain: str, tenant: str, campaign: str, routing_domain: str) -> object:
            if broken:
                raise RuntimeError("a defect of the policy")
            return good(domain, tenant, campaign, routing_domain)

        hooks["get_queue_config"] = config
        async with bench(hooks) as b:
            await b.submit()
            (record,) = await b.records("TransientFailure")
            assert "RuntimeError" in record.content and "test_delivery.py" in record.content
            assert record.num_attempts == 0
            assert b.router.statistics().timed == 1


async def test_an_old_message_expires_after_one_more_attempt(bench: Any) -> None:
    async with open_peer(replies={"MAIL": "451 4.0.0 later"}) as peer:
        async with bench(to(peer, queue={"max_age": 0.3, "retry_interval": 0.1})) as b:
            await b.submit()
            (record,) = await b.records("Expiration")
            assert record.code == 551 and record.num_attempts >= 2
            assert b.spool.statistics().messages == 0


async def test_message_rate_is_kept(bench: Any) -> None:
    async with open_peer() as peer, bench(to(peer, max_message_rate="20/s,max_burst=1")) as b:
        begun = trio.current_time()
        for _ in range(6):
            await b.submit()
        await b.records("Delivery", 6)
        assert trio.current_time() - begun >= 0.24


async def test_drain_finishes_what_is_under_way_and_keeps_the_rest(bench: Any) -> None:
    def slow(line: str) -> str:
        return "250 taken"

    async with open_peer(replies={".": slow}) as peer, bench(to(peer, connection_limit=1)) as b:
        for _ in range(30):
            await b.submit()
        await b.records("Delivery", 1)
        with trio.fail_after(5):
            await b.router.drain()
        delivered = b.log.kinds().count("Delivery")
        assert delivered == len(peer.arrived)
        assert b.spool.statistics().messages == 30 - delivered


async def test_a_hanging_peer_does_not_stop_the_drain(bench: Any) -> None:
    async with open_peer(replies={".": HANG}) as peer:
        async with bench(to(peer, system_shutdown_timeout=0.1)) as b:
            await b.submit()
            await b.until(lambda: "DATA" in peer.words())
            with trio.fail_after(3):
                await b.router.drain()
            assert b.spool.statistics().messages == 1


async def test_a_defect_met_by_one_message_ends_one_session(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.egress import work

    real = work.Transaction

    def broken(sender: str, *arguments: Any) -> Any:
        if sender == "bad@sender.example":
            raise RuntimeError("a defect of ours")
        return real(sender, *arguments)

    monkeypatch.setattr(work, "Transaction", broken)
    async with open_peer() as peer, bench(to(peer, queue={"retry_interval": 60})) as b:
        await b.submit(sender="bad@sender.example")
        (failure,) = await b.records("TransientFailure")
        assert failure.sender == "bad@sender.example" and failure.num_attempts == 1
        await b.submit()
        await b.records("Delivery")
