"""engine/egress/spare.py: while memory is short, bodies are in the spool alone."""

from __future__ import annotations

from typing import Any

import trio

from tests.support.bench import to
from tests.support.peer import HANG, open_peer


async def test_bodies_leave_memory_and_are_read_again(bench: Any) -> None:
    """Those of a ready queue and of a line; what is in a session's hands stays there."""
    async with open_peer() as peer:
        peer.replies["MAIL"] = HANG
        options = {"connection_limit": 1, "max_ready": 4, "enable_pipelining_across_messages": False}
        async with bench(to(peer, **options, mail_from_timeout="1s")) as b:
            for number in range(10):
                await b.submit(f"u{number}@example.com")
            await b.until(lambda: peer.words()[-1:] == ["MAIL"])
            statistics = b.router.statistics()
            assert statistics.ready == 4 and statistics.waiting == 5
            whole = b.router.settler.resident
            b.router.spare.memory_is_short(True)
            await b.until(lambda: not b.router.spare._dropping)
            assert b.router.settler.resident == whole / 10
            await b.submit("late@example.com")
            assert b.router.settler.resident == whole / 10
            peer.replies["MAIL"] = "250 ok"
            await b.records("Delivery", 10, seconds=60)
            assert b.router.settler.resident < whole / 5
            b.router.spare.memory_is_short(False)
            peer.replies["MAIL"] = HANG
            await b.submit("kept@example.com")
            await trio.sleep(0.05)
            assert b.router.settler.resident >= whole / 10
