"""What a restart finds: after a kill, after damage, beside files that are not ours (D11, D25-D28)."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import cast
from zlib import crc32

import pytest
import trio

from engine.errors import MessageUnreadable, SpoolError, SpoolLocked
from engine.model import Message
from engine.spool import DurableSpool, Recovered, claim_spool, open_spool
from tests.contract.spool import found, message

Kept = dict[bytes, tuple[Message, bytes]]


async def killed(tmp_path: Path, number: int = 3) -> tuple[Path, Kept]:
    """A spool as a killed process leaves it, with transactions of 1, 2, ... messages."""
    live, copy = tmp_path / "live", tmp_path / "killed"
    kept: Kept = {}
    async with open_spool(live) as spool:
        for size in range(1, number + 1):
            messages = [message(size) for _ in range(size)]
            body = b"Subject: %d\r\n\r\nbody %d\r\n" % (size, size)
            await spool.commit([body], messages)
            kept.update((each.id, (each, body)) for each in messages)
        shutil.copytree(live, copy)
    return copy, kept


async def everything(directory: Path) -> tuple[Kept, int]:
    """What is found and can be read, and how much went to the quarantine."""
    good: Kept = {}
    async with open_spool(directory) as spool:
        for recovered in (await found(spool)).values():
            try:
                good[recovered.message.id] = await spool.read(recovered.handle)
            except MessageUnreadable:
                continue
        return good, spool.statistics().quarantined


def only(directory: Path, kind: str) -> Path:
    (path,) = (directory / "segments").glob(f"*.{kind}")
    return path


async def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path)
    for _ in range(3):
        assert await everything(copy) == (kept, 0)


async def damaged(copy: Path, path: Path, contents: Iterator[bytes], kept: Kept, whole: bool) -> int:
    """Try each content of one file; how often something was lost."""
    losses = 0
    before = path.read_bytes()
    for at, content in enumerate(contents):
        path.write_bytes(content)
        good, quarantined = await everything(copy)
        for name, what in good.items():
            assert kept[name] == what, f"variant {at} was delivered changed"
        if whole:
            assert good == kept, f"variant {at} lost a message"
        elif len(good) < len(kept) and at < len(before):
            losses += 1
            assert quarantined or not content[4096:] or len(content) < len(before), f"variant {at} vanished"
        shutil.rmtree(copy)
        shutil.copytree(copy.parent / "again", copy)
    return losses


def flips(data: bytes, start: int, stop: int, step: int) -> Iterator[bytes]:
    for at in range(start, stop, step):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


EACH = pytest.mark.parametrize(
    "step", [pytest.param(5, id="one in five"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
"""Of the octets of the records; every field of theirs is met by both."""


@EACH
async def test_any_octet_of_a_segment_changed(step: int, tmp_path: Path) -> None:
    """The message comes back identical or is in the quarantine; the others come back."""
    copy, kept = await killed(tmp_path, 2)
    shutil.copytree(copy, tmp_path / "again")
    path = only(copy, "seg")
    data = path.read_bytes()
    # Of the header page what has a meaning, and a sample of its padding.
    assert await damaged(copy, path, flips(data, 0, 60, 1), kept, whole=True) == 0
    assert await damaged(copy, path, flips(data, 100, 4096, 501), kept, whole=True) == 0
    records = range(4096, len(data), step)
    lost = await damaged(copy, path, flips(data, 4096, len(data), step), kept, whole=False)
    assert lost == len(records) > 100


@EACH
async def test_a_segment_cut_anywhere(step: int, tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path, 2)
    shutil.copytree(copy, tmp_path / "again")
    path = only(copy, "seg")
    data = path.read_bytes()
    cuts = (data[:at] for at in (*range(0, 4096, 311), *range(4096, len(data), step)))
    assert await damaged(copy, path, cuts, kept, whole=False) > 100


async def test_any_octet_of_a_journal_changed_or_cut(tmp_path: Path) -> None:
    """A damaged note is no note: at worst a message is tried again, never lost (D31)."""
    copy, kept = await killed(tmp_path, 2)
    async with open_spool(copy) as spool:
        for recovered in (await found(spool)).values():
            spool.postpone(recovered.handle, 7, 8.0)
            spool.finish(recovered.handle, 0b10)
    shutil.copytree(copy, tmp_path / "again")
    path = only(copy, "jnl")
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) + 30
    assert await damaged(copy, path, flips(data, 0, end, 1), kept, whole=True) == 0
    cuts = (data[:at] for at in range(0, end, 3))
    assert await damaged(copy, path, cuts, kept, whole=True) == 0


async def test_both_headers_lost(tmp_path: Path) -> None:
    copy, _ = await killed(tmp_path)
    for kind in ("seg", "jnl"):
        path = only(copy, kind)
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    assert await everything(copy) == ({}, 1)
    assert sorted(path.name for path in (copy / "quarantine").iterdir()) == ["00000001.jnl", "00000001.seg"]


async def test_damage_in_the_middle_is_kept_and_told_once(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path)
    path = only(copy, "seg")
    data = bytearray(path.read_bytes())
    data[4096] ^= 1  # the magic of the first record
    path.write_bytes(data)
    first = next(iter(kept))
    rest = {name: what for name, what in kept.items() if name != first}
    assert await everything(copy) == (rest, 1)
    assert await everything(copy) == (rest, 0), "it lies in the quarantine already"
    (record,) = (copy / "quarantine").glob("*.record")
    assert record.read_bytes() == data[4096 : 4096 + record.stat().st_size]
    assert kept[first][1] in record.read_bytes()
    reason = record.with_suffix(".reason").read_text()
    assert "offset: 4096" in reason and "no valid record" in reason
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


async def test_a_body_that_changed_is_found_out_when_it_is_read(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path)
    path = only(copy, "seg")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"body 2", b"bodY 2"))
    good, quarantined = await everything(copy)
    assert quarantined == 2, "both messages of the transaction"
    assert len(good) == len(kept) - 2
    assert await everything(copy) == (good, 0)
    assert len(list((copy / "quarantine").glob("*.record"))) == 1


async def test_an_incomplete_commit_is_dropped(tmp_path: Path) -> None:
    """Octets behind the mark that are not a whole record: nobody got a 250 for them (D27)."""
    copy, kept = await killed(tmp_path)
    path = only(copy, "seg")
    data = path.read_bytes()
    nonce = data[24:32]
    for tail in (b"\0" * 5000, b"\xf5PT\n\x01\x00\x00\x00" + nonce + b"\x07" * 20, b"\xf5" * 60, data[4096:]):
        path.write_bytes(data + tail)
        assert await everything(copy) == (kept, 0)
        assert not list((copy / "quarantine").iterdir())


async def test_a_spool_file_sent_as_mail_is_just_mail(tmp_path: Path) -> None:
    """Searching behind damage never takes a body for records (D12)."""
    copy, _ = await killed(tmp_path, 2)
    evil = only(copy, "seg").read_bytes()
    again = tmp_path / "evil"
    async with open_spool(again) as spool:
        await spool.commit([evil, evil[4096:]], [message()])
        honest = message()
        await spool.commit([b"x"], [honest])
        shutil.copytree(again, tmp_path / "hurt")
    path = only(tmp_path / "hurt", "seg")
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\0" * 60 + data[4156:])
    good, quarantined = await everything(tmp_path / "hurt")
    assert set(good) == {honest.id} and quarantined == 1


# -- the directory ---------------------------------------------------------------------------------


async def test_one_process_owns_the_directory(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "spool") as spool:
        await spool.commit([b"x"], [message()])
        before = sorted(os.listdir(tmp_path / "spool/segments"))
        with pytest.raises(SpoolLocked, match=f"in use by process {os.getpid()}"):
            async with open_spool(tmp_path / "spool"):
                pass
        assert sorted(os.listdir(tmp_path / "spool/segments")) == before
    async with open_spool(tmp_path / "spool"):
        pass


async def test_a_claim_keeps_others_out_before_and_after_the_spool_is_open(tmp_path: Path) -> None:
    async with claim_spool(tmp_path / "spool") as claim:
        with pytest.raises(SpoolLocked):
            async with claim_spool(tmp_path / "spool"):
                pass
        for _ in range(2):
            async with open_spool(claim) as spool:
                await spool.commit([b"x"], [message()])
            with pytest.raises(SpoolLocked):
                async with open_spool(tmp_path / "spool"):
                    pass
    assert len((await everything(tmp_path / "spool"))[0]) == 2


async def test_modes(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with open_spool(tmp_path / "a/b/spool") as spool:
            await spool.commit([b"x"], [message()])
            for path in (tmp_path / "a/b/spool").rglob("*"):
                wanted = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    finally:
        os.umask(previous)


async def test_a_directory_others_may_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    with pytest.raises(SpoolError, match="chmod go-w"):
        async with open_spool(tmp_path / "spool"):
            pass


@pytest.mark.parametrize(
    ("text", "complaint"), [("posthorn-spool 2\n", "newer version"), ("something\n", "not one of ours")]
)
async def test_another_format_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    async with open_spool(tmp_path / "spool"):
        pass
    (tmp_path / "spool/format").write_text(text)
    with pytest.raises(SpoolError, match=complaint):
        async with open_spool(tmp_path / "spool"):
            pass


async def test_a_format_file_that_was_lost_is_written_again(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path)
    (copy / "format").unlink()
    assert await everything(copy) == (kept, 0)
    assert (copy / "format").read_text() == "posthorn-spool 1\n"


async def test_strange_files_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy, kept = await killed(tmp_path)
    segments = copy / "segments"
    newer = bytearray(only(copy, "seg").read_bytes())
    newer[8] = 9  # a version nobody knows
    newer[40:44] = crc32(newer[:40]).to_bytes(4, "little")
    (segments / "00000777.seg").write_bytes(newer)
    (segments / "notes.txt").write_text("mine")
    (segments / "00000005.seg").symlink_to(tmp_path / "elsewhere")
    before = {path.name for path in segments.iterdir()}
    with caplog.at_level(logging.WARNING):
        async with open_spool(copy) as spool:
            assert set(await found(spool)) == set(kept)
            (handle,) = await spool.commit([b"x"], [message()])
            assert handle.place.number == 778, "no number is used again"
    for name in ("00000777.seg", "notes.txt", "00000005.seg"):
        assert name in caplog.text
    assert before <= {path.name for path in segments.iterdir()}


@pytest.mark.parametrize("spares", [0, 2])
async def test_a_segment_somebody_puts_back_meanwhile_is_neither_used_nor_removed(
    spares: int, tmp_path: Path
) -> None:
    """D14, D16. It has the number that comes next: that number is passed over, and the file is safe."""
    async with open_spool(tmp_path, segment_size=8 << 10, spare_segments=spares) as spool:
        # So that there is something to be used again; finished at the end, because what is emptied early is
        # used again by the next one.
        for (handle,) in [await spool.commit([b"x" * 6000], [message()]) for _ in range(4)]:
            spool.finish(handle, 1)
        with trio.fail_after(10):
            while spool.statistics().spares < spares or spool.statistics().segments > 1:
                await trio.sleep(0.01)
        (last,) = (tmp_path / "segments").glob("*.seg")
        put_back = last.with_name(f"{int(last.stem) + 1:08d}.seg")
        put_back.write_bytes(b"mail")
        with pytest.raises(SpoolError, match="exist"):
            await spool.commit([b"x" * 6000], [message()])
        assert put_back.read_bytes() == b"mail"
        with trio.fail_after(10):
            while spool.trouble is not None:
                await trio.sleep(0.01)
        await spool.commit([b"x" * 6000], [message()])
        assert put_back.read_bytes() == b"mail"


async def test_leftovers_are_cleared_away(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path)
    segments = copy / "segments"
    for name in ("00000009.tmp", "00000009.jnl", "00000010.jnl", "00000011.seg", "probe"):
        (segments / name).write_bytes(b"")
    assert await everything(copy) == (kept, 0)
    left = {path.name for path in segments.iterdir()}
    assert left == {"00000001.seg", "00000001.jnl"}


async def test_a_missing_journal_is_told_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy, kept = await killed(tmp_path)
    only(copy, "jnl").unlink()
    with caplog.at_level(logging.ERROR):
        assert await everything(copy) == (kept, 0)
    assert "may be sent again" in caplog.text
    caplog.clear()
    assert await everything(copy) == (kept, 0)
    assert not caplog.text


async def test_a_message_that_is_there_twice_is_delivered_once(tmp_path: Path) -> None:
    """Somebody copied a segment by hand."""
    copy, kept = await killed(tmp_path)
    other, _ = await killed(tmp_path / "other")
    segments = copy / "segments"
    for kind in ("seg", "jnl"):
        data = bytearray(only(copy, kind).read_bytes())
        path = segments / f"00000002.{kind}"
        path.write_bytes(data)
    # Its headers say "1": that is damage, both help each other only when one is right.
    good, quarantined = await everything(copy)
    assert good == kept and quarantined == 1
    del other


# -- kill -9 ---------------------------------------------------------------------------------------

WRITER = """
import sys, trio
from engine.model import Message, QueueName, new_message_id
from engine.spool import open_spool

async def main():
    async with open_spool(sys.argv[1], segment_size=200_000, compact_age=0.0) as spool:
        kept = [each async for batch in spool.recover() for each in batch]
        async def session(number):
            step = 0
            while True:
                step += 1
                one = Message(id=new_message_id(), sender="", recipients=["a@b.example"],
                              queue=QueueName("b.example"), created=0.0)
                (handle,) = await spool.commit([one.id * 50 * (number + 1)], [one])
                print("+", one.id.hex(), flush=True)
                if step % 3:
                    print("?", one.id.hex(), flush=True)
                    spool.finish(handle, 1)
                    print("-", one.id.hex(), flush=True)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(session, number)

trio.run(main)
"""


def run_and_kill(directory: Path, lines: int) -> Iterator[tuple[str, str]]:
    """Start a writer, kill it after so many lines, and give all that it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child, child.stdout:
        for number, line in enumerate(child.stdout, 1):
            if number == lines:
                child.send_signal(signal.SIGKILL)
            if line.endswith("\n"):
                sign, name = line.split()
                yield sign, name


async def test_kill_9_again_and_again(tmp_path: Path) -> None:
    """Every message that was acknowledged and not finished is found; a finished one never is."""
    directory = tmp_path / "spool"
    said: dict[str, set[str]] = {"+": set(), "?": set(), "-": set()}
    for turn in range(5):
        for sign, name in run_and_kill(directory, 400 + 150 * turn):
            said[sign].add(name)
    assert len(said["+"]) > 1000
    async with open_spool(directory) as spool:
        names = {name.hex() for name in await found(spool)}
        assert spool.statistics().quarantined == 0
    assert said["+"] - said["?"] <= names, "an acknowledged message is lost"
    assert not said["-"] & names, "a finished message came back"


async def test_the_start_can_be_broken_off(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path, 40)
    for _ in range(3):
        async with open_spool(copy) as spool:
            recovery = cast(AsyncGenerator[list[Recovered], None], spool.recover())
            assert await anext(recovery)
            await recovery.aclose()
    assert await everything(copy) == (kept, 0)


async def test_mail_is_taken_while_the_start_is_reading(tmp_path: Path) -> None:
    copy, kept = await killed(tmp_path, 40)
    async with open_spool(copy) as spool:
        names = set()
        fresh: list[Message] = []
        async for batch in spool.recover():
            names.update(each.message.id for each in batch)
            fresh.append(message())
            await spool.commit([b"new"], fresh[-1:])
            spool.finish(batch[0].handle, batch[0].handle.left)
        assert names == set(kept)
        assert isinstance(spool, DurableSpool)


async def test_a_clock_that_was_set_back_delays_no_attempt(tmp_path: Path) -> None:
    """O5: what is due in a minute is due in a minute, whatever the wall clock says meanwhile."""
    async with open_spool(tmp_path) as spool:
        (handle,) = await spool.commit([b"x\r\n"], [message()])
        spool.postpone(handle, 1, time.time() + 60.0)
    day = 86_400.0
    for journal in (tmp_path / "segments").glob("*.jnl"):
        # As if the last note had been written tomorrow: the clock is a day behind it.
        os.utime(journal, (time.time() + day, time.time() + day))
    async with open_spool(tmp_path) as spool:
        (recovered,) = (await found(spool)).values()
        assert recovered.due < time.time() + 60.0 - day + 5.0
