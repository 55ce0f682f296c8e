"""Durations, rates, limits and sizes: what is taken, what is refused, and that text comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.units import (
    Floor,
    Limit,
    Throttle,
    format_duration,
    format_size,
    parse_duration,
    parse_floor,
    parse_limit,
    parse_size,
    parse_throttle,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (5, 5.0),
        (0.25, 0.25),
        ("5s", 5.0),
        ("20 minutes", 1200.0),
        ("1h 30m", 5400.0),
        ("1h30m", 5400.0),
        ("7 days", 604800.0),
        ("500ms", 0.5),
        ("3 days", 259200.0),
        ("1 week", 604800.0),
        (" 2 hours ", 7200.0),
        ("1.5h", 5400.0),
        ("0s", 0.0),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.5, True, None, [], b"5s", float("inf"), float("nan"), 10**30),
        *("", " ", "5", "s", "5 parsecs", "-5s", "5s x", "1e3s", "\u0663s", "5\n s", "101 years", "1_000s"),
    ],
)
def test_wrong_durations(value: object) -> None:
    with pytest.raises(ValueError):
        parse_duration(value)


def test_a_misspelt_unit_is_named() -> None:
    with pytest.raises(ValueError, match='"minuets" is no unit of time; did you mean "minutes"'):
        parse_duration("5 minuets")


@given(st.integers(0, 10**9))
def test_whole_seconds_come_back(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


@given(st.integers(0, 10**7))
def test_milliseconds_come_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_durations_are_written_for_people() -> None:
    assert [format_duration(s) for s in (0, 60, 5400, 604800, 0.5, 90061, 1.5)] == (
        ["0s", "1m", "1h 30m", "7d", "500ms", "1d 1h 1m 1s", "1.5s"]
    )


@pytest.mark.parametrize(
    ("text", "quantity", "period", "burst", "local", "back"),
    [
        ("100/s", 100, 1.0, None, False, "100/s"),
        ("100/sec", 100, 1.0, None, False, "100/s"),
        ("1,000/minute", 1000, 60.0, None, False, "1000/m"),
        ("1_000/hr", 1000, 3600.0, None, False, "1000/h"),
        ("20/30minute", 20, 1800.0, None, False, "20/1800s"),
        ("local:5/day,max_burst=2", 5, 86400.0, 2, True, "local:5/d,max_burst=2"),
        ("6/m,max_burst=1", 6, 60.0, 1, False, "6/m,max_burst=1"),
    ],
)
def test_throttles(
    text: str, quantity: int, period: float, burst: int | None, local: bool, back: str
) -> None:
    throttle = parse_throttle(text)
    assert throttle == Throttle(quantity, period, burst, local)
    assert str(throttle) == back
    assert parse_throttle(str(throttle)) == throttle
    assert parse_throttle(throttle) is throttle


def test_interval_and_burst() -> None:
    assert parse_throttle("6/m").interval == 10.0
    assert parse_throttle("6/m").burst == 6
    assert parse_throttle("6/m,max_burst=1").burst == 1


@pytest.mark.parametrize(
    "value",
    [
        *(
            100,
            None,
            "",
            "100",
            "0/s",
            "5/0s",
            "5/s,max_burst=0",
            "-5/s",
            "5/seconds",
            "5/fortnight",
            "5/s,burst=1",
        ),
        *("5 per s", "\u0665/s", "local: 5/s", "9" * 20 + "/s", "5/99999999999d"),
    ],
)
def test_wrong_throttles(value: object) -> None:
    with pytest.raises(ValueError):
        parse_throttle(value)


def test_a_plural_period_is_explained() -> None:
    with pytest.raises(ValueError, match='did you mean "second"'):
        parse_throttle("10/seconds")


@given(st.builds(Throttle, st.integers(1, 10**9), st.sampled_from([1.0, 60.0, 3600.0, 86400.0, 7.0, 1800.0])))
def test_throttles_come_back(throttle: Throttle) -> None:
    assert parse_throttle(str(throttle)) == throttle


def test_limits() -> None:
    assert parse_limit(32) == 32
    assert parse_limit("1,000") == 1000
    assert parse_limit("1_000") == 1000
    local = parse_limit("local:20")
    assert local == 20
    assert local.local
    assert str(local) == "local:20"
    assert parse_limit(str(local)).local
    assert parse_limit(local) is local
    assert Limit(20) != local, "a refresh that changes only `local` is a change"
    assert {Limit(20): 1}[Limit(20)] == 1


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.0, None, "", "0", "-1", "x", "local:", "1.5", "\u0663", 10**15]
)
def test_wrong_limits(value: object) -> None:
    with pytest.raises(ValueError):
        parse_limit(value)


@pytest.mark.parametrize(
    ("value", "octets", "back"),
    [
        (0, 0, "0"),
        (52428800, 52428800, "50MiB"),
        ("50 MiB", 52428800, "50MiB"),
        ("50MB", 50_000_000, "50000000"),
        ("64KiB", 65536, "64KiB"),
        ("1,000", 1000, "1000"),
        ("10B", 10, "10"),
        ("2 TiB", 2 << 40, "2TiB"),
    ],
)
def test_sizes(value: object, octets: int, back: str) -> None:
    assert parse_size(value) == octets
    assert format_size(octets) == back
    assert parse_size(back) == octets


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "", "MiB", "50 MiBs", "50mb", "1.5MiB"])
def test_wrong_sizes(value: object) -> None:
    with pytest.raises(ValueError):
        parse_size(value)


def test_floors() -> None:
    assert parse_floor("10%").of(500) == 50
    assert parse_floor(1000).of(5) == 1000
    both = parse_floor("10% or 1 GiB")
    assert both == Floor(10.0, 1 << 30)
    assert both.of(1 << 40) == 1 << 30
    assert both.of(1000) == 100
    for floor in (both, parse_floor("2.5%"), parse_floor("64KiB")):
        assert parse_floor(str(floor)) == floor
    assert str(both) == "10% or 1GiB"


@pytest.mark.parametrize("value", ["101%", "-1%", "%", "10% or", "10% and 5", None, 1.5])
def test_wrong_floors(value: object) -> None:
    with pytest.raises(ValueError):
        parse_floor(value)
