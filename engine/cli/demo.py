"""``posthorn demo``: the main job on this machine, from submission to an authenticated TLS next hop.

Three real processes talk over loopback: a next hop (``posthorn sink``) that offers STARTTLS with a
certificate of a throw-away CA and insists on AUTH, the relay with a policy file that is written
next to its spool, and this one, which submits messages with the standard library's ``smtplib``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import smtplib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio

from engine.cli.report import guarded
from engine.cli.samples import samples
from engine.cli.show import Screen
from engine.errors import ConfigError

__all__ = ["demo"]

_BY_SIGNAL = 128
"""Added to a signal's number it makes the exit status, as shells have it."""

USER = "scott"
PASSWORD = "tiger"

POLICY = '''\
"""The first example of the documentation, ready to run against the demo's next hop."""

import policy


@policy.on("init")
def init():
    policy.define_spool(path="{directory}/spool")
    policy.configure_local_logs(log_dir="{directory}/log")
    policy.start_esmtp_listener(listen="127.0.0.1:{port}", relay_hosts=["127.0.0.1"])


@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={{"smtp": {{"mx_list": ["127.0.0.1:{next_hop}"]}}}})


@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path(
        enable_tls="Required",
        # The next hop's certificate is from a CA made a moment ago; it replaces the system's for this path.
        tls_ca={{"file": "{directory}/next-hop-ca.pem"}},
        smtp_auth_plain_username="{user}",
        smtp_auth_plain_password={{"key_data": "{password}"}},
    )
'''


def demo(*, messages: int = 1000, sessions: int = 10, directory: Path | None = None) -> int:
    """Relay real messages over this machine's loopback and show what happens.

    Parameters
    ----------
    messages
        How many messages to submit.
    sessions
        How many SMTP sessions submit them at the same time.
    directory
        Where policy, spool and logs go, and stay for a look (default: var/demo).
    """
    if messages < 1 or sessions < 1:
        print("posthorn demo: --messages and --sessions must be at least 1", file=sys.stderr)
        return 2
    where = (directory or Path("var/demo")).resolve()
    screen = Screen()
    status = 1

    def run() -> None:
        nonlocal status
        # Outside of Trio: a second Ctrl-C ends the wait for the children.
        with contextlib.ExitStack() as children:
            status = trio.run(
                _until_signal, partial(_demo, messages, min(sessions, messages), where, screen, children)
            )

    failed = guarded(run, command="demo")
    if not failed and status > _BY_SIGNAL:
        print("posthorn demo: interrupted", file=sys.stderr)
    return failed or status


async def _until_signal(work: Callable[[], Awaitable[int]]) -> int:
    """The result of `work`, or 128 and the number of the signal that ended it.

    The children have a session of their own, so they hear of a signal through us alone.
    """
    status = 0
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal status
                status = _BY_SIGNAL + await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            status = await work()
            nursery.cancel_scope.cancel()
    return status


async def _demo(
    messages: int, sessions: int, where: Path, screen: Screen, children: contextlib.ExitStack
) -> int:
    if (where / "spool").exists():
        where = where / time.strftime("%Y%m%d-%H%M%S")
    where.mkdir(parents=True, exist_ok=True)
    screen.title("Posthorn demo", "an SMTP relay in front of a next hop that wants TLS and a password")
    next_hop_port, relay_port = _free_port(), _free_port()
    sink = children.enter_context(
        _process(
            [
                "sink",
                "--listen",
                f"127.0.0.1:{next_hop_port}",
                "--tls",
                "--ca-out",
                str(where / "next-hop-ca.pem"),
                "--auth",
                f"{USER}:{PASSWORD}",
                "--json",
            ],
            where / "next-hop.txt",
        )
    )
    await _port_open(next_hop_port, sink, where / "next-hop.txt")
    screen.done(f"next hop on 127.0.0.1:{next_hop_port}: STARTTLS (throw-away CA), AUTH required")
    policy = where / "policy.py"
    policy.write_text(
        POLICY.format(directory=where, port=relay_port, next_hop=next_hop_port, user=USER, password=PASSWORD)
    )
    relay = children.enter_context(_process(["run", str(policy)], where / "relay.txt"))
    await _port_open(relay_port, relay, where / "relay.txt")
    screen.done(f"relay on 127.0.0.1:{relay_port}, policy {_short(policy)}")
    begun = time.monotonic()
    accepted = await _submit(messages, sessions, relay_port, screen)
    submitted = time.monotonic() - begun
    records = await _all_delivered(where / "log", accepted, screen)
    relay.send_signal(signal.SIGTERM)
    await trio.to_thread.run_sync(relay.wait, abandon_on_cancel=True)
    sink.send_signal(signal.SIGTERM)
    await trio.to_thread.run_sync(sink.wait, abandon_on_cancel=True)
    records = _read_records(where / "log")
    return _summary(records, accepted, submitted, where, screen)


@contextlib.contextmanager
def _process(arguments: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One of our own commands as a child; ended (and waited for) when the block is left."""
    with output.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "engine", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for us; we stop them in order
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except BaseException as error:  # too slow, or nobody wants to wait any more
                child.kill()
                child.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _port_open(port: int, child: subprocess.Popen[bytes], output: Path) -> None:
    with trio.move_on_after(30):
        while child.poll() is None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
            else:
                await stream.aclose()
                return
    text = await trio.Path(output).read_text(errors="replace")
    raise ConfigError(f"nothing listens on 127.0.0.1:{port}\n{text}")


async def _submit(messages: int, sessions: int, port: int, screen: Screen) -> int:
    """Submit with smtplib from worker threads; the number of messages that got their 250."""
    bodies = samples()
    done = 0
    stopped = False
    limiter = trio.CapacityLimiter(sessions)

    def one_session(first: int) -> None:
        nonlocal done
        with smtplib.SMTP("127.0.0.1", port, local_hostname="demo.example", timeout=60) as client:
            for number in range(first, messages, sessions):
                if stopped:
                    return
                sender = f"news-{number % 7}@sender.example"
                client.sendmail(
                    sender,
                    [f"reader-{number}@domain-{number % 5}.example"],
                    bodies[number % len(bodies)],
                    mail_options=["BODY=8BITMIME"],
                )
                done += 1

    with screen.progress("submitting", messages) as show:
        async with trio.open_nursery() as nursery:
            for first in range(sessions):
                nursery.start_soon(
                    partial(
                        trio.to_thread.run_sync, one_session, first, limiter=limiter, abandon_on_cancel=True
                    )
                )
            try:
                while done < messages and nursery.child_tasks:
                    show(done)
                    await trio.sleep(0.05)
            except trio.Cancelled:
                stopped = True  # the threads are left to themselves
                raise
        show(done)
    return done


async def _all_delivered(log: Path, accepted: int, screen: Screen) -> list[dict[str, Any]]:
    """Wait until the relay's own records say that everything was delivered (or refused)."""
    records: list[dict[str, Any]] = []
    with screen.progress("delivering", accepted) as show, trio.move_on_after(60):
        while True:
            records = await trio.to_thread.run_sync(_read_records, log)
            final = sum(1 for record in records if record["type"] in ("Delivery", "Bounce", "Expiration"))
            show(min(final, accepted))
            if final >= accepted:
                break
            await trio.sleep(0.2)
    return records


def _read_records(log: Path) -> list[dict[str, Any]]:
    """All records of a log directory; segments still being written are read as far as they go."""
    from engine.log import read_segment, segments_in

    return [record for segment in segments_in(log) for record in read_segment(segment)]


def _summary(
    records: list[dict[str, Any]], accepted: int, submitted: float, where: Path, screen: Screen
) -> int:
    received = {r["id"]: _when(r) for r in records if r["type"] == "Reception"}
    deliveries = [r for r in records if r["type"] == "Delivery"]
    delays = sorted(max(0.0, _when(r) - received[r["id"]]) * 1000 for r in deliveries if r["id"] in received)
    failures = [r for r in records if r["type"] in ("TransientFailure", "Bounce", "Expiration")]
    rows = [
        ("accepted", f"{accepted:,} messages, each with a 250 after the sync that covers it"),
        ("delivered", f"{len(deliveries):,}" + (f"; {len(failures)} failures" if failures else "")),
    ]
    if deliveries:
        span = max(map(_when, deliveries)) - min(received.values(), default=0.0)
        rows.append(
            (
                "rate",
                f"{len(deliveries) / max(span, 1e-9):,.0f} messages/s end to end, "
                f"submitted by Python's smtplib in {submitted:.1f} s",
            )
        )
    if len(delays) > 1:
        cuts = statistics.quantiles(delays, n=100, method="inclusive")
        rows.append(("250 to delivery", f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms"))
    screen.table("What happened", rows)
    if deliveries:
        last = deliveries[-1]
        screen.table("One delivery record", _facts(last))
    else:
        screen.line(f"Nothing was delivered; look at {_short(where / 'relay.txt')}")
    screen.commands(
        "Next",
        [
            (f"less {_short(where / 'policy.py')}", "the policy of this run, forty lines"),
            (
                f"{_program()} check {_short(where / 'policy.py')}",
                "load and validate a policy without starting",
            ),
            (
                f"{_program()} log {_short(where / 'log')}",
                "the records of this run; --type Delivery: of a type",
            ),
            (f"{_program()} run", "the relay with the shipped default: SMTP on 127.0.0.1:2525"),
            (f"{_program()} sink --help", "a next hop for your own experiments"),
        ],
    )
    return 0 if len(deliveries) == accepted else 1


def _when(record: dict[str, Any]) -> float:
    """When it happened, in Unix seconds with their fraction."""
    return datetime.fromisoformat(record["event_time"]).timestamp()


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    response = record.get("response") or {}
    peer = record.get("peer_address") or {}
    facts = [
        ("recipient", str(record.get("recipient"))),
        ("site", str(record.get("site"))),
        ("peer", f"{peer.get('name')} [{peer.get('addr')}]"),
        ("reply", f"{response.get('code')} {str(response.get('content', '')).strip()}"),
        (
            "TLS",
            f"{record.get('tls_protocol_version')}, {record.get('tls_cipher')}, "
            + ("verified" if record.get("tls_verified") else "NOT verified")
            + f" ({record.get('tls_why')})",
        ),
        ("AUTH", f"{record.get('smtp_auth_mechanism')} as {record.get('smtp_auth_user')}, password ********"),
    ]
    return facts


def _program() -> str:
    """How this command can be typed again: by its name if that is found, else by where it lies."""
    own = Path(sys.argv[0])
    found = shutil.which("posthorn")
    if found is not None and own.exists() and own.samefile(found):
        return "posthorn"
    return _short(own) if own.name == "posthorn" else f"{sys.executable} -m engine"


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)
    return str(path)
