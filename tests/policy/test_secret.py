"""A secret shows itself nowhere."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import sys
import traceback
from typing import Any

import msgspec
import pytest

from policy import Secret
from tests.contract.key_source import everything

CANARY = "c4n4ry-5f2d"


class Holder(msgspec.Struct):
    secret: Secret


def test_the_bytes_come_out_by_one_way() -> None:
    assert Secret("pässword").reveal() == "pässword".encode()
    assert Secret(b"\x00\xff").reveal() == b"\x00\xff"


@pytest.mark.parametrize("short", [Secret("x"), Secret("x" * 1000)])
def test_it_looks_the_same_whatever_it_holds(short: Secret) -> None:
    assert repr(short) == str(short) == f"{short}" == "%s" % short == "Secret(***)"  # noqa: UP031
    assert f"{short:>12}" == " Secret(***)"
    assert sys.getsizeof(short) == sys.getsizeof(Secret(""))


def test_nothing_shows_it() -> None:
    secret = Secret(CANARY)
    shown = [repr(secret), str([secret]), repr(Holder(secret)), repr({"p": secret}), str(dir(secret))]
    with pytest.raises(TypeError) as as_json:
        json.dumps(secret)
    with pytest.raises(TypeError) as as_msgspec:
        msgspec.json.encode(Holder(secret))
    with pytest.raises(TypeError) as as_pickle:
        pickle.dumps(secret)
    with pytest.raises(AssertionError) as as_assert:
        assert secret == Secret("other")
    with pytest.raises(TypeError):
        len(secret)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        vars(secret)
    with pytest.raises(TypeError):
        secret.__getstate__()
    shown.append(str(inspect.getmembers(secret)))
    shown.append(str(inspect.getmembers_static(secret)))
    for caught in (as_json, as_msgspec, as_pickle, as_assert):
        shown.append("".join(traceback.format_exception(caught.value)))
    shown.append(msgspec.json.encode(Holder(secret), enc_hook=str).decode())
    assert CANARY not in "".join(shown)


def test_comparison() -> None:
    assert Secret("a") == Secret(b"a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))
    assert {Secret("a"): 1}[Secret("a")] == 1


def test_it_does_not_change() -> None:
    secret = Secret("a")
    for name in ("value", "_Secret__value"):
        with pytest.raises(AttributeError):
            setattr(secret, name, b"b")
        with pytest.raises(AttributeError):
            delattr(secret, name)
    assert copy.deepcopy([secret])[0] is secret
    assert copy.copy(secret) is secret


@pytest.mark.parametrize("wrong", [[CANARY], bytearray(CANARY, "ascii"), CANARY + "\ud800"])
def test_what_is_no_text_is_refused_without_showing_it(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Secret(wrong)
    assert CANARY not in everything(caught.value)
