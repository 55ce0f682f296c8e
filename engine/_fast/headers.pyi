"""The header section: where it ends, and where its fields lie."""

def header_end(data: bytes) -> int:
    """The offset just behind the empty line that ends the header section.

    Without such a line: len(data) when the last line is ended (all of it is header), else -1.
    Source: RFC 5322 section 2.1.
    """

def header_index(data: bytes, end: int) -> list[tuple[int, int, int]]:
    """(start, colon, end) for each field of the header section ``data[:end]``, in order.

    start and colon are the offsets of the name and of the colon behind it; end is just behind the
    field's CR LF, folded lines (RFC 5322 section 2.2.3) included. The fields lie without gaps
    from offset 0. The first line that is no field (empty, without a colon or a name, or
    folded with nothing above it) ends the list.

    Raises: ValueError when `end` is not within `data`.
    """
