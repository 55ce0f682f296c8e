"""What a spool is to the rest of the engine: a place that keeps a promise.

`commit` is the promise: when it returns, the messages survive a power cut. `finish` and
`postpone` tell the spool what became of them; `read` brings one back; `recover` lists what an
earlier process left behind. Two stores keep this contract: `open_spool` (durable) and
`MemorySpool` (for tests and experiments); `tests/contract/spool.py` runs against both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec

from engine.model import Message

__all__ = ["Handle", "Recovered", "Spool", "SpoolStatistics"]


class Handle(msgspec.Struct, gc=False, eq=False):
    """Where one committed message is. Made by the spool only; about 120 bytes with its numbers.

    `left` has one bit per recipient without a final result, `attempts` and `due` (Unix time) are
    what `postpone` was last told: all three may be read by anybody. The rest is the store's own:
    when a message is moved to another segment, the same object says so.

    `gc=False`: there can be a million, and walking them in each full collection would stop the
    loop. The cycle handle -> segment -> handle is cut by the spool when the message is finished.
    """

    place: Any
    ordinal: int
    left: int
    attempts: int = 0
    due: float = 0.0
    seq: int = 0

    def __repr__(self) -> str:
        return f"<Handle {self.place} #{self.ordinal} left={self.left:#x}>"


class Recovered(msgspec.Struct, gc=False):
    """A message found at the start: its envelope (no body, `prefix` empty; `read` gives both).

    `done` has one bit per recipient with a final result. `due` is Unix time: what `postpone` was
    told last, else the message's `first_attempt`.
    """

    message: Message
    handle: Handle
    attempts: int
    due: float
    done: int


class SpoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. Counters count from the start of this process; sizes are octets."""

    messages: int = 0
    """Messages that are not finished."""
    segments: int = 0
    spares: int = 0
    """Emptied segment files kept for reuse."""
    bytes_on_disk: int = 0
    waiting: int = 0
    """Commits waiting for their sync."""
    committed: int = 0
    batches: int = 0
    """Groups written, one sync each."""
    recovered: int = 0
    quarantined: int = 0
    """Damaged messages or ranges moved to the quarantine."""
    torn: int = 0
    """Incomplete ends cut off at the start (nobody got a 250 for them)."""
    duplicates: int = 0
    """Copies of a message that were found at the start and set aside."""
    abandoned: int = 0
    """Commits whose caller had gone when they completed; their messages were removed again."""
    compactions: int = 0
    failures: int = 0
    """Writes and syncs that failed."""
    free_bytes: int = -1
    """Free space when it was last looked at; -1 = not known."""
    free_inodes: int = -1


class Spool(Protocol):
    """The contract. All methods belong to the task that runs the event loop."""

    async def commit(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float | None = None
    ) -> list[Handle]:
        """Keep a transaction: all of `messages`, or none. `Message.body_index` selects the body.

        With a `deadline` (of the event loop's clock) it is not cancelled: what has begun is finished,
        at the latest until then, when it fails as if it had been cancelled, with SpoolError. That is
        what a `trio.CancelScope` with a shield would do, at a tenth of its price.

        Returns: a handle per message, in order, after a sync that began when the last octet was
                 with the kernel.
        Raises:  SpoolFull or SpoolError; then nothing of it is ever delivered.
        Waits:   for the disk. Cancelled before its group is written: nothing is kept. Cancelled
                 while the group is being written: the caller leaves at once, and the messages are
                 removed again when the write ends. So a commit whose caller did not get its
                 handles leaves no message behind; only a crash in between may keep a whole one
                 (nobody saw a 250 for it; reliability D27).
        """
        ...

    def finish(self, handle: Handle, recipients: int) -> None:
        """These recipients (bit mask) have a final result; the last one removes the message.

        With the kernel before this returns, synced within 100 ms. Repeating it is harmless. A disk
        that fails does not raise here: the result is kept in memory, `halted` says so, and it is
        written again when the disk works.
        """
        ...

    def postpone(self, handle: Handle, attempts: int, due: float) -> None:
        """Attempts made so far and when the next is due (Unix time). Persisted like `finish`."""
        ...

    async def read(self, handle: Handle) -> tuple[Message, bytes]:
        """The message and its body, checked.

        Raises: MessageUnreadable when it was read and is damaged: its octets lie in the quarantine
                and the spool is done with it. SpoolError when the disk does not give it now: it
                stays as it is, ask again later.
        Waits:  for a thread.
        """
        ...

    def recover(self) -> AsyncIterator[list[Recovered]]:
        """What earlier processes left unfinished, oldest first, in batches. Ask once, after opening."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why new mail must not be taken now; None when all is well. Costs nothing to ask."""
        ...

    @property
    def halted(self) -> str | None:
        """Why no new delivery should begin: its result could not be recorded (reliability D21). None
        when all is well. Costs nothing to ask.

        A full disk does not halt: finishing mail needs no new space. Nor do descriptors or memory
        that ran out: finishing mail is what gives them back.
        """
        ...

    async def wait_well(self) -> None:
        """Wait until `halted` is None; it may say something again when the caller runs.

        Raises: SpoolError when the spool is closed.
        Waits:  for the disk to work again, perhaps for ever. Always a checkpoint.
        """
        ...

    def room_for(self, size: int) -> bool:
        """Whether a message of `size` octets may be taken: no trouble, and 1.5 times that is free."""
        ...

    def statistics(self) -> SpoolStatistics:
        """A snapshot for metrics and people."""
        ...
