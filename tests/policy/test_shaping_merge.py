"""policy/shaping/settings.py: the law by which settings are put over one another."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policy.shaping.settings import UNSET, Layer, Origin, Setting, merged, put

HERE = Origin("a.toml", 1, '"a.example"')
MAP = "additional_connection_limits"


def layers() -> st.SearchStrategy[Layer]:
    plain = st.tuples(st.sampled_from(["max_ready", "smtp_port", "ehlo_domain"]), st.just(""))
    entry = st.tuples(st.just(MAP), st.sampled_from(["", "one", "two"]))

    def layer(drawn: tuple[list[tuple[tuple[str, str], int]], bool]) -> Layer:
        settings: dict[Any, Setting] = {}
        for key, value in drawn[0]:
            whole_map = key == (MAP, "")
            put(settings, key, Setting(UNSET if whole_map or value == 0 else value, HERE))
        return Layer(settings, HERE if drawn[1] else None)

    pairs = st.lists(st.tuples(plain | entry, st.integers(0, 3)), max_size=6)
    return st.tuples(pairs, st.booleans()).map(layer)


def values(layer: Layer) -> dict[Any, Any]:
    return {key: setting.value for key, setting in layer.settings.items()}


def seen(*stack: Layer) -> tuple[dict[Any, Any], bool]:
    """What a reader of the whole stack sees, and whether something before it counts."""
    found: dict[Any, Setting] = {}
    replaces = False
    for layer in stack:
        if layer.replaces is not None:
            found.clear()
            replaces = True
        for key, setting in layer.settings.items():
            put(found, key, setting)
    return {key: one.value for key, one in found.items() if one.value is not UNSET}, replaces


@given(layers(), layers(), layers())
def test_the_steps_of_merging_do_not_matter(a: Layer, b: Layer, c: Layer) -> None:
    left, right = merged(merged(a, b), c), merged(a, merged(b, c))
    assert values(left) == values(right)
    assert (left.replaces is None) == (right.replaces is None)


@given(layers(), layers(), layers())
def test_merging_files_and_looking_up_is_looking_up_all_of_them(base: Layer, a: Layer, b: Layer) -> None:
    assert seen(base, merged(a, b)) == seen(base, a, b)


@given(layers())
def test_nothing_over_a_layer_and_a_layer_over_nothing_change_nothing(a: Layer) -> None:
    assert values(merged(a, Layer())) == values(a) == values(merged(Layer(), a))


@given(layers(), layers())
def test_neither_layer_is_changed(a: Layer, b: Layer) -> None:
    before = values(a), values(b)
    merged(a, b)
    assert (values(a), values(b)) == before


@given(layers(), layers())
def test_what_is_named_later_wins(a: Layer, b: Layer) -> None:
    for key, setting in b.settings.items():
        assert merged(a, b).settings[key].value == setting.value


def test_a_setting_remembers_what_it_overrode_the_latest_first() -> None:
    settings: dict[Any, Setting] = {}
    for line, value in enumerate((1, 2, 3), 1):
        put(settings, ("max_ready", ""), Setting(value, Origin("a.toml", line, '"x"')))
    history = settings["max_ready", ""].history()
    assert [(one.value, one.origin.line) for one in history] == [(3, 3), (2, 2), (1, 1)]
