"""policy/shaping/read.py: what a file may say, and what is said about one that is wrong."""

from __future__ import annotations

import json

import pytest

from policy.shaping.read import read
from policy.shaping.table import ShapingError, build


def problems(text: str, name: str = "a.toml") -> list[str]:
    document = read(name, text.encode())
    if document.problems:
        return [str(problem) for problem in document.problems]
    try:
        build([document])
    except ShapingError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '["a.example"]\nenable_tsl = "Required"',
            'a.toml:2: ["a.example"] unknown option "enable_tsl"; did you mean "enable_tls"?',
        ),
        (
            '["a.example"]\n\nmx_rolup = false',
            'a.toml:3: ["a.example"] unknown option "mx_rolup"; did you mean "mx_rollup"?',
        ),
        (
            '["a.example"]\nconnection_limit = 0',
            'a.toml:2: ["a.example"] connection_limit=0: a limit is at least 1',
        ),
        (
            '["a.example"]\nmx_rollup = "no"',
            "a.toml:2: mx_rollup: is no bool but a str; right would be true or false",
        ),
        (
            "[a.example]\nenable_tls = 1",
            'a.toml:1: ["a"] "example" is a table, which no option is; a block name with dots',
        ),
        (
            '["a.example"]\nsource.x.connection_limit = 2',
            'a.toml:2: ["a.example"] unknown option "source"; did you mean "sources"?',
        ),
        (
            'enable_tls = "Required"',
            'a.toml:1: "enable_tls" stands outside of every block; right would be ["default"]',
        ),
        (
            '["a.example"]\nuse_lmtp = true',
            'a.toml:2: ["a.example"] option "use_lmtp" (LMTP) is not supported yet',
        ),
        (
            '["a.example"]\nprovider_connection_limit = 2',
            "has no meaning here; it belongs into a block of a provider",
        ),
        (
            '["a.example".sources."x"]\nreplace_base = true',
            "has no meaning here; it belongs into a domain's block",
        ),
        ('["a.example"]\nsources = 3', 'a.toml:2: sources: right would be ["a.example".sources."NAME"]'),
        ('[provider."g"]\nconnection_limit = 2', 'a.toml:1: [provider."g"] has no "match"'),
        ('[provider."g"]\nmatch = [{Suffix = "x"}]', 'a.toml:2: match: unknown condition "Suffix"'),
        (
            '[provider."g"]\nmatch = [\n  {MXSuffix = "x"},\n  {HostName = 3}]',
            "match: HostName is a host name or its end",
        ),
        (
            '["a.example"]\nadditional_connection_limits = { x = 0 }',
            "a.toml:2: [\"a.example\"] additional_connection_limits={'x': 0}: 'x': a limit is at least 1",
        ),
        ('["a.example"\n', "a.toml:1: is no TOML: "),
        ('["a.example"]\nx = 1\nx = 2', "a.toml:3: is no TOML: Cannot overwrite a value"),
        (
            '["default"]\nsmtp_auth_plain_username = "scott"',
            'a.toml:2: ["default"] smtp_auth_plain_username: AUTH in "default"',
        ),
        (
            '["default".sources."x"]\nallow_smtp_auth_plain_without_tls = true',
            'a.toml:2: ["default"] allow_smtp',
        ),
        (
            '["a.example"]\nsmtp_auth_plain_username = "scott"',
            'a.toml:2: ["a.example"] smtp_auth_plain_username without smtp_auth_plain_password',
        ),
        ('["a.example"]\nenable_tls = "Disabled"\ntls_ca = "/ca.pem"', "tls_ca says whom to trust"),
    ],
)
def test_a_mistake_is_said_with_file_line_and_key(text: str, said: str) -> None:
    found = problems(text)
    assert any(said in one for one in found), found


def test_a_wrong_condition_is_not_told_as_a_missing_one() -> None:
    (said,) = problems('[provider."g"]\nmatch = [{MXSuffix = "x", HostName = "y"}]')
    assert said.startswith("a.toml:2: match: each condition has one key")
    (said,) = problems('[provider."g"]\nmatch = [{MxSuffix = "x"}]')
    assert said == 'a.toml:2: match: unknown condition "MxSuffix"; did you mean "MXSuffix"?'


def test_all_mistakes_are_told_at_once() -> None:
    text = '["a.example"]\nx1 = 1\n["b.example"]\nconnection_limit = "many"\n[provider."p"]\nx2 = 1\n'
    assert [one.split(":")[1] for one in problems(text)] == ["2", "4", "6"]


@pytest.mark.parametrize(
    "value", ["{ key_data = 'canary', x = 1 }", "['canary']", "{ canary = 'canary' }", "3"]
)
def test_what_may_be_a_secret_is_not_shown(value: str) -> None:
    (said,) = problems(f'["a.example"]\nsmtp_auth_plain_password = {value}')
    assert "smtp_auth_plain_password" in said
    assert "canary'" not in said and "3" not in said


def test_json_says_the_same_and_null_is_unset() -> None:
    text = json.dumps({"a.example": {"enable_tsl": 1, "max_message_rate": None}}, indent=1)
    assert problems(text, "a.json") == [
        'a.json:3: ["a.example"] unknown option "enable_tsl"; did you mean "enable_tls"?'
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"smtp_port": 1, "smtp_port": 2}}', 'is no JSON: "smtp_port" stands twice in one object'),
        ('{"a": \n 3,}', "a.json:2: is no JSON: "),
        ("[]", "is no object of blocks"),
        ('{"a.example": {"smtp_port": ' + "9" * 5000 + "}}", "is no JSON: a number has thousands of digits"),
        ('{"a.example": {"ehlo_domain": "\\ud800"}}', "half a character"),
        ('{"\\udfff": {}}', "half a character"),
        ("[" * 200_000, "is no JSON: "),
    ],
)
def test_what_is_no_json(text: str, said: str) -> None:
    (problem,) = problems(text, "a.json")
    assert said in problem
    problem.encode()  # it goes into records


def test_whole_characters_may_be_escaped() -> None:
    assert problems('{"a.example": {"smtp_auth_plain_username": "\\ud83d\\ude00", "x": 1}}', "a.json") == [
        'a.json:1: ["a.example"] unknown option "x"'
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["a.example"]\nsmtp_port = ' + "9" * 5000, "is no TOML: a number has thousands of digits"),
        ("x = " + "[" * 20_000, "is no TOML: "),
    ],
)
def test_what_only_a_parser_minds_is_a_mistake_like_others(text: str, said: str) -> None:
    (problem,) = problems(text)
    assert said in problem


@pytest.mark.parametrize("name", ["https://x.example/shaping", "rules.conf"])
@pytest.mark.parametrize("text", ['{"a.example": {"smtp_port": 1}}', '["a.example"]\nsmtp_port = 1'])
def test_without_an_ending_the_content_chooses_the_language(name: str, text: str) -> None:
    assert problems(text, name) == []


def test_what_is_no_text_is_said() -> None:
    assert str(read("a.toml", b'["a"]\n\xff').problems[0]) == "a.toml:2: is not UTF-8"


def test_windows_line_ends_and_a_byte_order_mark_are_fine() -> None:
    assert problems('\ufeff["a.example"]\r\nsmtp_port = 587\r\n') == []


def test_an_option_that_is_not_built_may_stand_where_it_asks_for_nothing() -> None:
    assert problems('["a.example"]\nuse_lmtp = false\n') == []


@pytest.mark.parametrize(
    "lines",
    [
        'smtp_auth_plain_username = "u"\nsmtp_auth_plain_password = {exec = ["/bin/id"]}',
        'smtp_auth = {username = "u", password = {exec = ["/bin/id"]}}',
        'smtp_auth = {username = "u", oauth2 = {token_endpoint = "https://t.example/", client_id = "c", '
        'client_secret = {exec = ["/bin/id"]}}}',
        'smtp_auth = {username = "u", password = {vault_mount = "m", vault_path = "p", '
        'vault_auth = {method = "approle", role_id = {exec = ["/bin/id"]}}}}',
        'smtp_auth = {username = "u", password = {vault_mount = "m", vault_path = "p", '
        'vault_token = {exec = ["/bin/id"]}}}',
        'tls_ca = {exec = ["/bin/id"]}',
    ],
    ids=["plain", "smtp_auth", "oauth2", "approle", "vault token", "tls_ca"],
)
@pytest.mark.parametrize("table", ['["a.example"]', '["a.example".sources."s"]'], ids=["block", "source"])
def test_what_a_url_says_runs_no_program(table: str, lines: str) -> None:
    text = f"{table}\n{lines}\n"
    assert not any("program" in one for one in problems(text)), "in a file of this machine it may"
    (said,) = problems(text, "https://shaping.example/s.toml")
    assert "cannot run a program of this machine (exec)" in said
    assert said.startswith("https://shaping.example/s.toml:") and "/bin/id" not in said


_AT = 'vault_mount = "m", vault_path = "p"'


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('"/etc/x"', "read a file of this machine as a secret"),
        ('{file = "/etc/x"}', "read a file"),
        ('{env = "X"}', "read an environment variable"),
        ('{credential = "x"}', "read a systemd credential"),
        (f'{{{_AT}, vault_token = "/etc/x", vault_address = "https://v.example"}}', ""),
        (f'{{{_AT}, vault_token = {{file = "/etc/x"}}}}', "read a file"),
        (f'{{{_AT}, vault_auth = {{method = "kubernetes", role = "r"}}}}', "read a file"),
        (f'{{{_AT}, vault_address = "https://v.example"}}', "send this machine's Vault token"),
        (f"{{{_AT}}}", ""),
        ('{event_name = "hook"}', ""),
        ('{key_data = "tiger"}', ""),
    ],
)
def test_what_a_url_says_reaches_for_no_secret_of_this_machine(source: str, says: str) -> None:
    """Else it could have any file, and the service's own token, sent to a server that it names."""
    login = f'smtp_auth_plain_username = "u"\nsmtp_auth_plain_password = {source}\n'
    text = '["a.example"]\nenable_tls = "Required"\n' + login
    assert problems(text) == [], "in a file of this machine it may"
    said = problems(text, "https://shaping.example/s.toml")
    assert [says in one for one in said] == ([True] if says else [])
    assert "/etc/x" not in str(said)


def test_what_a_url_says_may_name_a_ca() -> None:
    text = '["a.example"]\ntls_ca = "/etc/ssl/ca.pem"\n'
    assert problems(text, "https://shaping.example/s.toml") == []
    text = '["a.example"]\ntls_ca = {env = "X"}\n'
    assert "environment variable" in problems(text, "https://shaping.example/s.toml")[0]
