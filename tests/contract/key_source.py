"""What every key source must do. Subclass `KeySourceContract` and give a `subject` fixture."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from engine.keys import KeySource, SourceFailure
from policy.secret import Secret

__all__ = ["CANARY", "KeySourceContract", "Subject", "assert_no_canary", "everything"]

CANARY = "c4n4ry-0f-a-secret"


def assert_no_canary(*things: object) -> None:
    """No text, repr or attribute of these shows the canary, also not reversed into bytes or URL text."""
    for thing in things:
        shown = f"{thing!s}\n{thing!r}\n{getattr(thing, '__dict__', '')!r}\n{getattr(thing, 'args', '')!r}"
        assert CANARY not in shown, "the secret is shown"


def everything(error: BaseException) -> str:
    """All that a tool could print of an error: texts, attributes, causes, and the locals of our frames."""
    trace = error.__traceback__
    while trace is not None and "/tests/" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    shown = traceback.TracebackException(type(error), error, trace, capture_locals=True)
    hidden = [each for each in (error.__context__, error.__cause__) if each is not None]
    return "".join([*shown.format(), repr(error), repr(error.__dict__), *map(everything, hidden)])


class Subject:
    """A source, a reference it can read, and the means to change what is behind it.

    `put` stores a value (None: removes it); a source that cannot change has none.
    """

    def __init__(
        self, source: KeySource, ref: Any, put: Callable[[str | None], Awaitable[None]] | None = None
    ) -> None:
        self.source = source
        self.ref = ref
        self._put = put

    async def change(self, value: str | None) -> None:
        assert self._put is not None, "the suite for sources that change is for subjects with `put`"
        await self._put(value)


class KeySourceContract:
    """The suite. `subject` starts out with `CANARY` as its value."""

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError

    async def test_reads_the_exact_bytes(self, subject: Subject) -> None:
        assert await subject.source.read(subject.ref) == Secret(CANARY)

    async def test_reads_again_and_again(self, subject: Subject) -> None:
        for _ in range(3):
            assert (await subject.source.read(subject.ref)).reveal() == CANARY.encode()

    async def test_can_be_cancelled(self, subject: Subject) -> None:
        with trio.fail_after(5):
            with trio.CancelScope() as scope:
                scope.cancel()
                await subject.source.read(subject.ref)
        assert await subject.source.read(subject.ref) == Secret(CANARY)

    async def test_many_at_once(self, subject: Subject) -> None:
        found: list[Secret] = []

        async def read() -> None:
            found.append(await subject.source.read(subject.ref))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
        assert found == [Secret(CANARY)] * 10

    def test_says_how_long_a_value_is_fresh(self, subject: Subject) -> None:
        assert subject.source.fresh_for is None or subject.source.fresh_for >= 1.0

    def test_the_references_name_and_repr_hold_no_secret(self, subject: Subject) -> None:
        assert_no_canary(subject.ref, subject.ref.name)


class ChangingKeySourceContract(KeySourceContract):
    """For a source whose value can change: its subject has a `put`."""

    async def test_sees_a_new_value(self, subject: Subject) -> None:
        await subject.source.read(subject.ref)
        await subject.change(CANARY + "-rotated-ü")
        assert await subject.source.read(subject.ref) == Secret(CANARY + "-rotated-ü")

    async def test_a_missing_value_is_a_definite_failure(self, subject: Subject) -> None:
        await subject.change(None)
        with pytest.raises(SourceFailure) as caught:
            await subject.source.read(subject.ref)
        assert caught.value.definite
        assert caught.value.reason.isprintable() and len(caught.value.reason) < 300
        assert_no_canary(caught.value)
        assert CANARY not in everything(caught.value)

    async def test_an_empty_value_is_a_failure(self, subject: Subject) -> None:
        await subject.change("")
        with pytest.raises(SourceFailure, match="empty"):
            await subject.source.read(subject.ref)
