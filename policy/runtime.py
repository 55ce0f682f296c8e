"""What the `init` hook declares: spool, logs and listeners. Records only; the engine acts on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Never, Unpack

import msgspec

from .arguments import ListenerOptions, LogOptions, MemoryOptions, MtaStsOptions, SpoolOptions
from .errors import PolicyError, Wrong, a_type, caller
from .ingress import LISTENER, ListenerDeclaration
from .kinds import Count, Directory, File, Free, HostAddress, Level, LogDirectory, Names, Size, Text, Timeout
from .options import Constructor, NotYet
from .units import Floor

__all__ = [
    "Declarations",
    "LogDeclaration",
    "MemoryDeclaration",
    "MtaStsDeclaration",
    "SpoolDeclaration",
    "configure_local_logs",
    "configure_memory",
    "configure_mta_sts",
    "define_spool",
    "recording",
    "start_esmtp_listener",
]


class SpoolDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """The spool. `path`: its directory. `name`: what records and metrics call it. `segment_size`: octets.
    `min_free_space`, `min_free_inodes`: below these new mail is refused for a while."""

    path: Directory
    name: Text = "spool"
    kind: Literal["LocalDisk"] = "LocalDisk"
    segment_size: Size = 64 << 20
    min_free_space: Free = Floor(10.0, 1 << 30)
    min_free_inodes: Free = Floor(10.0, 100_000)


class LogDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """One writer of log records.

    `log_dir`: a directory, or ``-`` for lines on standard output. `max_file_size`: uncompressed octets
    per segment. `max_segment_duration`: seconds, None for no limit. `compression_level`: of zstd, 0 for
    its default. `back_pressure`: records that may wait for the writer; past it, those who log wait.
    `meta`, `headers`: what is copied into records; a final ``*`` matches any ending.
    """

    log_dir: LogDirectory
    max_file_size: Size = 1_000_000_000
    max_segment_duration: Timeout | None = None
    compression_level: Level = 0
    back_pressure: Count = 128_000
    meta: Names = ()
    headers: Names = ()


class MemoryDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """`limit`: the memory that the engine plans with, a share of what its cgroup or machine has."""

    limit: Free = Floor(60.0)


class MtaStsDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """Looking up MTA-STS policies (RFC 8461). `enabled` False: nobody is asked. `ca`: a PEM file with the
    authorities of policy servers, instead of the system's. `gateway`: where all of them are reached."""

    enabled: bool = True
    ca: File | None = None
    gateway: HostAddress | None = None


class Declarations(msgspec.Struct):
    """Everything `init` declared. `memory`, `mta_sts` None: the defaults. `mistakes`: where those who look
    for all of them collect them; None: the first one ends `init`."""

    memory: MemoryDeclaration | None = None
    mta_sts: MtaStsDeclaration | None = None
    spool: SpoolDeclaration | None = None
    logs: list[LogDeclaration] = []
    listeners: list[ListenerDeclaration] = []
    mistakes: list[PolicyError] | None = None


def _check_spool(spool: SpoolDeclaration) -> None:
    if spool.segment_size < 1 << 20:
        raise Wrong("segment_size is below 1MiB")


def _check_memory(memory: MemoryDeclaration) -> None:
    if memory.limit.percent is not None and memory.limit.percent < 1:
        raise Wrong("limit is below 1%")
    if memory.limit.amount is not None and memory.limit.amount < 64 << 20:
        raise Wrong("limit is below 64MiB")


_MEMORY = Constructor("configure_memory", MemoryDeclaration, check=_check_memory)


def _check_mta_sts(mta_sts: MtaStsDeclaration) -> None:
    if not mta_sts.enabled and (mta_sts.ca is not None or mta_sts.gateway is not None):
        raise Wrong(
            "enabled=False asks nobody, so ca and gateway are of no use; right would be one or the other"
        )


_MTA_STS = Constructor("configure_mta_sts", MtaStsDeclaration, check=_check_mta_sts)
_SPOOL = Constructor(
    "define_spool",
    SpoolDeclaration,
    check=_check_spool,
    not_yet={
        "flush": NotYet("a choice of durability; a 250 always means that the message is on disk", (True,)),
        "rocks_params": NotYet("RocksDB"),
    },
)
_LOGS = Constructor(
    "configure_local_logs",
    LogDeclaration,
    not_yet={
        "per_record": NotYet("files, templates and filters by kind of record", (None, {})),
        "filter_event": NotYet("a hook that filters records"),
        "min_free_space": NotYet("refusing mail when the disk of the logs is full"),
        "min_free_inodes": NotYet("refusing mail when the disk of the logs is full"),
    },
)

_recording: ContextVar[Declarations | None] = ContextVar("declarations", default=None)


@contextmanager
def recording(declarations: Declarations | None) -> Iterator[None]:
    """While the block runs, declaring functions add to `declarations`; with None they are refused."""
    token = _recording.set(declarations)
    try:
        yield
    finally:
        _recording.reset(token)


class _noting:
    """Around the body of a declaring function: its mistake is noted where all of them are looked for."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        declarations = _recording.get()
        if declarations is None or declarations.mistakes is None or not isinstance(error, PolicyError):
            return False
        declarations.mistakes.append(error)
        return True


def _open(function: str, positional: tuple[object, ...], example: str) -> Declarations:
    if positional:
        raise PolicyError(
            f"{function}: takes keyword arguments, not {a_type(positional[0])} by position; "
            f"right would be {function}({example}, ...)",
            caller(),
        )
    declarations = _recording.get()
    if declarations is None:
        raise PolicyError(f'{function}: may only be called in the hook of @policy.on("init")', caller())
    return declarations


def define_spool(*positional: Never, **options: Unpack[SpoolOptions]) -> None:
    """Where accepted messages are kept. Once, in `init`. Raises: PolicyError."""
    with _noting():
        declarations = _open("define_spool", positional, 'path="var/spool"')
        if declarations.spool is not None:
            raise PolicyError(
                f'define_spool: called a second time (the first named "{declarations.spool.path}"); '
                "one spool holds content and metadata, so call it once",
                caller(),
            )
        declarations.spool = _SPOOL(None, options)


def configure_memory(*positional: Never, **options: Unpack[MemoryOptions]) -> None:
    """How much memory messages may take. Once, in `init`. Raises: PolicyError."""
    with _noting():
        declarations = _open("configure_memory", positional, 'limit="60%"')
        if declarations.memory is not None:
            raise PolicyError(
                "configure_memory: called a second time (the first set a limit of "
                f"{declarations.memory.limit}); call it once",
                caller(),
            )
        declarations.memory = _MEMORY(None, options)


def configure_mta_sts(*positional: Never, **options: Unpack[MtaStsOptions]) -> None:
    """How MTA-STS policies are looked up. Once, in `init`; without it they are, in the usual way.
    Raises: PolicyError."""
    with _noting():
        declarations = _open("configure_mta_sts", positional, "enabled=False")
        if declarations.mta_sts is not None:
            raise PolicyError("configure_mta_sts: called a second time; call it once", caller())
        declarations.mta_sts = _MTA_STS(None, options)


def configure_local_logs(*positional: Never, **options: Unpack[LogOptions]) -> None:
    """Where log records go. In `init`; each call adds a writer. Raises: PolicyError."""
    with _noting():
        declarations = _open("configure_local_logs", positional, 'log_dir="var/log"')
        logs = _LOGS(None, options)
        if any(other.log_dir == logs.log_dir for other in declarations.logs):
            raise PolicyError(f'configure_local_logs: log_dir="{logs.log_dir}" is used twice', caller())
        declarations.logs.append(logs)


def start_esmtp_listener(*positional: Never, **options: Unpack[ListenerOptions]) -> None:
    """An address that takes mail by SMTP. In `init`; call it once per address. Raises: PolicyError."""
    with _noting():
        declarations = _open("start_esmtp_listener", positional, 'listen="127.0.0.1:2525"')
        listener = LISTENER(None, options)
        if listener.listen.port and any(other.listen == listener.listen for other in declarations.listeners):
            raise PolicyError(f'start_esmtp_listener: listen="{listener.listen}" is used twice', caller())
        declarations.listeners.append(listener)
