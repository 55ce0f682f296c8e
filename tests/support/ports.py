"""Loopback ports, and waiting for things that happen in other processes."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["free_port", "is_open", "until"]

T = TypeVar("T")

_FIRST = 10_240
"""Well-known servers of this machine listen below."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses just now, for TCP and UDP.

    None of those that the kernel gives to outgoing connections and to who asks for any port: there are
    thousands of these in other tests, and one of them could have it before the server that is meant to.
    """
    for _ in range(1000):
        port = _FIRST + secrets.randbelow(_outgoing() - _FIRST)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"no free port between {_FIRST} and {_outgoing()}")


def _outgoing() -> int:
    """The least port that the kernel gives of its own accord."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def is_open(port: int) -> bool:
    """Whether somebody accepts connections at 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(ask: Callable[[], T], *, seconds: float, what: str | Callable[[], str], every: float = 0.05) -> T:
    """Ask again and again until the answer is true; that answer.

    Raises: AssertionError with `what` (made only now, if it is a function) after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {seconds:g} s: {text}")
        time.sleep(every)
