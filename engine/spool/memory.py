"""A spool that keeps its promise until the process ends: for tests and for trying things out.

It passes the same conformance suite as the durable one (`tests/contract/spool.py`), so what is
tested against it holds there too. A `MemoryStore` is its disk: open a second `MemorySpool` over
the same store to play a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
import trio

from engine.errors import MessageUnreadable, SpoolError
from engine.model import Message

from .protocol import Handle, Recovered, SpoolStatistics

__all__ = ["MemorySpool", "MemoryStore"]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class _Stored(msgspec.Struct):
    """One message as it would lie on a disk."""

    envelope: bytes
    body: bytes
    left: int
    attempts: int = 0
    due: float = 0.0
    noted: bool = False


class MemoryStore:
    """What survives a restart of a `MemorySpool`: messages by number, oldest first; and, for who keeps them
    beside it, the files about logins."""

    def __init__(self) -> None:
        self.messages: dict[int, _Stored] = {}
        self.last = 0
        self.names: set[bytes] = set()
        self.logins: dict[str, bytes] = {}


class MemorySpool:
    """See `Spool`. Set `fault` to an exception to make every commit fail with it, `short` to a text
    to refuse new mail, `broken` to say that results cannot be recorded."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store if store is not None else MemoryStore()
        self.fault: SpoolError | None = None
        self.short: str | None = None
        self._broken: str | None = None
        self._convalescents = trio.lowlevel.ParkingLot()
        self._old = list(self.store.messages)
        self._closed = False
        self._committed = 0
        self._recovered = 0
        self._quarantined = 0

    async def commit(
        self, bodies: Sequence[bytes], messages: Sequence[Message], deadline: float | None = None
    ) -> list[Handle]:
        """See `Spool.commit`. One checkpoint, before anything is kept."""
        stored = self._prepare(bodies, messages)
        if deadline is None:
            await trio.lowlevel.checkpoint()
        elif trio.current_time() >= deadline:
            raise SpoolError("the disk did not answer in time")
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if self._closed:
            raise SpoolError("the spool is closed")
        if self.fault is not None:
            raise type(self.fault)(*self.fault.args)
        store = self.store
        names = [message.id for message in messages]
        if len(set(names)) < len(names) or not store.names.isdisjoint(names):
            raise SpoolError("a message with this id was committed already")
        store.names.update(names)
        handles = []
        for each in stored:
            store.last += 1
            store.messages[store.last] = each
            handles.append(Handle(store, store.last, each.left))
        self._committed += len(handles)
        return handles

    def _prepare(self, bodies: Sequence[bytes], messages: Sequence[Message]) -> list[_Stored]:
        stored = []
        for message in messages:
            if not message.recipients or not 0 <= message.body_index < len(bodies):
                raise SpoolError("a message needs a recipient and a body")
            try:
                envelope = _encoder.encode(message)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise SpoolError(f"a message cannot be written down ({type(error).__name__})") from None
            stored.append(_Stored(envelope, bodies[message.body_index], (1 << len(message.recipients)) - 1))
        if not stored:
            raise SpoolError("a transaction has at least one message")
        return stored

    def finish(self, handle: Handle, recipients: int) -> None:
        """See `Spool.finish`."""
        left = handle.left & ~recipients
        if left == handle.left:
            return
        if self._closed:
            raise SpoolError("the spool is closed")
        handle.left = left
        if left:
            stored = self.store.messages[handle.ordinal]
            stored.left, stored.noted = left, True
        else:
            del self.store.messages[handle.ordinal]

    def postpone(self, handle: Handle, attempts: int, due: float) -> None:
        """See `Spool.postpone`."""
        if self._closed:
            raise SpoolError("the spool is closed")
        if handle.left:
            handle.attempts, handle.due = attempts, due
            stored = self.store.messages[handle.ordinal]
            stored.attempts, stored.due, stored.noted = attempts, due, True

    async def read(self, handle: Handle) -> tuple[Message, bytes]:
        """See `Spool.read`."""
        await trio.lowlevel.checkpoint()
        stored = self.store.messages.get(handle.ordinal)
        if not handle.left or stored is None:
            raise MessageUnreadable("the message is not in the spool any more")
        if self._closed:
            raise SpoolError("the spool is closed")
        try:
            return _decoder.decode(stored.envelope), stored.body
        except msgspec.DecodeError:
            self._quarantined += 1
            self.finish(handle, handle.left)
            raise MessageUnreadable("an envelope cannot be decoded") from None

    async def recover(self) -> AsyncIterator[list[Recovered]]:
        """See `Spool.recover`."""
        old, self._old = self._old, []
        for first in range(0, len(old), 500):
            await trio.lowlevel.checkpoint()
            batch = []
            for number in old[first : first + 500]:
                stored = self.store.messages.get(number)
                if stored is None:
                    continue
                message = _decoder.decode(stored.envelope)
                message.prefix = b""
                due = stored.due if stored.noted else message.first_attempt
                done = ((1 << len(message.recipients)) - 1) & ~stored.left
                handle = Handle(self.store, number, stored.left, stored.attempts, stored.due)
                batch.append(Recovered(message, handle, stored.attempts, due, done))
            self._recovered += len(batch)
            if batch:
                yield batch

    @property
    def trouble(self) -> str | None:
        """See `Spool.trouble`."""
        if self._closed:
            return "the spool is closed"
        return self._broken or (str(self.fault) if self.fault is not None else None) or self.short

    @property
    def broken(self) -> str | None:
        """Why results cannot be recorded; for tests to set."""
        return self._broken

    @broken.setter
    def broken(self, why: str | None) -> None:
        self._broken = why
        if why is None:
            self._convalescents.unpark_all()

    @property
    def halted(self) -> str | None:
        """See `Spool.halted`."""
        return "the spool is closed" if self._closed else self._broken

    async def wait_well(self) -> None:
        """See `Spool.wait_well`."""
        while self.halted is not None:
            if self._closed:
                raise SpoolError("the spool is closed")
            await self._convalescents.park()
        await trio.lowlevel.checkpoint()

    def room_for(self, size: int) -> bool:
        """See `Spool.room_for`."""
        return self.trouble is None

    def statistics(self) -> SpoolStatistics:
        """See `Spool.statistics`."""
        return SpoolStatistics(
            messages=len(self.store.messages),
            committed=self._committed,
            recovered=self._recovered,
            quarantined=self._quarantined,
        )

    def close(self) -> None:
        """Nothing is accepted any more; the store stays."""
        self._closed = True
        self._convalescents.unpark_all()

    def damage(self, handle: Handle) -> None:
        """For tests: the message cannot be read any more."""
        self.store.messages[handle.ordinal].envelope = b"\xc1"
