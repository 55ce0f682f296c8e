"""docs/shaping.md: every example does what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli import main
from policy.load import load_policy
from policy.shaping import Asked, Failure, Host, Orders, ShapingError, asked_by_name, read_rules
from policy.shaping.read import META, read
from policy.shaping.rules import ACTIONS
from policy.shaping.table import build

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "shaping.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


RULES = next(text for text in blocks("toml") if ".automation]]" in text)


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's first files, in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("mypolicy.py").write_text(blocks("python")[0])
    Path("shaping.toml").write_text(blocks("toml")[0])
    yield
    load_policy(None)


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml(text: str) -> None:
    document = read("shaping.toml", text.encode())
    assert [str(problem) for problem in document.problems] == []
    assert build([document]).blocks


@pytest.mark.parametrize("text", blocks("json"))
def test_json(text: str) -> None:
    merged = build([read("shaping.json", text.encode())])
    assert merged.find("example.com", "ip-2", asked_by_name("mx.example.com")).path.connection_limit == 1


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text: str) -> None:
    Path("example.py").write_text(text)
    (hook,) = load_policy("example.py").hooks.get("get_egress_path_config")
    if "https://" in text:
        return  # loaded is enough: the answer is not there yet
    path = hook.function("[192.168.1.10]", "slow", "192.168.1.10")
    assert path.smtp_auth_plain_username == "scott"
    assert hook.function("example.com", "slow", "mx.example.com").enable_tls == "Required"


def test_the_error_shown_is_the_error_given() -> None:
    problem = read("shaping.toml", b'["example.com"]\nenable_tsl = "Required"').problems[0]
    assert blocks("text")[0].strip() == str(problem)


def test_the_refused_expression_and_the_suspension_read_like_that() -> None:
    text = '[["default".automation]]\nregex = "(?=x)y"\naction = "Suspend"\nduration = "1h"\n'
    (problem,) = read("shaping.toml", text.encode()).problems
    assert blocks("text")[1].strip() == str(problem)
    merged, orders = build([read("shaping.toml", RULES.encode())]), Orders()
    failure = Failure(
        "customer.example",
        "unspecified",
        Asked("mx", (Host(("in1.mx.big.example",)),), False, "k"),
        421,
        "4.7.0",
        "421 4.7.0 Too many connections",
    )
    orders.judge(merged, failure, 1795684200.0)
    stop = orders.stops(merged).of_ready("unspecified", "other", {"big"})
    assert stop is not None and blocks("text")[2].strip() == stop.text
    path = merged.find("x.example", "unspecified", failure.asked, orders.overrides(merged)).path
    assert path.connection_limit == 2


def test_the_tests_of_the_page_can_fail() -> None:
    for text in blocks("toml"):
        if "[[test]]" in text or ".test]]" in text:
            broken = re.sub(r"^expect = .*$", 'expect = "Bounce"', text, flags=re.MULTILINE)
            broken = re.sub(r"(test\]\]\n)(?=expect)", r'\1reply = "421 x"\n', broken)
            with pytest.raises(ShapingError, match="this test fails"):
                build([read("shaping.toml", broken.encode())])


def test_the_keys_of_rules_and_tests_are_in_their_tables() -> None:
    keys = {
        name
        for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ", PAGE, re.MULTILINE)
        for name in re.findall(r"\w+", row)
    }
    assert {*read_rules._KEYS, *read_rules._CASE_KEYS} <= keys
    assert all(f'"{action}"' in PAGE or f"{{ {action} =" in PAGE for action in ACTIONS)


def test_what_explain_shows(capsys: pytest.CaptureFixture[str]) -> None:
    shown, options = (text for text in blocks("text") if "explain" in text or text.startswith("  enable"))
    command, _, output = shown.partition("\n")
    with pytest.raises(SystemExit) as end:
        main(command.split()[2:])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith(output), out
    words = [" ".join(line.split()) for line in out.splitlines()]
    for line in options.splitlines():
        assert " ".join(line.split()) in words


def test_every_key_is_in_the_table() -> None:
    (section,) = re.findall(r"^## Blocks\n(.*?)^###? ", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| ", section, re.MULTILINE)
    assert {key for keys in META.values() for key in keys} == set(rows)


def test_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([\w.-]*)(?:#([\w-]+))?\)", PAGE):
        page = (ROOT / "docs" / target).read_text() if target else PAGE
        slugs = [h.lower().replace(" ", "-").replace("`", "") for h in re.findall(r"^#+ (.+)$", page, re.M)]
        assert not anchor or anchor in slugs, anchor
