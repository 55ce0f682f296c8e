"""Hooks as key sources."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engine.errors import HookError
from engine.keys.callback import CallbackSource
from engine.keys.source import SourceFailure
from policy.keysource import CallbackKey
from policy.secret import Secret
from tests.contract.key_source import CANARY, KeySourceContract, Subject, assert_no_canary


class TestCallback(KeySourceContract):
    @pytest.fixture
    def subject(self) -> Subject:
        value: list[str | None] = [CANARY]

        async def call(event: str, *args: Any) -> Any:
            await trio.lowlevel.checkpoint()
            assert (event, args) == ("my_keys", ("a", 1))
            return value[0]

        async def put(new: str | None) -> None:
            value[0] = new

        return Subject(CallbackSource(call), CallbackKey("my_keys", Secret(b'["a",1]')), put)


@pytest.mark.parametrize("value", [b"tiger", "tiger", Secret("tiger")])
async def test_text_bytes_and_secrets_are_values(value: object) -> None:
    async def call(event: str, *args: Any) -> Any:
        return value

    assert await CallbackSource(call).read(CallbackKey("e")) == Secret("tiger")


@pytest.mark.parametrize("value", [1, ["tiger"], {"key": "tiger"}, b"", Secret(b"")])
async def test_anything_else_is_not(value: object) -> None:
    async def call(event: str, *args: Any) -> Any:
        return value

    with pytest.raises(SourceFailure, match="hook e gave") as caught:
        await CallbackSource(call).read(CallbackKey("e"))
    assert caught.value.definite


def _wrapped() -> HookError:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        wrapped = HookError(CANARY)
        wrapped.__cause__ = error
        return wrapped


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError(CANARY), "ValueError at test_callback.py:"),
        (_wrapped(), "KeyError at test_callback.py:"),
        (SystemExit(CANARY), "SystemExit"),
        (ExceptionGroup(CANARY, [ValueError(CANARY)]), "ExceptionGroup"),
    ],
)
async def test_a_raising_hook_is_named_by_kind_and_place_only(error: BaseException, says: str) -> None:
    async def call(event: str, *args: Any) -> Any:
        raise error

    with pytest.raises(SourceFailure, match=says) as caught:
        await CallbackSource(call).read(CallbackKey("e"))
    assert not caught.value.definite
    assert caught.value.__suppress_context__
    assert_no_canary(caught.value)


async def test_no_policy() -> None:
    with pytest.raises(SourceFailure, match="no policy"):
        await CallbackSource(None).read(CallbackKey("e"))
