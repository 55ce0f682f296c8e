"""One message in several transactions: more recipients than fit, and those that the peer had no room for.

Every recipient gets one result, an attempt of the message is counted once for a visit, and the
message is never in two places (reliability C12, C14, D31, D34).
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.bench import to
from tests.support.peer import DROP, open_peer


def people(number: int) -> list[str]:
    return [f"p{i}@example.com" for i in range(number)]


def later_for(*names: str) -> Any:
    return lambda line: "451 4.2.1 later" if any(f"<{name}@" in line for name in names) else "250 ok"


async def test_a_batch_that_must_wait_waits_for_the_schedule(bench: Any, clock: MockClock) -> None:
    """Another batch of the message went well; that is no reason to try the first again at once."""
    path = {"connection_limit": 1, "max_recipients_per_batch": 1, "hold_interval": 1}
    async with open_peer(replies={"RCPT": later_for("p0")}) as peer:
        async with bench(to(peer, queue={"retry_interval": 60}, **path)) as b:
            await b.submit(people(3))
            await b.records("Delivery", 2)
            await trio.sleep(50)
            (failure,) = b.recorded("TransientFailure")
            assert failure.num_attempts == 1
            peer.replies["RCPT"] = "250 ok"
            await b.records("Delivery", 3, seconds=30)
            assert b.outcomes()["p0"] == ["TransientFailure", "Delivery"]
            assert b.spool.statistics().messages == 0


async def test_two_batches_that_must_wait_are_one_attempt(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"RCPT": later_for("p0", "p2")}) as peer:
        async with bench(to(peer, max_recipients_per_batch=1)) as b:
            await b.submit(people(4))
            await b.records("Delivery", 2)
            failures = await b.records("TransientFailure", 2)
            assert [failure.num_attempts for failure in failures] == [1, 1]
            assert b.router.statistics().timed == 1


@pytest.mark.parametrize("limit", [1, 2])
async def test_a_peer_that_closes_behind_the_first_batch_is_met_by_the_schedule(
    limit: int, bench: Any, clock: MockClock
) -> None:
    """C17: the first batch is put off and the second never answered: no reason to come back at once."""
    mails: list[str] = []

    def mail(line: str) -> str:
        mails.append(line)
        return "250 ok" if len(mails) % 2 else DROP

    replies: dict[str, Any] = {"MAIL": mail, "RCPT": "451 4.2.1 later"}
    async with open_peer(replies=replies) as peer:
        async with bench(to(peer, connection_limit=1, max_recipients_per_batch=limit)) as b:
            await b.submit(people(2 * limit))
            await trio.sleep(50)
            assert peer.connections == 1
            assert {record.num_attempts for record in b.log.records} == {1}
            assert b.router.statistics().timed == 1


async def test_a_session_that_ends_behind_a_batch_that_must_wait(bench: Any, clock: MockClock) -> None:
    """The attempt is counted, so all who are left wait for the schedule together."""
    path = {"max_recipients_per_batch": 1, "max_deliveries_per_connection": 1}
    async with open_peer(replies={"RCPT": "451 4.2.1 later"}) as peer, bench(to(peer, **path)) as b:
        await b.submit(people(3))
        await trio.sleep(50)
        assert peer.connections == 1 and b.router.statistics().timed == 1
        await trio.sleep(30)
        assert peer.connections == 2
        assert [record.num_attempts for record in b.log.records] == [1, 2]


async def test_max_deliveries_per_connection_counts_batches(bench: Any, clock: MockClock) -> None:
    path = {"connection_limit": 1, "max_recipients_per_batch": 1, "max_deliveries_per_connection": 2}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit(people(6))
        await b.records("Delivery", 6)
        assert peer.connections == 3 and len(peer.arrived) == 6


async def test_max_deliveries_per_connection_counts_what_was_sent_ahead(bench: Any, clock: MockClock) -> None:
    per_connection: list[int] = []
    async with open_peer() as peer:

        def ehlo(line: str) -> str:
            per_connection.append(0)
            return "250-peer\r\n250 PIPELINING"

        def mail(line: str) -> str:
            per_connection[-1] += 1
            return "250 ok"

        peer.replies |= {"EHLO": ehlo, "MAIL": mail}
        async with bench(to(peer, connection_limit=1, max_deliveries_per_connection=3)) as b:
            await b.submit_many(10)
            await b.records("Delivery", 10)
            assert sorted(per_connection) == [1, 3, 3, 3]


@pytest.mark.parametrize("code", ["452 4.5.3", "552 5.5.3"])
async def test_too_many_recipients_and_another_message_waiting(
    code: str, bench: Any, clock: MockClock
) -> None:
    """C12: the rest goes in another transaction at once, before the other message, without an attempt."""
    seen: list[str] = []

    def rcpt(line: str) -> str:
        seen.append(line)
        return f"{code} too many" if len(seen) in (3, 4) else "250 ok"

    async with open_peer(replies={"RCPT": rcpt}) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit(people(4))
        await b.submit("other@example.com")
        await b.until(lambda: b.spool.statistics().messages == 0)
        assert set(b.log.kinds()) == {"Delivery"}
        assert sorted(len(arrived.recipients) for arrived in peer.arrived) == [1, 2, 2]


async def test_left_over_by_two_messages_at_once(bench: Any, clock: MockClock) -> None:
    """The second one's commands were sent ahead, so both may have recipients left over at one moment."""

    async with open_peer() as peer:
        taken = 0

        def mail(line: str) -> str:
            nonlocal taken
            taken = 0
            return "250 ok"

        def rcpt(line: str) -> str:
            nonlocal taken
            taken += 1
            return "250 ok" if taken == 1 else "452 4.5.3 one at a time"

        peer.replies |= {"MAIL": mail, "RCPT": rcpt}
        async with bench(to(peer, connection_limit=1)) as b:
            for name in ("a", "b", "c"):
                await b.submit([f"{name}{i}@example.com" for i in range(3)])
            await b.until(lambda: b.spool.statistics().messages == 0)
            assert set(b.log.kinds()) == {"Delivery"}
            assert sorted(name for arrived in peer.arrived for name in arrived.recipients) == sorted(
                f"{name}{i}@example.com" for name in "abc" for i in range(3)
            )


async def test_too_many_where_nobody_was_accepted_is_an_ordinary_failure(
    bench: Any, clock: MockClock
) -> None:
    async with open_peer(replies={"RCPT": "452 4.5.3 too many"}) as peer, bench(to(peer)) as b:
        await b.submit(people(2))
        await trio.sleep(50)
        assert b.outcomes() == {"p0": ["TransientFailure"], "p1": ["TransientFailure"]}
        assert peer.words().count("MAIL") == 1


async def test_without_rset_a_transaction_that_failed_is_closed_all_the_same(
    bench: Any, clock: MockClock
) -> None:
    """`enable_rset = False` leaves out what is superfluous, not what keeps two messages apart."""
    replies: dict[str, Any] = {"RCPT": lambda line: "550 5.1.1 no" if "bad" in line else "250 ok"}
    async with open_peer(replies=replies) as peer:
        async with bench(to(peer, connection_limit=1, enable_rset=False)) as b:
            await b.submit("bad@example.com")
            await b.submit_many(3)
            await b.records("Delivery", 3)
            assert b.outcomes()["bad"] == ["Bounce"] and "TransientFailure" not in b.log.kinds()
            assert peer.words()[3:6] == ["DATA", "RSET", "MAIL"]


async def test_without_rset_there_is_none_where_all_goes_well(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, connection_limit=1, enable_rset=False)) as b:
        await b.submit_many(4)
        await b.records("Delivery", 4)
        assert "RSET" not in peer.words()


@pytest.mark.parametrize("path", [{}, {"enable_pipelining": False}, {"max_recipients_per_batch": 2}], ids=str)
async def test_mixed_results_each_recipient_once(path: dict[str, Any], bench: Any, clock: MockClock) -> None:
    """D34: in whatever transactions they travelled."""

    def rcpt(line: str) -> str:
        if "gone" in line:
            return "550 5.1.1 no such user"
        return "450 4.2.1 busy" if "busy" in line else "250 ok"

    async with open_peer(replies={"RCPT": rcpt}) as peer, bench(to(peer, **path)) as b:
        names = ["gone0", "good0", "busy0", "good1", "gone1", "busy1", "good2"]
        await b.submit([f"{name}@example.com" for name in names])
        await b.until(lambda: len(b.outcomes()) == 7)
        peer.replies["RCPT"] = "250 ok"
        await b.until(lambda: b.spool.statistics().messages == 0, 90)
        assert b.outcomes() == {
            **{name: ["Bounce"] for name in names if name.startswith("gone")},
            **{name: ["Delivery"] for name in names if name.startswith("good")},
            **{name: ["TransientFailure", "Delivery"] for name in names if name.startswith("busy")},
        }
