"""engine/queues/ready.py: room, waking, how many sessions, holds and back-off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.model import QueueName, new_message_id
from engine.queues.limits import LocalLimits
from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue, wanted_sessions
from engine.queues.scheduled import ScheduledQueue
from policy.egress import EgressPath
from policy.units import Limit

QUEUE = ScheduledQueue(QueueName("example.com"))


def entry() -> Queued:
    return Queued(new_message_id(), None, QUEUE, 0.0, 0.0, 100)


def ready_queue(max_ready: int = 10, connection_limit: int = 32, user: str | None = None) -> ReadyQueue:
    path = EgressPath(
        max_ready=max_ready, connection_limit=Limit(connection_limit), smtp_auth_plain_username=user
    )
    source: Any = SimpleNamespace(name="src")
    return ReadyQueue(source, SimpleNamespace(name="mx.example.com"), path, LocalLimits())


@pytest.mark.parametrize(
    ("queued", "sessions"),
    [(0, 0), (1, 1), (2, 2), (3, 3), (5, 4), (10, 7), (20, 12), (32, 17), (64, 25), (128, 31), (256, 32)],
)
def test_the_curve_of_sessions(queued: int, sessions: int) -> None:
    assert wanted_sessions(queued, 32) == sessions


def test_first_in_first_out_and_full_is_full() -> None:
    ready = ready_queue(max_ready=2)
    one, two, three = entry(), entry(), entry()
    assert ready.put(one) and ready.put(two)
    assert not ready.put(three)
    assert ready.take() is one
    ready.put_back(one)
    assert [ready.take(), ready.take(), ready.take()] == [one, two, None]


@pytest.mark.parametrize("limit", [2**63, 10**30])
def test_a_limit_may_be_a_number_of_any_length(limit: int) -> None:
    ready = ready_queue(max_ready=limit, connection_limit=limit)
    assert ready.room() > 2**60


def test_what_is_put_back_is_never_refused() -> None:
    ready = ready_queue(max_ready=1)
    ready.put(entry())
    ready.put_back(entry())
    assert len(ready.entries) == 2


def test_waiting_messages_are_called_back_at_half_room_not_for_every_message() -> None:
    ready = ready_queue(max_ready=4)
    calls: list[int] = []
    ready.refill = lambda queue: calls.append(len(queue.entries))
    ready.hungry[QUEUE] = None
    for _ in range(4):
        ready.put(entry())
    for _ in range(4):
        ready.take()
    assert calls == [2, 1, 0]


def test_the_session_that_fell_idle_last_is_woken_first() -> None:
    ready = ready_queue()
    woken: list[str] = []
    for name in ("a", "b", "c"):
        ready.add_waker(lambda name=name: woken.append(name))
    assert ready.wake_one()
    ready.wake_all()
    assert woken == ["c", "b", "a"]
    assert not ready.wake_one()


def test_a_fast_session_gets_a_run_of_messages_a_slow_one_gets_help() -> None:
    ready = ready_queue()
    ready.sessions = 1
    for _ in range(4):
        ready.put(entry())
    ready.pace = 0.0002
    assert ready.busy_enough()
    ready.pace = 0.1
    assert not ready.busy_enough()
    ready.sessions = 0
    ready.pace = 0.0
    assert not ready.busy_enough()


def test_the_pace_follows_a_slow_message_at_once_and_forgets_it_slowly() -> None:
    ready = ready_queue()
    ready.pace = 0.001
    ready.finished_one(0.5)
    assert ready.pace == 0.5
    ready.finished_one(0.001)
    assert 0.4 < ready.pace < 0.5


def test_a_held_queue_tries_nothing_then_probes_with_one_session() -> None:
    ready = ready_queue()
    for _ in range(10):
        ready.put(entry())
    ready.hold("login-refused", "535", until=100.0)
    assert not ready.wants_session(99.9)
    assert ready.wants_session(100.0)
    ready.sessions = 1
    assert not ready.wants_session(100.0)
    ready.connected()
    assert not ready.hold_cause
    assert ready.wants_session(100.0)


def test_back_off_grows_to_minutes_and_ends_with_a_transaction() -> None:
    ready = ready_queue()
    now, waits = 0.0, []
    for _ in range(12):
        ready.connection_failed(now)
        waits.append(ready.retry_at - now)
        now = ready.retry_at
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == 300.0
    # A peer that fails at once for ever sees fewer than ten connects in its first minute (C17).
    assert sum(1 for i in range(12) if sum(waits[:i]) < 60.0) < 10
    ready.connected()
    assert ready.failures == 0
    # A peer may greet and then take nothing: only a transaction shows that it works.
    assert ready.back_off == 300.0
    ready.progressed()
    assert ready.back_off == 0.0 and ready.retry_at == float("-inf")


def test_many_sessions_that_meet_one_outage_count_once() -> None:
    ready = ready_queue()
    for _ in range(32):
        ready.setback(0.0)
    assert ready.retry_at == 1.0
    ready.setback(1.0)
    assert ready.retry_at == 3.0


def test_while_backed_off_one_session_at_a_time() -> None:
    ready = ready_queue()
    for _ in range(100):
        ready.put(entry())
    ready.setback(0.0)
    assert not ready.wants_session(0.5)
    assert ready.wants_session(1.0)
    ready.sessions = 1
    ready.connected()
    assert not ready.wants_session(1.0)
    ready.progressed()
    assert ready.wants_session(1.0)


def test_a_cold_queue_sends_a_few_ahead_and_is_cold_again_without_sessions() -> None:
    ready = ready_queue()
    for _ in range(100):
        ready.put(entry())
    while ready.wants_session(0.0):
        ready.sessions += 1
    assert ready.sessions == 4
    ready.connected()
    assert not ready.wants_session(0.0)
    ready.progressed()
    assert ready.wants_session(0.0)
    for _ in range(4):
        ready.session_over()
    assert not ready.warm


def test_a_login_is_tried_by_one_session_alone_until_it_was_accepted() -> None:
    ready = ready_queue(user="scott")
    called: list[ReadyQueue] = []
    ready.proceed = called.append
    for _ in range(10):
        ready.put(entry())
    assert ready.wants_session(0.0)
    ready.sessions = 1
    assert not ready.wants_session(0.0)
    ready.connected()
    assert called == [ready]
    while ready.wants_session(0.0):
        ready.sessions += 1
    assert ready.sessions == 4
    ready.hold("login-refused", "535", until=0.0)
    assert not ready.wants_session(0.0)
