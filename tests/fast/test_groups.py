"""Groups of records written behind the loop's back: both twins, real files, real errors."""

from __future__ import annotations

import errno
import os
import resource
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.spool.format import pack_record, record_length, slot_size
from tests.fast.pieces import Compiled, reference

twins = pytest.mark.parametrize(
    "kind", [Compiled.GroupWriter, reference.GroupWriter], ids=["compiled", "reference"]
)

NONCE = b"12345678"
ERRORS: list[tuple[int, int]] = []
Transaction = tuple[list[bytes], list[int], list[bytes]]


@contextmanager
def working(kind: Any) -> Iterator[Any]:
    """A writer with its thread, which keeps what `run` returns for `finish`."""
    writer = kind()

    def work() -> None:
        while (errors := writer.run()) is not None:
            ERRORS.append(errors)
            writer.report()

    ERRORS.clear()
    thread = Thread(target=work)
    thread.start()
    try:
        yield writer
    finally:
        writer.end()
        thread.join(10)
        assert not thread.is_alive()
        writer.close()


def finish(writer: Any) -> tuple[int, int] | None:
    """None: nobody was called."""
    assert select.select([writer], [], [], 10)[0], "it never finishes"
    assert writer.result() is True
    assert writer.result() is False, "told once"
    return ERRORS.pop() if ERRORS else None


def add(writer: Any, transaction: Transaction) -> tuple[int, int]:
    """Octets of the record and of its slots."""
    envelopes, recipients, bodies = transaction
    length = record_length(sum(map(len, envelopes)), len(envelopes), len(bodies), sum(map(len, bodies)))
    room = sum(slot_size(count) for count in recipients)
    writer.add(envelopes, recipients, bodies, length, room)
    return length, room


def packed(group: list[Transaction], offset: int, slot: int) -> bytes:
    """What the format says it should be."""
    found = b""
    for envelopes, recipients, bodies in group:
        length = record_length(sum(map(len, envelopes)), len(envelopes), len(bodies), sum(map(len, bodies)))
        head, end = pack_record(NONCE, offset, slot, envelopes, recipients, bodies, length)
        found += head + b"".join(bodies) + end
        offset += length
        slot += sum(slot_size(count) for count in recipients)
    return found


messages = st.lists(st.tuples(st.binary(max_size=90), st.integers(1, 1 << 31)), min_size=1, max_size=4)
transactions = st.builds(
    lambda messages, bodies: ([one for one, _ in messages], [count for _, count in messages], bodies),
    messages,
    st.lists(st.binary(max_size=300), min_size=1, max_size=3),
)


@twins
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(
        st.tuples(st.lists(transactions, max_size=5), st.integers(0, 1 << 40), st.integers(0, 1 << 40)),
        max_size=3,
    )
)
def test_the_format_is_that_of_the_spool(
    kind: Any, tmp_path: Path, groups: list[tuple[list[Transaction], int, int]]
) -> None:
    with working(kind) as writer, (tmp_path / "segment").open("w+b", buffering=0) as file:
        for group, offset, slot in groups:
            for transaction in group:
                add(writer, transaction)
            writer.start(file.fileno(), NONCE, offset, slot)
            assert finish(writer) is None
            expected = packed(group, offset, slot)
            found = os.pread(file.fileno(), len(expected) + 1, offset)
            file.truncate(0)  # whoever looks through a test's files should not meet one of a terabyte
            assert found == expected


@twins
def test_more_parts_than_one_call_takes(kind: Any, tmp_path: Path) -> None:
    group: list[Transaction] = [([b"e%d" % n], [1], [b"body %d" % n, b""]) for n in range(1500)]
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        for transaction in group:
            add(writer, transaction)
        writer.start(file.fileno(), NONCE, 4096, 256)
        assert finish(writer) is None
        assert os.pread(file.fileno(), 1 << 22, 4096) == packed(group, 4096, 256)


@twins
def test_large_bodies(kind: Any, tmp_path: Path) -> None:
    group: list[Transaction] = [([b"e" * 100_000], [3], [os.urandom(3_000_001)]), ([b"f"], [1], [b"x"])]
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        for _ in range(2):
            for transaction in group:
                add(writer, transaction)
            writer.start(file.fileno(), NONCE, 0, 0)
            assert finish(writer) is None
        expected = packed(group, 0, 0)
        assert os.pread(file.fileno(), len(expected) + 1, 0) == expected


@twins
def test_what_is_read_is_what_was_added(kind: Any, tmp_path: Path) -> None:
    """Lists that the caller goes on using, and octets that nobody else holds any more."""
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        envelopes, bodies = [b"envelope" * 9], [os.urandom(5000)]
        expected = packed([(list(envelopes), [1], list(bodies))], 0, 0)
        add(writer, (envelopes, [1], bodies))
        envelopes.clear()
        bodies.clear()
        rubbish = [os.urandom(5000) for _ in range(200)]
        writer.start(file.fileno(), NONCE, 0, 0)
        assert finish(writer) is None
        assert os.pread(file.fileno(), 1 << 20, 0) == expected
        del rubbish


class Lazy(Sequence[bytes]):
    """Makes its items when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: Any) -> Any:
        if not 0 <= at < 20:
            raise IndexError
        return bytes([65 + at]) * self.size


@twins
def test_bodies_that_nobody_else_holds(kind: Any, tmp_path: Path) -> None:
    expected = packed([([b"e"], [1], list(Lazy(5000)))], 0, 0)
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        writer.add([b"e"], [1], Lazy(5000), len(expected), slot_size(1))
        rubbish = [os.urandom(5000) for _ in range(200)]
        writer.start(file.fileno(), NONCE, 0, 0)
        assert finish(writer) is None
        assert os.pread(file.fileno(), 1 << 20, 0) == expected
        del rubbish


@twins
def test_a_thread_that_cannot_be_told(kind: Any, tmp_path: Path) -> None:
    """The group is refused, and neither written later nor put before the next one."""
    writer = kind()
    with (tmp_path / "segment").open("w+b") as file:
        one(writer)
        writer.close()
        with pytest.raises(OSError) as told:
            writer.start(file.fileno(), NONCE, 0, 0)
        assert told.value.errno == errno.EBADF
        with pytest.raises(OSError):
            writer.call()
        with pytest.raises(OSError):
            writer.end()
        with pytest.raises(OSError):
            writer.result()
        with pytest.raises(OSError):
            writer.run()
        one(writer)  # not "under way"


@twins
def test_no_descriptor_is_left(kind: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 2, before[1]))
        try:
            with pytest.raises(OSError) as told:
                kind()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert told.value.errno == errno.EMFILE
        again = os.dup(last.fileno())
        os.close(again)
        assert again == last.fileno() + 1, "the one it got is free again"


def one(writer: Any) -> None:
    add(writer, ([b"envelope"], [1], [b"body"]))


@twins
def test_a_write_that_fails(kind: Any, tmp_path: Path) -> None:
    with working(kind) as writer, open("/dev/full", "wb") as full, (tmp_path / "s").open("w+b") as file:
        one(writer)
        writer.start(full.fileno(), NONCE, 0, 0)
        assert finish(writer) == (errno.ENOSPC, 0)
        one(writer)
        writer.start(-1, NONCE, 0, 0)
        assert finish(writer) == (errno.EBADF, 0)
        one(writer)
        writer.start(file.fileno(), NONCE, 0, 0)
        assert finish(writer) is None, "errors do not stick"
        assert os.pread(file.fileno(), 1 << 20, 0) == packed([([b"envelope"], [1], [b"body"])], 0, 0)


@twins
def test_a_sync_that_fails(kind: Any) -> None:
    """It is asked for, and after the write: what takes everything knows no sync."""
    with working(kind) as writer, open("/dev/null", "wb") as null:
        one(writer)
        writer.start(null.fileno(), NONCE, 0, 0)
        assert finish(writer) == (0, errno.EINVAL)


@twins
def test_a_write_that_ends_too_early(kind: Any, tmp_path: Path) -> None:
    """The rest is written from where the kernel stopped, which is no error until it says so."""
    group: list[Transaction] = [([b"e"], [1], [bytes(range(256)) * 20]) for _ in range(3)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        for transaction in group:
            add(writer, transaction)
        resource.setrlimit(resource.RLIMIT_FSIZE, (7_000, before[1]))
        try:
            writer.start(file.fileno(), NONCE, 0, 0)
            assert finish(writer) == (errno.EFBIG, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert os.pread(file.fileno(), 1 << 20, 0) == packed(group, 0, 0)[:7_000]


@twins
def test_called_and_ended(kind: Any, tmp_path: Path) -> None:
    """What was asked for before the end is done before the end."""
    with working(kind) as writer:
        writer.call()
        assert finish(writer) == (0, 0)
        with (tmp_path / "segment").open("w+b") as file:
            one(writer)
            writer.start(file.fileno(), NONCE, 0, 0)
            assert finish(writer) is None
        writer.call()
        writer.end()
        assert finish(writer) == (0, 0)


@twins
def test_one_group_at_a_time(kind: Any) -> None:
    writer = kind()
    writer.call()
    for again in (
        writer.call,
        lambda: writer.start(0, NONCE, 0, 0),
        lambda: writer.add([b""], [1], [b""], 1, 1),
    ):
        with pytest.raises(RuntimeError, match="under way"):
            again()
    writer.close()
    writer.close()


class Octets(bytes):
    """What looks like bytes and need not be."""


@twins
def test_what_is_no_record(kind: Any, tmp_path: Path) -> None:
    """Half of a group is worse than none: nothing of it is left."""
    with working(kind) as writer, (tmp_path / "segment").open("w+b") as file:
        wrong: list[tuple[Any, Any, Any, type[Exception]]] = [
            ([b"e"], [1], [bytearray(b"x")], TypeError),
            ([b"e"], [1], [None], TypeError),
            (["e"], [1], [b"x"], TypeError),
            ([b"e"], [1], [Octets(b"x")], TypeError),
            ([b"e"], [1, 2], [b"x"], ValueError),
            ([b"e"], [1 << 32], [b"x"], OverflowError),
            ([b"e"], [-1], [b"x"], OverflowError),
        ]
        for envelopes, recipients, bodies, kind_of_error in wrong:
            one(writer)
            with pytest.raises(kind_of_error):
                writer.add(envelopes, recipients, bodies, 100, 48)
        with pytest.raises(ValueError, match="8 octets"):
            writer.start(file.fileno(), b"short", 0, 0)
        writer.start(file.fileno(), NONCE, 0, 0)
        assert finish(writer) is None
        assert os.fstat(file.fileno()).st_size == 0


def test_the_thread_never_asks_for_the_interpreters_lock(tmp_path: Path) -> None:
    """The loop's thread keeps the lock all the time, and the group is written all the same."""
    with working(Compiled.GroupWriter) as writer, (tmp_path / "segment").open("w+b") as file:
        one(writer)
        # It must have come to its wait, for which it needs the lock.
        writer.start(file.fileno(), NONCE, 0, 0)
        assert finish(writer) is None
        one(writer)
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            fd, until = file.fileno(), time.monotonic() + 10
            writer.start(fd, NONCE, 0, 0)
            while not (found := writer.result()) and time.monotonic() < until:
                pass
        finally:
            sys.setswitchinterval(before)
        assert found
