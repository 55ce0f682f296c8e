"""``posthorn sink``: a fast test next hop, for experiments, demonstrations and measurements.

It takes every message and forgets it, unless asked to store it; it can offer STARTTLS with a
certificate of a throw-away CA, insist on AUTH, and misbehave at every stage. `open_sink` is the
same as a library.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import trio
from cyclopts import Parameter

from engine.ca import ThrowAwayCa
from engine.cli.report import guarded
from engine.errors import ConfigError
from policy.errors import did_you_mean

from .sink_loop import Loop
from .sink_rules import Rules, parse_rule
from .sink_session import KEYWORDS, Arrival, Counts, Session, SinkConfig

__all__ = ["Arrival", "Counts", "Sink", "open_sink", "sink"]

_LISTEN = "127.0.0.1:2600"

Names: TypeAlias = Annotated[list[str] | None, Parameter(negative=())]
Flag: TypeAlias = Annotated[bool, Parameter(negative=())]


class Sink:
    """A running sink. `address` is where it listens, `ca_pem` the CA it made (or was given), if any."""

    def __init__(self, config: SinkConfig, ca_pem: bytes | None) -> None:
        self.address = ("", 0)
        self.ca_pem = ca_pem
        self.config = config
        """What is offered and insisted on; may be changed while the sink runs."""
        self.counts = Counts()
        self.begun = 0.0
        """Unix time of the first connection; 0 when there was none."""
        self.last = 0.0
        """Unix time of the last accepted message."""
        self._news = trio.lowlevel.ParkingLot()

    @property
    def count(self) -> int:
        """Messages accepted so far."""
        return self.counts.messages

    def misbehave(self, *replies: str) -> None:
        """Replace the reply rules (see `sink_rules`); without any the sink behaves again.

        Raises: ConfigError.
        """
        self.config.rules = _rules(replies)

    async def wait_count(self, number: int) -> None:
        """Wait until at least `number` messages were accepted."""
        while self.counts.messages < number:
            await self._news.park()

    def opened(self) -> None:
        """A connection came."""
        self.counts.connections += 1
        self.counts.sessions += 1
        if not self.begun:
            self.begun = time.time()

    def closed(self) -> None:
        """A connection went."""
        self.counts.sessions -= 1

    def took(self) -> None:
        """Messages were accepted."""
        self.last = time.time()
        if self._news:
            self._news.unpark_all()


class _Maildir:
    """Messages as files, octet for octet: written under ``tmp``, then moved to ``new``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        for part in ("tmp", "new", "cur"):
            try:
                (path / part).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"no maildir can be made at {path}: {error.filename}: {error.strerror or error}"
                ) from None
        self._host = socket.gethostname().replace("/", "_").replace(":", "_")

    def keep(self, arrival: Arrival) -> None:
        """Store one message. In a thread. Raises: OSError."""
        number = next(self._numbers)
        second, micro = divmod(time.time_ns() // 1000, 1_000_000)
        name = f"{second}.M{micro:06d}P{os.getpid()}Q{number}.{self._host}"
        draft = self._path / "tmp" / name
        draft.write_bytes(arrival.content)
        draft.rename(self._path / "new" / name)


def _rules(replies: Iterable[str]) -> Rules:
    rules: Rules = {}
    for text in replies:
        rule = parse_rule(text)
        rules.setdefault(rule.stage, []).append(rule)
    return rules


@asynccontextmanager
async def open_sink(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ca: ThrowAwayCa | None = None,
    context: ssl.SSLContext | None = None,
    names: Iterable[str] = (),
    auth: tuple[str, str] | None = None,
    auth_without_tls: bool = False,
    replies: Iterable[str] = (),
    without: Iterable[str] = (),
    on_message: Callable[[Arrival], str | None] | None = None,
    store: Path | None = None,
    patience: float = 0.0,
) -> AsyncIterator[Sink]:
    """A running sink; `port` 0 takes a free one.

    STARTTLS is offered with `context`, or with a certificate of `ca` for `host`, the loopback names
    and `names`. `auth`: user and password that must be given, inside TLS unless `auth_without_tls`.
    `replies`: rules of misbehaviour. `without`: EHLO keywords that are not offered. `on_message`:
    called with each message; a reply line it returns is sent instead of 250. `store`: a maildir.
    `patience`: see `Loop`.

    Raises: ConfigError, also for the address and the maildir.
    """
    omitted = frozenset(word.upper() for word in without)
    for word in sorted(omitted - {*KEYWORDS}):
        raise ConfigError(
            f"{word} is not offered anyway{did_you_mean(word, KEYWORDS)}; what may be left out is "
            + ", ".join(KEYWORDS)
        )
    if context is None and ca is not None:
        context = ca.server_context(host, *names)
    if auth is not None and context is None and not auth_without_tls:
        raise ConfigError("AUTH needs TLS to protect the password, or leave to take it in the clear")
    config = SinkConfig(
        offer_tls=context is not None,
        login=auth,
        login_without_tls=auth_without_tls,
        without=omitted,
        rules=_rules(replies),
    )
    keep = None if store is None else (await trio.to_thread.run_sync(_Maildir, store)).keep
    running = Sink(config, None if ca is None else ca.pem)

    def session(peer: tuple[str, int]) -> Session:
        return Session(config, running.counts, peer=peer, on_message=on_message, keeps=keep is not None)

    loop = Loop(
        host,
        port,
        session=session,
        opened=running.opened,
        closed=running.closed,
        took=running.took,
        keep=keep,
        context=context,
        patience=patience,
    )
    running.address = loop.address
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            yield running
            nursery.cancel_scope.cancel()
    finally:
        loop.close()


# -- the command ---------------------------------------------------------------------------------


class _Status(msgspec.Struct, omit_defaults=True):
    """A line of ``--json``. Rates are messages per second, 0 when there is none; times are Unix seconds."""

    listening: str
    connections: int
    sessions: int
    tls: int
    logins: int
    messages: int
    recipients: int
    octets: int
    rate: float
    begun: float
    last: float
    final: bool = False


def sink(
    *,
    listen: str = _LISTEN,
    tls: Flag = False,
    cert: Path | None = None,
    key: Path | None = None,
    ca_out: Path | None = None,
    tls_name: Names = None,
    auth: str | None = None,
    auth_without_tls: Flag = False,
    reply: Names = None,
    without: Names = None,
    store: Path | None = None,
    stop_after: int | None = None,
    json: Flag = False,
) -> int:
    """A fast test next hop: takes every message, counts it and forgets it; can misbehave.

    Parameters
    ----------
    listen
        IP address and port; port 0 takes a free one.
    tls
        Offer STARTTLS with a certificate of a throw-away CA (or with --cert and --key).
    cert
        Certificate chain in PEM, instead of the throw-away one.
    key
        Its private key in PEM.
    ca_out
        Write the throw-away CA's certificate to this file.
    tls_name
        A further host name for the throw-away certificate; may be repeated.
    auth
        USER:PASSWORD that must be given (AUTH PLAIN or LOGIN) before MAIL is allowed.
    auth_without_tls
        Offer AUTH without TLS too.
    reply
        Misbehave: STAGE=CODE TEXT (a backslash and n in it begin a further line), STAGE=drop, STAGE=hang or
        STAGE=delay=SECONDS, each with ;every=N, ;first=N or ;delay=SECONDS behind it. STAGE is connect, ehlo,
        helo, starttls, auth, mail, rcpt, data, dot, rset or quit. May be repeated; of one stage the first
        rule that applies counts.
    without
        An EHLO keyword not to offer, such as PIPELINING; may be repeated.
    store
        Keep the messages in this maildir, octet for octet, instead of forgetting them.
    stop_after
        End after this many messages.
    json
        Machine-readable lines on standard output, the last one with "final": true.
    """
    return guarded(
        lambda: _main(
            listen=listen,
            tls=tls,
            cert=cert,
            key=key,
            ca_out=ca_out,
            names=tls_name or [],
            auth=auth,
            auth_without_tls=auth_without_tls,
            replies=reply or [],
            without=without or [],
            store=store,
            stop_after=stop_after,
            json=json,
        ),
        command="sink",
    )


def _main(
    *,
    listen: str,
    tls: bool,
    cert: Path | None,
    key: Path | None,
    ca_out: Path | None,
    names: list[str],
    auth: str | None,
    auth_without_tls: bool,
    replies: list[str],
    without: list[str],
    store: Path | None,
    stop_after: int | None,
    json: bool,
) -> None:
    from policy.nets import parse_host, parse_listen

    try:
        where = parse_listen(listen)
    except ValueError as wrong:
        raise ConfigError(f"--listen {listen}: {wrong}; right would be {_LISTEN}, or [::1]:2600") from None
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key belong together")
    for option, given in (("--ca-out", ca_out is not None), ("--tls-name", bool(names))):
        if given and (not tls or cert is not None):
            raise ConfigError(f"{option} is for the certificate that --tls makes when no --cert is given")
    for name in names:
        try:
            parse_host(name)
        except ValueError as wrong:
            raise ConfigError(f"--tls-name {name}: {wrong}; right would be mx.example.com") from None
    if auth is None and auth_without_tls:
        raise ConfigError("--auth-without-tls needs --auth USER:PASSWORD")
    for text in replies:
        stage = parse_rule(text).stage
        if (stage == "starttls" and not (tls or cert)) or (stage == "auth" and auth is None):
            needed = "--tls" if stage == "starttls" else "--auth USER:PASSWORD"
            raise ConfigError(f"--reply {text}: nothing comes to {stage} without {needed}")
    login: tuple[str, str] | None = None
    if auth is not None:
        user, colon, password = auth.partition(":")
        if not colon or not user or not password:
            raise ConfigError("--auth: right would be USER:PASSWORD")
        login = (user, password)
        if not (tls or cert or auth_without_tls):
            raise ConfigError("--auth needs --tls, or --auth-without-tls to take passwords in the clear")
    if stop_after is not None and stop_after < 1:
        raise ConfigError("--stop-after must be at least 1")
    _raise_file_limit()

    async def run() -> None:
        context: ssl.SSLContext | None = None
        ca: ThrowAwayCa | None = None
        if cert is not None and key is not None:
            context = _context(cert, key)
        elif tls:
            ca = ThrowAwayCa()
        if ca_out is not None and ca is not None:
            try:
                await trio.Path(ca_out).write_bytes(ca.pem)
            except OSError as error:
                raise ConfigError(f"--ca-out {ca_out}: {error.strerror or error}") from None
        async with open_sink(
            where.host,
            where.port,
            ca=ca,
            context=context,
            names=names,
            auth=login,
            auth_without_tls=auth_without_tls,
            replies=replies,
            without=without,
            store=store,
            # Only the status line shares this process.
            patience=0.02,
        ) as running:
            await _watch(running, stop_after, json=json)

    trio.run(run)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    for option, file in (("--cert", cert), ("--key", key)):
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{option} {file}: {error.strerror or error}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = "are no PEM certificate and private key without passphrase"
        if "MISMATCH" in (getattr(error, "reason", "") or ""):
            why = "do not belong together"
        raise ConfigError(f"--cert {cert} and --key {key} {why}") from None
    return context


async def _watch(running: Sink, stop_after: int | None, *, json: bool) -> None:
    """Show counts until a signal, or enough messages."""
    screen = _Screen(running, json=json)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def status() -> None:
                while True:
                    await trio.sleep(1.0)
                    screen.show()

            async def until_enough(number: int) -> None:
                await running.wait_count(number)
                # The last replies leave before the sockets are closed.
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()

            screen.show(first=True)
            nursery.start_soon(status)
            if stop_after is not None:
                nursery.start_soon(until_enough, stop_after)
            await anext(signals)
            nursery.cancel_scope.cancel()
    screen.show(final=True)


class _Screen:
    """The status: one line that changes on a terminal, JSON lines with ``--json``."""

    def __init__(self, running: Sink, *, json: bool) -> None:
        self._sink = running
        self._json = json
        self._terminal = sys.stderr.isatty()
        self._before = (0, time.monotonic())
        self._shown = Counts()
        host, port = running.address
        self._where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def show(self, *, first: bool = False, final: bool = False) -> None:
        counts = self._sink.counts
        rate = self._rate(final)
        if self._json:
            if first or final or counts != self._shown:
                fields = msgspec.structs.asdict(counts)
                status = _Status(
                    listening=self._where,
                    rate=round(rate, 1),
                    begun=self._sink.begun,
                    last=self._sink.last,
                    final=final,
                    **fields,
                )
                self._write(sys.stdout.fileno(), msgspec.json.encode(status) + b"\n")
        elif first:
            offers = "".join(
                f", {what}"
                for what, offered in (
                    ("STARTTLS", self._sink.config.offer_tls),
                    ("AUTH demanded", self._sink.config.login is not None),
                )
                if offered
            )
            self._write(sys.stderr.fileno(), f"sink on {self._where}{offers}; Ctrl-C ends it\n".encode())
        elif self._terminal or final:
            noun = "message" if counts.messages == 1 else "messages"
            line = f"{counts.messages:,} {noun}, {counts.sessions:,} sessions open of {counts.connections:,}"
            if rate or not final:
                line += f", {rate:,.0f} messages/s" + (" in all" if final else "")
            before, behind = ("\r\x1b[K", "\n" if final else "") if self._terminal else ("", "\n")
            self._write(sys.stderr.fileno(), f"{before}{line}{behind}".encode())
        self._shown = msgspec.structs.replace(counts)

    def _rate(self, final: bool) -> float:
        counts, now = self._sink.counts, time.monotonic()
        if final:
            span = self._sink.last - self._sink.begun
            # One message has no rate, only the time that its session took.
            return counts.messages / span if span > 0 and counts.messages > 1 else 0.0
        number, then = self._before
        self._before = (counts.messages, now)
        return (counts.messages - number) / max(now - then, 1e-6)

    @staticmethod
    def _write(fd: int, data: bytes) -> None:
        # A status nobody reads any more must not end the sink.
        with suppress(OSError):
            os.write(fd, data)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
