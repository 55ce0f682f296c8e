"""policy/shaping/lines.py: the line of a table or a key, in TOML and in JSON."""

from __future__ import annotations

import contextlib
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.shaping.lines import json_lines, line_of, toml_lines

TOML = '''\
# a comment with ["brackets"] = 1
title = "x" # behind

["192.168.1.10"]   # a block
mx_rollup = false
smtp_auth_plain_password = { vault_mount = "secret", vault_path = "a/]#" }
text = """
["not.a.table"]
not_a_key = 1
\\"""
"""
raw = \'\'\'
also_not = 2
\'\'\'
list = [
  "one",  # ["no"]
  "]",
]
after = 1

[ "a.example" . sources . "ip-1" ]
connection_limit = 5
dotted."x.y".z = 2

[[provider."g o".match]]
MXSuffix = ".a"
[[provider."g o".match]]
MXSuffix = ".b"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("192.168.1.10",), 4),
        (("192.168.1.10", "mx_rollup"), 5),
        (("192.168.1.10", "smtp_auth_plain_password"), 6),
        (("192.168.1.10", "smtp_auth_plain_password", "vault_path"), 6),
        (("192.168.1.10", "text"), 7),
        (("192.168.1.10", "raw"), 12),
        (("192.168.1.10", "list"), 15),
        (("192.168.1.10", "list", "0"), 16),
        (("192.168.1.10", "list", "1"), 17),
        (("192.168.1.10", "list", "2"), 15),
        (("192.168.1.10", "after"), 19),
        (("a.example",), 21),
        (("a.example", "sources", "ip-1", "connection_limit"), 22),
        (("a.example", "sources", "ip-1", "dotted", "x.y", "z"), 23),
        (("provider", "g o", "match"), 25),
        (("provider", "g o", "match", "1", "MXSuffix"), 28),
        (("192.168.1.10", "unknown"), 4),
        (("nowhere",), 1),
    ],
)
def test_the_line_of_a_path_in_toml(path: tuple[str, ...], line: int) -> None:
    tomllib.loads(TOML)
    assert line_of(toml_lines(TOML), path) == line


def test_nothing_inside_a_string_is_taken_for_a_table() -> None:
    assert not [path for path in toml_lines(TOML) if path[-1] in ("not.a.table", "not_a_key", "also_not")]


JSON = """\
{
  "default": {"enable_tls": "Required",
    "connection_limit": 5},
  "a.example": {
    "sources": {"ip \\"1\\"": {
      "max_ready": 1}},
    "tls_ca": null
  },
  "provider": {"g": {"match": [{"MXSuffix": ".a"},
      {"HostName": "}"}]}}
}
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("default",), 2),
        (("default", "enable_tls"), 2),
        (("default", "connection_limit"), 3),
        (("a.example",), 4),
        (("a.example", "sources", 'ip "1"', "max_ready"), 6),
        (("a.example", "tls_ca"), 7),
        (("provider", "g", "match", "1"), 10),
        (("provider", "g", "match", "1", "HostName"), 10),
    ],
)
def test_the_line_of_a_path_in_json(path: tuple[str, ...], line: int) -> None:
    json.loads(JSON)
    assert line_of(json_lines(JSON), path) == line


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=("Cc", "Cs")))
VALUES = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.text(st.sampled_from("ab[]{}#='\",.\n\\ ")),
    st.lists(st.text(st.sampled_from("a]#'\n")), max_size=3),
)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=5), st.data())
def test_every_key_of_a_toml_document_is_found_on_its_line(
    data: dict[str, dict[str, Any]], draw: st.DataObject
) -> None:
    quoted = json.JSONEncoder(ensure_ascii=False).encode
    lines: list[str] = []
    where: dict[tuple[str, ...], int] = {}

    def text(value: Any) -> str:
        if isinstance(value, str) and draw.draw(st.booleans()):
            return '"""\n' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""'
        if isinstance(value, list):
            return "[\n" + "".join(f"  {quoted(one)}, # ]\n" for one in value) + "]"
        return quoted(value)

    for block, table in data.items():
        lines.append(f"[{quoted(block)}]")
        where[(block,)] = len(lines)
        for key, value in table.items():
            before = len(lines)
            lines += f"{quoted(key)} = {text(value)}".split("\n")
            where[block, key] = before + 1
            if isinstance(value, list):
                where |= {(block, key, str(number)): before + 2 + number for number in range(len(value))}
    whole = "\n".join(lines)
    tomllib.loads(whole)
    assert toml_lines(whole) == where


@given(st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=20))
def test_every_key_of_a_json_document_is_found_on_its_line(data: Any) -> None:
    if not isinstance(data, dict):
        data = {"x": data}
    text = json.dumps(data, indent=1)
    lines = json_lines(text)
    rows = text.split("\n")

    def look(path: tuple[str, ...], table: dict[str, Any]) -> None:
        for key, value in table.items():
            assert rows[lines[(*path, key)] - 1].strip().startswith(json.dumps(key) + ":")
            if isinstance(value, dict):
                look((*path, key), value)

    look((), data)


@given(st.text(st.sampled_from("[]{}\"'\n=.# ab\\:,"), max_size=60))
def test_any_text_comes_to_an_end(text: str) -> None:
    for scan in (toml_lines, json_lines):
        with contextlib.suppress(ValueError):  # a key that its parser would have refused before
            scan(text)
