"""docs/bounces.md: every example does what the page says, in a relay that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from policy.load import load_policy
from policy.testing import NextHop, open_relay, scenario

PAGE = (Path(__file__).parents[2] / "docs" / "bounces.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bounces.toml").write_text(blocks("toml")[0])


def test_files_of_ones_own_go_before() -> None:
    Path("example.py").write_text(blocks("python")[1])
    classes = load_policy("example.py").hooks.bounces
    assert classes.of("550 5.7.1 not for you") == "HouseRule"
    assert classes.of("550 5.7.1 See https://postmaster.big.example/blocked") == "SpamBlock"
    assert classes.of("550 5.7.1 no") == "PolicyRelated"
    assert classes.of("550 what") == "Uncategorized"


@pytest.mark.parametrize("classifier", [True, False])
@scenario
async def test_the_record_of_a_refusal_has_its_class(classifier: bool) -> None:
    text = blocks("python")[0]
    if not classifier:
        text = text.replace("policy.configure_bounce_classifier([policy.BOUNCES])", "")
    Path("example.py").write_text(text)
    hop = NextHop(replies={"RCPT": "550 5.1.1 user unknown"})
    dns = {"example.com": {"MX": ["10 mx.example.com."]}}
    async with open_relay("example.py", hops={"mx.example.com": hop}, dns=dns) as relay:
        await relay.submit("nobody@example.com")
        (bounce,) = await relay.wait_for("Bounce", 1)
        assert bounce.bounce_classification == ("InvalidRecipient" if classifier else "Uncategorized")
