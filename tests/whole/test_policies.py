"""Policy files as users write them: named policy.py, with modules beside, async, and with mistakes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli.check import check
from policy.load import load_policy
from tests.support.bytesink import ByteSink, run_sink
from tests.support.ports import until
from tests.support.posthorn import command, environment, relay
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def sink() -> Iterator[ByteSink]:
    with run_sink() as running:
        yield running


def arrived(sink: ByteSink, sender: str) -> list[bytes]:
    return [arrival.content for arrival in sink.arrivals if arrival.sender == sender]


HOOKS = """\
import trio

import tenants


@policy.on("smtp_server_connection_accepted")
async def welcome(conn_meta):
    await trio.sleep(0)
    conn_meta.set_meta("x_seen", "yes")


@policy.on("smtp_server_mail_from")
def mail_from(sender, conn_meta):
    if sender.user == "broken":
        raise KeyError("canary-of-a-hook")
    if sender.user == "unwanted":
        raise policy.Reject(550, "5.7.1 go away")


@policy.on("smtp_server_message_received")
async def received(msg, conn_meta):
    await trio.sleep(0)
    if msg.sender().user == "broken-later":
        return 1 / 0
    msg.set_meta("tenant", tenants.tenant_of(msg.sender().domain))
    msg.append_header("X-Tenant", msg.get_meta("tenant"))
    msg.remove_all_named_headers("X-Secret")
    msg.set_header("Subject", "changed")
"""

TENANTS = """\
def tenant_of(domain):
    return domain.partition(".")[0]
"""


def test_a_policy_named_policy_with_a_module_beside_it_and_async_hooks(
    tmp_path: Path, sink: ByteSink
) -> None:
    directory = tmp_path / "relay"
    directory.mkdir()
    (directory / "tenants.py").write_text(TENANTS)
    with relay(directory, next_hop=sink.port, name="policy.py", extra=HOOKS) as running:
        with RawClient(running.port) as client:
            content = b"Subject: as it was\r\nX-Secret: one\r\nX-Secret: two\r\nTo: b\r\n\r\nbody\r\n"
            assert client.deliver("a@acme.example", "b@c.example", content)[0] == 250
        (record,) = running.wait_records("Delivery")
    assert record["queue"] == "acme@c.example"
    (message,) = arrived(sink, "a@acme.example")
    assert message.endswith(b"\r\nSubject: changed\r\nTo: b\r\nX-Tenant: acme\r\n\r\nbody\r\n")


def test_a_hook_that_raises_hurts_only_that_message(tmp_path: Path, sink: ByteSink) -> None:
    directory = tmp_path / "relay"
    directory.mkdir()
    (directory / "tenants.py").write_text(TENANTS)
    content = b"Subject: s\r\n\r\nbody\r\n"
    with relay(directory, next_hop=sink.port, extra=HOOKS, level="info") as running:
        with RawClient(running.port) as good:
            for round_ in range(3):
                for name in ("broken", "broken-later"):
                    with RawClient(running.port) as bad:
                        code, text = bad.deliver(f"{name}@acme.example", "b@c.example", content)
                        assert code in (421, 451), (code, text)
                        assert b"KeyError" not in text
                        assert b"ZeroDivision" not in text
                assert good.deliver(f"fine-{round_}@hurt.example", "b@c.example", content)[0] == 250
            code, text = good.deliver("unwanted@acme.example", "b@c.example", content)
            assert (code, text) == (550, b"5.7.1 go away")
            good.command("RSET")
            assert good.deliver("fine-3@hurt.example", "b@c.example", content)[0] == 250
        running.wait_records("Delivery", 4)
        told = running.stderr
        refusals = running.wait_records("Rejection", 7)
    line = next(
        n for n, text in enumerate(running.policy.read_text().splitlines(), 1) if "raise KeyError" in text
    )
    assert f"{running.policy.name}:{line}" in told
    assert "mail_from" in told
    assert {record["response"]["code"] for record in refusals} <= {421, 451, 503, 550}
    for number in range(4):
        assert len(arrived(sink, f"fine-{number}@hurt.example")) == 1


EGRESS = """\
import trio


@policy.on("get_queue_config")
async def queues(domain, tenant, campaign, routing_domain):
    await trio.sleep(0)
    if domain == "broken.example":
        raise RuntimeError("canary-of-a-queue")
    return policy.make_queue_config(
        protocol={"smtp": {"mx_list": ["127.0.0.1:NEXT"]}}, retry_interval="1s", refresh_interval="1s"
    )


@policy.on("get_egress_path_config")
async def paths(domain, site_name):
    await trio.sleep(0)
    if domain == "broken-path.example":
        raise RuntimeError("canary-of-a-path")
    return policy.make_egress_path(enable_tls="Disabled")
"""


def test_a_way_out_whose_hook_fails_delays_only_its_own_mail(tmp_path: Path, sink: ByteSink) -> None:
    directory = tmp_path / "relay"
    with relay(directory, next_hop=1, start=False) as running:
        init, _, _ = running.policy.read_text().partition('@policy.on("get_queue_config")')
        running.policy.write_text(init + EGRESS.replace("NEXT", str(sink.port)))
        running.start()
        with RawClient(running.port) as client:
            for domain in ("broken.example", "broken-path.example", "good.example"):
                assert client.deliver(f"a@{domain}", f"b@{domain}", b"Subject: s\r\n\r\n")[0] == 250
        until(lambda: arrived(sink, "a@good.example"), seconds=20, what=lambda: running.stderr)
        running.wait_records("TransientFailure", 2)
        told = running.stderr
        assert arrived(sink, "a@broken.example") == arrived(sink, "a@broken-path.example") == []
        assert running.records("Bounce") == []
        for name in ("queues", "paths"):
            assert f"in {name}()" in told
        # Repairing a hook takes a restart; the mail is still there.
        running.stop()
        repaired = "\n".join(
            line for line in running.policy.read_text().splitlines() if "RuntimeError" not in line
        )
        running.policy.write_text(
            repaired.replace('if domain == "broken', 'domain == "broken').replace('":\n', '"\n')
        )
        running.start()
        running.wait_records("Delivery", 3)


INIT = """\
import policy


@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:0")
"""

MISTAKES = {
    "a misspelt option": (
        INIT
        + """

@policy.on("get_egress_path_config")
def paths(domain, egress_source, site_name):
    return policy.make_egress_path(
        enable_tsl="Required",
    )
""",
        12,
        ("paths", "enable_tsl", "enable_tls"),
    ),
    "a value that is none": (
        INIT.replace('listen="127.0.0.1:0"', 'listen="127.0.0.1:0", max_message_size="huge"'),
        7,
        ("init", "max_message_size"),
    ),
    "an unknown event": (
        INIT + '\n\n@policy.on("get_queue_confg")\ndef queues(domain):\n    return None\n',
        10,
        ("get_queue_confg", "get_queue_config"),
    ),
    "an option that is not built yet": (
        INIT
        + """

@policy.on("get_egress_path_config")
def paths(domain, egress_source, site_name):
    return policy.make_egress_path(use_lmtp=True)
""",
        12,
        ("paths", "use_lmtp", "not supported yet"),
    ),
    "a hook that raises": (INIT.replace('"spool")', '{}["spool"])'), 6, ("init", "KeyError")),
    "a syntax error": (INIT + "\n\ndef half(:\n    pass\n", 10, ("syntax",)),
    "a hook with wrong arguments": (
        INIT + '\n\n@policy.on("get_egress_pool")\ndef pool(a, b, c):\n    return None\n',
        10,
        ("get_egress_pool", "pool"),
    ),
    "a wrong answer": (
        INIT + '\n\n@policy.on("get_queue_config")\ndef queues(domain):\n    return {"max_age": 5}\n',
        10,
        ("queues", "get_queue_config", "make_queue_config"),
    ),
}


@pytest.mark.parametrize(
    ("verb", "mistake"),
    # The hooks of the way out are only asked with the first message; `check` asks them before.
    [("check", name) for name in MISTAKES]
    + [("run", name) for name, (_, _, words) in MISTAKES.items() if words[0] not in ("paths", "queues")],
)
def test_a_mistake_in_a_policy_names_file_line_and_hook(
    mistake: str,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, line, words = MISTAKES[mistake]
    (tmp_path / "policy.py").write_text(text)
    if verb == "run" or mistake == "a hook that raises":  # of `check` one, the others without a start
        result = subprocess.run(
            [*command(), verb, "policy.py"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        status, said = result.returncode, result.stderr
    else:
        monkeypatch.chdir(tmp_path)
        status = check(Path("policy.py"))
        load_policy(None)
        said = capsys.readouterr().err
    assert status == 2, said
    assert f"policy.py:{line}" in said
    for word in words:
        assert word.lower() in said.lower()
    assert "Traceback" not in said


def test_check_says_what_a_good_policy_means(tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(INIT)
    result = subprocess.run(
        [*command(), "check", "policy.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    assert "ok" in result.stdout
    assert not (tmp_path / "spool").exists()
