"""engine/queues/scheduled.py: the timer and the size of a queued message."""

from __future__ import annotations

import random
import sys

import engine
from engine.model import QueueName, new_message_id
from engine.queues.queued import Queued
from engine.queues.scheduled import ScheduledQueue, Timer


def entry(due: float, queue: ScheduledQueue | None = None) -> Queued:
    queue = queue or ScheduledQueue(QueueName("example.com"))
    return Queued(new_message_id(), None, queue, 0.0, due, 100)


def test_due_order_and_ties_in_order_of_insertion() -> None:
    timer = Timer()
    entries = [entry(5.0), entry(1.0), entry(5.0), entry(3.0)]
    for one in entries:
        timer.add(one)
    found = timer.pop_due(10.0, 100)
    assert [id(e) for e in found] == [id(entries[i]) for i in (1, 3, 0, 2)]


def test_only_what_is_due_and_no_more_than_the_limit() -> None:
    timer = Timer()
    for due in (1.0, 2.0, 3.0, 4.0):
        timer.add(entry(due))
    assert [e.due for e in timer.pop_due(3.5, 2)] == [1.0, 2.0]
    assert [e.due for e in timer.pop_due(3.5, 2)] == [3.0]
    assert timer.next_due() == 4.0
    assert len(timer) == 1


def test_add_says_when_the_new_one_is_first() -> None:
    timer = Timer()
    assert timer.add(entry(5.0))
    assert not timer.add(entry(6.0))
    assert timer.add(entry(4.0))


def test_equal_entries_are_never_compared_with_each_other() -> None:
    """Two messages due at the same instant both come out (the original could lose one)."""
    timer = Timer()
    for _ in range(100):
        timer.add(entry(1.0))
    assert len(timer.pop_due(1.0, 1000)) == 100


def test_a_queued_message_is_small_and_not_walked_by_the_collector() -> None:
    import gc

    one = entry(1.5)
    assert sys.getsizeof(one) <= 128
    assert engine.PURE or not gc.is_tracked(one)


def test_the_text_of_a_queue_name() -> None:
    assert str(QueueName("example.com")) == "example.com"
    assert str(QueueName("example.com", "t")) == "t@example.com"
    assert str(QueueName("example.com", "t", "c")) == "c:t@example.com"
    assert str(QueueName("example.com", None, "c")) == "c:@example.com"
    assert str(QueueName("example.com", "t", "c", "mx.example")) == "c:t@example.com!mx.example"
    assert QueueName("a", None, None, "b").route == "b"
    assert QueueName("a").route == "a"


def test_many_queues_come_in_the_order_of_one_and_what_is_taken_out_does_not_come() -> None:
    """Against a list that is sorted, with what is due, new, taken out and retried in any order."""
    dice = random.Random(5)
    queues = [ScheduledQueue(QueueName(f"d{number}.example")) for number in range(20)]
    timer = Timer()
    wanted: list[tuple[float, int, Queued]] = []
    serial = 0
    now = 0.0

    def add(one: Queued) -> None:
        nonlocal serial
        serial += 1
        timer.add(one)
        wanted.append((one.due, serial, one))

    for _ in range(20_000):
        what = dice.random()
        if what < 0.5:
            add(entry(now + dice.choice((0.0, 1.0, dice.random() * 100)), dice.choice(queues)))
        elif what < 0.6:
            queue = dice.choice(queues)
            mine = [one for one in wanted if one[2].queue is queue]
            found = timer.take(queue)
            assert found is (min(mine)[2] if mine else None)
            if found is not None:
                wanted.remove(min(mine))
                if dice.random() < 0.3:  # what could not be bounced is tried later
                    found.due = now + dice.random() * 50
                    add(found)
        else:
            now += dice.random() * 10
            limit = dice.choice((1, 3, 1000))
            wanted.sort()
            due = [one for one in wanted if one[0] <= now]
            got = timer.pop_due(now, limit)
            assert got == [one[2] for one in due[: len(got)]]
            assert len(got) == len(due) or limit < 1000
            wanted = wanted[len(got) :]
        assert len(timer) == len(wanted)
        first = timer.next_due()
        assert (first is None) == (not wanted)
        assert first is None or first <= min(wanted)[0]


def test_what_is_put_before_another_for_ever_costs_no_memory() -> None:
    timer = Timer()
    queue = ScheduledQueue(QueueName("example.com"))
    timer.add(entry(1e9, queue))
    for number in range(10_000):
        timer.add(entry(float(number), queue))
        assert len(timer.pop_due(float(number), 10)) == 1
    assert len(timer._firsts) < 5
