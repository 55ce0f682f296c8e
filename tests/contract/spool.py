"""The contract of a spool, as checks to be run against every store.

A store is given as a function `reopen()` that returns an async context manager of a `Spool`; each
call is a restart over the same memory or disk::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check, tmp_path):
        await check(lambda: open_my_spool(tmp_path))

`check_halting` needs to break the store as well, and is called with functions for that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing

from engine.errors import MessageUnreadable, SpoolError
from engine.model import Message, QueueName, new_message_id
from engine.spool import Recovered, Spool

__all__ = ["CHECKS", "Reopen", "check_halting", "found", "message"]

Reopen = Callable[[], AbstractAsyncContextManager[Spool]]
Check = Callable[[Reopen], Awaitable[None]]

BODY = b"Subject: hello\r\n\r\n.dots and \x00 and \xff\r\n"


def message(recipients: int = 1, **changes: object) -> Message:
    """A message with so many recipients; every field is filled."""
    fields: dict[str, object] = {
        "id": new_message_id(),
        "sender": "sender@example.org",
        "recipients": [f"r{i}@example.com" for i in range(recipients)],
        "queue": QueueName("example.com", "tenant", "campaign", "route.example"),
        "created": 1_700_000_000.25,
        "prefix": b"Received: from a by b\r\n",
        "size": 123,
        "eight_bit": True,
        "smtputf8": True,
        "reception_protocol": "ESMTPSA",
        "meta": {"note": ["x", 1, None]},
        "first_attempt": 1_700_000_100.5,
        "expires": 1_700_900_000.0,
    }
    return Message(**(fields | changes))  # type: ignore[arg-type]


async def found(spool: Spool) -> dict[bytes, Recovered]:
    """All that `recover` gives, by identifier."""
    result: dict[bytes, Recovered] = {}
    async for batch in spool.recover():
        assert batch, "an empty batch is no batch"
        for each in batch:
            assert each.message.id not in result, "each message is given once"
            result[each.message.id] = each
    return result


async def check_what_was_committed_can_be_read(reopen: Reopen) -> None:
    async with reopen() as spool:
        assert await found(spool) == {}
        one, two = message(), message(body_index=1)
        first, second = await spool.commit([BODY, b""], [one, two])
        assert await spool.read(first) == (one, BODY)
        assert await spool.read(second) == (two, b"")
        assert first.left == second.left == 1
        assert spool.statistics().messages == 2


async def check_many_messages_may_share_one_body(reopen: Reopen) -> None:
    async with reopen() as spool:
        messages = [message(3) for _ in range(50)]
        handles = await spool.commit([BODY], messages)
        assert len(handles) == 50
        for wanted, handle in zip(messages, handles, strict=True):
            assert await spool.read(handle) == (wanted, BODY)


async def check_large_and_odd_bodies(reopen: Reopen) -> None:
    bodies = [b"", b"\0" * 100_000, b"x" * 3_000_000, bytes(range(256)) * 40, b"."]
    async with reopen() as spool:
        handles = [(await spool.commit([body], [message()]))[0] for body in bodies]
        for body, handle in zip(bodies, handles, strict=True):
            assert (await spool.read(handle))[1] == body


async def check_a_restart_finds_everything(reopen: Reopen) -> None:
    async with reopen() as spool:
        messages = [message(i % 3 + 1) for i in range(20)]
        for each in messages:
            await spool.commit([BODY + each.id], [each])
    for _ in range(2):
        async with reopen() as spool:
            again = await found(spool)
            assert list(again) == [each.id for each in messages], "oldest first"
            assert await found(spool) == {}, "they are listed once"
            for each in messages:
                recovered = again[each.id]
                assert recovered.message.recipients == each.recipients
                assert recovered.message.queue == each.queue
                assert recovered.message.prefix == b""
                assert (recovered.attempts, recovered.done) == (0, 0)
                assert recovered.due == each.first_attempt
                assert await spool.read(recovered.handle) == (each, BODY + each.id)
            assert spool.statistics().messages == 20
            assert spool.statistics().recovered == 20


async def check_results_survive(reopen: Reopen) -> None:
    async with reopen() as spool:
        messages = [message(3) for _ in range(4)]
        handles = await spool.commit([BODY], messages)
        spool.finish(handles[0], 0b111)
        spool.finish(handles[1], 0b010)
        spool.postpone(handles[1], 3, 1_800_000_000.5)
        spool.postpone(handles[2], 1, 5.0)
        spool.postpone(handles[2], 2, 6.0)
        assert (handles[1].left, handles[1].attempts, handles[1].due) == (0b101, 3, 1_800_000_000.5)
    for _ in range(2):
        async with reopen() as spool:
            again = await found(spool)
            assert set(again) == {each.id for each in messages[1:]}
            seen = [
                (again[each.id].attempts, again[each.id].due, again[each.id].done) for each in messages[1:]
            ]
            assert seen == [(3, 1_800_000_000.5, 0b010), (2, 6.0, 0), (0, messages[3].first_attempt, 0)]
            assert again[messages[1].id].handle.left == 0b101
    async with reopen() as spool:
        for recovered in (await found(spool)).values():
            spool.finish(recovered.handle, recovered.handle.left)
    async with reopen() as spool:
        assert await found(spool) == {}


async def check_many_recipients(reopen: Reopen) -> None:
    """Bit masks wider than any machine word."""
    sizes = [1, 31, 32, 33, 64, 65, 1000]
    async with reopen() as spool:
        messages = [message(size) for size in sizes]
        handles = await spool.commit([BODY], messages)
        for size, handle in zip(sizes, handles, strict=True):
            for bit in range(0, size - 1, 2):
                spool.finish(handle, 1 << bit)
            spool.postpone(handle, size, 7.0)
    async with reopen() as spool:
        again = await found(spool)
        for size, each in zip(sizes, messages, strict=True):
            recovered = again[each.id]
            assert recovered.done == sum(1 << bit for bit in range(0, size - 1, 2))
            assert (recovered.attempts, recovered.due) == (size, 7.0)
            assert (await spool.read(recovered.handle))[0] == each
            spool.finish(recovered.handle, (1 << size) - 1)
    async with reopen() as spool:
        assert await found(spool) == {}


async def check_finishing_is_repeatable_and_final(reopen: Reopen) -> None:
    async with reopen() as spool:
        (handle,) = await spool.commit([BODY], [message(2)])
        spool.finish(handle, 0b01)
        spool.finish(handle, 0b01)
        assert spool.statistics().messages == 1
        spool.finish(handle, 0b11)
        spool.finish(handle, 0b11)
        assert spool.statistics().messages == 0
        spool.postpone(handle, 1, 1.0)
        with pytest.raises(MessageUnreadable):
            await spool.read(handle)
    async with reopen() as spool:
        assert await found(spool) == {}


async def check_all_or_none(reopen: Reopen) -> None:
    """What cannot be written is refused whole, and hurts nobody else (D5)."""
    good = message()
    async with reopen() as spool:
        for bad in (
            message(0),
            message(body_index=1),
            message(meta={"secret": object()}),
            message(meta={"number": 1 << 80}),
        ):
            with pytest.raises(SpoolError) as caught:
                await spool.commit([BODY], [message(), bad])
            assert "sender@" not in str(caught.value)
        with pytest.raises(SpoolError):
            await spool.commit([BODY], [])
        await spool.commit([BODY], [good])
    async with reopen() as spool:
        assert set(await found(spool)) == {good.id}


async def check_an_identifier_is_taken_once(reopen: Reopen) -> None:
    one = message()
    async with reopen() as spool:
        (handle,) = await spool.commit([BODY], [one])
        with pytest.raises(SpoolError):
            await spool.commit([b"other"], [one])
        two = message()
        with pytest.raises(SpoolError):
            await spool.commit([b"other"], [two, two])
        await spool.commit([b"other"], [two])
        assert await spool.read(handle) == (one, BODY)
    async with reopen() as spool:
        assert set(await found(spool)) == {one.id, two.id}


async def check_commits_side_by_side(reopen: Reopen) -> None:
    bodies: dict[bytes, bytes] = {}
    async with reopen() as spool:

        async def session(number: int) -> None:
            for step in range(5):
                each = message()
                body = b"%d %d" % (number, step)
                (handle,) = await spool.commit([body], [each])
                bodies[each.id] = body
                assert (await spool.read(handle))[1] == body

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(session, number)
        assert spool.statistics().committed == 100
    async with reopen() as spool:
        again = await found(spool)
        assert {name: (await spool.read(each.handle))[1] for name, each in again.items()} == bodies


async def check_a_cancelled_commit_leaves_nothing(reopen: Reopen) -> None:
    """Cancelled before it began: never was. (Cancelled later: see the store's own tests.)"""
    one = message()
    async with reopen() as spool:
        with trio.CancelScope() as scope:
            scope.cancel()
            await spool.commit([BODY], [one])
        assert scope.cancelled_caught
        assert spool.statistics().messages == 0
        await spool.commit([BODY], [one])  # its identifier is free again
    async with reopen() as spool:
        assert set(await found(spool)) == {one.id}


async def check_a_commit_with_a_deadline_is_not_cancelled(reopen: Reopen) -> None:
    one = message()
    async with reopen() as spool:
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await spool.commit([BODY], [one], trio.current_time() + 60)
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught, "once it has its handles"
        await spool.commit([BODY], [message()], trio.current_time() + 60)
        assert spool.statistics().messages == 2
    async with reopen() as spool:
        assert one.id in await found(spool)


async def check_a_commit_past_its_deadline_is_refused_unwritten(reopen: Reopen) -> None:
    async with reopen() as spool:
        with pytest.raises(SpoolError, match="in time"):
            await spool.commit([BODY], [message()], trio.current_time())
        statistics = spool.statistics()
        assert statistics.committed == statistics.batches == statistics.abandoned == 0
    async with reopen() as spool:
        assert not await found(spool)


async def check_a_closed_spool_refuses(reopen: Reopen) -> None:
    async with reopen() as spool:
        (handle,) = await spool.commit([BODY], [message()])
        assert spool.trouble is None
        assert spool.halted is None
        await spool.wait_well()
        assert spool.room_for(1000)
    assert spool.trouble is not None
    assert spool.halted is not None
    assert not spool.room_for(1000)
    with pytest.raises(SpoolError):
        await spool.commit([BODY], [message()])
    with pytest.raises(SpoolError):
        spool.finish(handle, 1)
    with pytest.raises(SpoolError):
        spool.postpone(handle, 1, 1.0)
    with pytest.raises(SpoolError):
        await spool.read(handle)
    with pytest.raises(SpoolError):
        await spool.wait_well()


async def check_halting(reopen: Reopen, hurt: Callable[[], None], heal: Callable[[], None]) -> None:
    """Results cannot be recorded after `hurt`, and can be after `heal` (D21)."""
    told: list[str] = []

    async def waiter(name: str) -> None:
        await spool.wait_well()
        assert spool.halted is None
        told.append(name)

    async with reopen() as spool, trio.open_nursery() as nursery:
        one, two = message(2), message()
        first, second = await spool.commit([BODY], [one, two])
        for turn in ("once", "again"):
            hurt()
            spool.postpone(first, 1, 1.0)  # a store may notice by trying
            assert spool.halted is not None and spool.trouble is not None
            assert not spool.room_for(1)
            nursery.start_soon(waiter, turn)
            with trio.move_on_after(0) as gone:
                await spool.wait_well()
            assert gone.cancelled_caught
            spool.finish(first, 0b01 if turn == "once" else 0b10)
            await trio.testing.wait_all_tasks_blocked()
            assert turn not in told
            heal()
            with trio.fail_after(10):
                await spool.wait_well()
            assert spool.trouble is None
            await trio.testing.wait_all_tasks_blocked()
            assert turn in told
        assert (await spool.read(second))[0] == two
    async with reopen() as spool:
        assert set(await found(spool)) == {two.id}, "what was reported meanwhile is recorded"


CHECKS: list[Check] = [
    value
    for name, value in list(globals().items())
    if name.startswith("check_") and value is not check_halting
]
