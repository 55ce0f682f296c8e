"""Header fields of one message, read and changed without touching any other byte.

A `HeaderMap` looks at one bytes object. It is lazy: the fields are found (in C) when the first
question comes, and the map keeps offsets, not copies. A change builds the header section anew,
once, when `data` is asked for; fields nobody changed and everything behind the section keep
their bytes.

Names and values that come from a policy are checked here: a value can never hold a line end, so
nobody can be made to add a second field (reliability H7). Text that is not ASCII becomes RFC 2047
encoded words unless UTF-8 is asked for; long values are folded (RFC 5322 section 2.2.3).
"""

from __future__ import annotations

from email.errors import HeaderParseError
from email.header import Header, decode_header

from engine import _fast

__all__ = ["HeaderMap", "decode_value", "make_field"]

SOFT_LIMIT = 78
"""Octets per line we fold at where we can (RFC 5322 section 2.1.1)."""

HARD_LIMIT = 998
"""Octets per line, without CRLF, we never exceed (RFC 5322 section 2.1.1)."""

_NAME = bytes(range(33, 127)).replace(b":", b"")  # RFC 5322 section 3.6.8, ftext
_CONTROLS = bytes(code for code in (*range(32), 127) if code != 9)
# Characters that Python takes for line ends although mail does not, and the C1 controls.
_NEVER = dict.fromkeys([*range(0x80, 0xA0), 0x2028, 0x2029])

_DECODE_LIMIT = 64 * 1024
_LOOSE_STARTS = 64


class HeaderMap:
    """The header section at the start of `data`; `end`: its length if the caller knows it.

    `end` is the offset just behind the blank line, or -1 when there is no blank line. Names are
    compared without regard to case. Not for two tasks at once.
    """

    __slots__ = ("_behind", "_data", "_end", "_fields", "_names")

    def __init__(self, data: bytes, end: int | None = None) -> None:
        self._data = data
        self._end = end
        self._names: list[bytes] | None = None  # lower case, one per field
        self._fields: list[bytes] | list[tuple[int, int, int]] = []
        self._behind: int = -1  # where the last field ends in the original data, once changed

    # Reading

    def first(self, name: str) -> str | None:
        """The decoded value of the first field called `name`, or None."""
        wanted = _wanted(name)
        for index, present in enumerate(self._index()):
            if present == wanted:
                return decode_value(self._value(index))
        return None

    def all(self, name: str) -> list[str]:
        """The decoded values of all fields called `name`, in order."""
        wanted = _wanted(name)
        return [
            decode_value(self._value(index))
            for index, present in enumerate(self._index())
            if present == wanted
        ]

    def items(self) -> list[tuple[str, str]]:
        """All fields as (name as written, decoded value), in order."""
        return [
            (self._name(index).decode("ascii", "replace"), decode_value(self._value(index)))
            for index in range(len(self._index()))
        ]

    # Changing

    def prepend(self, field: bytes) -> None:
        """Put `field` (from `make_field`) above all others."""
        names, fields = self._edit()
        names.insert(0, _field_name(field))
        fields.insert(0, field)

    def append(self, field: bytes) -> None:
        """Put `field` (from `make_field`) below all others, above the blank line."""
        names, fields = self._edit()
        if fields and not fields[-1].endswith(b"\r\n"):
            fields[-1] += b"\r\n"
        names.append(_field_name(field))
        fields.append(field)

    def remove(self, name: str) -> int:
        """Remove every field called `name`; returns how many there were."""
        wanted = _wanted(name)
        count = self._index().count(wanted)
        if count:
            names, fields = self._edit()
            kept = [pair for pair in zip(names, fields, strict=True) if pair[0] != wanted]
            names[:] = [pair[0] for pair in kept]
            fields[:] = [pair[1] for pair in kept]
        return count

    def replace(self, field: bytes) -> bool:
        """Put `field` where the first one of its name is, and remove the others of that name.

        Returns False, and changes nothing, when there is none.
        """
        wanted = _field_name(field)
        if wanted not in self._index():
            return False
        names, fields = self._edit()
        place = names.index(wanted)
        kept_names, kept_fields = names[:place], fields[:place]
        kept_names.append(wanted)
        kept_fields.append(field)
        for index in range(place + 1, len(names)):
            if names[index] != wanted:
                kept_names.append(names[index])
                kept_fields.append(fields[index])
        names[:], fields[:] = kept_names, kept_fields
        return True

    # The result

    @property
    def changed(self) -> bool:
        """Whether `data` differs from what the map was made from (or may differ)."""
        return self._behind >= 0

    @property
    def data(self) -> bytes:
        """The bytes with all changes made; the very object given when nothing was changed."""
        if self._behind >= 0:
            _, fields = self._edit()
            tail = self._data[self._behind :]
            # What follows must not become a continuation line of our last field.
            gap = [b"\r\n"] if fields and tail[:1] in (b" ", b"\t") else []
            self._data = b"".join([*fields, *gap, tail])
            self._end, self._names, self._fields, self._behind = None, None, [], -1
        return self._data

    # Inside

    def _index(self) -> list[bytes]:
        """Lower-case names of the fields; finds the fields on the first call."""
        names = self._names
        if names is None:
            data, end = self._data, self._end
            if end is None:
                end = _fast.header_end(data)
            if end < 0:
                end = len(data)
            spans = _fast.header_index(data, end)
            self._fields = spans
            names = [data[start:colon].rstrip(b" \t").lower() for start, colon, _ in spans]
            self._names = names
        return names

    def _edit(self) -> tuple[list[bytes], list[bytes]]:
        """Names and raw fields, as lists that may be changed."""
        names = self._index()
        if self._behind < 0:
            data = self._data
            spans: list[tuple[int, int, int]] = self._fields  # type: ignore[assignment]
            self._behind = spans[-1][2] if spans else 0
            self._fields = [data[start:end] for start, _, end in spans]
        return names, self._fields  # type: ignore[return-value]

    def _name(self, index: int) -> bytes:
        field = self._fields[index]
        if isinstance(field, bytes):
            return field[: field.index(b":")].rstrip(b" \t")
        return self._data[field[0] : field[1]].rstrip(b" \t")

    def _value(self, index: int) -> bytes:
        field = self._fields[index]
        if isinstance(field, bytes):
            return field[field.index(b":") + 1 :]
        return self._data[field[1] + 1 : field[2]]


def make_field(name: str, value: str, *, utf8: bool = False) -> bytes:
    """One header field with its CRLF, checked and folded.

    `utf8`: leave text that is not ASCII as UTF-8 (the message then needs SMTPUTF8, RFC 6532)
    instead of making RFC 2047 encoded words of it.

    Raises: ValueError for a name that is not a field name (RFC 5322 section 2.2), a value with a
    line end or another control character in it, or one that cannot be folded below 998 octets.
    """
    raw_name = _checked_name(name)
    value = value.strip(" \t")
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"header {name}: the value holds half a surrogate pair, which is no text") from None
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        raise ValueError(f"header {name}: the value holds a line end or another control character")
    if not value.isascii():
        if len(value.translate(_NEVER)) != len(value):
            raise ValueError(f"header {name}: the value holds a line separator or a C1 control character")
        if not utf8:
            encoded = Header(value, "utf-8", maxlinelen=SOFT_LIMIT - 2, header_name=name)
            return raw_name + b": " + encoded.encode(linesep="\r\n").encode("ascii") + b"\r\n"
    line = raw_name + b": " + raw
    if len(line) <= SOFT_LIMIT:
        return line + b"\r\n"
    return _fold(line, len(raw_name) + 2, name) + b"\r\n"


def decode_value(raw: bytes) -> str:
    """The text of a field's value: unfolded, RFC 2047 encoded words decoded where there are any.

    What cannot be decoded (unknown charset, broken base64) is given as it stands; octets that are
    no UTF-8 become U+FFFD.
    """
    if b"\n" in raw:
        raw = raw.replace(b"\r\n", b"")
    text = raw.strip(b" \t").decode("utf-8", "replace")
    if "=?" not in text or len(text) > _DECODE_LIMIT:
        return text
    if text.count("=?", text.rfind("?=") + 1) > _LOOSE_STARTS:
        return text  # openings that nothing closes would cost the decoder quadratic time
    try:
        parts = decode_header(text)
        return "".join(
            part if isinstance(part, str) else part.decode(_charset(charset)) for part, charset in parts
        )
    except (LookupError, ValueError, HeaderParseError):
        return text


def _charset(name: str | None) -> str:
    # The decoder hands the stretches between encoded words over as raw-unicode-escape.
    if name is None:
        return "raw-unicode-escape"
    return name.partition("*")[0]  # a language may follow: RFC 2231 section 5


def _fold(line: bytes, first: int, name: str) -> bytes:
    """Fold before white space so that lines stay within SOFT_LIMIT where possible.

    `first`: offset of the value. A line ends before the last space of a run, so none consists of
    white space alone.
    """
    spaces = line.replace(b"\t", b" ")
    lines: list[bytes] = []
    begin = 0
    place = 0  # the last place where a line may end
    size = len(line)
    at = first
    while at < size:
        space = spaces.find(b" ", at)
        if space < 0:
            space = size
        if space - begin > SOFT_LIMIT and place > begin:
            lines.append(line[begin:place])
            begin = place
        at = space + 1
        while at < size and spaces[at] == 0x20:
            at += 1
        place = at - 1
    lines.append(line[begin:])
    if max(map(len, lines)) > HARD_LIMIT:
        raise ValueError(f"header {name}: the value has no white space to fold it below {HARD_LIMIT} octets")
    return b"\r\n".join(lines)


def _checked_name(name: str) -> bytes:
    try:
        raw = name.encode("ascii")
    except UnicodeEncodeError:
        raw = b""
    if not raw or len(raw) > 76 or raw.translate(None, _NAME):
        raise ValueError(
            f"{name!r} is no header field name: 1 to 76 ASCII characters without space, colon or control"
        )
    return raw


def _wanted(name: str) -> bytes:
    return name.encode("ascii", "replace").lower()


def _field_name(field: bytes) -> bytes:
    return field[: field.index(b":")].rstrip(b" \t").lower()
