"""engine/memory.py: the memory of messages under way, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from engine.app import memory_limit, unfinished_limit
from engine.memory import Memory, available_memory
from policy.ingress import LISTENER
from policy.runtime import Declarations, MemoryDeclaration
from policy.units import Floor

MIB = 1 << 20


class Holder:
    def __init__(self, memory: Memory, *, complete: bool = False) -> None:
        self.memory = memory
        self.complete = complete
        self.given_up = 0

    def give_up(self) -> bool:
        if self.complete:
            return False
        self.given_up += 1
        self.memory.give_back(self)
        return True


def test_just_below_at_and_above_the_limit() -> None:
    memory = Memory(10)
    holder = Holder(memory)
    assert memory.take(holder, 9) and memory.take(holder, 1) and not memory.take(holder, 1)
    assert not memory.has_room(0)
    memory.give_back(holder)
    assert memory.has_room(10) and not memory.has_room(11)
    memory.give_back(holder)
    assert memory.used == 0, "nothing is given back twice"


async def test_who_waits_goes_on_as_soon_as_there_is_room(autojump_clock: MockClock) -> None:
    memory = Memory(10)
    first, second = Holder(memory), Holder(memory)
    memory.take(first, 8)
    memory.take(second, 8)
    async with trio.open_nursery() as nursery:

        async def free() -> None:
            await trio.sleep(3)
            memory.give_back(first)

        nursery.start_soon(free)
        await memory.room()
    assert trio.current_time() == 3 and first.given_up == second.given_up == 0


async def test_the_greatest_that_is_not_complete_is_given_up(autojump_clock: MockClock) -> None:
    memory = Memory(10)
    done, greatest, small = Holder(memory, complete=True), Holder(memory), Holder(memory)
    memory.take(small, 1)
    memory.take(done, 20)
    memory.take(greatest, 9)
    with trio.move_on_after(10):  # one wait is over by then, and two never are: each takes 5 s at least
        await memory.room()
    assert [one.given_up for one in (done, greatest, small)] == [0, 1, 0]
    with trio.move_on_after(100) as scope:
        await memory.room()
    assert scope.cancelled_caught, "one that is complete keeps its memory until it is stored"
    assert small.given_up > 0


async def test_not_everybody_gives_up_when_one_message_is_too_much(autojump_clock: MockClock) -> None:
    memory = Memory(100)
    holders = [Holder(memory) for _ in range(50)]
    for holder in holders:
        memory.take(holder, 3)
    async with trio.open_nursery() as nursery:
        for _ in holders:
            nursery.start_soon(memory.room)
    assert sum(holder.given_up for holder in holders) == 17, "50 * 3 - 17 * 3 is the first to fit"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "200000000\n", "a/memory.max": "max\n"}, 200_000_000),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "100000000\n"}, 100_000_000),
        ("0::/host/path\n", {"memory.max": "300000000\n"}, 300_000_000),
        ("4:memory:/x\n3:cpu:/y\n", {"memory/x/memory.limit_in_bytes": "400000000\n"}, 400_000_000),
        ("0::/a\n", {"a/memory.max": "max\n"}, None),
        ("nonsense", {}, None),
        (None, {}, None),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_what_a_control_group_allows(
    tmp_path: Path, groups: str | None, files: dict[str, str], expected: int | None
) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(tmp_path) == (expected or machine)


def test_shares() -> None:
    assert memory_limit(Declarations()) == int(available_memory() * 0.6)
    limit = MemoryDeclaration(limit=Floor(amount=64 * MIB))
    assert memory_limit(Declarations(memory=limit)) == 64 * MIB
    listener = LISTENER(None, {"listen": "127.0.0.1:0", "max_message_size": "10MiB"})
    assert unfinished_limit(800 * MIB, Declarations(listeners=[listener])) == 200 * MIB
    assert unfinished_limit(64 * MIB, Declarations(listeners=[listener])) == 20 * MIB
