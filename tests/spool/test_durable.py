"""engine/spool: what was committed is found again; what was torn or changed is never delivered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.errors import MessageUnreadable, SpoolError, SpoolLocked
from engine.model import Message, QueueName, new_message_id
from engine.spool import MemorySpool, Recovered, Spool, open_spool

BODY = b"Subject: hello\r\n\r\n" + b"x" * 300 + b"\r\n"


def message(recipients: int = 1) -> Message:
    return Message(
        id=new_message_id(),
        sender="a@b.example",
        recipients=[f"r{i}@d.example" for i in range(recipients)],
        queue=QueueName("d.example"),
        created=1000.0,
        prefix=b"Received: x\r\n",
        size=len(BODY),
    )


async def found(spool: Spool) -> list[Recovered]:
    return [one async for batch in spool.recover() for one in batch]


async def test_a_message_is_found_again_with_what_became_of_it(tmp_path: Path) -> None:
    one, two, three = message(), message(3), message()
    async with open_spool(tmp_path / "spool") as spool:
        assert await found(spool) == []
        first, second = await spool.commit([BODY], [one, two])
        (third,) = await spool.commit([b"other\r\n"], [three])
        spool.finish(third, 1)
        spool.finish(second, 0b101)
        spool.postpone(second, 4, 5000.0)
        assert (await spool.read(first))[1] == BODY
    async with open_spool(tmp_path / "spool") as spool:
        again = {r.message.id: r for r in await found(spool)}
        assert set(again) == {one.id, two.id}
        assert (again[two.id].attempts, again[two.id].due, again[two.id].done) == (4, 5000.0, 0b101)
        read, body = await spool.read(again[two.id].handle)
        assert body == BODY and read.recipients == two.recipients and read.prefix == two.prefix


async def test_one_process_owns_the_directory(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "spool"):
        with pytest.raises(SpoolLocked):
            async with open_spool(tmp_path / "spool"):
                pass


async def test_an_id_is_never_taken_twice(tmp_path: Path) -> None:
    one = message()
    async with open_spool(tmp_path / "spool") as spool:
        await spool.commit([BODY], [one])
        with pytest.raises(SpoolError):
            await spool.commit([BODY], [one])


async def made(tmp_path: Path) -> tuple[Path, dict[bytes, bytes]]:
    """A spool with three transactions, as a killed process leaves it (no clean end)."""
    bodies: dict[bytes, bytes] = {}
    live = tmp_path / "live"
    async with open_spool(live) as spool:
        for number in range(3):
            one = message(number + 1)
            body = b"Subject: %d\r\n\r\nbody %d\r\n" % (number, number)
            await spool.commit([body], [one])
            bodies[one.id] = body
        shutil.copytree(live, tmp_path / "killed")
    return tmp_path / "killed", bodies


async def what_comes_back(directory: Path) -> dict[bytes, bytes]:
    """The messages that recovery gives and that can be read."""
    good: dict[bytes, bytes] = {}
    async with open_spool(directory) as spool:
        for recovered in await found(spool):
            try:
                read, body = await spool.read(recovered.handle)
            except MessageUnreadable:
                continue
            assert read.id == recovered.message.id
            good[read.id] = body
    return good


async def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    killed, bodies = await made(tmp_path)
    assert await what_comes_back(killed) == bodies
    assert await what_comes_back(killed) == bodies, "recovery can be repeated"


@pytest.mark.parametrize("kind", ["cut", "flip"])
async def test_what_was_cut_or_changed_is_never_delivered_changed(tmp_path: Path, kind: str) -> None:
    killed, bodies = await made(tmp_path)
    (segment,) = (killed / "segments").glob("*.seg")
    data = segment.read_bytes()
    begin = 4096
    end = begin + len(data[begin:].rstrip(b"\0"))
    for position in range(begin, end, 7):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(killed, copy)
        damaged = bytearray(data[:position] if kind == "cut" else data)
        if kind == "flip":
            damaged[position] ^= 0x20
        (copy / "segments" / segment.name).write_bytes(damaged)
        for name, body in (await what_comes_back(copy)).items():
            assert bodies[name] == body, (kind, position)


async def test_a_segment_without_live_messages_goes_away(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "spool", segment_size=1 << 20, spare_segments=0) as spool:
        for _ in range(40):
            (handle,) = await spool.commit([b"y" * 100_000], [message()])
            spool.finish(handle, 1)
    left = sum(path.stat().st_size for path in (tmp_path / "spool" / "segments").glob("*.seg"))
    assert left < 2 << 20


async def test_the_memory_spool_keeps_the_same_promises() -> None:
    spool = MemorySpool()
    one = message(2)
    (handle,) = await spool.commit([BODY], [one])
    assert (await spool.read(handle))[1] == BODY
    spool.finish(handle, 0b01)
    assert spool.statistics().messages == 1
    spool.finish(handle, 0b10)
    assert spool.statistics().messages == 0
