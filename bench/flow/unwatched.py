"""``python -m bench.flow.unwatched``: ``posthorn`` whose leak tripwire knows no secret, so that it searches
for none. For measuring what it costs; there is no such switch in the product."""

from __future__ import annotations

from collections.abc import Hashable

from engine.cli import main
from engine.tripwire import Tripwire
from policy.secret import Secret


def _knows_nothing(self: Tripwire, owner: Hashable, name: str, secret: Secret) -> None:
    return None


if __name__ == "__main__":
    Tripwire.watch = _knows_nothing  # type: ignore[method-assign]
    main()
