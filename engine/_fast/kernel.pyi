"""Small calls to the kernel that wait for nobody, made without letting go of the interpreter's lock."""

def note_now(fd: int, data: bytes, offset: int) -> int:
    """Write a few octets at `offset` of a file, into the kernel's memory; how many it took. For notes small
    enough not to hold up other threads. Raises: OSError."""

def random_now(size: int) -> bytes:
    """`size` (1 to 256) octets from the kernel's generator, asked for now.

    Raises: ValueError for another size; OSError."""
