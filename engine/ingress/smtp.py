"""One inbound SMTP session: drives `engine.smtp.ServerSession` over a stream.

The protocol is the session object's; sockets, clocks, hooks and the spool are ours. All complete
commands of one arrival are answered by one write. There is one task per connection and none per
message.

Time. A session always stands in one cancel scope, and its deadline is moved forward only once a
second or so, because moving it costs more than reading a command. The scope guards every wait for
at most `_SLICE` seconds (that is the limit for a peer that does not take our replies); a reader
that may stay quiet for longer is looked at when the scope fires, and given a new one. That is
safe because a wait for input holds no data: what is cancelled is the waiting, never a receive.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.errors import ConnectionLost, TlsError
from engine.smtp import (
    Auth,
    AuthLookup,
    BodyReceived,
    Data,
    Hello,
    Mail,
    Rcpt,
    Reply,
    ServerSession,
    StartTls,
)

from .answers import DEFECT, NO_STORAGE, Answers
from .connection import Connection

if TYPE_CHECKING:
    from engine.net import Stream

    from .service import Service

__all__ = ["InboundSession"]

logger = logging.getLogger("posthorn.ingress")

_READ = 65_536
"""Octets taken at once inside DATA."""
_READ_COMMANDS = 4096
"""Octets of commands taken at once: what the protocol answers by itself is answered in one go."""
_SLICE = 60.0
"""Seconds one send may take (reliability S35), and how often a quiet session is looked at."""
_SLACK = 1.0
"""Seconds a deadline may lag behind, so that it need not be moved for each command."""

DATA_READ = 180.0
"""Seconds between two arrivals inside DATA (RFC 5321 section 4.5.3.2.5; reliability S31)."""
DATA_GRACE = 60.0
"""Seconds after which the average rate inside DATA counts."""
DATA_RATE = 100.0
"""Octets per second, on average, that a client must reach inside DATA after the grace."""
DATA_ALL = 3600.0
"""Seconds one message may take to arrive."""
TLS_HANDSHAKE = 30.0
"""Seconds for the TLS handshake (reliability S32)."""
GOODBYE = 2.0
"""Seconds for the last replies of a session that is being ended."""
_FAIR = 128
"""Turns in a row before other tasks get one (reliability Y2). An event is a turn, 64 octets of commands
are one (so at most 8 KiB), and an arrival inside DATA is eight (so at most 1 MiB): about a millisecond."""
_OWING = 0.5
"""Seconds that the reply to a final dot may wait for what the client sent behind the dot."""
_COMMANDS_TURN = 64
_DATA_TURNS = 8

TIMEOUT = Reply(421, "4.4.2", "Timeout: closing connection")
STOPPING = Reply(421, "4.3.2", "Service is shutting down")
NO_TLS = Reply(454, "4.7.0", "TLS not available at the moment")


class _Stage(enum.Enum):
    WORKING = 1
    READING = 2
    SENDING = 3


_WORKING: Final = _Stage.WORKING
_READING: Final = _Stage.READING
_SENDING: Final = _Stage.SENDING


class InboundSession:
    """One client's session. `run` serves it to its end and closes the stream."""

    __slots__ = (
        "_answers",
        "_connection",
        "_data_begun",
        "_data_octets",
        "_draining",
        "_heard",
        "_holding",
        "_owed",
        "_patience",
        "_said",
        "_scope",
        "_service",
        "_session",
        "_stage",
        "_stopped",
        "_stream",
        "_unread",
        "_until",
    )

    def __init__(self, stream: Stream, service: Service) -> None:
        declaration = service.declaration
        self._stream = stream
        self._service = service
        self._session = ServerSession(service.config)
        self._connection = Connection(stream, service.hostname, declaration.meta)
        self._answers = Answers(service, self._session, self._connection, self._stop_clock)
        self._patience = declaration.client_timeout
        self._scope = trio.CancelScope()
        self._stage = _WORKING
        self._until = 0.0
        self._heard = 0.0
        self._said = False  # something was answered since the last arrival
        self._data_begun = 0.0
        self._data_octets = 0
        self._unread = b""
        self._holding = False  # octets of a message are counted in the memory of all sessions
        self._draining = False
        self._stopped = False
        self._owed: float | None = None  # since when the reply to a final dot stands in the output

    # Life and end

    async def run(self) -> None:
        """Serve the client until it leaves, is sent away, or the task is cancelled.

        This is the barrier around one inbound session: an unexpected exception ends this session
        with 421 and nothing else (reliability O6).
        """
        session = self._session
        try:
            await self._serve()
        except ConnectionLost:
            self._stage = _SENDING  # nobody is there to hear more
        except trio.Cancelled:
            if not session.closing:
                session.close_with(STOPPING)
            raise
        except (Exception, SystemExit):
            self._service.counters.failures += 1
            logger.exception("session with %s ended by a defect", self._connection.peer_text)
            with contextlib.suppress(Exception):  # the defect may be the session's own
                session.close_with(DEFECT)
        finally:
            try:
                await self._say_goodbye()
            except ConnectionLost:
                pass
            except Exception:
                logger.exception("session with %s: no proper end", self._connection.peer_text)
            self._service.memory.give_back(self)
            self._stream.close()

    def drain(self) -> None:
        """Shutdown begins: an idle session ends now, one in a transaction when that is done."""
        self._draining = True
        if self._stage is _READING and not self._in_transaction:
            self._scope.cancel()

    def stop(self) -> None:
        """The time of a session under way is over: it ends with 421 now, whatever it does. A commit
        that has begun is finished first, and its reply is sent."""
        self._draining = self._stopped = True
        self._scope.cancel()

    @property
    def _in_transaction(self) -> bool:
        return self._session.reverse_path is not None

    async def _serve(self) -> None:
        session = self._session
        while True:
            with trio.CancelScope() as scope:
                self._scope = scope
                if self._until:
                    scope.deadline = min(self._until, trio.current_time() + _SLICE) + _SLACK
                else:
                    self._arm(trio.current_time())
                    await self._answers.greet()
                await self._converse()
            if session.closing or not (scope.cancelled_caught or self._stage is _READING):
                return
            if self._stage is _SENDING:
                return  # an unknown part of a reply is out: there is nothing sensible left to say
            if self._stopped or (self._draining and not self._in_transaction):
                session.close_with(STOPPING)
                return
            if self._stage is _READING and trio.current_time() < self._until:
                self._stage = _WORKING
                continue
            session.close_with(STOPPING if self._draining else TIMEOUT)
            return

    async def _converse(self) -> None:
        """The loop: answer everything that has come, in one write, and wait for more."""
        session = self._session
        stream = self._stream
        answers = self._answers
        hooks = self._service.hooks
        memory = self._service.memory
        log = self._service.log
        turns = 0
        recorded = False
        now = trio.current_time()
        while True:
            while (event := session.next_event()) is not None:
                waiting: Coroutine[Any, Any, None] | None
                if type(event) is Mail:
                    waiting = answers.mail(event)
                elif type(event) is Rcpt:
                    waiting = answers.rcpt(event)
                elif type(event) is BodyReceived:
                    waiting = answers.body(event, self._still_there)
                elif type(event) is Data:
                    waiting = None
                    self._data_begun = now
                    self._data_octets = session.pending  # what came in one piece with the command
                    session.accept()
                    self._arm(now)
                elif type(event) is Hello:
                    waiting = answers.hello(event)
                elif type(event) is StartTls:
                    waiting = self._start_tls()
                elif type(event) is AuthLookup:
                    waiting = answers.auth_lookup(event)
                else:
                    assert type(event) is Auth, f"the session gave an unknown event: {type(event)}"
                    waiting = answers.auth(event)
                owed = self._owed
                if waiting is not None:
                    if owed is not None:
                        await self._pay(waiting)
                    await waiting
                    now = trio.current_time()
                    if type(event) is BodyReceived:
                        self._owed = now
                        recorded = True
                    self._arm(now)
                    if self._unread:
                        session.receive_data(self._unread)
                        self._unread = b""
                turns += 1
                if turns >= _FAIR or hooks.others_wait:
                    turns = 0
                    await hooks.let_others_run()
                if owed is not None and self._owed is owed and trio.current_time() >= owed + _OWING:
                    await self._pay()
            if self._draining and not session.closing and (self._stopped or not self._in_transaction):
                session.close_with(STOPPING)
            recorded |= answers.report()
            if session.closing:
                return  # what is left to say is said at the end
            output = self._output()
            if output:
                self._stage = _SENDING
                await stream.send_all(output)
                self._stage = _WORKING
                self._said = True
            self._owed = None
            if recorded:
                recorded = False
                if log.full:
                    await self._wait_for_log()
            if turns >= _FAIR:
                turns = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
            in_data = session.in_data
            if self._holding and not in_data:
                self._holding = False
                memory.give_back(self)
            limit = _READ if in_data else _READ_COMMANDS
            data = stream.receive_nowait(limit)
            while data is None:
                turns = 0
                self._stage = _READING
                await stream.wait_readable()
                self._stage = _WORKING
                data = stream.receive_nowait(limit)
            if not data:
                return
            turns += _DATA_TURNS if in_data else len(data) // _COMMANDS_TURN
            self._data_octets += len(data)
            if in_data and not session.abandoned:
                self._holding = True
                if not memory.take(self, len(data)):
                    await self._wait_for_memory()
            session.receive_data(data)
            now = trio.current_time()
            late = now >= self._scope.deadline
            self._arm(now, self._said)
            self._said = False
            if late:
                # The scope fired while these octets came in. They count: `_serve` opens a new one.
                self._stage = _READING
                return

    def _output(self) -> bytes:
        """What is to be said, without any live secret: hooks may put anything into a reply."""
        return self._service.tripwire.octets(self._session.data_to_send(), self._service.replies)

    async def _pay(self, waiting: Coroutine[Any, Any, None] | None = None) -> None:
        """Send the reply to a final dot before anything is awaited that stands behind it: a client
        that gives up waiting for it sends the message again (RFC 1047; reliability D6)."""
        self._owed = None
        try:
            self._stage = _SENDING
            await self._stream.send_all(self._output())
            self._stage = _WORKING
        except BaseException:
            if waiting is not None:
                waiting.close()  # it will never be awaited
            raise

    def _arm(self, now: float, progress: bool = True) -> None:
        """Something came, or was done, at `now`. The client has its full time again, but outside DATA
        only after `progress`: octets that make no command do not count (reliability S30)."""
        if self._session.in_data:
            begun = self._data_begun
            until = min(
                now + DATA_READ,
                begun + DATA_ALL,
                begun + max(DATA_GRACE, self._data_octets / DATA_RATE),
            )
        else:
            if progress:
                self._heard = now
            until = self._heard + self._patience
        self._until = until
        soon = now + _SLICE
        if until < soon:
            soon = until
        deadline = self._scope.deadline
        if deadline < soon or deadline > until + _SLACK:
            self._scope.deadline = soon + _SLACK

    def _stop_clock(self) -> None:
        """What comes now has a limit of its own; `_arm` starts the client's time again."""
        self._scope.deadline = float("inf")

    async def _wait_for_log(self) -> None:
        """The log's writer is behind: whoever makes records pauses. Bounded by the log itself."""
        self._stop_clock()
        await self._service.log.wait_room()
        self._arm(trio.current_time())

    async def _wait_for_memory(self) -> None:
        """Too much of too many messages is here: read no more of this one now (reliability S37)."""
        begun = trio.current_time()
        self._stop_clock()
        await self._service.memory.room()
        self._data_begun += trio.current_time() - begun  # it was not the client who was slow
        self._arm(trio.current_time())

    def give_up(self) -> bool:
        """Let go of the message that is being received, for others. Its end is answered 452 4.3.1."""
        if not self._session.abandon(NO_STORAGE):
            return False
        self._holding = False
        self._service.memory.give_back(self)
        return True

    async def _say_goodbye(self) -> None:
        """Send what is still to be said. Shielded: a 250 whose message is ours must get out if it
        can, or the client sends the message again."""
        self._answers.report()
        if self._stage is _SENDING:
            return
        output = self._output()
        stream = self._stream
        if output:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE):
                await stream.send_all(output)
        # Closing with input unread would send a reset, and the client might lose our last words.
        for _ in range(16):
            if not stream.receive_nowait(_READ):
                break
        stream.end_tls()

    def _still_there(self) -> bool:
        """Whether the client has not closed. One that sent more behind its message was there then."""
        if self._session.pending:
            return True
        try:
            data = self._stream.receive_nowait(_READ_COMMANDS)
        except ConnectionLost:
            return False
        if data is None:
            return True
        self._unread = data
        return bool(data)

    async def _start_tls(self) -> None:
        session = self._session
        service = self._service
        stream = self._stream
        self._stop_clock()  # key sources have limits of their own
        try:
            context = await service.tls.context()
            binding = service.tls.binding  # of the same certificate
        except TlsError as error:
            logger.error("listener %s: STARTTLS refused: %s", service.address, error)
            session.refuse(NO_TLS)
            return
        session.accept()
        self._arm(trio.current_time())
        if session.closing:
            return  # there was something behind the STARTTLS in plain text
        self._stage = _SENDING  # from here on no plain text may follow, whatever happens
        await stream.send_all(self._output())
        with trio.move_on_after(TLS_HANDSHAKE) as scope:
            try:
                await stream.start_tls(context, server_side=True)
            except TlsError as error:
                logger.info("TLS handshake with %s failed: %s", self._connection.peer_text, error)
                raise ConnectionLost(str(error)) from None
        if scope.cancelled_caught:
            raise ConnectionLost("TLS handshake too slow")
        self._stage = _WORKING
        assert stream.tls is not None
        session.tls_established(binding)
        self._connection.secured(stream.tls)
        self._answers.forget()
