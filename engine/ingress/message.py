"""The message a policy's hooks see while it is being accepted.

Making one costs next to nothing: it only holds references. Header fields are looked for when a
hook asks, meta is copied when a hook writes, and the content stays the one body that all
messages of the transaction share until a hook changes something inside it. Fields put on top go
into the message's own short prefix, so prepending never copies a body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine import _fast
from engine.mail.headers import HeaderMap, make_field
from engine.model import QueueName
from engine.smtp import Address, AddressError, parse_path_full

from .meta import checked_meta

__all__ = ["EnvelopeAddress", "ReceivedMessage", "queue_for"]


class EnvelopeAddress:
    """An envelope address for hooks: ``str()`` is its text as given, ``""`` for the null one.

    Equal to another one, or to a str, of the same text.
    """

    __slots__ = ("_address",)

    def __init__(self, address: Address) -> None:
        self._address = address

    @property
    def user(self) -> str:
        """The local part without quoting."""
        return self._address.local_part

    @property
    def domain(self) -> str:
        """The domain as given; ``""`` for the null reverse-path and for a bare Postmaster."""
        return self._address.domain

    @property
    def email(self) -> str:
        """The whole address as given."""
        return self._address.text

    def __str__(self) -> str:
        return self._address.text

    def __repr__(self) -> str:
        return f"EnvelopeAddress({self._address.text!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EnvelopeAddress):
            return self._address.text == other._address.text
        if isinstance(other, str):
            return self._address.text == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._address.text)


class ReceivedMessage:
    """One message between the final dot and the spool.

    `prefix`: our header fields above `content`. `header_end`: length of the header section of
    `content`, -1 when it has no blank line. `meta` is not written to; it is copied first.
    """

    __slots__ = (
        "_below",
        "_content",
        "_default_domain",
        "_fresh_meta",
        "_header_end",
        "_id",
        "_meta",
        "_prefix",
        "_top",
        "recipients",
        "reverse_path",
        "smtputf8",
    )

    def __init__(
        self,
        message_id: bytes,
        reverse_path: Address,
        recipients: list[Address],
        meta: dict[str, Any],
        prefix: bytes,
        content: bytes,
        header_end: int | None,
        *,
        smtputf8: bool,
        default_domain: str,
    ) -> None:
        self._id = message_id
        self.reverse_path = reverse_path
        self.recipients = recipients
        self._meta = meta
        self._fresh_meta = False
        self._prefix = prefix
        self._content = content
        self._header_end = header_end
        self._top: HeaderMap | None = None
        self._below: HeaderMap | None = None
        self._default_domain = default_domain
        self.smtputf8 = smtputf8

    # Identity and envelope

    def id(self) -> str:
        """The id, as in records and in the reply to the client: 32 hexadecimal digits."""
        return self._id.hex()

    def sender(self) -> EnvelopeAddress:
        """The reverse-path."""
        return EnvelopeAddress(self.reverse_path)

    def set_sender(self, sender: str | EnvelopeAddress) -> None:
        """Replace the reverse-path; ``""`` for the null one. Raises: ValueError."""
        self.reverse_path = self._parse(sender, null=True)

    def recipient(self) -> EnvelopeAddress | list[EnvelopeAddress]:
        """The forward-path; a list when there are several."""
        return EnvelopeAddress(self.recipients[0]) if len(self.recipients) == 1 else self.recipient_list()

    def recipient_list(self) -> list[EnvelopeAddress]:
        """The forward-paths, always a list."""
        return [EnvelopeAddress(address) for address in self.recipients]

    def set_recipient(
        self, recipient: str | EnvelopeAddress | Sequence[str] | Sequence[EnvelopeAddress]
    ) -> None:
        """Replace the forward-paths: one address, or several. Raises: ValueError."""
        several = [recipient] if isinstance(recipient, (str, EnvelopeAddress)) else recipient
        found = [self._parse(one, null=False) for one in several]
        if not found:
            raise ValueError("set_recipient: a message has at least one recipient")
        self.recipients = found

    # Meta and queue

    def get_meta(self, name: str) -> Any:
        """The value, or None. `tenant`, `campaign` and `routing_domain` choose the queue."""
        return self._meta.get(name)

    def set_meta(self, name: str, value: Any) -> None:
        """Set one value, anything that JSON can hold.

        Raises: TypeError or ValueError, saying what is wrong with name or value.
        """
        value = checked_meta(name, value)
        self._own_meta()[name] = value

    def del_meta(self, name: str) -> None:
        """Forget one value; nothing happens when there is none."""
        if name in self._meta:
            del self._own_meta()[name]

    def queue_name(self) -> str:
        """The scheduled queue it is going to, that of its first recipient when there are several."""
        return str(queue_for(self.recipients[0].route_domain or self._default_domain, self._meta))

    # Content

    def get_data(self) -> bytes:
        """The whole content, header and body, with CR LF line ends."""
        return self.prefix + self.content

    def set_data(self, data: bytes) -> None:
        """Replace the whole content, our Received field included.

        Line ends that are not CR LF become CR LF, NUL is removed, a missing final line end is
        added: what leaves us is always clean (reliability C31).
        """
        if not isinstance(data, bytes):
            raise TypeError(f"set_data takes bytes, not a {type(data).__name__}")
        data = _fast.clean_lines(data)
        if data and not data.endswith(b"\r\n"):
            data += b"\r\n"
        self._prefix = b""
        self._content = guarded(data)
        self._header_end = None
        self._top = self._below = None

    # Header fields

    def get_first_named_header_value(self, name: str) -> str | None:
        """The value of the first field of that name, decoded; None when there is none."""
        value = self._upper().first(name)
        return value if value is not None else self._lower().first(name)

    def get_all_named_header_values(self, name: str) -> list[str]:
        """The values of all fields of that name, decoded, in order."""
        return self._upper().all(name) + self._lower().all(name)

    def get_all_headers(self) -> list[tuple[str, str]]:
        """Name and decoded value of every field, in order."""
        return self._upper().items() + self._lower().items()

    def prepend_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Add a field above all others.

        The value is folded; what is not ASCII becomes RFC 2047 encoded words, or stays UTF-8 with
        `utf8`, and the message then needs SMTPUTF8 on its way. Raises: ValueError for a name that
        is none, and for a value with a line end or control character in it.
        """
        self._upper().prepend(self._field(name, value, utf8))

    def append_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Add a field below all others. Otherwise as `prepend_header`."""
        self._lower().append(self._field(name, value, utf8))

    def set_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Replace the first field of that name where it stands, and remove the others of that name;
        append it when there is none. Otherwise as `prepend_header`."""
        field = self._field(name, value, utf8)
        if self._upper().replace(field):
            self._lower().remove(name)
        elif not self._lower().replace(field):
            self._lower().append(field)

    def remove_all_named_headers(self, name: str) -> None:
        """Remove every field of that name."""
        self._upper().remove(name)
        self._lower().remove(name)

    def remove_x_headers(self, names: list[str] | None = None) -> None:
        """Remove every ``X-`` field, or those of the names given."""
        for name in self._x_names() if names is None else names:
            self.remove_all_named_headers(name)

    def import_x_headers(self, names: list[str] | None = None) -> None:
        """Copy ``X-`` fields, or those of the names given, into meta: ``X-Tenant-Id`` becomes
        ``x_tenant_id``. Of several fields of one name the last one counts."""
        for name in self._x_names() if names is None else names:
            values = self.get_all_named_header_values(name)
            if values:
                self.set_meta(name.lower().replace("-", "_"), values[-1])

    # The engine's view

    @property
    def prefix(self) -> bytes:
        """Our header fields above `content`."""
        return self._prefix if self._top is None else self._top.data

    @property
    def content(self) -> bytes:
        """What stands below the prefix; the very object that was given unless a hook changed it."""
        return self._content if self._below is None else self._below.data

    @property
    def meta(self) -> dict[str, Any]:
        """The meta, to be read only."""
        return self._meta

    def _upper(self) -> HeaderMap:
        top = self._top
        if top is None:
            top = self._top = HeaderMap(self._prefix)
        return top

    def _lower(self) -> HeaderMap:
        below = self._below
        if below is None:
            below = self._below = HeaderMap(self._content, self._header_end)
        return below

    def _own_meta(self) -> dict[str, Any]:
        if not self._fresh_meta:
            self._meta = self._meta.copy()
            self._fresh_meta = True
        return self._meta

    def _field(self, name: str, value: str, utf8: bool) -> bytes:
        if not isinstance(value, str):
            raise TypeError(f"header {name}: the value is a str, not a {type(value).__name__}")
        field = make_field(name, value, utf8=utf8)
        if utf8 and not field.isascii():
            self.smtputf8 = True
        return field

    def _x_names(self) -> list[str]:
        names = (name for name, _ in self.get_all_headers() if name[:2].lower() == "x-")
        return list(dict.fromkeys(name.lower() for name in names))

    def _parse(self, address: str | EnvelopeAddress, *, null: bool) -> Address:
        if isinstance(address, EnvelopeAddress):
            address = address.email
        if not isinstance(address, str):
            raise TypeError(f"an address is a str, not a {type(address).__name__}")
        if not address and null:
            address = "<>"
        elif not (address.startswith("<") and address.endswith(">")):
            address = f"<{address}>"
        try:
            parsed, rest = parse_path_full(
                address.encode("utf-8"), allow_null=null, smtputf8=True, allow_postmaster=not null
            )
        except AddressError as error:
            raise ValueError(f"{address} is no envelope address: {error.reply.text}") from None
        if rest:
            raise ValueError(f"{address} is no envelope address: there is something behind it")
        if not parsed.text.isascii():
            self.smtputf8 = True
        return parsed


def queue_for(domain: str, meta: dict[str, Any]) -> QueueName:
    """The scheduled queue of a message to `domain` (in its comparable form) with this meta."""
    get = meta.get
    return QueueName(domain, get("tenant"), get("campaign"), get("routing_domain"))


def guarded(content: bytes) -> bytes:
    """`content`, made safe to stand behind our header fields: the very object nearly always.

    A first line that begins with white space would be read as a continuation of our last field,
    so a peer could write into it; a blank line goes in between, as it is then all body.
    """
    return b"\r\n" + content if content[:1] in (b" ", b"\t") else content
