"""Log records: one JSON line per event of a message's life, written off the event loop."""

from .capture import Capture
from .channel import Log, LogStatistics, node_id, open_log
from .records import KINDS, Record, bounce_class
from .segments import ChecksumWrong, read_segment, segment_lines, segments_in

__all__ = [
    "KINDS",
    "Capture",
    "ChecksumWrong",
    "Log",
    "LogStatistics",
    "Record",
    "bounce_class",
    "node_id",
    "open_log",
    "read_segment",
    "segment_lines",
    "segments_in",
]
