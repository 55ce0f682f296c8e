"""Opening a spool directory: lock it, know its format, see what lies there.

::

    lock                    kernel lock of the process that owns the spool, and its number
    format                  "posthorn-spool 1"
    segments/NNNNNNNN.seg   mail
             NNNNNNNN.jnl   what became of it
             NNNNNNNN.tmp   a compaction under way; worthless until it is renamed to .seg
             NNNNNNNN.spare an emptied segment, to be overwritten
    quarantine/             damaged pieces, for the operator

Everything done here may be cut short by a crash and done again (reliability D26). What we did not
make is left alone and named in the log (D28).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from contextlib import suppress

import msgspec

from engine.errors import SpoolError, SpoolLocked

from .files import CREATE, READ_WRITE, Files, read_at, sync_file, write_at
from .format import (
    DATA_START,
    JOURNAL_START,
    VERSION,
    SegmentHeader,
    journal_header,
    parse_journal_header,
    parse_segment_header,
    read_marks,
)
from .segment import Segment

__all__ = ["PROBE", "Survey", "lock_directory", "survey"]

logger = logging.getLogger("posthorn.spool")

_FORMAT = b"posthorn-spool %d\n"
_NAME = re.compile(r"([0-9]{8,18})\.(seg|jnl|tmp|spare)")
_QUARANTINED = re.compile(r"([0-9]{8,18})[-.]")
PROBE = "probe"
"""A file that is written and removed to see whether there is space again."""
_FOLDERS = ("segments", "quarantine")


class Survey(msgspec.Struct):
    """What a spool directory holds. `segments` are oldest first, sealed, not read yet."""

    segments: list[Segment]
    spares: list[str]
    next_number: int
    strange: list[str]
    """Names we do not know."""
    quarantined: int
    newest: float = 0.0
    """Unix time of the last note that was written, 0 when there is none."""


def lock_directory(path: str) -> int:
    """Make the directory if need be, lock it, check its format. The lock's descriptor.

    Raises: SpoolLocked, SpoolError (a newer format, a directory others may change), OSError.
    """
    os.makedirs(path, 0o700, exist_ok=True)
    mode = os.stat(path).st_mode
    if stat.S_IMODE(mode) & 0o022:
        raise SpoolError(f"spool {path}: others may write to this directory; chmod go-w it")
    fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise SpoolLocked(f"spool {path} is in use by process {owner}") from None
        with suppress(OSError):  # the number is for people; the lock is the lock
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        _check_format(path)
        for folder in _FOLDERS:
            with suppress(FileExistsError):
                os.mkdir(f"{path}/{folder}", 0o700)
        for folder in (path, os.path.dirname(os.path.abspath(path))):
            Files().fsync_directory(folder)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_format(path: str) -> None:
    name = f"{path}/format"
    text = b""
    with suppress(FileNotFoundError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            text = read_at(Files(), fd, 64, 0, name)
        finally:
            os.close(fd)
    if not text and _has_mail(path):
        logger.warning("spool %s: its file `format` is missing or empty; it is written again", path)
    if not text:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _FORMAT % VERSION, 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        return
    words = text.split()
    if len(words) != 2 or words[0] != b"posthorn-spool" or not words[1].isdigit():
        raise SpoolError(f"spool {path}: the file `format` is not one of ours")
    if int(words[1]) > VERSION:
        raise SpoolError(
            f"spool {path} has format {int(words[1])}, written by a newer version; this one knows {VERSION}"
        )


def _has_mail(path: str) -> bool:
    try:
        return bool(os.listdir(f"{path}/segments"))
    except FileNotFoundError:
        return False


def survey(files: Files, path: str) -> Survey:
    """Look at all files, finish what a crash cut short, and list the segments. Blocks. Raises: OSError."""
    directory = f"{path}/segments"
    kinds: dict[str, dict[int, str]] = {"seg": {}, "jnl": {}, "tmp": {}, "spare": {}}
    strange = []
    for name in files.list(directory):
        if name == PROBE:
            files.unlink(f"{directory}/{name}")
            continue
        found = _NAME.fullmatch(name)
        if found is None:
            strange.append(name)
        else:
            kinds[found[2]][int(found[1])] = f"{directory}/{name}"
    highest = max((max(numbers, default=0) for numbers in kinds.values()), default=0)
    for name in files.list(f"{path}/quarantine"):
        # What lies there is named after its segment: that number is not used again.
        if (found := _QUARANTINED.match(name)) is not None:
            highest = max(highest, int(found[1]))
    result = Survey([], sorted(kinds["spare"].values()), highest + 1, strange, 0)
    for name in kinds["jnl"].values():
        with suppress(OSError):
            result.newest = max(result.newest, os.stat(name).st_mtime)
    order: list[tuple[int, Segment]] = []
    replaced: set[int] = set()
    keep: set[int] = set()
    for number, name in sorted(kinds["seg"].items()):
        keep.add(number)
        look = _look(files, path, number, name, f"{directory}/{number:08d}.jnl", result)
        if look is not None:
            header, segment = look
            replaced.update(header.sources)
            order.append((min(header.sources, default=number), segment))
    order.sort(key=lambda pair: (pair[0], pair[1].number))
    gone = [segment for _, segment in order if segment.number in replaced]
    result.segments = [segment for _, segment in order if segment.number not in replaced]
    for segment in gone:
        files.unlink(segment.path)
    for name in kinds["tmp"].values():
        files.unlink(name)
    if gone:
        # Before its journal: mail without the notes about it would be sent again.
        files.fsync_directory(directory)
    orphans = [name for number, name in kinds["jnl"].items() if number not in keep]
    for name in [segment.journal_path for segment in gone] + orphans:
        with suppress(FileNotFoundError):
            files.unlink(name)
    for name in strange:
        logger.warning("spool %s: segments/%s is not a file of this spool; left alone", path, name)
    return result


def _look(
    files: Files, path: str, number: int, name: str, journal: str, result: Survey
) -> tuple[SegmentHeader, Segment] | None:
    """One segment and its journal; None when there is nothing to read in it, or not by us."""
    try:
        fd = files.open(name, READ_WRITE)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        result.strange.append(os.path.basename(name))
        return None
    try:
        header = parse_segment_header(read_at(files, fd, DATA_START, 0, name))
        size = files.size(fd)
    finally:
        files.close(fd)
    if header is not None and header.version > VERSION:
        result.strange.append(os.path.basename(name))
        return None
    if header is not None and header.number != number:
        header = None
    notes, known = _journal(files, journal, number, header)
    if header is None:
        if known is None:
            _set_aside(files, path, number, name, journal, size, result)
            return None
        if size > DATA_START:
            logger.error("spool %s: the header of segment %d is damaged; its journal helps out", path, number)
        header = SegmentHeader(VERSION, number, known, 0.0, ())
    segment = Segment(f"{path}/segments", number, header.nonce, header.created)
    segment.end = size
    segment.reserved = notes[1]
    segment.mark = read_marks(notes[0], segment.seed)
    segment.sealed = True
    segment.scanned = False
    return header, segment


def _journal(
    files: Files, journal: str, number: int, header: SegmentHeader | None
) -> tuple[tuple[bytes, int], bytes | None]:
    """Its first octets and size, and the nonce it knows. Made, or its header repaired, if need be."""
    repaired = journal_header(number, header.nonce) if header is not None else b""
    try:
        fd = files.open(journal, READ_WRITE)
    except FileNotFoundError:
        if header is None:
            return (b"", 0), None
        logger.error("%s is missing: mail of this segment that was delivered may be sent again", journal)
        fd = files.open(journal, CREATE)
    try:
        size = files.size(fd)
        data = read_at(files, fd, JOURNAL_START, 0, journal)
        parsed = parse_journal_header(data)
        known = parsed[1] if parsed is not None and parsed[0] == number else None
        if header is not None and known != header.nonce:
            write_at(files, fd, repaired[:64] if size else repaired, 0)
            sync_file(files, fd)
    finally:
        files.close(fd)
    return (data, size), known


def _set_aside(
    files: Files, path: str, number: int, name: str, journal: str, size: int, result: Survey
) -> None:
    """Neither header is valid. Without room for a record it was just being made; else quarantine."""
    if size <= DATA_START:
        files.unlink(name)
        with suppress(FileNotFoundError):
            files.unlink(journal)
        return
    logger.error("spool %s: segment %d cannot be read at all; it is in the quarantine", path, number)
    result.quarantined += 1
    place = f"{path}/quarantine/{number:08d}"
    while os.path.lexists(f"{place}.seg"):  # nothing there is ever overwritten
        place += "-again"
    with suppress(FileNotFoundError):
        files.rename(journal, f"{place}.jnl")
    files.rename(name, f"{place}.seg")
    files.fsync_directory(f"{path}/quarantine")
