"""Key sources of this machine: literal, file, environment, systemd credential."""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections import OrderedDict

import msgspec
import trio

from policy.keysource import CredentialKey, EnvKey, FileKey, LiteralKey
from policy.secret import Secret

from .environment import take
from .source import MAX_SECRET, SourceFailure, Told

__all__ = ["CredentialSource", "EnvSource", "FileSource", "LiteralSource"]

logger = logging.getLogger("posthorn.keys")

_FILES_KEPT = 1000
_QUIET_SECONDS = 0.3  # a changed file is read once nobody has written to it for so long
_QUIET_TRIES = 5


class LiteralSource:
    """`LiteralKey`: the value stands in the policy."""

    fresh_for: float | None = math.inf

    async def read(self, ref: LiteralKey) -> Secret:
        return ref.data


class EnvSource:
    """`EnvKey`: taken out of the process environment; one that is set again later is noticed."""

    fresh_for: float | None = None

    async def read(self, ref: EnvKey) -> Secret:
        secret = take(ref.variable)
        if secret is None:
            raise SourceFailure("the environment variable is not set", definite=True)
        if not secret.reveal():
            raise SourceFailure("the environment variable is empty", definite=True)
        return secret


class _Seen(msgspec.Struct, frozen=True):
    """A file as it was when it was read."""

    signature: tuple[int, ...]
    secret: Secret


class FileSource:
    """`FileKey`: the content of a file, without one line end at its end (editors and ``echo`` leave one).

    Read again when a time, inode, size or mode changes, so both an edit in place and an atomic replacement
    (rename, Kubernetes symbolic links) are seen, within a second of the next use. A file that is being
    written is left to settle first; an empty one is taken for half written.

    A file system that hangs keeps the thread that asked it, for ever perhaps: each path has one thread at
    most, and none that another path could be waiting for.
    """

    fresh_for: float | None = 1.0

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._warned: set[str] = set()
        self._limiters: OrderedDict[str, trio.CapacityLimiter] = OrderedDict()

    async def read(self, ref: FileKey) -> Secret:
        limiter = self._limiters.setdefault(ref.path, trio.CapacityLimiter(1))
        self._limiters.move_to_end(ref.path)
        if len(self._limiters) > _FILES_KEPT:
            self._limiters.popitem(last=False)
        answer = await trio.to_thread.run_sync(
            _attempt, ref.path, self._seen.get(ref.path), abandon_on_cancel=True, limiter=limiter
        )
        if isinstance(answer, SourceFailure):
            raise answer
        seen, mode = answer
        self._seen[ref.path] = seen
        self._seen.move_to_end(ref.path)
        if len(self._seen) > _FILES_KEPT:
            self._seen.popitem(last=False)
        if mode & 0o004 and ref.path not in self._warned and not _only_certificates(seen.secret):
            if len(self._warned) < _FILES_KEPT:
                self._warned.add(ref.path)
            logger.warning("key file %s can be read by every user of this machine: chmod 600", ref.path)
        return seen.secret

    def told(self, ref: FileKey) -> Told | None:
        """When the file was changed."""
        seen = self._seen.get(ref.path)
        return Told(since=seen.signature[0] / 1e9) if seen is not None else None


class CredentialSource:
    """`CredentialKey`: a file of the directory that systemd names in the environment."""

    fresh_for: float | None = FileSource.fresh_for

    def __init__(self, files: FileSource) -> None:
        self._files = files

    async def read(self, ref: CredentialKey) -> Secret:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SourceFailure(
                "the environment's CREDENTIALS_DIRECTORY is not set: not started by systemd, or no "
                "LoadCredential= in the unit"
            )
        return await self._files.read(FileKey(os.path.join(directory, ref.credential)))

    def told(self, ref: CredentialKey) -> Told | None:
        """When the file was changed."""
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        return self._files.told(FileKey(os.path.join(directory, ref.credential)))


def _only_certificates(secret: Secret) -> bool:
    """Certificates are public; a PEM file of nothing else need not be hidden."""
    content = secret.reveal()
    return b"-----BEGIN CERTIFICATE-----" in content and b"PRIVATE KEY" not in content


def _attempt(path: str, seen: _Seen | None) -> tuple[_Seen, int] | SourceFailure:
    """Runs in a thread. Gives the file (`seen` itself if unchanged) and its mode, or why it has no value."""
    try:
        return _read_file(path, seen)
    except SourceFailure as failure:
        return failure.bare()


def _read_file(path: str, seen: _Seen | None) -> tuple[_Seen, int]:
    try:
        for _ in range(_QUIET_TRIES):
            # Non-blocking: a FIFO without a writer would hold the thread for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                before = os.fstat(descriptor)
                if not stat.S_ISREG(before.st_mode):
                    raise SourceFailure("not a regular file")
                if seen is not None and seen.signature == _signature(before):
                    return seen, before.st_mode
                age = time.time() - before.st_mtime
                if seen is not None and 0 <= age < _QUIET_SECONDS:
                    time.sleep(_QUIET_SECONDS - age)
                    continue
                content = file.read(MAX_SECRET + 2)
                if _signature(os.fstat(descriptor)) != _signature(before):
                    continue
            break
        else:
            raise SourceFailure("it is being written to all the time")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise SourceFailure(reason, definite=missing, denied=isinstance(error, PermissionError)) from None
    content = content[:-2] if content.endswith(b"\r\n") else content.removesuffix(b"\n")
    if not content:
        raise SourceFailure("the file is empty")
    if len(content) > MAX_SECRET:
        raise SourceFailure(f"the file is larger than {MAX_SECRET} octets")
    return _Seen(_signature(before), Secret(content)), before.st_mode


def _signature(status: os.stat_result) -> tuple[int, ...]:
    times = status.st_mtime_ns, status.st_ctime_ns
    return *times, status.st_dev, status.st_ino, status.st_size, status.st_mode
