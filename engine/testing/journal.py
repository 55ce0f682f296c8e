"""Log records in a list, and waiting for them."""

from __future__ import annotations

import trio

from engine.log import Capture, Log, Record, bounce_class
from policy.shaping.rules import Bounces

__all__ = ["Journal"]


class Journal(Log):
    """Keeps all records, in order, and tells whoever waits for one. `capture`: what goes into them."""

    def __init__(self, capture: Capture | None = None) -> None:
        super().__init__((), capture)
        self.bounces: Bounces | None = None
        self.records: list[Record] = []
        self.written = trio.Event()
        """Set by the next record."""

    def write(self, record: Record) -> None:
        """See `Log.write`."""
        record.bounce_classification = bounce_class(record, self.bounces)
        self.records.append(record)
        self.written.set()

    def kinds(self) -> list[str]:
        """The types of all records so far, in order."""
        return [record.type for record in self.records]

    def of(self, kind: str) -> list[Record]:
        """The records of a type so far."""
        return [record for record in self.records if record.type == kind]

    async def wait_for(self, kind: str, number: int = 1) -> list[Record]:
        """Wait for so many records of a type, and return them."""
        while len(found := self.of(kind)) < number:
            self.written = trio.Event()
            await self.written.wait()
        return found

    async def first(self) -> Record:
        """Wait for the first record, whatever it is."""
        while not self.records:
            await self.written.wait()
        return self.records[0]

    def outcomes(self) -> dict[str, list[str]]:
        """Types of record so far by recipient (without its domain), in order."""
        found: dict[str, list[str]] = {}
        for record in self.records:
            listed = [record.recipient] if isinstance(record.recipient, str) else record.recipient
            for recipient in listed:
                found.setdefault(recipient.rsplit("@", 1)[0], []).append(record.type)
        return found

    def text(self) -> str:
        """Everything the records say."""
        return "\n".join(map(str, self.records))
