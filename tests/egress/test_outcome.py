"""engine/egress/outcome.py: what replies and failures mean, for each recipient on its own."""

from __future__ import annotations

import pytest

from engine.egress.outcome import (
    INTERNAL,
    Outcome,
    broken,
    expired,
    finished,
    grouped,
    internal,
    out_of_step,
    refused_at,
)
from engine.smtp import Reply, Transaction

OK = Reply(250, "2.1.0", "OK")
GO = Reply(354, "", "go ahead")
LOST = internal(451, "4.4.2", "gone")


def verdicts(
    rcpt: list[Reply | None],
    *,
    mail: Reply | None = OK,
    data: Reply | None = GO,
    dot: Reply | None = OK,
    dot_sent: bool = True,
) -> list[str]:
    names = [f"r{i}@example.com" for i in range(len(rcpt))]
    tx = Transaction(
        "s@example.com", names, mail_reply=mail, rcpt_replies=rcpt, data_reply=data, dot_reply=dot
    )
    return [o.verdict for o in finished(tx, LOST, dot_sent=dot_sent)]


def test_accepted_recipients_share_the_answer_to_the_dot() -> None:
    assert verdicts([OK, OK]) == ["delivered", "delivered"]


def test_any_2xx_to_rcpt_is_an_acceptance() -> None:
    """A relay that knew only 250 sent an empty message and called it delivered."""
    assert verdicts([Reply(251, "2.1.5", "will forward")]) == ["delivered"]


def test_one_refused_recipient_changes_no_other() -> None:
    refused = Reply(550, "5.1.1", "no such user")
    later = Reply(450, "4.2.1", "mailbox busy")
    assert verdicts([OK, refused, later]) == ["delivered", "permanent", "transient"]


def test_a_5xx_to_the_dot_does_not_bounce_those_that_were_put_off_at_rcpt() -> None:
    later = Reply(450, "4.2.1", "mailbox busy")
    assert verdicts([OK, later], dot=Reply(554, "5.7.1", "spam")) == ["permanent", "transient"]


def test_data_refused_applies_to_the_accepted_only() -> None:
    refused = Reply(550, "5.1.1", "no such user")
    assert verdicts([OK, refused], data=Reply(451, "4.3.0", "later"), dot=None) == ["transient", "permanent"]


@pytest.mark.parametrize("code", [550, 551, 553, 554, 521])
def test_a_permanent_refusal_of_mail_applies_to_all(code: int) -> None:
    assert verdicts([None, None], mail=Reply(code, "5.0.0", "no"), data=None, dot=None) == ["permanent"] * 2


@pytest.mark.parametrize("code", [503, 530, 534, 535, 538])
def test_wanting_credentials_or_another_order_never_bounces(code: int) -> None:
    assert verdicts([None], mail=Reply(code, "5.7.0", "no"), data=None, dot=None) == ["transient"]


def test_552_to_rcpt_is_read_as_452() -> None:
    assert verdicts([Reply(552, "5.2.2", "too many")], data=None, dot=None) == ["transient"]


def test_552_to_the_dot_stays_permanent() -> None:
    assert verdicts([OK], dot=Reply(552, "5.3.4", "too big")) == ["permanent"]


@pytest.mark.parametrize("code", [421, 450, 451, 452, 454, 471, 354, 334, 200 + 199])
def test_everything_else_is_tried_again(code: int) -> None:
    assert refused_at(".", Reply(code, "", "?")).verdict == "transient"


def test_no_answer_to_the_dot_is_uncertain_and_says_so() -> None:
    assert verdicts([OK], dot=None, dot_sent=True) == ["uncertain"]
    reply = broken("final dot", "no answer in time", timeout=True, dot_sent=True)
    assert reply.code == 421
    assert "twice" in reply.text


def test_no_answer_before_the_dot_is_an_ordinary_failure() -> None:
    assert verdicts([OK], dot=None, dot_sent=False) == ["transient"]
    assert verdicts([None], mail=OK, data=None, dot=None, dot_sent=False) == ["transient"]
    assert verdicts([None], mail=None, data=None, dot=None, dot_sent=False) == ["transient"]


def test_our_own_replies_are_marked() -> None:
    assert expired("old").text.startswith(INTERNAL)
    assert expired("old").code == 551
    assert broken("MAIL FROM", "reset", timeout=False, dot_sent=False).text == f"{INTERNAL}reset (MAIL FROM)"


# Out of step: nobody knows which reply answered what

REFUSED = Reply(550, "5.1.1", "no such user")
TAKEN = Reply(250, "2.0.0", "taken")


@pytest.mark.parametrize("mail", [None, OK, REFUSED])
@pytest.mark.parametrize("rcpt", [[None, None], [OK, REFUSED], [REFUSED, REFUSED]])
@pytest.mark.parametrize("data", [None, GO, REFUSED])
@pytest.mark.parametrize("dot", [None, TAKEN, REFUSED])
@pytest.mark.parametrize("dot_sent", [False, True])
def test_out_of_step_no_refusal_and_no_acceptance_is_believed(
    mail: Reply | None, rcpt: list[Reply | None], data: Reply | None, dot: Reply | None, dot_sent: bool
) -> None:
    names = ["a@example.com", "b@example.com"]
    tx = Transaction("s@e.example", names, mail_reply=mail, rcpt_replies=rcpt, data_reply=data, dot_reply=dot)
    outcomes = out_of_step(tx, LOST, dot_sent=dot_sent)
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.verdict == ("uncertain" if dot_sent and dot is None else "transient")
        assert outcome.reply is LOST


def test_out_of_step_uncertain_names_the_dot_and_the_rest_names_no_command() -> None:
    tx = Transaction("s@e.example", ["a@example.com"], mail_reply=OK, rcpt_replies=[OK], data_reply=GO)
    assert out_of_step(tx, LOST, dot_sent=True)[0].command == "."
    assert out_of_step(tx, LOST, dot_sent=False)[0].command == ""


def test_recipients_with_the_very_same_outcome_stand_together() -> None:
    one, two = Outcome("transient", OK), Outcome("transient", OK)
    assert one == two  # but they answer different commands
    assert grouped([0, 2, 3, 7], [one, two, one, two]) == [(one, [0, 3]), (two, [2, 7])]
    assert grouped([5], [two]) == [(two, [5])] and grouped([], []) == []
    for indices, results in (([1], []), ([1], [one, two]), ([1, 2], [one])):
        with pytest.raises(ValueError):
            grouped(indices, results)
