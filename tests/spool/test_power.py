"""What is left when the power fails, or the process is killed, at any moment (D1, D8, D9, D25 to D27, D32).

A model of a disk (`helpers.PowerDisk`) says what could be found after a power cut: whatever was not synced is
there or not, in any order, torn at any sector, and names likewise. Each test works on such a disk, draws cuts
before its calls, and opens what each cut left with ordinary files.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from engine.model import Message
from engine.spool import DurableSpool, Files, Handle, directory, open_spool
from tests.contract.spool import found, message
from tests.spool.helpers import PowerDisk

SMALL = 32 << 10
"""Octets of a segment: small, so that a short load begins, empties, reuses and merges many."""

NAMES = ("rename", "unlink", "fsync_directory")
"""Calls about names: few, and where a merge can go wrong."""


class Load:
    """Clients that commit, and deliveries that finish and postpone, over one spool."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bodies: dict[bytes, bytes] = {}
        """All that was ever handed to the spool."""
        self.messages: dict[bytes, Message] = {}
        self.kept: set[bytes] = set()
        """Acknowledged."""
        self.begun: set[bytes] = set()
        """Being finished, or finished."""
        self.finished: set[bytes] = set()
        """Their end was handed to the kernel."""
        self.synced: set[bytes] = set()
        """Their end is on the disk."""
        self.handles: dict[bytes, Handle] = {}

    async def run(self, spool: DurableSpool, *, clients: int, turns: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._client, spool, turns)

    async def _client(self, spool: DurableSpool, turns: int) -> None:
        rng = self.rng
        for _ in range(turns):
            body = rng.randbytes(rng.choice((10, 700, 2_000, 5_000)))
            messages = [message(rng.randint(1, 40)) for _ in range(rng.randint(1, 3))]
            for one in messages:
                self.bodies[one.id] = body
                self.messages[one.id] = one
            handles = await spool.commit([body], messages)
            for one, handle in zip(messages, handles, strict=True):
                self.kept.add(one.id)
                self.handles[one.id] = handle
            for name in rng.sample(sorted(self.handles), k=min(2, len(self.handles))):
                self.settle(spool, name)

    def settle(self, spool: DurableSpool, name: bytes) -> None:
        if self.rng.random() < 0.2:
            spool.postpone(self.handles[name], 1, 5.0)
        else:
            self.finish(spool, name)

    async def thin_out(self, spool: DurableSpool) -> None:
        """Finish all but one of each segment until what is left of some was merged."""
        before = spool.statistics().compactions
        for _ in range(50):
            last = {id(handle.place): name for name, handle in self.handles.items()}
            for name in self.handles.keys() - last.values():
                self.finish(spool, name)
            with trio.move_on_after(0.2):
                while spool.statistics().compactions == before:
                    await trio.sleep(0.005)
            if spool.statistics().compactions > before:
                return
            await self.run(spool, clients=6, turns=2)  # there was not enough to be worth it
        raise AssertionError("nothing was merged")

    def finish(self, spool: DurableSpool, name: bytes) -> None:
        handle = self.handles[name]
        self.begun.add(name)
        spool.finish(handle, handle.left)
        self.finished.add(name)
        del self.handles[name]


async def contents(directory: Path, files: Files | None = None) -> dict[bytes, bytes]:
    """The body of each message that is found. What cannot be read raises."""
    async with open_spool(directory, files=files) as spool:
        bodies = {}
        for name, recovered in (await found(spool)).items():
            read, bodies[name] = await spool.read(recovered.handle)
            assert read.id == name
        assert spool.statistics().quarantined == 0, "a power cut is no damage"
        return bodies


class Cut:
    """What a cut left, and what had been promised when it was drawn."""

    def __init__(self, where: Path, call: str, load: Load, draw: Callable[[Path], object]) -> None:
        self.where, self.call = where, call
        promised, gone = set(load.kept), set(load.finished)
        self.synced = set(load.synced)
        draw(where)
        # What was promised before the cut must be there, unless its end began before the cut was over.
        self.must = promised - load.begun
        self.may = dict(load.bodies)
        self.gone = gone

    def check(self, bodies: dict[bytes, bytes], *, killed: bool) -> None:
        missing = self.must - bodies.keys()
        assert not missing, f"{len(missing)} acknowledged messages are gone, cut before {self.call}"
        for name, body in bodies.items():
            assert body == self.may[name], "a message came back changed"
        back = bodies.keys() & (self.gone if killed else self.synced)
        assert not back, f"{len(back)} finished messages came back, cut before {self.call}"


def segments(directory: Path, kind: str) -> list[Path]:
    return sorted((directory / "segments").glob(f"*.{kind}"))


async def loaded(
    root: Path,
    copies: Path,
    seed: int,
    *,
    often: float = 0.06,
    draw: Callable[[PowerDisk, Path], object] | None = None,
) -> tuple[Load, PowerDisk, list[Cut]]:
    """A load on a disk that may lose its power, with cuts before some of its calls. `draw`: another
    end than a power cut."""

    def take(target: Path) -> None:
        if draw is None:
            disk.cut(root, target)
        else:
            draw(disk, target)

    dice, share, repeat = random.Random(-seed), often, 1
    disk = PowerDisk(random.Random(seed))
    load = Load(seed)
    cuts: list[Cut] = []

    def before(call: str) -> None:
        for _ in range(repeat if call in NAMES else 1):
            if dice.random() >= (share if call in NAMES else often):
                continue
            cuts.append(Cut(copies / f"{len(cuts):04d}", call, load, take))

    async with open_spool(root, files=disk, segment_size=SMALL, spare_segments=2, compact_age=0.0) as spool:
        disk.before = before
        await load.run(spool, clients=6, turns=14)
        with trio.fail_after(60):
            while disk.unsynced_notes():
                await trio.sleep(0.005)
        load.synced = set(load.finished)
        # What is merged now must not lose the notes on those that are finished: cut at every step of it.
        share, repeat = 1.0, 5
        await load.thin_out(spool)
        disk.before = lambda call: None
    return load, disk, cuts


SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 60))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged(
    seed: int, tmp_path: Path
) -> None:
    root, copies = tmp_path / "spool", tmp_path / "cuts"
    load, disk, cuts = await loaded(root, copies, seed)
    assert len(cuts) > 15 and len(load.kept) > 100
    for cut in cuts:
        cut.check(await contents(cut.where), killed=False)
        shutil.rmtree(cut.where)
    # After a proper end everything is synced: the notes, too.
    end = Cut(copies / "end", "the end", load, lambda target: disk.cut(root, target))
    bodies = await contents(end.where)
    end.check(bodies, killed=True)
    assert bodies.keys() == load.kept - load.finished


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_start_that_loses_its_power_in_the_middle_is_simply_made_again(
    seed: int, tmp_path: Path
) -> None:
    """D26: whatever the start puts in order, at any moment of it the next start finds the same."""
    root, copies = tmp_path / "spool", tmp_path / "cuts"
    load, _, cuts = await loaded(root, copies, seed, often=0.05)
    dice = random.Random(seed)
    tried = 0
    for cut in random.Random(seed).sample(cuts, 4):
        disk = PowerDisk(random.Random(seed))
        disk.adopt(cut.where)
        again: list[Cut] = []

        def before(call: str, cut: Cut = cut, disk: PowerDisk = disk, again: list[Cut] = again) -> None:
            if dice.random() < 0.2:
                where = copies / f"again{len(again)}"
                text = f"{cut.call}, {call}"
                again.append(Cut(where, text, load, lambda target: disk.cut(cut.where, target)))

        disk.before = before
        first = await contents(cut.where, disk)
        for second in again:
            assert await contents(second.where) == first, f"after a cut before {second.call}"
            shutil.rmtree(second.where)
            tried += 1
    assert tried > 5


async def test_a_kill_before_any_call_loses_nothing_and_brings_nothing_back(tmp_path: Path) -> None:
    """What was given to the kernel survives a kill: notes, too, so that nothing comes twice (D32)."""
    root, copies = tmp_path / "spool", tmp_path / "copies"
    load, _, cuts = await loaded(root, copies, 7, often=0.12, draw=lambda disk, to: shutil.copytree(root, to))
    assert len(cuts) > 20
    for cut in cuts:
        cut.check(await contents(cut.where), killed=True)
        shutil.rmtree(cut.where)
    assert (await contents(root)).keys() == load.kept - load.finished


async def test_results_are_safe_from_a_power_cut_in_a_moment(tmp_path: Path) -> None:
    """D32: notes are synced within 100 ms; a busy machine is allowed a second here."""
    root = tmp_path / "spool"
    disk = PowerDisk(random.Random(1))
    async with open_spool(root, files=disk) as spool:
        one, two = message(), message()
        first, _ = await spool.commit([b"x\r\n", b"y\r\n"], [one, two])
        spool.finish(first, 1)
        assert disk.unsynced_notes(), "a result does not wait for the disk"
        with trio.fail_after(1):
            while disk.unsynced_notes():
                await trio.sleep(0.005)
        disk.cut(root, tmp_path / "cut")
    assert (await contents(tmp_path / "cut")).keys() == {two.id}


async def test_the_directories_themselves_are_on_the_disk_before_the_first_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: a new directory is lost with its contents unless the one above it is synced."""
    synced: list[str] = []

    class Watched(Files):
        def fsync_directory(self, path: str) -> None:
            synced.append(path)
            super().fsync_directory(path)

    monkeypatch.setattr(directory, "Files", Watched)
    async with open_spool(tmp_path / "spool", files=Watched()):
        assert {str(tmp_path), str(tmp_path / "spool")} <= set(synced)
