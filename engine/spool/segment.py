"""One segment in memory: where its messages are and what has become of them.

Per message that was ever written to the segment: four numbers in arrays and one place in a list
(about 30 octets). Per message that is not finished: its `Handle`. Nothing else; identifiers and
envelopes are on disk.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from zlib import crc32

from engine.model import bits_up_to

from .format import DATA_START, JOURNAL_START, Mark, cell_size, pack_cell
from .protocol import Handle

__all__ = ["Segment"]

_NARROW = 24
"""Octets of a journal cell for up to 32 recipients."""


class Segment:
    """A segment file and its journal. Changed by the loop's thread only, except while it is being
    made, and `end`, `slots_end`, `reserved` and `mark`, which belong to the committer."""

    __slots__ = (
        "compacting",
        "created",
        "dirty",
        "end",
        "excused",
        "handles",
        "journal_path",
        "leaving",
        "lengths",
        "live",
        "mark",
        "nonce",
        "number",
        "offsets",
        "path",
        "pins",
        "reserved",
        "scanned",
        "sealed",
        "seed",
        "slots",
        "slots_end",
        "sources",
        "suspect",
        "touched",
        "unsaved",
        "watch",
        "wide",
    )

    def __init__(self, directory: str, number: int, nonce: bytes, created: float) -> None:
        self.number = number
        self.nonce = nonce
        self.seed = crc32(nonce)
        self.created = created
        self.path = f"{directory}/{number:08d}.seg"
        self.journal_path = f"{directory}/{number:08d}.jnl"
        self.handles: list[Handle | None] = []
        self.offsets = array("Q")
        self.lengths = array("I")
        self.slots = array("I")
        self.wide: dict[int, int] = {}
        """Cell size of the few messages with more than 32 recipients."""
        self.live = 0
        self.end = DATA_START
        """Where the next record goes; behind the last one once sealed."""
        self.slots_end = JOURNAL_START
        self.reserved = 0
        """Size of the journal file: room for notes that cannot fail on a full disk."""
        self.mark = Mark(0, 0, False)
        self.sealed = False
        self.scanned = True
        """False while the start has not read it to its end; it must not be removed then."""
        self.suspect = False
        """A write or sync failed: nothing new is believed, its messages move to a fresh segment."""
        self.excused = 0.0
        """Monotonic time until which a failure to read says nothing new about the disk."""
        self.compacting = False
        self.leaving = False
        """Its files are being removed."""
        self.watch = -1
        """When so few messages are left, see whether it should be compacted."""
        self.dirty = False
        self.pins = 0
        """Reasons not to remove it yet."""
        self.touched: set[int] | None = None
        """While being copied: ordinals with a note that the copy does not know."""
        self.unsaved: list[tuple[int, int, str]] = []
        """Damage found by the start that could not be copied to the quarantine: offset, length, why.
        The files stay until it is."""
        self.sources: list[Segment] = []
        """Segments this one replaces whose files could not be removed yet."""

    def __repr__(self) -> str:
        return f"segment {self.number}"

    @property
    def finished(self) -> bool:
        """Whether nothing in it is wanted any more."""
        return (
            self.sealed
            and self.scanned
            and not self.live
            and not self.pins
            and not self.compacting
            and not self.leaving
        )

    def add(self, offset: int, length: int, slot: int, recipients: list[int]) -> list[Handle]:
        """Take in the messages of a record that has just been written."""
        handles = []
        ordinal = len(self.handles)
        for count in recipients:
            handle = Handle(self, ordinal, bits_up_to(count))
            handles.append(handle)
            self._place(offset, length, slot, count)
            self.handles.append(handle)
            slot += _NARROW * 2 if count <= 32 else 2 * cell_size(count)
            ordinal += 1
        self.live += len(handles)
        return handles

    def restore(
        self, offset: int, length: int, slot: int, count: int, state: tuple[int, int, float, int] | None
    ) -> Handle | None:
        """Take in one message found on disk; the handle, or None when it is finished."""
        handle: Handle | None = None
        if state is None:
            handle = Handle(self, len(self.handles), bits_up_to(count))
        elif state[3]:
            seq, attempts, due, left = state
            handle = Handle(self, len(self.handles), left, attempts, due, seq)
        self._place(offset, length, slot, count)
        self.handles.append(handle)
        if handle is not None:
            self.live += 1
        return handle

    def _place(self, offset: int, length: int, slot: int, count: int) -> None:
        self.offsets.append(offset)
        self.lengths.append(length)
        self.slots.append(slot)
        if count > 32:
            self.wide[len(self.handles)] = cell_size(count)

    def note(self, handle: Handle) -> tuple[int, bytes]:
        """The journal octets that say what the handle says, and where they go."""
        ordinal = handle.ordinal
        handle.seq = seq = handle.seq + 1
        size = self.wide.get(ordinal, _NARROW) if self.wide else _NARROW
        return pack_cell(self.seed, self.slots[ordinal], size, seq, handle.attempts, handle.due, handle.left)

    def drop(self, handle: Handle) -> None:
        """The message of this handle is finished."""
        self.handles[handle.ordinal] = None
        self.live -= 1

    def index(self, ordinal: int) -> int:
        """Which message of its record this one is."""
        return ordinal - bisect_left(self.offsets, self.offsets[ordinal])

    def live_records(self) -> list[tuple[int, int]]:
        """Offset and length of each record that has an unfinished message."""
        records = []
        last = -1
        for ordinal, handle in enumerate(self.handles):
            if handle is not None and self.offsets[ordinal] != last:
                last = self.offsets[ordinal]
                records.append((last, self.lengths[ordinal]))
        return records
