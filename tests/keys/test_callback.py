"""Hooks as key sources, called as the engine calls them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import policy
from engine.errors import SecretUnavailable
from engine.hooks import Hooks
from engine.keys import open_keys
from engine.keys.callback import CallbackSource
from engine.keys.source import SourceFailure
from policy.hooks import HookTable, registering
from policy.keysource import CallbackKey, KeyRef, parse_key
from policy.load import load_policy
from policy.secret import Secret
from tests.contract.key_source import CANARY, ChangingKeySourceContract, Subject, everything


@pytest.fixture
def table() -> Iterator[HookTable]:
    table = HookTable()
    token = registering.set(table)
    yield table
    registering.reset(token)


def ask(*arguments: Any) -> KeyRef:
    return parse_key({"event_name": "ask", "event_args": list(arguments)})


def source(table: HookTable, function: Callable[..., Any] | None = None, **options: float) -> CallbackSource:
    if function is not None:
        policy.on("ask", keysource=True)(function)
    return CallbackSource(Hooks(table, **options))


async def failure(source: CallbackSource, *arguments: Any) -> SourceFailure:
    """Why there is no value; with nothing secret in it."""
    with pytest.raises(SourceFailure) as caught:
        await source.read(ask(*arguments))  # type: ignore[arg-type]
    assert CANARY not in everything(caught.value)
    return caught.value


class TestCallback(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, table: HookTable) -> Subject:
        value: list[str | None] = [CANARY]

        async def my_keys(account: str, number: int) -> str | None:
            await trio.lowlevel.checkpoint()
            assert (account, number) == ("a", 1)
            return value[0]

        async def put(new: str | None) -> None:
            value[0] = new

        return Subject(source(table, my_keys), ask("a", 1), put)


@pytest.mark.parametrize("value", [b"tiger", "tiger", Secret("tiger")])
async def test_text_bytes_and_secrets_are_values(value: object, table: HookTable) -> None:
    assert await source(table, lambda: value).read(ask()) == Secret("tiger")  # type: ignore[arg-type]


async def test_arguments_keep_their_types(table: HookTable) -> None:
    keys = source(table, repr)
    for argument in (1, True, 1.0, None, "1", ["1"], {"a": 1}):
        assert (await keys.read(ask(argument))).reveal() == repr(argument).encode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "returned None"),
        (1, "returned a int, not text or bytes"),
        ([CANARY], "returned a list, not text or bytes"),
        ({"key": CANARY}, "returned a dict, not text or bytes"),
        (CANARY + "\ud800", "returned text that UTF-8 cannot hold"),
        (b"", "returned an empty value"),
        (Secret(b""), "returned an empty value"),
    ],
)
async def test_anything_else_is_not(value: object, says: str, table: HookTable) -> None:
    def legacy_password() -> object:
        return value

    answer = await failure(source(table, legacy_password))
    line = inspect.getsourcelines(legacy_password)[1]
    assert answer.reason == f"{__file__}:{line} in legacy_password(): {says}"
    assert answer.definite


async def test_a_coroutine_is_the_policys_mistake_and_says_nothing_of_the_value(table: HookTable) -> None:
    async def inner() -> str:
        return CANARY

    answer = await failure(source(table, lambda: inner()))
    assert "instead of running; is an `async def` missing" in answer.reason
    assert not answer.definite


POLICY = """\
import functools
import json
import policy

def helper(text):
    raise KeyError(text)

@policy.on("raises", keysource=True)
def raises(text):
    found = 1
    raise ValueError(text)

@policy.on("deep", keysource=True)
async def deep(text):
    return helper(text)

@policy.on("library", keysource=True)
def library(text):
    return json.loads(text)

@policy.on("group", keysource=True)
async def group(text):
    raise ExceptionGroup(text, [ValueError(text)])

@policy.on("leaves", keysource=True)
def leaves(text):
    raise SystemExit(text)

@policy.on("refuses", keysource=True)
def refuses(text):
    raise policy.Reject(550, text)

@policy.on("segment", keysource=True)
def segment(text):
    return policy.safe_segment(text + "/..")
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", ":11 in raises(): raised ValueError"),
        ("deep", ":6 in deep(): raised KeyError"),
        ("library", ":19 in library(): raised JSONDecodeError"),
        ("group", ":23 in group(): raised ExceptionGroup"),
        ("leaves", ":27 in leaves(): raised SystemExit"),
        ("refuses", ":31 in refuses(): raised Reject"),
        ("segment", ':35 in segment(): raised PolicyError: safe_segment: not one path segment: holds "/"'),
    ],
)
async def test_what_a_hook_raises_is_named_by_kind_and_its_own_line(
    name: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.py"
    path.write_text(POLICY)
    keys = CallbackSource(Hooks(load_policy(str(path)).hooks))
    ref = parse_key({"event_name": name, "event_args": [CANARY]})
    with pytest.raises(SourceFailure) as caught:
        await keys.read(ref)  # type: ignore[arg-type]
    assert caught.value.reason == f"{path}{says}"
    assert not caught.value.definite
    assert CANARY not in everything(caught.value)


@pytest.mark.parametrize(
    ("function", "given", "says"),
    [
        (lambda account: "x", 2, "takes 1 argument, given 2"),
        (lambda: "x", 1, "takes 0 arguments, given 1"),
        (lambda account, host: "x", 1, "takes 2 arguments, given 1"),
        (lambda account, host=None: "x", 3, "takes 1 to 2 arguments, given 3"),
        (lambda account, *more: "x", 0, "takes at least 1 argument, given 0"),
        (lambda *, account: "x", 0, 'takes a keyword argument "account", which key sources cannot give'),
        (functools.partial(lambda host, account: "x", "h"), 2, "takes 1 argument, given 2"),
    ],
)
async def test_a_hook_with_other_arguments(
    function: Callable[..., str], given: int, says: str, table: HookTable
) -> None:
    answer = await failure(source(table, function), *[CANARY] * given)
    assert answer.reason.startswith(f"{__file__}:") and answer.reason.endswith(f" in <lambda>(): {says}")
    assert not answer.definite


async def test_optional_arguments_fit(table: HookTable) -> None:
    keys = source(table, lambda account, host="h", *more: account + host)
    assert (await keys.read(ask("a"))).reveal() == b"ah"  # type: ignore[arg-type]
    assert (await keys.read(ask("a", "b", "c"))).reveal() == b"ab"  # type: ignore[arg-type]


async def test_a_slow_hook(table: HookTable) -> None:
    answer = await failure(source(table, trio.sleep_forever, async_limit=0.01))
    assert "was not done after 0.01 s" in answer.reason
    assert not answer.definite


@pytest.mark.parametrize("name", ["nohook", "init"])
async def test_no_hook(name: str, table: HookTable) -> None:
    policy.on("init")(lambda: None)
    with pytest.raises(SourceFailure) as caught:
        await source(table).read(CallbackKey(name))
    right = f'no hook "{name}"; register one with @policy.on("{name}", keysource=True)'
    assert caught.value.reason == right
    assert not caught.value.definite


async def test_no_policy() -> None:
    with pytest.raises(SourceFailure, match="no policy"):
        await CallbackSource(None).read(CallbackKey("e"))


async def test_the_ring_says_it_as_it_is(table: HookTable) -> None:
    async with open_keys(Hooks(table)) as keys:
        with pytest.raises(SecretUnavailable) as caught:
            await keys.fetch(CallbackKey("nohook"))
    assert str(caught.value) == (
        'callback:nohook: no hook "nohook"; register one with @policy.on("nohook", keysource=True)'
    )
