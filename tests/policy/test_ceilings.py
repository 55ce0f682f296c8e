"""policy/ceilings.py: which of several limits wins, and which one never comes into effect."""

from __future__ import annotations

from typing import Any

import pytest

from policy import make_egress_path, make_queue_config
from policy.ceilings import ceilings


def of(path: dict[str, Any], queue: dict[str, Any] | None = None) -> Any:
    return ceilings(make_egress_path(path), make_queue_config(queue or {}))


def test_nobody_said_anything() -> None:
    found = of({})
    assert str(found) == "32 connections (connection_limit)"
    assert (found.connection_rate, found.message_rate, found.selection_rate) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"connection_limit": 5}, "5 connections (connection_limit)"),
        (
            {"connection_limit": 50, "additional_connection_limits": {"a": 40, "b": 30}},
            '30 connections (additional_connection_limits."b")',
        ),
        (
            {"connection_limit": 20, "additional_connection_limits": {"a": 40}},
            "20 connections (connection_limit)",
        ),
        (
            {"max_connection_rate": "5/m"},
            "32 connections (connection_limit), new connections 5/m (max_connection_rate), "
            "messages 5120/m (max_connection_rate x max_deliveries_per_connection)",
        ),
        (
            {"source_selection_rate": "10/s", "additional_source_selection_rates": {"a": "500/m"}},
            '32 connections (connection_limit), choices of the source 500/m '
            '(additional_source_selection_rates."a")',
        ),
    ],
)  # fmt: skip
def test_the_least_wins_by_name(options: dict[str, Any], says: str) -> None:
    assert str(of(options)) == says


MESSAGES = {
    "max_message_rate": "10/s",
    "additional_message_rate_throttles": {"a": "700/m"},
    "max_connection_rate": "1/s",
    "max_deliveries_per_connection": 20,
}
"""10, 11.7 and 20 messages a second."""


@pytest.mark.parametrize(
    ("path", "queue", "value", "set_by", "per_second"),
    [
        ({}, {}, "10/s", "max_message_rate", 10.0),
        ({"max_message_rate": "12/s"}, {}, "700/m", 'additional_message_rate_throttles."a"', 700 / 60),
        (
            {"max_deliveries_per_connection": 3},
            {},
            "3/s",
            "max_connection_rate x max_deliveries_per_connection",
            3.0,
        ),
        ({}, {"max_message_rate": "1/2min"}, "1/120s", "max_message_rate of the queue", 1 / 120),
        ({}, {"max_message_rate": "10/s"}, "10/s", "max_message_rate", 10.0),
    ],
)
def test_four_things_limit_messages(
    path: dict[str, Any], queue: dict[str, Any], value: str, set_by: str, per_second: float
) -> None:
    found = of({**MESSAGES, **path}, queue).message_rate
    assert (found.value, found.set_by) == (value, set_by)
    assert found.per_second == pytest.approx(per_second)


def test_a_rate_that_is_never_reached_is_named() -> None:
    found = of({**MESSAGES, "max_message_rate": "1,000/s", "max_deliveries_per_connection": 3})
    assert found.notes == (
        "max_message_rate = 1000/s is never reached, because "
        "max_connection_rate x max_deliveries_per_connection allows 3/s",
    )
    both = of({"max_message_rate": "5/s"}, {"max_message_rate": "20/s"})
    assert both.notes == (
        "max_message_rate of the queue = 20/s is never reached, because max_message_rate allows 5/s",
    )


def test_what_is_shared_or_just_as_slow_is_no_reason_for_a_note() -> None:
    assert of(MESSAGES).notes == ()
    assert of({"max_message_rate": "60/m"}, {"max_message_rate": "1/s"}).notes == ()
