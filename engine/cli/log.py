"""``posthorn log``: the records of a log directory, as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from engine.cli.report import flush_output, guarded
from engine.errors import ConfigError

__all__ = ["log"]


def log(
    directory: Path = Path("var/log"),
    /,
    *,
    type: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Print the records of a log directory as JSON lines, oldest first.

    Segments that are still being written are read as far as they go. Exit status 2 when a segment
    cannot be read or is damaged; all that can be read of it and of the others is printed.

    Parameters
    ----------
    directory
        A log directory, or one segment of it.
    type
        Only records of this type, such as Bounce or Delivery; may be repeated.
    """
    return guarded(lambda: _print(directory, type or []), command="log")


class _Kind(msgspec.Struct):
    """What is read of a line to choose it."""

    type: str


def _print(where: Path, types: list[str]) -> None:
    from engine.log import KINDS, ChecksumWrong, segment_lines, segments_in
    from policy.errors import did_you_mean

    for name in types:
        if name not in KINDS:
            raise ConfigError(
                f"--type {name}: no such type{did_you_mean(name, KINDS)}; known are {', '.join(KINDS)}"
            )
    try:
        segments = segments_in(where) if where.is_dir() else [where]
        strange = not segments and any(where.iterdir())
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    if strange:
        raise ConfigError(f"{where}: there are no log segments in it; right would be a log_dir")
    kind = msgspec.json.Decoder(_Kind)
    wrong: list[Exception] = []
    for segment in segments:
        broken = 0
        try:
            for line in segment_lines(segment):
                try:
                    of = kind.decode(line).type
                except ValueError:  # msgspec's are among them
                    broken += 1
                    continue
                if not types or of in types:
                    _put(line)
        except BrokenPipeError:
            raise
        except OSError as error:
            wrong.append(ConfigError(f"{segment}: {error.strerror or error}"))
        except ChecksumWrong as error:
            wrong.append(ConfigError(f"{segment}: damaged, some of its records may be wrong: {error}"))
        except ValueError as error:
            if segment == where and not _is_segment(segment):
                wrong.append(
                    ConfigError(f"{segment}: is no log segment; right would be a log_dir, or a file in one")
                )
                continue
            wrong.append(ConfigError(f"{segment}: damaged, the rest of it is left out: {error}"))
        if broken:
            lines = "a line that is" if broken == 1 else f"{broken} lines that are"
            wrong.append(ConfigError(f"{segment}: damaged, {lines} no record left out"))
    if wrong:
        flush_output()
        raise ExceptionGroup("unreadable segments", wrong)


def _put(line: bytes) -> None:
    """To standard output, as it was written: terminal controls in it are escaped."""
    try:
        sys.stdout.buffer.write(line + b"\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"standard output: {error.strerror or error}") from None


def _is_segment(path: Path) -> bool:
    """Whether a file begins as compressed segments do."""
    with path.open("rb") as file:
        return file.read(4) == b"\x28\xb5\x2f\xfd"  # RFC 8878 3.1.1
