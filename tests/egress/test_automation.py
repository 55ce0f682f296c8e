"""Rules on replies, with a router and peers: what stands still, what is bounced, what path is taken."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.shaping import State, automation, service
from tests.support.automated import BLOCK, open_automated, rule
from tests.support.peer import open_peer


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOOK", 0.05)
    monkeypatch.setattr(automation, "CALM", 0.01)
    monkeypatch.setattr(automation, "WRITE", 0.05)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shaping.toml"


BUSY = "421 4.7.0 Too many connections"


async def test_a_suspended_site_is_left_alone_and_mail_waits_without_an_attempt(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(BLOCK + rule('regex = "(?i)too many"'))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["MAIL"] = BUSY
        await b.submit("one@example.com")
        await b.records("TransientFailure")
        await b.until(lambda: b.router.statistics().held)
        connections = peer.connections
        peer.replies["MAIL"] = "250 2.1.0 ok"
        await b.submit("two@example.com")
        (waiting,) = await b.records("Delayed")
        assert waiting.recipient == "two@example.com" and waiting.num_attempts == 0
        assert waiting.code == 451 and waiting.next_due and waiting.next_due - waiting.timestamp > 3500
        assert f'by {file}:4 ["default"] Suspend, because a peer said: {BUSY}' in waiting.content
        ((name, text),) = b.router.statistics().held
        assert name.startswith("unspecified->mx_list:") and "suspended until 20" in text
        await trio.sleep(0.3)
        assert peer.connections == connections and not peer.arrived
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([one for one in said if f'{file}:4 ["default"] automation: Suspend for mx_list:' in one]) == 1


async def test_after_its_time_mail_goes_out(file: Path) -> None:
    file.write_text(BLOCK + rule("code = 421", duration="600ms"))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["MAIL"] = BUSY
        await b.submit("one@example.com")
        await b.until(lambda: b.router.statistics().held)
        peer.replies["MAIL"] = "250 2.1.0 ok"
        await b.submit("two@example.com")
        await b.records("Delayed")
        assert not peer.arrived
        (delivered,) = await b.records("Delivery")
        assert delivered.recipient == "two@example.com" and delivered.num_attempts == 0
        assert not b.router.statistics().held


async def test_what_waits_already_is_told_and_open_sessions_end(file: Path) -> None:
    """RCPT is refused for one message of a run: the others are not sent any more."""
    file.write_text(
        BLOCK + "connection_limit = 1\nenable_pipelining_across_messages = false\n" + rule("code = 450")
    )
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["RCPT"] = lambda line: "450 4.2.1 slow down" if "u3@" in line else "250 ok"
        await b.submit_many(8)
        await b.records("Delayed", 3)
        done = b.outcomes()
        assert done["u3"] == ["TransientFailure"]
        assert {"u0", "u1", "u2"} <= {name for name, kinds in done.items() if kinds == ["Delivery"]}
        await b.until(lambda: b.router.statistics().sessions == 0)
        count = len(peer.arrived)
        assert count < 7
        await trio.sleep(0.1)
        assert len(peer.arrived) == count
        assert len(b.recorded("Delayed")) == 7 - count


async def test_mail_takes_another_source_while_one_is_suspended(file: Path) -> None:
    file.write_text(BLOCK + rule("code = 421"))
    async with open_peer() as peer, open_automated(file, peer, pool=2) as (b, _running, _):
        peer.replies["MAIL"] = [BUSY, "250 ok"]
        await b.submit("one@example.com")
        (refused,) = await b.records("TransientFailure")
        await b.until(lambda: b.router.statistics().held)
        for n in range(4):
            await b.submit(f"u{n}@example.com")
        sent = await b.records("Delivery", 4)
        assert {one.egress_source for one in sent} == {"ip-0", "ip-1"} - {refused.egress_source}


async def test_a_tenant_s_mail_waits_and_the_others_goes(file: Path) -> None:
    file.write_text(BLOCK + rule('enhanced_code = "5.7.*"', '"SuspendTenant"', "600ms"))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["MAIL"] = ["550 5.7.1 spam", "250 ok"]
        await b.submit("a@example.com", tenant="bad")
        await b.records("Bounce")
        await b.until(lambda: b.router.statistics().held)
        await b.submit("b@example.com", tenant="bad")
        await b.submit("c@example.com", tenant="good")
        (sent,) = await b.records("Delivery")
        assert sent.recipient == "c@example.com"
        (waiting,) = await b.records("Delayed")
        assert waiting.recipient == "b@example.com" and waiting.num_attempts == 0
        assert f'by {file}:4 ["default"] SuspendTenant' in waiting.content
        assert [name for name, _ in b.router.statistics().held] == ["bad@example.com"]
        sent = (await b.records("Delivery", 2))[1]
        assert sent.recipient == "b@example.com" and sent.num_attempts == 0


async def test_a_bounced_queue_gives_back_what_waits_what_is_due_later_and_what_comes(file: Path) -> None:
    file.write_text(BLOCK + rule('code = "5xx"\ncommand = "MAIL"', '"BounceTenant"', "700ms"))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["MAIL"] = ["450 4.2.1 later", "550 5.7.1 blocked", "250 ok"]
        await b.submit("later@example.com", tenant="bad")
        await b.records("TransientFailure")
        await b.submit("trigger@example.com", tenant="bad")
        bounced = await b.records("Bounce", 2)
        await b.submit("new@example.com", tenant="bad")
        await b.submit("good@example.com", tenant="good")
        bounced = await b.records("Bounce", 3)
        assert [one.recipient for one in bounced] == [
            "trigger@example.com",
            "later@example.com",
            "new@example.com",
        ]
        assert [(one.code, one.enhanced_code) for one in bounced[1:]] == [(551, "5.7.1")] * 2
        for one in bounced[1:]:
            assert one.content.startswith("Posthorn internal: bounced until 20")
            assert f'{file}:4 ["default"] BounceTenant, because a peer said: 550 5.7.1 blocked' in one.content
        (sent,) = await b.records("Delivery")
        assert sent.recipient == "good@example.com" and len(peer.arrived) == 1
        await b.until(lambda: not b.router.statistics().held)
        await b.submit("after@example.com", tenant="bad")
        await b.records("Delivery", 2)
        assert b.router.statistics().queued == 0


@pytest.mark.parametrize("action", ["Suspend", "SuspendTenant"])
async def test_what_gets_too_old_meanwhile_is_given_up(
    action: str, file: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK", 86400.0)
    file.write_text(BLOCK + rule("code = 450", f'"{action}"', "1 day"))
    async with open_peer() as peer, open_automated(file, peer, max_age=600) as (b, _, _shaper):
        peer.replies["MAIL"] = ["450 4.2.1 slow", "250 ok"]
        await b.submit("one@example.com", tenant="t")
        await b.until(lambda: b.router.statistics().held)
        begun = clock.current_time()
        for n in range(3):
            await b.submit(f"u{n}@example.com", tenant="t")
        expired = await b.records("Expiration", 4, seconds=2000)
        assert 590 < clock.current_time() - begun < 800
        assert {one.num_attempts for one in expired if one.recipient != "one@example.com"} == {0}
        assert b.router.statistics().queued == 0 and not peer.arrived


async def test_set_config_is_in_force_at_once_and_ends(file: Path) -> None:
    action = '{ SetConfig = { name = "max_deliveries_per_connection", value = 1 } }'
    file.write_text(BLOCK + rule("code = 450", action, "1s"))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["MAIL"] = ["450 4.2.1 slow", "250 ok"]
        await b.submit("one@example.com")
        await b.records("TransientFailure")
        await b.until(lambda: b.ready()[0].path.max_deliveries_per_connection == 1)
        before = peer.connections
        await b.submit_many(3)
        await b.records("Delivery", 3)
        assert peer.connections - before == 3
        await b.until(lambda: b.ready()[0].path.max_deliveries_per_connection == 1024)


async def test_one_reply_to_many_recipients_counts_once(file: Path) -> None:
    file.write_text(BLOCK + rule('code = 450\ntrigger = { Threshold = "2/h" }'))
    async with open_peer() as peer, open_automated(file, peer) as (b, running, _):
        peer.replies["MAIL"] = "450 4.2.1 slow"
        await b.submit([f"u{n}@example.com" for n in range(5)])
        await b.records("TransientFailure")
        await trio.sleep(0.05)
        assert running.automation.counters.matches == 1 and not b.router.statistics().held
        await b.submit("again@example.com")
        await b.until(lambda: b.router.statistics().held)


async def test_shadow_only_reports(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(BLOCK + rule("code = 450", '["Suspend", "Bounce"]'))
    async with open_peer() as peer, open_automated(file, peer, automation="shadow") as (b, running, _):
        peer.replies["MAIL"] = ["450 4.2.1 slow", "250 ok"]
        await b.submit("one@example.com")
        await b.records("TransientFailure")
        await b.submit("two@example.com")
        await b.records("Delivery")
        assert running.automation.counters.shadowed == 2 and not b.router.statistics().held
    (said,) = [r.getMessage() for r in caplog.records if "automation:" in r.getMessage()]
    assert "would have done Suspend for" in said and "would have done Bounce for" in said


async def test_a_bounce_of_ours_is_no_reply_to_look_at(file: Path) -> None:
    """A rule that looks at our own replies would otherwise feed itself."""
    text = rule('code = ["450", "551"]\nmatch_internal = true', '"Bounce"', "300ms")
    file.write_text(BLOCK + text)
    async with open_peer() as peer, open_automated(file, peer) as (b, running, _):
        peer.replies["MAIL"] = ["450 4.2.1 slow", "250 ok"]
        await b.submit("one@example.com")
        await b.records("Bounce")
        assert running.automation.counters.matches == 1
        await b.until(lambda: not b.router.statistics().held)


async def test_our_own_replies_are_looked_at_where_that_is_asked_for(file: Path) -> None:
    file.write_text(BLOCK + rule('regex = "failed to connect"\nmatch_internal = true'))
    async with open_peer() as peer, open_automated(file, peer) as (b, _, _shaper):
        peer.replies["connect"] = "554 go away"
        await b.submit("one@example.com")
        await b.until(lambda: b.router.statistics().held)


async def test_a_restart_forgets_nothing(file: Path, tmp_path: Path) -> None:
    action = '["Suspend", { SetConfig = { name = "max_ready", value = 9 } }]'
    file.write_text(BLOCK + rule("code = 421", action))
    state = State(tmp_path / "spool")
    async with open_peer() as peer:
        async with open_automated(file, peer, state=state) as (b, _, shaper):
            peer.replies["MAIL"] = BUSY
            await b.submit("one@example.com")
            await b.until(lambda: b.router.statistics().held)
        peer.replies["MAIL"] = "250 ok"
        connections = peer.connections
        async with open_automated(file, peer, state=state) as (b, _, shaper):
            await b.submit("two@example.com")
            (waiting,) = await b.records("Delayed")
            assert "suspended until" in waiting.content and b.ready()[0].path.max_ready == 9
            assert peer.connections == connections
            # The file says it no more: the order ends with its rule.
            file.write_text(BLOCK)
            await b.records("Delivery")
            await b.until(lambda: b.ready()[0].path.max_ready == 1024)
        async with open_automated(file, peer, state=state) as (b, _, shaper):
            assert len(shaper.orders) == 0


async def test_a_process_that_is_killed_forgets_little(file: Path, tmp_path: Path) -> None:
    """What is in force stands on disk within seconds, not only after an orderly end."""
    file.write_text(BLOCK + rule("code = 421"))
    state = State(tmp_path / "spool")
    async with open_peer() as peer, open_automated(file, peer, state=state) as (b, _, shaper):
        peer.replies["MAIL"] = BUSY
        await b.submit("one@example.com")
        await b.until(lambda: b.router.statistics().held)
        await b.until(
            lambda: len(State(tmp_path / "spool", writes=False).orders()) == len(shaper.orders) == 1
        )


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"0" * 32 + b"\n[]", "cut", "flip"])
async def test_a_damaged_state_is_said_and_the_start_goes_on(
    file: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(BLOCK + rule("code = 421"))
    state = State(tmp_path / "spool")
    async with open_peer() as peer:
        async with open_automated(file, peer, state=state) as (b, _, _shaper):
            peer.replies["MAIL"] = [BUSY, "250 ok"]
            await b.submit("one@example.com")
            await b.until(lambda: b.router.statistics().held)
        kept = tmp_path / "spool.shaping" / "orders"
        content = bytearray(kept.read_bytes())
        assert kept.stat().st_mode & 0o077 == 0
        if damage == "cut":
            content = content[:-20]
        elif damage == "flip":
            content[60] ^= 1
        else:
            content = bytearray(damage)
        kept.write_bytes(content)
        caplog.clear()
        async with open_automated(file, peer, state=state) as (b, _, shaper):
            assert len(shaper.orders) == 0
            await b.submit("two@example.com")
            await b.records("Delivery")
    assert any(f"{kept} is damaged; it counts as missing" in r.getMessage() for r in caplog.records)


async def test_a_reply_that_a_whole_queue_shares_counts_once(file: Path) -> None:
    text = 'regex = "failed to connect"\nmatch_internal = true\ntrigger = { Threshold = "3/h" }'
    file.write_text(
        BLOCK + "consecutive_connection_failures_before_delay = 1\nconnection_limit = 1\n" + rule(text)
    )
    async with open_peer() as peer, open_automated(file, peer) as (b, running, _):
        peer.replies["connect"] = "554 go away"
        await b.submit_many(5)
        await b.records("TransientFailure", 5)
        await trio.sleep(0.1)
        assert running.automation.counters.matches < 3 and not b.router.statistics().held


async def test_putting_orders_in_force_among_very_many_queues_leaves_the_loop_its_time(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = automation.Automation([])
    begun: list[float] = []

    def slow() -> None:
        begun.append(trio.current_time())
        clock.jump(1.0)

    monkeypatch.setattr(judge, "_put_in_force", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(judge.run)
        with trio.move_on_after(60):
            while True:
                judge._changed.set()
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert 2 <= len(begun) <= 4


async def test_a_defect_in_putting_orders_in_force_does_not_end_the_relay(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = automation.Automation([])
    begun: list[float] = []

    def defect() -> None:
        begun.append(trio.current_time())
        raise RuntimeError("defect")

    monkeypatch.setattr(judge, "_put_in_force", defect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(judge.run)
        for _ in range(2):
            judge._changed.set()
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert len(begun) == 2 and caplog.text.count("RuntimeError: defect") == 2
