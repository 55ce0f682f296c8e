"""engine/egress/circuitfile.py: a restart spends no budget twice, and what is written down is no secret."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from engine.egress.circuitfile import CircuitFile, directory
from engine.egress.circuits import Circuits, OpenCircuit, Try
from engine.egress.resolve import Candidate
from engine.errors import LoginRefused
from engine.keys import Credential, open_keys
from policy.keysource import read_key
from policy.secret import Secret
from policy.units import parse_throttle

SCOTT = Try("mx.example", 587, "scott", "4711", budget=parse_throttle("2/h"))
HERE = [Candidate("mx.example", "192.0.2.1", 587, "mx.example")]


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread works nobody seems to, and the clock would jump."""

    async def in_place(function: Any, *args: Any, limiter: trio.CapacityLimiter) -> Any:
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)


async def life(spool: Path, steps: Any) -> None:
    """A process with this spool."""
    circuits = Circuits()
    file = CircuitFile.load(directory(spool))
    file.restore(circuits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.keep, circuits)
        await trio.sleep(0.1)
        await steps(circuits)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()


async def refuse(circuits: Circuits) -> None:
    with pytest.raises(LoginRefused):
        async with circuits.turn(circuits.endpoint(HERE), SCOTT):
            raise LoginRefused("535 5.7.8 no")


def left(circuits: Circuits) -> float:
    until = circuits.closed_until(circuits.endpoint(HERE), SCOTT)
    return until - trio.current_time()


async def test_a_restart_remembers(tmp_path: Path, clock: MockClock) -> None:
    spool = tmp_path / "spool"

    async def second(circuits: Circuits) -> None:
        assert 50 < left(circuits) <= 60
        with pytest.raises(LoginRefused, match=r"535 5.7.8 no \(not repeated for another"):
            circuits.check(circuits.endpoint(HERE), SCOTT)
        await trio.sleep(60)
        await refuse(circuits)

    async def third(circuits: Circuits) -> None:
        circuits.check(circuits.endpoint(HERE), msgspec.structs.replace(SCOTT, version="4712"))
        with pytest.raises(LoginRefused):
            circuits.check(circuits.endpoint(HERE), SCOTT)
        assert left(circuits) > 1800, "two an hour"
        await trio.sleep(3600)
        async with circuits.turn(circuits.endpoint(HERE), SCOTT):
            pass
        assert not any(one.refused for one in circuits.opened())

    async def fourth(circuits: Circuits) -> None:
        circuits.check(circuits.endpoint(HERE), SCOTT)
        await trio.sleep(3600)
        assert not [*circuits.opened()]

    await life(spool, refuse)
    for steps in (second, third, fourth):
        await life(spool, steps)


async def test_a_clock_that_was_set_opens_nothing_for_ever(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    await life(spool, refuse)
    real = time.time
    for days, wait in ((-10, True), (10, False)):
        monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
        circuits = Circuits()
        for one in CircuitFile.load(directory(spool)).circuits():
            circuits.restore(one)
        assert (0 < left(circuits) <= 60) is wait


async def test_no_secret_is_written_and_nobody_else_may_read(tmp_path: Path, clock: MockClock) -> None:
    spool = tmp_path / "spool"
    await life(spool, refuse)
    folder = Path(f"{spool}.logins")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(os.listdir(folder)) == ["circuits", "key"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    content = msgspec.json.decode((folder / "circuits").read_bytes().partition(b"\n")[2])
    (row,) = content["circuits"]
    assert row.keys() == set(OpenCircuit.__struct_fields__) - {"until", "failures"} | {"left", "ages"}


async def test_versions_are_named_alike_over_a_restart_and_not_elsewhere(tmp_path: Path) -> None:
    reference = read_key({"key_data": "tiger"})
    versions = []
    for spool in ("a", "a", "b"):
        key = CircuitFile.load(directory(tmp_path / spool)).key
        async with open_keys(fingerprint=key) as keys:
            versions.append((await keys.fetch(reference)).version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("content", [b"", b"junk", b"0" * 32 + b"\n{}"])
async def test_a_damaged_file_counts_as_missing(
    content: bytes, tmp_path: Path, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    spool = tmp_path / "spool"
    await life(spool, refuse)
    Path(f"{spool}.logins/circuits").write_bytes(content)
    assert not CircuitFile.load(directory(spool)).circuits()
    assert "counts as missing" in caplog.text


async def begin_and(circuits: Circuits, ending: Any) -> None:
    async with circuits.turn(circuits.endpoint(HERE), SCOTT) as turn:
        await turn.begin()
        await ending()


async def test_a_login_is_written_down_before_the_secret_leaves(tmp_path: Path, clock: MockClock) -> None:
    """Killed at any moment after that, and as often as may be: the peer never sees more than the budget."""
    spool, seen = tmp_path / "spool", 0

    async def killed() -> None:
        nonlocal seen
        seen += 1
        shutil.copytree(f"{spool}.logins", tmp_path / "left")
        await trio.sleep_forever()

    async def steps(circuits: Circuits) -> None:
        with trio.move_on_after(0.5), suppress(LoginRefused):
            await begin_and(circuits, killed)

    for _ in range(5):
        await life(spool, steps)
        if (tmp_path / "left").exists():
            shutil.rmtree(f"{spool}.logins")
            (tmp_path / "left").rename(f"{spool}.logins")
    assert seen == 2, "two an hour"


async def test_who_was_killed_in_a_login_may_try_again_at_once(tmp_path: Path, clock: MockClock) -> None:
    """Nobody said that the password is wrong. When it is accepted nothing counts any more."""
    spool = tmp_path / "spool"

    async def first(circuits: Circuits) -> None:
        with trio.move_on_after(1.0):
            await begin_and(circuits, trio.sleep_forever)

    async def second(circuits: Circuits) -> None:
        (known,) = circuits.opened()
        assert not known.failures and len(known.unheard) == 1
        assert left(circuits) < 0
        await begin_and(circuits, trio.lowlevel.checkpoint)

    async def third(circuits: Circuits) -> None:
        assert not [*circuits.opened()]

    for steps in (first, second, third):
        await life(spool, steps)


async def test_a_clean_end_leaves_no_login_under_way(tmp_path: Path, clock: MockClock) -> None:
    spool = tmp_path / "spool"
    circuits, file = Circuits(), CircuitFile.load(directory(spool))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.keep, circuits)
        await trio.sleep(0.1)
        await begin_and(circuits, trio.lowlevel.checkpoint)
        nursery.cancel_scope.cancel()
    assert not CircuitFile.load(directory(spool)).circuits()


async def test_which_version_is_in_use_is_written_down_and_not_believed_after_a_restart(
    tmp_path: Path, clock: MockClock
) -> None:
    spool = tmp_path / "spool"

    async def first(circuits: Circuits) -> None:
        rotation = circuits.endpoint(HERE).rotation(None, "scott")
        rotation.choose(Credential(Secret("1"), "1", 0.0), trio.current_time())
        rotation.accepted("1")
        assert rotation.choose(Credential(Secret("2"), "2", 0.0), trio.current_time())[1]
        await trio.sleep(5)
        (found,) = CircuitFile.load(directory(spool)).in_use()
        assert (found.user, found.active, found.newest, found.trying) == ("scott", "1", "2", True)
        assert 4 <= found.age <= 6

    async def second(circuits: Circuits) -> None:
        await trio.sleep(5)
        assert not CircuitFile.load(directory(spool)).in_use()

    await life(spool, first)
    await life(spool, second)


async def test_a_run_of_logins_waits_for_the_disk_once_and_is_never_ahead_of_it(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, writings = tmp_path / "spool", 0
    save = CircuitFile.save

    def counting(self: CircuitFile, *args: Any) -> None:
        nonlocal writings
        writings += 1
        save(self, *args)

    monkeypatch.setattr(CircuitFile, "save", counting)

    async def on_the_disk() -> None:
        (known,) = CircuitFile.load(directory(spool)).circuits()
        assert len(known.unheard) == 1

    async def steps(circuits: Circuits) -> None:
        for _ in range(100):
            await begin_and(circuits, on_the_disk)
            await trio.sleep(0.1)
        assert writings <= 25, "once a second, and once more where that took it back"
        await trio.sleep(5)
        assert not CircuitFile.load(directory(spool)).circuits()
        await begin_and(circuits, on_the_disk)

    await life(spool, steps)


async def test_a_disk_that_does_not_answer_is_waited_for_some_seconds(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuits, file = Circuits(), CircuitFile.load(directory(tmp_path / "spool"))

    async def hangs(circuits: Circuits) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(file, "_write", hangs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.keep, circuits)
        await trio.sleep(0.1)
        begun = trio.current_time()
        await begin_and(circuits, trio.lowlevel.checkpoint)
        assert trio.current_time() - begun == pytest.approx(5.0)
        circuits.changed = trio.Event()
        nursery.cancel_scope.cancel()


def test_who_only_looks_writes_nothing(tmp_path: Path) -> None:
    CircuitFile.load(directory(tmp_path / "spool", writes=False))
    assert not list(tmp_path.iterdir())
