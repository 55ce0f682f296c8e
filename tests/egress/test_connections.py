"""engine/egress/connections.py: who waits for a connection, and whose turn it is."""

from __future__ import annotations

from typing import Any

from engine.egress.connections import Connections
from engine.queues.limits import LocalLimits


class Queue:
    """As much of a ready queue as is looked at; `looks`: how often, at all of them."""

    looks = 0

    def __init__(self, name: str, lease: Any, limit: int = 1) -> None:
        self.name = name
        self.leases = ((limit, lease),)
        self.entries = [name]
        self.retired = False
        self.give_way = 0
        self._sessions = 0

    @property
    def sessions(self) -> int:
        Queue.looks += 1
        return self._sessions

    def idle_sessions(self) -> int:
        return 0

    def wake_one(self) -> bool:
        return False


class Desk:
    """Starts and ends sessions as the crew does."""

    def __init__(self, count: int, limit: int) -> None:
        self.limits = LocalLimits()  # keeps the lease
        lease = self.limits.lease("site")
        self.queues = [Queue(f"q{number}", lease, limit) for number in range(count)]
        self.connections: Any = Connections()

    def start(self, queue: Queue) -> bool:
        if not self.connections.acquire(queue):
            return False
        queue._sessions += 1
        return True

    def end(self, queue: Queue) -> list[str]:
        """A session of it is over; who got one instead."""
        self.connections.release(queue)
        queue._sessions -= 1
        started = [other.name for other in self.connections.next_in_line(queue) if self.start(other)]
        self.start(queue)  # it has more mail, and comes last
        return started


def test_everybody_s_turn_comes_where_one_connection_is_shared() -> None:
    """Who was refused again went to the end of the line, and its turn never came."""
    desk = Desk(5, 1)
    for queue in desk.queues:
        desk.start(queue)
    order: list[str] = []
    for _ in range(10):
        busy = next(queue for queue in desk.queues if queue._sessions)
        order += desk.end(busy)
    assert order == ["q1", "q2", "q3", "q4", "q0"] * 2


def test_who_has_none_comes_before_who_wants_more() -> None:
    desk = Desk(3, 2)
    busy, other, none = desk.queues
    assert desk.start(busy) and desk.start(other)
    assert not desk.start(other) and not desk.start(none)
    assert desk.end(busy) == ["q2"]


def test_the_end_of_a_session_is_cheap_however_many_wait() -> None:
    desk = Desk(10_000, 1)
    for queue in desk.queues:
        desk.start(queue)
    Queue.looks = 0
    assert desk.end(desk.queues[0]) == ["q1"]
    assert Queue.looks < 20
