"""Bounce classes: files in, the class of a reply out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import policy
from policy.bounces import UNCATEGORIZED, BounceClasses, configure_bounce_classifier
from policy.errors import PolicyError, PolicyErrors
from policy.hooks import HookTable, registering
from policy.load import load_policy


@pytest.fixture
def table() -> Iterator[HookTable]:
    made = HookTable()
    token = registering.set(made)
    yield made
    registering.reset(token)


def classes(table: HookTable, *files: str | Path) -> BounceClasses:
    configure_bounce_classifier(files)
    found = table.bounces
    assert isinstance(found, BounceClasses)
    return found


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (
            "550 5.1.1 <a@b.example>: Recipient address rejected: User unknown in virtual table",
            "InvalidRecipient",
        ),
        ("550 No such user here", "InvalidRecipient"),
        ("550 5.1.1 nobody", "InvalidRecipient"),
        ("552 5.2.2 The email account that you tried to reach is over quota", "QuotaIssues"),
        ("452 4.2.2 Mailbox full", "QuotaIssues"),
        (
            "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
            "SpamBlock",
        ),
        ("421 4.7.0 too many concurrent connections from your address", "BadConnection"),
        ("550 5.7.26 This mail is unauthenticated", "AuthenticationFailed"),
        ("550 5.7.1 message does not pass DMARC: rejected by policy", "AuthenticationFailed"),
        ("535 5.7.8 authentication failed", "AuthenticationFailed"),
        ("554 5.7.1 <x@y.example>: Relay access denied", "RelayDenied"),
        ("554 5.7.1 not today", "PolicyRelated"),
        ("552 5.3.4 Message too big", "ContentRelated"),
        ("452 4.5.3 Too many recipients", "TooManyRecipients"),
        ("451 4.4.3 Posthorn internal: the destination cannot be resolved now", "DNSFailure"),
        ("550 5.2.1 The account is disabled", "InactiveMailbox"),
        ("450 4.2.0 Greylisted, try again in 5 minutes", "PolicyRelated"),
        ("554 5.6.0 Message contains a virus", "VirusRelated"),
        ("550 whatever", UNCATEGORIZED),
        ("", UNCATEGORIZED),
    ],
)
def test_what_comes_with_the_product(table: HookTable, line: str, name: str) -> None:
    assert classes(table, policy.BOUNCES).of(line) == name


def test_every_class_that_comes_with_the_product_is_a_known_name(table: HookTable) -> None:
    known = set(
        [
            "InvalidRecipient",
            "DNSFailure",
            "SpamBlock",
            "SpamContent",
            "ProhibitedAttachment",
            "RelayDenied",
            "AutoReply",
            "TransientFailure",
            "Subscribe",
            "Unsubscribe",
            "ChallengeResponse",
            "BadConfiguration",
            "BadConnection",
            "BadDomain",
            "ContentRelated",
            "InactiveMailbox",
            "InvalidSender",
            "MessageExpired",
            "NoAnswerFromHost",
            "PolicyRelated",
            "ProtocolErrors",
            "QuotaIssues",
            "RelayingIssues",
            "RoutingErrors",
            "SpamRelated",
            "VirusRelated",
            "AuthenticationFailed",
            "TooManyRecipients",
            "Uncategorized",
        ]
    )
    assert set(classes(table, policy.BOUNCES).names) <= known


def test_the_first_expression_of_the_first_file_wins(table: HookTable, tmp_path: Path) -> None:
    first = tmp_path / "first.toml"
    first.write_text('[rules]\nMine = ["user unknown"]\nOther = ["unknown", "full"]\n')
    second = tmp_path / "second.json"
    second.write_text('{"rules": {"Late": ["full", "late"]}}')
    found = classes(table, first, second)
    assert [found.of(f"550 {text}") for text in ("user unknown", "unknown", "full", "late", "no")] == [
        "Mine",
        "Other",
        "Other",
        "Late",
        UNCATEGORIZED,
    ]
    assert found.names == ("Mine", "Other", "Late", UNCATEGORIZED)


def test_junk_does_not_push_out_what_is_known_and_neither_grows(table: HookTable) -> None:
    found = classes(table, policy.BOUNCES)
    for number in range(3000):
        assert found.of(f"250 {number}") == UNCATEGORIZED
        assert found.of(f"550 5.1.1 {number % 10}") == "InvalidRecipient"
    assert len(found._known) == 10
    assert len(found._unknown) <= 1024


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[rules", "wrong.toml: is no TOML"),
        ("\nrules = 1", 'wrong.toml:2: has one table, "rules"'),
        ("[rules]\nA = ['x']\n[more]\n", 'wrong.toml:3: has one table, "rules"'),
        ("", 'wrong.toml:1: has one table, "rules"'),
        ("[rules]\nA = 'x'", "wrong.toml:2: rules.A: is no list of regular expressions but a str"),
        ("[rules]\nA = ['ok', '(?=x)']", "wrong.toml:2: rules.A, expression 2: .*look-ahead"),
        (
            "[rules]\nA = [\n  'o,k', # (]\n\n  '(?=x)',\n]",
            "wrong.toml:5: rules.A, expression 2: .*look-ahead",
        ),
        ("[rules]\nA = ['x*']", "rules.A, expression 1: .*fits every text"),
        ("rules.B = ['x']\nrules.A = [1]", "wrong.toml:2: rules.A, expression 1: is no regular expression"),
        ("[rules]\n'' = ['x']", "wrong.toml:2: rules: '' is no name of a class"),
    ],
)
def test_a_file_that_is_wrong_says_where(table: HookTable, tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(content)
    with pytest.raises(PolicyError, match=text) as caught:
        configure_bounce_classifier([file])
    assert "wrong.toml" in str(caught.value)
    assert table.bounces is None


def test_all_mistakes_of_all_files_are_said(table: HookTable, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("[rules]\nA = ['ok', '(', '(?=x)']\nB = 1")
    os.mkfifo(tmp_path / "two.toml")
    with pytest.raises(PolicyErrors, match=r"^\S*test_bounces\.py:\d+: .*3 more mistakes") as caught:
        configure_bounce_classifier([tmp_path / "one.toml", tmp_path / "two.toml"])
    texts = [str(problem) for problem in caught.value.problems]
    assert [text.partition(".toml:")[2].partition(" ")[2][:20] for text in texts] == [
        "rules.A, expression ",
        "rules.A, expression ",
        "rules.B: is no list ",
        "cannot be read: it i",
    ]
    assert table.bounces is None


def test_a_line_in_json(table: HookTable, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"rules": {\n"A": ["ok",\n"("]}}')
    with pytest.raises(PolicyError, match=r"one\.json:3: rules\.A, expression 2"):
        configure_bounce_classifier([tmp_path / "one.json"])


def test_expressions_that_are_too_large_together(table: HookTable, tmp_path: Path) -> None:
    """Each of them is fine."""
    each = [f"[a-z]{{200}}x{{500}}word{number}.{{800}}" for number in range(400)]
    (tmp_path / "large.json").write_text(json.dumps({"rules": {"A": each}}))
    with pytest.raises(PolicyError, match=r"test_bounces\.py:\d+: .*400 expressions together are too large"):
        configure_bounce_classifier([tmp_path / "large.json"])


def test_a_policy_that_names_a_missing_file_says_which(tmp_path: Path) -> None:
    file = tmp_path / "mypolicy.py"
    file.write_text('import policy\npolicy.configure_bounce_classifier(["bounces.toml"])\n')
    with pytest.raises(PolicyError, match=r"mypolicy\.py:2: bounces\.toml: cannot be read: No such file"):
        load_policy(file)


@pytest.mark.parametrize(
    "files", [[], "bounces.toml", [""], [7], ["posthorn:bounce"], ["missing.toml"], None]
)
def test_a_list_that_is_wrong(table: HookTable, files: object) -> None:
    with pytest.raises(PolicyError):
        configure_bounce_classifier(files)  # type: ignore[arg-type]


def test_once_only(table: HookTable) -> None:
    classes(table, policy.BOUNCES)
    with pytest.raises(PolicyError, match="second time"):
        configure_bounce_classifier([policy.BOUNCES])


RULE = """
[["default".automation]]
class = ["SpamBlock", "PolicyRelated"]
action = "Suspend"
duration = "10 minutes"

[["default".test]]
address = "a@example.com"
reply = "554 5.7.1 blocked using zen.spamhaus.org"
expect = "Suspend"

[["default".test]]
address = "a@example.com"
reply = "550 5.1.1 user unknown"
expect = "nothing"
"""


def shaped(tmp_path: Path, rule: str, *, classifier: bool = True) -> None:
    (tmp_path / "shaping.toml").write_text(rule)
    policy_file = tmp_path / "my.py"
    call = "policy.configure_bounce_classifier([policy.BOUNCES])\n" if classifier else ""
    policy_file.write_text(f'import policy\n{call}policy.shaping.setup(["shaping.toml"])\n')
    load_policy(policy_file)


def test_a_rule_asks_for_a_class(tmp_path: Path) -> None:
    shaped(tmp_path, RULE)


def test_a_test_of_such_a_rule_can_fail(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="leads to Suspend"):
        shaped(tmp_path, RULE.replace("550 5.1.1 user unknown", "550 5.7.1 no"))


def test_a_class_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"shaping.toml:2: .*has no bounce classes; right would be"):
        shaped(tmp_path, RULE, classifier=False)


def test_a_class_that_no_rule_gives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r'class="SpamBlok".*did you mean "SpamBlock"'):
        shaped(tmp_path, RULE.replace('"SpamBlock"', '"SpamBlok"'))


def test_what_only_a_parser_minds_is_a_mistake_like_others(table: HookTable, tmp_path: Path) -> None:
    for name, text in (("deep.json", "[" * 200_000), ("deep.toml", "x = " + "[" * 20_000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(PolicyError, match=r"is no (JSON|TOML)"):
            configure_bounce_classifier([tmp_path / name])
