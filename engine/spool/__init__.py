"""Where accepted mail is kept: a promise that survives a power cut, and what became of it.

| store | for | opened by |
|---|---|---|
| durable: append-only segments, group commit | running | `open_spool(path)` |
| memory: the same contract without a disk | tests | `MemorySpool()` |

Read in this order: `protocol` (the contract), `format` (the bytes), `commit` (how mail gets in),
`shelf` (how results get in), `scan` (the start), `compact` and `upkeep` (the rest).
"""

from __future__ import annotations

from .durable import Claim, DurableSpool, claim_spool, open_spool
from .files import Files
from .memory import MemorySpool, MemoryStore
from .protocol import Handle, Recovered, Spool, SpoolStatistics

__all__ = [
    "Claim",
    "DurableSpool",
    "Files",
    "Handle",
    "MemorySpool",
    "MemoryStore",
    "Recovered",
    "Spool",
    "SpoolStatistics",
    "claim_spool",
    "open_spool",
]
