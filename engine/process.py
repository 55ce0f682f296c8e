"""What the system lets others see of this process (reliability K5). Linux.

Secrets are in its memory. A core dump would write them to a disk, or send them to a crash collector; a
debugger of the same user would read them there, and so would whoever opens ``/proc/PID/mem``.
"""

from __future__ import annotations

import ctypes
import os
import resource

__all__ = ["keep_to_itself"]

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_to_itself() -> str:
    """No core dumps, of this process and of those that it starts, for they are given secrets; and no look
    into its memory by other processes of its user. Those of root can look all the same.

    Gives what could not be done, as a text for people; empty when all was.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        return f"core dumps cannot be switched off: {error}"
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return "this system has no prctl(2): other processes of this user can read this one's memory"
    # A limit of 0 does not count where dumps are piped to a program (core(5)); this does.
    if prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        return f"other processes of this user can read this one's memory: prctl(PR_SET_DUMPABLE): {reason}"
    return ""
