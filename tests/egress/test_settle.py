"""engine/egress/settle.py: what is written down, in which order, and when a message is tried again."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import settle
from engine.egress.outcome import Outcome, internal
from engine.egress.settle import Settler
from engine.egress.site import mx_list_site
from engine.errors import HeldError, LoginRefused, MessageUnreadable, SpoolError, TlsRequired
from engine.log import Log, Record
from engine.model import Message, QueueName, new_message_id
from engine.queues.limits import LocalLimits
from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import ScheduledQueue
from engine.smtp import Reply
from engine.spool import Handle, MemorySpool
from policy.egress import EgressSource, make_egress_path, make_queue_config
from policy.nets import parse_mx

DELIVERED = Outcome("delivered", Reply(250, "2.0.0", "taken"), ".")
NO_USER = Outcome("permanent", Reply(550, "5.1.1", "who?"), "RCPT TO:<x>")
BUSY = Outcome("transient", Reply(450, "4.2.1", "busy"), "RCPT TO:<x>")
HELD = Outcome("held", internal(451, "4.7.0", "held"))
UNCERTAIN = Outcome("uncertain", internal(451, "4.4.2", "gone"), ".")

NOW = 1_800_000_000.0
"""What the wall clock says at the start of each test."""


class Desk(Log):
    """A settler with everything around it noting what it was told, in order, in `told`."""

    def __init__(self, spool: MemorySpool | None = None) -> None:
        super().__init__()
        self.told: list[str] = []
        self.records: list[Record] = []
        self.timed: list[Queued] = []
        self.gone: list[Queued] = []
        self.spool = spool or MemorySpool()
        for name in ("finish", "postpone"):
            self._listen(name)
        # The middle of the dice: no jitter.
        dice = SimpleNamespace(random=lambda: 0.5)
        self.settler = Settler(
            self.spool,
            self,
            later=self._later,
            forget=self._forget,
            dice=dice,  # type: ignore[arg-type]
        )

    def _listen(self, name: str) -> None:
        real = getattr(self.spool, name)

        def noting(*arguments: Any) -> None:
            self.told.append(name)
            real(*arguments)

        setattr(self.spool, name, noting)

    def write(self, record: Record) -> None:
        self.told.append(record.type)
        self.records.append(record)

    def _later(self, entry: Queued) -> None:
        self.told.append("later")
        self.timed.append(entry)

    def _forget(self, entry: Queued) -> None:
        self.told.append("forget")
        self.gone.append(entry)

    async def entry(
        self,
        recipients: int = 1,
        *,
        resident: bool = True,
        age: float = 0.0,
        queue: dict[str, Any] | None = None,
        **more: Any,
    ) -> Queued:
        """A message that was committed `age` seconds ago; its queue retries after 100 s, for 1,000 s."""
        scheduled = ScheduledQueue(QueueName("example.com"))
        scheduled.config = make_queue_config(**{"retry_interval": 100, "max_age": 1000, **(queue or {})})
        message = Message(
            id=new_message_id(),
            sender="alice@sender.example",
            recipients=[f"r{i}@example.com" for i in range(recipients)],
            queue=scheduled.name,
            created=NOW - age,
            size=20,
            **more,
        )
        body = b"Subject: x\r\n\r\nhello\r\n"
        (handle,) = await self.spool.commit([body], [message])
        entry = Queued(message.id, handle, scheduled, message.created, trio.current_time(), message.size)
        if resident:
            self.settler.keep(entry, message, body)
        return entry


def ready_queue(**path: Any) -> ReadyQueue:
    return ReadyQueue(
        EgressSource(name="ip-1"),
        mx_list_site([parse_mx("192.0.2.1:25")]),
        make_egress_path(**{"hold_interval": 30, **path}),
        LocalLimits(),
    )


@pytest.fixture(autouse=True)
def wall(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A wall clock that goes with the test's time; `step` sets it forward or back."""
    clock.autojump_threshold = 0  # no sockets here
    hands = SimpleNamespace(step=0.0)
    base = clock.current_time()
    hands.time = lambda: NOW + clock.current_time() - base + hands.step
    monkeypatch.setattr(settle, "time", hands)
    return hands


# -- what and in which order -----------------------------------------------------------------------


async def test_the_spool_hears_first_then_the_log_then_the_queue(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [DELIVERED], None, None)
    assert desk.told == ["finish", "Delivery", "forget"]
    assert desk.spool.statistics().messages == 0 and entry.body is None and desk.settler.resident == 0


async def test_each_recipient_has_its_own_result(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(5)
    results = [DELIVERED, NO_USER, BUSY, DELIVERED, BUSY]
    desk.settler.settle(entry, range(5), results, ready_queue(), None)
    assert desk.told == ["finish", "Delivery", "Bounce", "TransientFailure", "postpone", "later"]
    told = {r.type: r.recipient for r in desk.records}
    assert told == {
        "Delivery": ["r0@example.com", "r3@example.com"],
        "Bounce": "r1@example.com",
        "TransientFailure": ["r2@example.com", "r4@example.com"],
    }
    assert (entry.done, entry.handle.left) == (0b01011, 0b10100)
    counters = desk.settler.counters
    assert (counters.delivered, counters.bounced, counters.transient) == (2, 1, 2)


async def test_a_retry_is_written_down_with_attempts_and_time(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [BUSY], ready_queue(), None)
    (record,) = desk.records
    assert (entry.attempts, entry.handle.attempts) == (1, 1)
    assert entry.due == trio.current_time() + 100
    assert entry.handle.due == record.next_due == pytest.approx(NOW + 100)
    assert desk.timed == [entry] and desk.settler.resident == 0 and entry.message is None


async def test_waits_double_from_attempt_to_attempt(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(queue={"max_age": "7d", "max_retry_interval": 500})
    waits = []
    for _ in range(5):
        await desk.settler.all_recipients(entry, BUSY, None)
        waits.append(entry.due - trio.current_time())
    assert waits == [100, 200, 400, 500, 500]


async def test_waits_are_spread_a_little(clock: MockClock) -> None:
    desk = Desk()
    settler = Settler(desk.spool, desk, later=desk._later, forget=desk._forget, dice=random.Random(7))
    for _ in range(50):
        await settler.all_recipients(await desk.entry(resident=False), BUSY, None)
    waits = {entry.due - trio.current_time() for entry in desk.timed}
    assert len(waits) > 40 and all(97.5 <= wait <= 102.5 for wait in waits)


async def test_an_unknown_result_counts_and_says_so(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [UNCERTAIN], ready_queue(), None)
    assert desk.told == ["TransientFailure", "postpone", "later"] and entry.attempts == 1
    assert (desk.settler.counters.uncertain, desk.settler.counters.transient) == (1, 1)


async def test_what_is_held_costs_no_attempt(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [HELD], ready_queue(), None)
    assert entry.attempts == 0 and entry.due == trio.current_time() + 30
    desk.settler.settle(await desk.entry(), [0], [HELD], None, None)
    assert desk.timed[-1].due == trio.current_time() + 10  # there is no path to say how long
    assert desk.settler.counters.held == 2 and desk.settler.counters.transient == 0


async def test_recipients_of_a_following_transaction_stay_at_hand(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(3)
    counted = desk.settler.settle(entry, [0, 1], [DELIVERED, BUSY], ready_queue(), None, last=False)
    assert desk.told == ["finish", "Delivery", "TransientFailure"] and entry.message is not None
    assert counted
    desk.settler.settle(entry, [2], [BUSY], ready_queue(), None, counted=counted)
    assert desk.told[3:] == ["TransientFailure", "postpone", "later"]
    assert entry.handle.left == 0b110 and entry.attempts == 1


async def test_only_recipients_without_a_result_get_one(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(3)
    desk.settler.settle(entry, [1], [DELIVERED], ready_queue(), None)
    await desk.settler.all_recipients(entry, NO_USER, None)
    assert desk.records[-1].recipient == ["r0@example.com", "r2@example.com"]
    assert desk.gone == [entry] and desk.spool.statistics().messages == 0


async def test_what_is_kept_in_memory_adds_up(clock: MockClock) -> None:
    desk = Desk()
    entries = [await desk.entry()]
    one = desk.settler.resident
    entries += [await desk.entry(), await desk.entry()]
    assert one > 20 and desk.settler.resident == 3 * one
    message, body = entries[0].message, entries[0].body
    assert message is not None and body is not None
    desk.settler.keep(entries[0], message, body)  # again: counted once
    assert desk.settler.resident == 3 * one
    desk.settler.settle(entries[0], [0], [DELIVERED], None, None)
    desk.settler.settle(entries[1], [0], [BUSY], None, None)
    desk.settler.drop(entries[2])
    desk.settler.drop(entries[2])
    assert desk.settler.resident == 0


# -- giving up -------------------------------------------------------------------------------------


async def test_the_last_attempt_is_made_at_the_last_moment(clock: MockClock, wall: Any) -> None:
    """A doubling schedule alone would give up after 700 s of 1,000."""
    desk = Desk()
    entry = await desk.entry()
    moments = []
    while not desk.gone:
        await trio.sleep_until(entry.due)
        moments.append(round(wall.time() - NOW))
        await desk.settler.all_recipients(entry, BUSY, None)
    assert moments == [0, 100, 300, 700, 1000]
    assert [r.type for r in desk.records] == ["TransientFailure"] * 5 + ["Expiration"]
    last = desk.records[-1]
    assert (last.code, last.enhanced_code, last.num_attempts) == (551, "5.4.7", 5)
    assert desk.told[-3:] == ["finish", "Expiration", "forget"]


async def test_only_those_without_a_result_expire(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(3, age=2000)
    desk.settler.settle(entry, range(3), [DELIVERED, BUSY, NO_USER], ready_queue(), None)
    assert [(r.type, r.recipient) for r in desk.records] == [
        ("Delivery", "r0@example.com"),
        ("TransientFailure", "r1@example.com"),
        ("Bounce", "r2@example.com"),
        ("Expiration", "r1@example.com"),
    ]
    assert desk.records[1].next_due is None
    assert desk.settler.counters.expired == 1 and desk.spool.statistics().messages == 0


many = pytest.mark.parametrize("number", [31, 32, 33, 63, 64, 65, 96, 100])
"""A bit for each recipient, and more of them than an integer of C has."""


def whom(desk: Desk, kind: str) -> list[str]:
    """The recipients of all records of a kind."""
    found: list[str] = []
    for record in desk.records:
        if record.type == kind:
            found += [record.recipient] if isinstance(record.recipient, str) else record.recipient
    return found


@many
async def test_many_recipients_without_a_result_are_tried_again(number: int, clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(number)
    desk.settler.settle(entry, range(number), [DELIVERED] + [BUSY] * (number - 1), ready_queue(), None)
    assert desk.timed == [entry] and not desk.gone
    assert entry.done == 1 and entry.handle.left == (1 << number) - 2
    results = [BUSY] * (number - 2) + [NO_USER]
    assert await desk.settler.loaded(entry)
    desk.settler.settle(entry, range(1, number), results, ready_queue(), None)
    assert desk.timed == [entry, entry] and entry.handle.left == (1 << number - 1) - 2
    assert await desk.settler.loaded(entry)
    desk.settler.settle(entry, range(1, number - 1), [DELIVERED] * (number - 2), ready_queue(), None)
    assert desk.gone == [entry] and not entry.handle.left
    assert len(whom(desk, "Delivery")) == number - 1


@many
async def test_many_recipients_expire(number: int, clock: MockClock) -> None:
    """Whoever gives them up: an attempt, a transaction that did not reach them, nobody, a hold."""
    desk, ready = Desk(), ready_queue()
    tried, put_off, unseen, waiting = [await desk.entry(number, age=2000) for _ in range(4)]
    for entry in (tried, put_off, unseen, waiting):
        entry.done = 0b10
    desk.settler.settle(tried, [0], [BUSY], ready, None)
    desk.settler.put_off(put_off, ready)
    await desk.settler.expire(unseen)
    probe = await desk.entry()
    ready.put(waiting)
    await desk.settler.hold(ready, probe, TROUBLE)
    assert desk.gone == [tried, put_off, unseen, waiting]
    assert whom(desk, "Expiration") == [f"r{i}@example.com" for i in range(number) if i != 1] * 4
    assert all(not entry.handle.left & ~0b10 for entry in desk.gone)


@pytest.mark.parametrize(("expires", "due"), [(50, 50), (5000, 100)])
async def test_a_messages_own_end_replaces_the_queues(expires: float, due: float, clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(expires=NOW + expires, queue={"max_age": 10})
    desk.settler.settle(entry, [0], [BUSY], None, None)
    assert entry.due == pytest.approx(trio.current_time() + due)


async def test_what_is_held_expires_too_but_not_before_its_time(clock: MockClock) -> None:
    desk = Desk()
    entry = await desk.entry(age=980)
    await desk.settler.all_recipients(entry, HELD, ready_queue())
    assert entry.due == pytest.approx(trio.current_time() + 20)
    await trio.sleep(20)
    await desk.settler.all_recipients(entry, HELD, ready_queue())
    assert desk.records[-1].type == "Expiration" and desk.records[-1].num_attempts == 0


async def test_a_wall_clock_that_was_set_back_makes_nothing_older(clock: MockClock, wall: Any) -> None:
    desk = Desk()
    entry = await desk.entry(queue={"max_age": 50})
    wall.step = -100_000.0
    desk.settler.settle(entry, [0], [BUSY], None, None)
    assert entry.due == pytest.approx(trio.current_time() + 50)  # neither younger
    assert entry.handle.due == pytest.approx(NOW - 100_000 + 50)


async def test_a_wall_clock_far_ahead_leaves_the_attempt_that_was_made(clock: MockClock, wall: Any) -> None:
    desk = Desk()
    entry = await desk.entry()
    wall.step = 1e9
    desk.settler.settle(entry, [0], [DELIVERED], None, None)
    assert [r.type for r in desk.records] == ["Delivery"]


# -- a queue that is held --------------------------------------------------------------------------

TROUBLE = TlsRequired("no STARTTLS")


async def test_a_hold_tells_each_message_once_and_the_probe_every_time(clock: MockClock) -> None:
    desk, ready = Desk(), ready_queue()
    entries = [await desk.entry(2) for _ in range(3)]
    entries[2].done = 0b01
    for entry in entries:
        ready.put(entry)
    probe = ready.take()
    assert probe is not None
    await desk.settler.hold(ready, probe, TROUBLE)
    assert [r.type for r in desk.records] == ["TransientFailure", "Delayed", "Delayed"]
    both = ["r0@example.com", "r1@example.com"]
    assert [r.recipient for r in desk.records] == [both, both, "r1@example.com"]
    assert [r.id for r in desk.records] == [entry.id.hex() for entry in entries]
    assert {r.cause for r in desk.records} == {"tls"} and {r.num_attempts for r in desk.records} == {0}
    assert all(r.next_due == pytest.approx(NOW + 30) for r in desk.records)
    assert list(ready.entries) == entries and ready.retry_at == trio.current_time() + 30
    probe = ready.take()
    assert probe is entries[0]
    await desk.settler.hold(ready, probe, TROUBLE)
    assert [r.type for r in desk.records[3:]] == ["TransientFailure"]
    assert desk.timed == [] and not {"finish", "postpone"} & set(desk.told)


async def test_the_same_reason_is_warned_of_once_whatever_is_remarked(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    desk, ready = Desk(), ready_queue()
    ready.put(await desk.entry())

    async def hold(error: HeldError) -> None:
        probe = ready.take()
        assert probe is not None
        await desk.settler.hold(ready, probe, error.at("mx[192.0.2.1]:25"))

    for error in (
        LoginRefused("535 wrong"),
        LoginRefused("535 wrong", "not repeated for another 29 s"),
        LoginRefused("535 wrong", "not repeated for another 28 s"),
        LoginRefused("535 wrong"),
    ):
        await hold(error)
        assert str(error) in desk.records[-1].content
    assert [r.levelname for r in caplog.records if "is held" in r.message] == ["WARNING"]
    await hold(LoginRefused("535 locked"))
    assert [r.levelname for r in caplog.records if "is held" in r.message] == ["WARNING"] * 2


async def test_what_grows_too_old_behind_a_hold_expires(clock: MockClock) -> None:
    desk, ready = Desk(), ready_queue()
    young, old, mixed = await desk.entry(), await desk.entry(age=1001), await desk.entry(2, age=1001)
    mixed.done = 0b01
    for entry in (young, old, mixed):
        ready.put(entry)
    probe = ready.take()
    assert probe is not None
    await desk.settler.hold(ready, probe, TROUBLE)
    assert list(ready.entries) == [young] and desk.gone == [old, mixed]
    expired = [r for r in desk.records if r.type == "Expiration"]
    assert [r.recipient for r in expired] == ["r0@example.com", "r1@example.com"]


async def test_a_damaged_message_behind_a_hold_is_gone_once(clock: MockClock) -> None:
    desk, ready = Desk(), ready_queue()
    good, bad = await desk.entry(), await desk.entry(resident=False)
    desk.spool.damage(bad.handle)
    for entry in (good, bad):
        ready.put(entry)
    for _ in range(2):
        probe = ready.take()
        assert probe is good
        await desk.settler.hold(ready, probe, TROUBLE)
    assert desk.gone == [bad] and list(ready.entries) == [good]
    assert desk.settler.counters.unreadable == 1


async def test_a_hold_brings_no_bodies_into_memory_to_stay(clock: MockClock) -> None:
    desk, ready = Desk(), ready_queue()
    for _ in range(50):
        ready.put(await desk.entry(resident=False))
    probe = ready.take()
    assert probe is not None
    await desk.settler.hold(ready, probe, TROUBLE)
    assert [r.type for r in desk.records] == ["TransientFailure", *["Delayed"] * 49]
    assert desk.settler.resident <= 20


async def test_one_result_for_a_whole_queue(clock: MockClock) -> None:
    desk, ready = Desk(), ready_queue()
    entries = [await desk.entry(2, resident=bool(i % 2)) for i in range(4)]
    for entry in entries:
        ready.put(entry)
    await desk.settler.whole_queue(ready, BUSY)
    assert desk.timed == entries and not ready.entries
    assert [r.num_attempts for r in desk.records] == [1] * 4


# -- trouble with the spool ------------------------------------------------------------------------


class Failing(MemorySpool):
    """Fails at what it is told to fail at."""

    failing: tuple[str, ...] = ()
    error: type[SpoolError] = SpoolError

    def finish(self, handle: Handle, recipients: int) -> None:
        self._perhaps("finish")
        super().finish(handle, recipients)

    def postpone(self, handle: Handle, attempts: int, due: float) -> None:
        self._perhaps("postpone")
        super().postpone(handle, attempts, due)

    async def read(self, handle: Handle) -> tuple[Message, bytes]:
        self._perhaps("read")
        return await super().read(handle)

    def _perhaps(self, what: str) -> None:
        if what in self.failing:
            raise self.error("the disk is on fire")


async def test_a_result_that_cannot_be_written_is_told_and_settled_all_the_same(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Failing()
    spool.failing = ("finish",)
    desk = Desk(spool)
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [DELIVERED], None, None)
    assert desk.told == ["finish", "Delivery", "forget"]
    assert entry.id.hex() in caplog.text and "on fire" in caplog.text


async def test_a_retry_that_cannot_be_written_happens_all_the_same(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Failing()
    spool.failing = ("postpone",)
    desk = Desk(spool)
    entry = await desk.entry()
    desk.settler.settle(entry, [0], [BUSY], None, None)
    assert desk.timed == [entry] and entry.id.hex() in caplog.text


async def test_a_message_that_cannot_be_read_now_is_looked_at_in_a_minute(clock: MockClock) -> None:
    spool = Failing()
    spool.failing = ("read",)
    desk = Desk(spool)
    entry = await desk.entry(resident=False)
    await desk.settler.all_recipients(entry, NO_USER, None)
    assert desk.told == ["later"] and entry.due == trio.current_time() + 60 and entry.attempts == 0


async def test_a_damaged_message_is_neither_bounced_nor_retried(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Failing()
    spool.failing, spool.error = ("read",), MessageUnreadable
    desk = Desk(spool)
    entry = await desk.entry(resident=False)
    await desk.settler.all_recipients(entry, NO_USER, None)
    assert desk.told == ["forget"] and desk.settler.counters.unreadable == 1
    assert "quarantined" in caplog.text
