"""Which secrets are live, what is masked, and what the operator hears of it."""

from __future__ import annotations

import base64
import json
import logging
import random
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tripwire import KEPT, MARK, Tripwire, keep_private, private, wire
from policy.secret import Secret

CANARY = 'c4n4ry="S3cret\\/+ with all'


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tripwire(clock: Clock) -> Tripwire:
    tripwire = Tripwire(clock)
    tripwire.watch("a", "file:pass", Secret(CANARY))
    return tripwire


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "posthorn.tripwire"]


def test_what_is_found_is_masked_and_told(tripwire: Tripwire, caplog: pytest.LogCaptureFixture) -> None:
    assert tripwire.text(f"535 {CANARY} is wrong", "replies") == "535 ******** is wrong"
    assert tripwire.octets(CANARY.encode() + b"!", "replies") == MARK + b"!"
    assert tripwire.statistics().hits == {("replies", "file:pass"): 2}
    (alarm,) = alarms(caplog)
    assert alarm == "LEAK: the secret of file:pass was about to be shown in replies; it was masked"
    assert CANARY not in alarm


def test_alarms_are_few_and_counted(
    tripwire: Tripwire, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        tripwire.text(CANARY, "replies")
    tripwire.text(CANARY, "elsewhere")
    assert len(alarms(caplog)) == 2
    clock.now += 61
    tripwire.text(CANARY, "replies")
    assert alarms(caplog)[2].endswith("(99 times more in between)")
    assert tripwire.statistics().hits["replies", "file:pass"] == 101


def test_nothing_found_is_the_same_object(tripwire: Tripwire) -> None:
    text, octets = "nothing to see", b"nothing to see"
    assert tripwire.text(text, "x") is text and tripwire.octets(octets, "x") is octets
    assert tripwire.json_lines(octets, "x") is octets
    assert tripwire.statistics().hits == {}


@pytest.mark.parametrize("text", ["lone \udcff surrogate", f"\udcff {CANARY}"])
def test_any_text_can_be_looked_at(tripwire: Tripwire, text: str) -> None:
    assert CANARY not in tripwire.text(text, "x")


def test_an_older_version_stays_for_an_hour(tripwire: Tripwire, clock: Clock) -> None:
    tripwire.watch("a", "file:pass", Secret("the second version"))
    tripwire.tidy()
    for secret in (CANARY, "the second version"):
        assert tripwire.text(secret, "x") == "********"
    clock.now += KEPT + 1
    tripwire.tidy()
    assert tripwire.text(CANARY, "x") == CANARY
    assert tripwire.text("the second version", "x") == "********"
    assert tripwire.statistics().watched == 1


def test_a_secret_of_two_owners_lives_as_long_as_either(tripwire: Tripwire, clock: Clock) -> None:
    tripwire.watch("b", "env:PASS", Secret(CANARY))
    tripwire.release("a")
    tripwire.release("never seen")
    clock.now += KEPT + 1
    tripwire.tidy()
    assert tripwire.text(CANARY, "x") == "********"
    tripwire.release("b")
    clock.now += KEPT - 1
    tripwire.watch("c", "env:AGAIN", Secret(CANARY))
    clock.now += 2 * KEPT
    tripwire.tidy()
    assert tripwire.text(CANARY, "x") == "********"


def test_no_secret_is_ever_unknown_between_sets(clock: Clock) -> None:
    """New ones come while a thread tidies: each is found at once, and stays found."""
    tripwire = Tripwire(clock)
    secrets = [f"password number {number:04}!" for number in range(1000)]
    done = threading.Event()

    def tidy() -> None:
        while not done.is_set():
            tripwire.tidy()

    thread = threading.Thread(target=tidy)
    thread.start()
    chance = random.Random(3)
    try:
        for number, secret in enumerate(secrets):
            tripwire.watch(number, f"name {number}", Secret(secret))
            assert tripwire.text(secret, "x") == "********"
            earlier = secrets[chance.randrange(number + 1)]
            assert tripwire.text(earlier, "x") == "********", earlier
    finally:
        done.set()
        thread.join()
    tripwire.tidy()
    assert tripwire.text(" ".join(secrets), "x") == " ".join(["********"] * 1000)


def test_many_secrets_are_brought_together(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In few sets, none of them too large to be made in one go, and each secret is moved a few times only."""
    moved: list[int] = []
    make = wire._Layer.__init__

    def counting(self: wire._Layer, secrets: Iterable[wire._Watched]) -> None:
        make(self, secrets)
        moved.append(len(self.secrets))

    monkeypatch.setattr(wire, "forms", lambda secret: {secret: False})
    monkeypatch.setattr(wire._Layer, "__init__", counting)
    tripwire = Tripwire(clock)
    monkeypatch.setattr(wire, "_GROWN", 256)
    number = 20 * wire._GROWN
    for each in range(number):
        tripwire.watch(each, "n", Secret(f"password {each:06}!"))
        while tripwire.untidy:
            tripwire.tidy()
    assert sum(moved) < number * (wire._YOUNG / 2 + 1 + 10)
    sizes = [len(layer.secrets) for layer in tripwire._layers]
    assert sum(sizes) == number and max(sizes) <= wire._GROWN and len(sizes) < 45, sizes


def test_older_versions_leave_every_set(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not merged any more."""
    monkeypatch.setattr(wire, "_GROWN", 4 * wire._YOUNG)
    tripwire = Tripwire(clock)

    def rotate(version: int) -> None:
        for owner in range(3 * wire._YOUNG):
            tripwire.watch(owner, "n", Secret(f"password {owner} {version}!"))
        while tripwire.untidy:
            tripwire.tidy()

    for version in range(10):
        rotate(version)
        clock.now += KEPT / 2
    assert tripwire.statistics().watched <= 4 * 3 * wire._YOUNG
    assert sum(len(layer.secrets) for layer in tripwire._layers) <= 8 * 3 * wire._YOUNG
    assert tripwire.text("password 1 9!", "x") == "********"


def test_what_is_remembered_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook may make a secret for each message."""
    monkeypatch.setattr(wire, "_MOST", 50)
    tripwire = Tripwire(clock)
    for number in range(1000):
        tripwire.watch(number, "n", Secret(f"password {number:04}!"))
        while tripwire.untidy:
            tripwire.tidy()
    assert len(tripwire._current) == 50
    assert tripwire.statistics().watched < 50 + 10 * wire._YOUNG
    assert sum(len(layer.secrets) for layer in tripwire._layers) < 300
    assert tripwire.text("password 0999!", "x") == "********"


def test_it_shows_nothing_itself(tripwire: Tripwire) -> None:
    assert repr(tripwire) == "<Tripwire: 1 secrets>"


# -- JSON


def line(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_a_line_of_json_stays_one(tripwire: Tripwire) -> None:
    blob = base64.b64encode(b"\0scott\0" + CANARY.encode()).decode()
    clean = line(type="Delivery", n=[1, 2.5, None, True], text='\u00e4 \\ "')
    bad = line(type="Bounce", response={"content": f"a {CANARY} b", "n": 12}, meta={CANARY: [blob, "x"]})
    masked = tripwire.json_lines(clean + bad + clean, "log").splitlines(keepends=True)
    assert masked[0] == clean and masked[2] == clean
    found = json.loads(masked[1])
    assert found["response"] == {"content": "a ******** b", "n": 12}
    ((name, (coded, rest)),) = found["meta"].items()
    assert name == "********" and coded.endswith("********") and rest == "x"


def test_members_of_ours_are_left_alone(tripwire: Tripwire) -> None:
    tripwire.watch("w", "env:WORD", Secret("Delivery"))
    record = line(type="Delivery", content="Delivery to x", Delivery=1)
    masked = tripwire.json_lines(record, "log", frozenset(["type"]))
    assert json.loads(masked) == {"type": "Delivery", "content": "******** to x", "Delivery": 1}


def test_structure_and_numbers_are_left_alone(tripwire: Tripwire) -> None:
    tripwire.watch("s", "env:S", Secret('","content":"'))
    tripwire.watch("n", "env:N", Secret("123456"))
    record = line(type="x", content="123456", size=123456)
    assert json.loads(tripwire.json_lines(record, "log")) == {
        "type": "x",
        "content": "********",
        "size": 123456,
    }


def test_a_masked_line_moves_no_cursor(tripwire: Tripwire) -> None:
    masked = tripwire.json_lines(b'{"a":"\\u009b\\u007f","b":%s}\n' % json.dumps(CANARY).encode(), "log")
    assert masked == b'{"a":"\\u009b\\u007f","b":"********"}\n'


@pytest.mark.parametrize("wrong", [b"no json %s", b'{"a": "%s', b"[" * 100_000 + b"%s"])
def test_what_is_no_json_is_masked_all_the_same(tripwire: Tripwire, wrong: bytes) -> None:
    assert CANARY.encode() not in tripwire.json_lines(wrong.replace(b"%s", CANARY.encode()), "log")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.just(f"<{CANARY}>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), max_size=4))
def test_json_of_any_kind(lines: list[dict[str, Any]]) -> None:
    tripwire = Tripwire()
    tripwire.watch("a", "x", Secret(CANARY))
    masked = tripwire.json_lines(b"".join(line(**each) for each in lines), "log")
    expected = json.loads(json.dumps(lines).replace(json.dumps(CANARY)[1:-1], "********"))
    assert [json.loads(each) for each in masked.splitlines()] == expected


# -- what a session keeps to itself


async def test_private_to_the_task_it_was_said_in(caplog: pytest.LogCaptureFixture) -> None:
    import trio

    heard: dict[str, str] = {}

    async def session(name: str, *said: str) -> None:
        for password in said:
            keep_private(Secret(password))
        await trio.lowlevel.checkpoint()
        heard[name] = await trio.to_thread.run_sync(private, "opensesame1234 and swordfish+99")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session, "first", "opensesame1234")
        nursery.start_soon(session, "second", "opensesame1234", "swordfish+99")
        nursery.start_soon(session, "third")
    assert heard == {
        "first": "******** and swordfish+99",
        "second": "******** and ********",
        "third": "opensesame1234 and swordfish+99",
    }
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
