"""Connection meta: values are JSON, messages see a snapshot, TLS forgets the conversation."""

from __future__ import annotations

import enum
import json
from typing import Any

import pytest

from engine.ingress.meta import ConnectionMeta, checked_meta


def test_a_snapshot_is_shared_until_somebody_writes() -> None:
    meta = ConnectionMeta({"hostname": "mx"})
    first = meta.snapshot()
    assert meta.snapshot() is first
    meta.set_meta("x_a", 1)
    meta.set_meta("x_b", 2)
    assert first == {"hostname": "mx"}
    second = meta.snapshot()
    assert second == {"hostname": "mx", "x_a": 1, "x_b": 2}
    meta.del_meta("x_a")
    meta.del_meta("never there")
    assert "x_a" in second
    assert meta.get_meta("x_a") is None
    assert meta.get_meta("x_b") == 2


def test_what_was_given_is_not_written_to() -> None:
    values = {"hostname": "mx"}
    meta = ConnectionMeta(values)
    meta.put("ehlo_domain", "a")
    assert values == {"hostname": "mx"}


def test_forget_goes_back_to_what_was_kept() -> None:
    meta = ConnectionMeta({"hostname": "mx"})
    meta.set_meta("x_network", "office")
    meta.keep()
    meta.put("ehlo_domain", "liar")
    meta.set_meta("x_from_ehlo", True)
    meta.forget()
    assert meta.snapshot() == {"hostname": "mx", "x_network": "office"}
    meta.set_meta("x_again", 1)
    meta.forget()
    assert meta.get_meta("x_again") is None


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [None, True, 1, -(1 << 63), 1.5, "text", "é", [], [1, "a", None], {"a": {"b": [1.0]}}, Colour.RED],
)
def test_json_values_pass(value: Any) -> None:
    checked = checked_meta("x", value)
    assert checked == value
    assert json.loads(json.dumps(checked)) == value
    assert type(checked) in (type(None), bool, int, float, str, list, dict)


def test_a_value_is_a_copy() -> None:
    value = [1, [2]]
    checked = checked_meta("x", value)
    value[1].append(3)  # type: ignore[attr-defined]
    assert checked == [1, [2]]
    assert checked_meta("x", (1, 2)) == [1, 2]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [b"x", object(), {1: 2}, {1, 2}, float("nan"), float("inf"), 1 << 63, "\ud800", _deep(17), 1j],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        checked_meta("x", value)
    assert checked_meta("x", _deep(16)) is not None


@pytest.mark.parametrize("name", ["tenant", "campaign", "routing_domain"])
def test_parts_of_the_queue_name_are_text(name: str) -> None:
    assert checked_meta(name, "a b") == "a b"
    assert checked_meta(name, None) is None
    for wrong in (1, "", "a\nb", ["a"], "\x00"):
        with pytest.raises((TypeError, ValueError), match="queue name"):
            checked_meta(name, wrong)


def test_an_explicit_queue_is_not_supported_yet() -> None:
    with pytest.raises(ValueError, match="not supported yet"):
        ConnectionMeta({}).set_meta("queue", "a@b")


def test_a_name_is_text() -> None:
    with pytest.raises(TypeError):
        checked_meta(1, 1)  # type: ignore[arg-type]
