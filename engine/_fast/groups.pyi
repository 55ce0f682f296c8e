"""Transactions into a spool segment: packed, written and synced by a thread that never asks for the
interpreter's lock, so the loop is neither stopped by it nor waited for.

The bytes are those of `engine.spool.format.pack_record`.
"""

from collections.abc import Sequence

class GroupWriter:
    """The loop adds records and starts a group; one thread, in `run`, writes and syncs it. One group at a
    time; what went wrong with it is for the thread to see to. Raises: OSError when the system has no
    descriptor left."""

    def __init__(self) -> None: ...
    def fileno(self) -> int:
        """Becomes readable when what was started or called is done. Read it by `result` alone."""

    def add(
        self,
        envelopes: list[bytes],
        recipients: list[int],
        bodies: Sequence[bytes],
        length: int,
        room: int,
    ) -> None:
        """One more record for the next group: `length` octets long, with `room` octets in the journal.

        Raises: RuntimeError while a group is under way; TypeError, ValueError and OverflowError for what is
        no record; MemoryError. Nothing is added any more then.
        """

    def start(self, fd: int, nonce: bytes, offset: int, slot: int) -> None:
        """Let the thread write the records that were added to `fd`, back to back from `offset`, and sync.

        `slot`: where in the journal the first message's slot is. Raises: RuntimeError while a group is under
        way; MemoryError, and OSError when the thread cannot be told: nothing is added any more then.
        """

    def call(self) -> None:
        """Let `run` return. Raises: RuntimeError while a group is under way; OSError."""

    def end(self) -> None:
        """Let `run` return None, once what was started or called before is done. Raises: OSError."""

    def result(self) -> bool:
        """Whether it is done; True is told once. Nothing is added any more then; a next group may start."""

    def run(self) -> tuple[int, int] | None:
        """Work until called, until a group fails, or until the end.

        Returns: None at the end; else the kernel's errno of the write and of the sync of the group that
        failed, 0 for what did not fail (after a failed write nothing was synced), and both 0 when called.
        Then see to it, `report`, and `run` again. Raises: OSError when the kernel fails to signal.
        """

    def report(self) -> None:
        """What `run` returned for is done."""

    def close(self) -> None:
        """Give the descriptors back; not while a thread is in `run`. Idempotent."""
