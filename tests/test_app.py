"""engine/app.py: how long the steps of a drain may take."""

from __future__ import annotations

from typing import Any

from engine.app import DRAIN_INGRESS, Engine


class Parts:
    """Listeners and router whose drains only say that they ran."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    async def drain(self, seconds: float | None = None) -> None:
        self.steps.append("router" if seconds is None else "listeners")

    def longest_drain(self) -> float:
        """A delivery exists once the listeners are drained: their last transaction began it."""
        return 60.0 if "listeners" in self.steps else 0.0


async def test_a_delivery_begun_in_the_drain_has_its_own_time() -> None:
    parts = Parts()
    engine = Engine(None, None, None, parts, parts)  # type: ignore[arg-type]
    await engine.drain(parts.steps.append)
    assert parts.steps == [DRAIN_INGRESS, "listeners", 60.0, "router", 0]
