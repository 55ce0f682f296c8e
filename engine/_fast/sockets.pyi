"""Bytes into and out of a non-blocking stream socket, by its descriptor, and what an epoll has. No
call waits.

All raise OSError with the kernel's errno when the connection is broken (ConnectionResetError,
BrokenPipeError, ...) or `fd` is none; who closes a socket must forget its descriptor first.
"""

import select

def receive_now(fd: int, limit: int) -> bytes | None:
    """At most `limit` octets (and at most 65,536) that are there; ``b""`` at the end of the stream; None
    when nothing is there now. Raises: ValueError when `limit` is not positive."""

def send_now(fd: int, data: bytes | bytearray | memoryview) -> int:
    """How many octets of `data` went out; 0 when there is no room now."""

def send_parts_now(fd: int, parts: list[bytes], index: int, offset: int) -> tuple[int, int]:
    """Send the buffers in order, beginning with octet `offset` of ``parts[index]``, copying none.

    Returns: where to go on, ``(len(parts), 0)`` when all went out; `index` and `offset` again when there is
    no room now. At most 512 buffers go out in one call. Raises: ValueError when there is no such place.
    """

def events_now(epoll: select.epoll) -> list[tuple[int, int]]:
    """What `epoll` has to say now, at most 256 events: descriptor and mask (EPOLLIN and the like)."""
