"""A message as the queues hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.model import Message

    from .scheduled import ScheduledQueue

__all__ = ["Queued"]


class Queued:
    """One queued message. About half a kilobyte with its spool handle; a million must fit in 1 GiB.

    The collector never looks at the compiled form (see ``setup.py``): there can be a million of these, and
    walking them in every full collection would stop the loop; they are freed by reference count when they
    leave their place.

    `created` is Unix time, `due` is on the monotonic clock (`trio.current_time`), so a step of the
    wall clock moves no retry. `done` has one bit per recipient that has a final result. `noted` is the
    timer's.
    `message` and `body` are present only while the message is worked on.
    """

    __slots__ = (
        "attempts",
        "body",
        "created",
        "done",
        "due",
        "handle",
        "id",
        "message",
        "noted",
        "queue",
        "size",
    )

    def __init__(
        self,
        id: bytes,
        handle: Any,
        queue: ScheduledQueue,
        created: float,
        due: float,
        size: int,
        attempts: int = 0,
        done: int = 0,
    ) -> None:
        self.id = id
        self.handle = handle
        self.queue = queue
        self.created = created
        self.due = due
        self.size = size
        self.attempts = attempts
        self.done = done
        self.noted = 0
        self.message: Message | None = None
        self.body: bytes | None = None
