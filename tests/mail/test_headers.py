"""Header fields: what is read, what a change leaves alone, and what can never be written."""

from __future__ import annotations

import email
import email.policy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.mail.headers import HARD_LIMIT, SOFT_LIMIT, HeaderMap, decode_value, make_field

MESSAGE = (
    b"Received: from a\r\n\tby b; date\r\n"
    b"Subject: =?utf-8?q?caf=C3=A9?= au lait\r\n"
    b"X-One:   first  \r\n"
    b"subject : again\r\n"
    b"To: a@example.com,\r\n b@example.com\r\n"
    b"\r\n"
    b"Subject: not a field\r\n.\r\n"
)


def test_reads_values_decoded_and_unfolded_without_regard_to_case() -> None:
    headers = HeaderMap(MESSAGE)
    assert headers.first("SUBJECT") == "café au lait"
    assert headers.all("Subject") == ["café au lait", "again"]
    assert headers.first("received") == "from a\tby b; date"
    assert headers.first("x-one") == "first"
    assert headers.first("To") == "a@example.com, b@example.com"
    assert headers.first("Cc") is None
    assert headers.all("Cc") == []
    assert [name for name, _ in headers.items()] == ["Received", "Subject", "X-One", "subject", "To"]


def test_reading_gives_the_very_bytes_back() -> None:
    headers = HeaderMap(MESSAGE)
    headers.items()
    assert not headers.changed
    assert headers.data is MESSAGE


def test_prepend_append_remove_and_replace_touch_nothing_else() -> None:
    headers = HeaderMap(MESSAGE)
    headers.prepend(make_field("X-Top", "1"))
    headers.append(make_field("X-End", "2"))
    assert headers.remove("SUBJECT") == 2
    assert headers.replace(make_field("x-one", "new"))
    assert not headers.replace(make_field("X-None", "new"))
    assert headers.first("X-Top") == "1"
    assert headers.changed
    assert headers.data == (
        b"X-Top: 1\r\n"
        b"Received: from a\r\n\tby b; date\r\n"
        b"x-one: new\r\n"
        b"To: a@example.com,\r\n b@example.com\r\n"
        b"X-End: 2\r\n"
        b"\r\n"
        b"Subject: not a field\r\n.\r\n"
    )
    assert headers.first("X-End") == "2"
    headers.append(make_field("X-Later", "3"))
    assert headers.data.index(b"X-Later: 3\r\n\r\nSubject: not") > 0


def test_replace_keeps_the_first_place_and_removes_the_others() -> None:
    headers = HeaderMap(MESSAGE)
    assert headers.replace(make_field("Subject", "one"))
    assert headers.all("subject") == ["one"]
    assert [name for name, _ in headers.items()] == ["Received", "Subject", "X-One", "To"]


@pytest.mark.parametrize(
    ("data", "appended"),
    [
        (b"", b"A: 1\r\n"),
        (b"\r\nbody\r\n", b"A: 1\r\n\r\nbody\r\n"),
        (b"B: 2\r\n", b"B: 2\r\nA: 1\r\n"),
        (b"B: 2", b"B: 2\r\nA: 1\r\n"),
        (b" not a field\r\n", b"A: 1\r\n\r\n not a field\r\n"),
        (b"\tnot a field\r\n", b"A: 1\r\n\r\n\tnot a field\r\n"),
        (b"B: 2\r\nno field\r\n\r\nbody\r\n", b"B: 2\r\nA: 1\r\nno field\r\n\r\nbody\r\n"),
    ],
)
def test_append_to_unusual_sections(data: bytes, appended: bytes) -> None:
    headers = HeaderMap(data)
    headers.append(make_field("A", "1"))
    assert headers.data == appended


@pytest.mark.parametrize("name", ["", "A B", "A:", "Ä", "A\r\nB", "A\x00", "x" * 77, "A\t", "\x7f"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="field name"):
        make_field(name, "value")


@pytest.mark.parametrize(
    "value",
    [
        *("a\rb", "a\nb", "a\r\n b", "a\x00b", "a\x0bb", "a\x0cb", "a\x1cb", "a\x1db", "a\x1eb"),
        *("a\x85b", "a\u2028b", "a\u2029b", "a\x7fb", "a\x80b", "\ud800"),
    ],
)
@pytest.mark.parametrize("utf8", [True, False])
def test_a_line_end_or_control_in_a_value_is_refused(value: str, utf8: bool) -> None:
    with pytest.raises(ValueError, match="header X"):
        make_field("X", value, utf8=utf8)


def test_text_that_is_not_ascii_is_encoded_or_left_as_utf8() -> None:
    assert make_field("Subject", "café") == b"Subject: =?utf-8?b?Y2Fmw6k=?=\r\n"
    assert make_field("Subject", "café", utf8=True) == "Subject: café\r\n".encode()


def test_a_long_value_is_folded_and_reads_the_same() -> None:
    value = " ".join(f"<{number:030}@example.com>" for number in range(50))
    field = make_field("References", value)
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert max(map(len, lines)) <= SOFT_LIMIT
    assert decode_value(field.partition(b":")[2]) == value


def test_a_word_too_long_to_fold_is_refused_and_one_just_short_enough_is_not() -> None:
    room = HARD_LIMIT - len("X: ")
    assert make_field("X", "w" * room) == b"X: " + b"w" * room + b"\r\n"
    with pytest.raises(ValueError, match="fold"):
        make_field("X", "w" * (room + 1))


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=90)


@given(st.lists(_WORDS, max_size=30), st.sampled_from([" ", "  ", "\t", " \t "]), st.booleans())
def test_written_fields_are_one_field_and_read_back_the_same(words: list[str], gap: str, utf8: bool) -> None:
    value = gap.join(words)
    field = make_field("X-Any", value, utf8=utf8)
    lines = field.split(b"\r\n")
    assert lines.pop() == b""
    assert all(line and len(line) <= HARD_LIMIT for line in lines)
    assert all(line[:1] in (b" ", b"\t") and line.strip(b" \t") for line in lines[1:])
    data = field + b"Y: 2\r\n\r\n"
    headers = HeaderMap(data)
    assert [name for name, _ in headers.items()] == ["X-Any", "Y"]
    expected = value.strip(" \t")
    if expected.isascii() and "=?" not in expected:
        assert headers.first("x-any") == expected
    elif "=?" not in expected:
        # Folding white space next to encoded words is the encoder's own.
        assert headers.first("x-any").split() == expected.split()  # type: ignore[union-attr]
    if "=?" not in expected and not utf8:
        parsed = email.message_from_bytes(data, policy=email.policy.SMTP)
        assert list(parsed.keys()) == ["X-Any", "Y"]


@given(
    st.lists(st.sampled_from(["A", "b", "C-d"]), max_size=6),
    st.lists(st.tuples(st.sampled_from(["prepend", "append", "remove", "replace"]), st.sampled_from("AbX"))),
    st.sampled_from([b"", b"\r\n", b"\r\nA: body\r\n", b"\r\n.\r\n\r\n"]),
)
def test_any_changes_behave_like_a_list_of_pairs(
    names: list[str], changes: list[tuple[str, str]], tail: bytes
) -> None:
    data = b"".join(b"%s: %d\r\n" % (name.encode(), i) for i, name in enumerate(names)) + tail
    headers = HeaderMap(data)
    model = [(name, str(i)) for i, name in enumerate(names)]
    for number, (change, name) in enumerate(changes):
        field = make_field(name, f"v{number}")
        same = [i for i, pair in enumerate(model) if pair[0].lower() == name.lower()]
        if change == "prepend":
            headers.prepend(field)
            model.insert(0, (name, f"v{number}"))
        elif change == "append":
            headers.append(field)
            model.append((name, f"v{number}"))
        elif change == "remove":
            assert headers.remove(name) == len(same)
            model = [pair for pair in model if pair[0].lower() != name.lower()]
        else:
            assert headers.replace(field) == bool(same)
            if same:
                model[same[0]] = (name, f"v{number}")
                model = [pair for i, pair in enumerate(model) if i not in same[1:]]
        if number % 2:
            assert headers.data.endswith(tail)
        assert headers.items() == model
    assert headers.data == b"".join(f"{name}: {value}\r\n".encode() for name, value in model) + tail


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" =?utf-8?b?w6k=?=", "é"),
        (b" =?iso-8859-1?q?=E9?= x =?utf-8?q?=C3=A9?=", "é x é"),
        (b" =?utf-8?q?a?=\r\n =?utf-8?q?b?=", "ab"),
        (b" =?nonsense?q?=E9?=", "=?nonsense?q?=E9?="),
        (b" =?utf-8?q?=E9?=", "=?utf-8?q?=E9?="),
        (b" =?utf-8?q?open", "=?utf-8?q?open"),
        (b" =?utf-8*en?q?=C3=A9?=", "é"),
        ("é".encode(), "é"),
        (b" \xff", "\ufffd"),
        (b"  \t", ""),
    ],
)
def test_decoding(raw: bytes, text: str) -> None:
    assert decode_value(raw) == text


def test_decoding_hostile_values_takes_linear_time() -> None:
    for piece in (b"=?a?q?", b"=?", b"?=", b"=?utf-8?q?=41?= ", b"=?utf-8?b??=", b" ", b"=?a?b?\r\n "):
        begun = time.thread_time()
        decode_value(piece * (500_000 // len(piece)))
        decode_value(piece * (60_000 // len(piece)))
        assert time.thread_time() - begun < 1.0, piece


def test_folding_takes_linear_time() -> None:
    for piece in ("a ", "\ta", "a" * 70 + "  "):
        begun = time.thread_time()
        make_field("X", piece * (300_000 // len(piece)) + "end")
        assert time.thread_time() - begun < 2.0
