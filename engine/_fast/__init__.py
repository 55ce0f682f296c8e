"""Bytes only: command lines, replies, mail data, dots, line ends, header sections, many patterns at once;
what a socket has or takes without waiting; and groups of records written and synced behind the loop's back.

The work is done in C (one ``.pyx`` per idea); ``_reference.py`` is the same in plain Python and is
the meaning. `ACTIVE` says which of the two is in use. The compiled one is used unless
``POSTHORN_PURE=1`` is in the environment; when it cannot be imported that is an error, because a
relay that is slow for a reason nobody sees is worse than one that says what is wrong.

Everything here gives the same result for every split of the same bytes, works in linear time, and
makes no Python object per line or byte. Line ends are CR LF and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.compiled import PURE

if TYPE_CHECKING or not PURE:
    try:
        from engine._fast.bodies import (
            BARE_CR,
            BARE_LF,
            EIGHT_BIT,
            ENDS_WITH_CRLF,
            NEEDS_STUFFING,
            NUL,
            clean_lines,
            scan,
            stuff,
        )
        from engine._fast.commands import (
            LINE_BARE,
            LINE_CONTROL,
            LINE_TOO_LONG,
            CommandReader,
            parse_command,
            parse_path,
        )
        from engine._fast.data import DataReader
        from engine._fast.groups import GroupWriter
        from engine._fast.headers import header_end, header_index
        from engine._fast.patterns import PatternSet
        from engine._fast.replies import ReplyReader
        from engine._fast.sockets import events_now, receive_now, send_now, send_parts_now
    except ImportError as error:
        raise ImportError(
            "the compiled modules of engine._fast are missing or were built for another Python: "
            "build them with `make build` (or install Posthorn again), "
            "or set POSTHORN_PURE=1 to run on the slow plain-Python twin"
        ) from error
else:
    from engine._fast._reference import (
        BARE_CR,
        BARE_LF,
        EIGHT_BIT,
        ENDS_WITH_CRLF,
        LINE_BARE,
        LINE_CONTROL,
        LINE_TOO_LONG,
        NEEDS_STUFFING,
        NUL,
        CommandReader,
        DataReader,
        GroupWriter,
        PatternSet,
        ReplyReader,
        clean_lines,
        events_now,
        header_end,
        header_index,
        parse_command,
        parse_path,
        receive_now,
        scan,
        send_now,
        send_parts_now,
        stuff,
    )

__all__ = [
    "ACTIVE",
    "BARE_CR",
    "BARE_LF",
    "EIGHT_BIT",
    "ENDS_WITH_CRLF",
    "LINE_BARE",
    "LINE_CONTROL",
    "LINE_TOO_LONG",
    "NEEDS_STUFFING",
    "NUL",
    "CommandReader",
    "DataReader",
    "GroupWriter",
    "PatternSet",
    "ReplyReader",
    "clean_lines",
    "events_now",
    "header_end",
    "header_index",
    "parse_command",
    "parse_path",
    "receive_now",
    "scan",
    "send_now",
    "send_parts_now",
    "stuff",
]

ACTIVE = "reference" if PURE else "compiled"
"""``"compiled"`` or ``"reference"``: which twin this process uses."""
