"""Looking for many strings at once: against the twin, in every place, at the edges."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import MANY, Compiled, outcome, reference

TWINS = [Compiled, reference]


def made(twin: Any, patterns: dict[bytes, bool]) -> Any:
    found = sorted(patterns)
    return twin.PatternSet(found, bytes(patterns[pattern] for pattern in found))


def free(patterns: Iterable[bytes]) -> dict[bytes, bool]:
    return dict.fromkeys(patterns, False)


@pytest.mark.parametrize("twin", TWINS)
def test_a_pattern_is_found_wherever_it_stands(twin: Any) -> None:
    for size in range(6, 20):
        pattern = bytes(range(65, 65 + size))
        one = made(twin, {pattern: False, b"another pattern": False})
        for before in range(30):
            for behind in range(3):
                text = b"." * before + pattern + b"." * behind
                assert one.search(text) == [(before, before + size, 0)]
                assert one.search(text.replace(b"F", b"x")) is None


@pytest.mark.parametrize("twin", TWINS)
def test_all_octets_of_all_patterns_are_in_a_span(twin: Any) -> None:
    several = made(twin, free([b"abcdef", b"abcdefgh", b"efghijk", b"xyzxyz"]))
    assert several.search(b"abcdefgh") == [(0, 8, 1)]
    assert several.search(b"abcdefg") == [(0, 6, 0)]
    assert several.search(b"-abcdefghijk-") == [(1, 12, 1)]
    assert several.search(b"abcdefabcdef") == [(0, 6, 0), (6, 12, 0)]
    assert several.search(b"xyzxyzxyzxy") == [(0, 9, 3)]
    assert several.search(b"abcde") is None
    assert several.search(b"") is None


@pytest.mark.parametrize("twin", TWINS)
def test_a_word_stands_alone(twin: Any) -> None:
    word = made(twin, {b"secret": True, b"secrets1": True, b"s3cr3t": False})
    for text in (
        b"secret",
        b" secret.",
        b"/secret/",
        b'"secret"',
        b"\\nsecret",
        b"%3Dsecret",
        b"\\x0asecret",
    ):
        assert word.search(text), text
    for text in (b"\\u2028secret", b"\xc3\xa4secret\xc3\xa4"):
        assert word.search(text), text
    for text in (
        b"secretly",
        b"xsecret",
        b"secret-unavailable",
        b"my_secret",
        b"secrets",
        b"7secret",
        b"nsecret",
    ):
        assert word.search(text) is None, text
    assert word.search(b"xs3cr3ts") == [(1, 7, 0)]


@pytest.mark.parametrize("twin", TWINS)
def test_a_word_that_does_not_stand_alone_hides_no_shorter_pattern(twin: Any) -> None:
    both = made(twin, {b"abcdef": False, b"abcdefgh": True})
    assert both.search(b"abcdefghi") == [(0, 6, 0)]
    assert both.search(b"abcdefgh") == [(0, 8, 1)]


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    ("patterns", "words", "wrong"),
    [
        ([b"short"], b"\0", "6 to 1024 octets, not 5"),
        ([b"x" * 1025], b"\0", "6 to 1024 octets, not 1025"),
        ([b"bbbbbb", b"aaaaaa"], b"\0\0", "ascending"),
        ([b"aaaaaa", b"aaaaaa"], b"\0\0", "ascending"),
        ([b"aaaaaa"], b"", "one octet for each"),
    ],
)
def test_what_is_no_set_of_patterns(twin: Any, patterns: list[bytes], words: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        twin.PatternSet(patterns, words)


@pytest.mark.parametrize("twin", TWINS)
def test_no_patterns(twin: Any) -> None:
    none = twin.PatternSet([], b"")
    assert none.search(b"anything at all") is None


# Few letters, so that patterns overlap, begin alike and repeat themselves.
LETTERS = st.lists(st.sampled_from([b"a", b"b", b"-", b"\\", b"%", b"x", b"u", b"n", b"\xff"]), max_size=60)
PATTERN = st.one_of(
    st.lists(st.sampled_from([b"a", b"b", b"x"]), min_size=6, max_size=12).map(b"".join),
    st.binary(min_size=6, max_size=40),
)
SETS = st.dictionaries(PATTERN, st.booleans(), max_size=12)


@MANY
@given(patterns=SETS, data=st.data())
def test_the_twins_agree(patterns: dict[bytes, bool], data: st.DataObject) -> None:
    piece = LETTERS.map(b"".join) if not patterns else st.one_of(
        LETTERS.map(b"".join), st.sampled_from(sorted(patterns))
    )  # fmt: skip
    text = b"".join(data.draw(st.lists(piece, max_size=8)))
    assert made(Compiled, patterns).search(text) == made(reference, patterns).search(text)


@given(patterns=st.lists(st.binary(max_size=10), max_size=6), words=st.binary(max_size=6))
def test_the_twins_refuse_alike(patterns: list[bytes], words: bytes) -> None:
    found = [outcome(lambda twin=twin: twin.PatternSet(patterns, words) is None) for twin in TWINS]
    assert found[0] == found[1]


def test_thousands_of_patterns() -> None:
    chance = random.Random(1)
    patterns = free(chance.randbytes(chance.randrange(6, 60)) for _ in range(20_000))
    compiled = made(Compiled, patterns)
    known = sorted(patterns)
    for number in (chance.randrange(len(known)) for _ in range(2000)):
        size = len(known[number])
        assert compiled.search(b"...." + known[number] + b"....") == [(4, 4 + size, number)]
    assert compiled.search(chance.randbytes(100_000)) is None
