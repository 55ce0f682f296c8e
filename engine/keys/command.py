"""Key source command: what a program writes to its standard output, without one line end at its end.

The program is started directly, never through a shell, as the leader of a session of its own, in ``/``, with
nothing on its standard input and an environment of HOME, LANG, PATH and the variables that the reference
names. Whoever stops waiting kills it and every process it started, and so does the time-out.

Exit statuses are those of sysexits.h where they mean something here: 66 (EX_NOINPUT) says that there is no
such secret, 77 (EX_NOPERM) that it may not be had; every other is an outage. Its standard error goes nowhere:
tools print there what they were given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import trio

from policy.keysource import CommandKey
from policy.secret import Secret

from .environment import said
from .source import MAX_SECRET, SourceFailure

__all__ = ["CommandSource"]

_SECONDS = 4.5
"""For one run; just under what a delivery waits."""
_AT_ONCE = 4
_REAP = 1.0
"""Seconds in which a program that was killed has ended."""
_NO_INPUT = 66
_NO_PERMISSION = 77


class CommandSource:
    """Reads `CommandKey` references."""

    fresh_for: float | None = None

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._limiter = trio.CapacityLimiter(_AT_ONCE)

    async def read(self, ref: CommandKey) -> Secret:
        found: tuple[int, Secret] | None = None
        with trio.move_on_after(self._seconds):
            async with self._limiter:
                found = await _run(ref)
        if found is None:
            raise SourceFailure(f"the program took longer than {self._seconds:g} s and was stopped")
        status, output = found
        octets = len(output.reveal())
        if octets > MAX_SECRET:
            raise SourceFailure(f"the program writes more than {MAX_SECRET} octets")
        if status:
            raise _refusal(status)
        if not octets:
            raise SourceFailure("the output of the program is empty")
        return output


async def _run(ref: CommandKey) -> tuple[int, Secret]:
    """Exit status (negative: the signal) and output, cut off when it is too large."""
    try:
        process = await trio.lowlevel.open_process(
            ref.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(ref.environment),
            start_new_session=True,
        )
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        denied = isinstance(error, PermissionError)
        raise SourceFailure(f"the program cannot be started: {what}", denied=denied) from None
    assert process.stdout is not None
    output = bytearray()
    try:
        while len(output) <= MAX_SECRET + 2 and (some := await process.stdout.receive_some(65536)):
            output += some
        if len(output) > MAX_SECRET + 2:
            return 0, Secret(bytes(output))
        await _ended(process.pid)
    finally:
        # The program and what it started. Nobody has waited for it yet, so the number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # One that changed its user, as sudo does, cannot be killed: it ends when it likes, and nobody waits
        # for that, neither those that want a secret nor a shutdown.
        with trio.move_on_after(_REAP, shield=True):
            await process.wait()
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()
    text = bytes(output)
    return process.returncode or 0, Secret(text[:-2] if text.endswith(b"\r\n") else text.removesuffix(b"\n"))


async def _ended(pid: int) -> None:
    """Until the program has ended, without taking its status: that would free its number for others."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        raise SourceFailure(f"this system cannot watch a program (pidfd_open: {what})") from None
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def _environment(names: tuple[str, ...]) -> dict[str, str]:
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    if "HOME" in os.environ:
        clean["HOME"] = os.environ["HOME"]
    # One that is named here may be a secret, and another key source may have taken it out of ours.
    found = {name: os.environ.get(name, said(name)) for name in names}
    return clean | {name: value for name, value in found.items() if value is not None}


def _refusal(status: int) -> SourceFailure:
    if status < 0:
        return SourceFailure(f"the program was ended by signal {-status}")
    if status == _NO_INPUT:
        return SourceFailure("the program says that there is no such secret (status 66)", definite=True)
    if status == _NO_PERMISSION:
        return SourceFailure("the program says that permission is denied (status 77)", denied=True)
    return SourceFailure(f"the program failed with status {status}; run by hand, it may say why")
