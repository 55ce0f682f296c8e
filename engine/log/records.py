"""What happened to a message, as one record per event, and its form as a line of JSON.

`Record` is what the rooms fill in: flat, cheap to make on the event loop, short-lived. The nested
form of the log line (operations specification, 1.2) is made from it by `LineEncoder`, off the loop.

A record holds envelope facts, replies and names. It has no field that could hold a secret; of a
login it knows the user name and the mechanism.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from policy.shaping.rules import Bounces

__all__ = ["KINDS", "OURS", "LineEncoder", "Record", "bounce_class"]

KINDS = (
    "Reception",  # taken over; not yet proof of delivery
    "Delivery",  # the next hop took responsibility
    "TransientFailure",  # an attempt failed and will be retried, or the mail is held
    "Bounce",  # given up after a permanent refusal
    "Expiration",  # given up because of its age
    "Rejection",  # an inbound command was refused; there is no message
    "Delayed",  # waits for a local reason; nothing was tried
    "Gap",  # not about a message: `dropped` records before this one were lost
)
"""Values of `Record.type`."""

_CLASSED = frozenset(("TransientFailure", "Bounce", "Expiration", "Rejection"))
"""Kinds that say that something was refused, and so have a bounce class."""

SCHEMA = 1
"""The field ``v`` of each line. Fields may be added under the same number; none changes its type."""


OURS = frozenset(
    [
        "type",
        "id",
        "event_time",
        "created_time",
        "nodeid",
        "session_id",
        "next_due",
        "tls_cipher",
        "tls_protocol_version",
        "delivery_protocol",
        "reception_protocol",
    ]
)
"""Members of a line whose values are ours, of few words or of chance: nothing a peer or a policy says."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One event. Written once and not changed afterwards: it belongs to the log.

    Times are Unix seconds; `recipient` is a list when the record covers several recipients. An
    empty string, zero or None means "not known here" or "does not apply".
    """

    # gc=False: a record holds text, numbers and captured plain data, and nothing refers to it.

    type: str
    timestamp: float
    id: str = ""
    """32 hex digits; ``""`` for a Rejection."""
    sender: str = ""
    recipient: str | list[str] = ""
    queue: str = ""
    site: str = ""
    size: int = 0
    code: int = 0
    """The reply's code as received, or of our own making."""
    enhanced_code: str = ""
    """``"2.1.0"``; ``""`` when the reply has none that can be trusted."""
    content: str = ""
    command: str = ""
    """The command the reply answers, without its line end."""
    peer_name: str | None = None
    peer_addr: str | None = None
    created: float = 0.0
    """When the message was received; 0: there is no message, the line repeats `timestamp`."""
    num_attempts: int = 0
    bounce_classification: str = "Uncategorized"
    egress_pool: str | None = None
    egress_source: str | None = None
    source_address: str | None = None
    delivery_protocol: str | None = None
    reception_protocol: str | None = None
    meta: dict[str, Any] | None = None
    headers: dict[str, str | list[str]] | None = None
    session_id: str | None = None
    provider_name: str | None = None
    tls_cipher: str | None = None
    tls_protocol_version: str | None = None
    tls_peer_name: str | None = None
    tls_peer_subject_name: tuple[str, ...] | None = None
    """The subject of the peer's certificate in parts, checked or not."""
    tls_verified: bool | None = None
    tls_why: str | None = None
    """One phrase: why the certificate counts as verified or not, or why there was no TLS."""
    tls_resumed: bool | None = None
    tls_pin: str | None = None
    """Whose key was among the pins: ``leaf`` or ``issuer``."""
    tls_client_certificate: str | None = None
    """The subject of the certificate that was shown."""
    tls_sts: str | None = None
    """What the domain's MTA-STS policy says of the session, such as ``enforce: passed``."""
    dane_result: str | None = None
    """What DANE demanded of the host: ``ok``, ``unusable``, ``not_applicable`` or ``insecure_chain``; None
    when the path does not ask."""
    smtp_auth_user: str | None = None
    smtp_auth_mechanism: str | None = None
    smtp_auth_version: str | None = None
    """Which version of the secret was used: its fingerprint, as in logs and in ``posthorn explain``."""
    cause: str | None = None
    """One stable word for why mail is held: ``tls``, ``login-refused``, ``secret-unavailable`` ..."""
    next_due: float | None = None
    """When the message is tried next."""
    attempt_ms: float | None = None
    """Milliseconds the attempt took."""
    dropped: int = 0
    """Of a Gap: how many records were lost."""


def bounce_class(record: Record, bounces: Bounces | None) -> str:
    """The class of what a record says was refused, by the policy's classes."""
    if bounces is None or record.type not in _CLASSED:
        return record.bounce_classification
    text = record.content.replace("\n", " ")
    enhanced = record.enhanced_code
    return bounces.of(f"{record.code} {enhanced} {text}" if enhanced else f"{record.code} {text}")


class _EnhancedCode(msgspec.Struct, frozen=True, gc=False):
    class_: int = msgspec.field(name="class")
    subject: int
    detail: int


class _Response(msgspec.Struct, gc=False):
    code: int
    enhanced_code: _EnhancedCode | None
    content: str
    command: str | None


class _PeerAddress(msgspec.Struct, gc=False):
    name: str
    addr: str


class _SourceAddress(msgspec.Struct, gc=False):
    address: str


class _Line(msgspec.Struct, omit_defaults=True, gc=False):
    """The wire form: fields without a default are always there, the others when they say something."""

    v: int
    type: str
    id: str
    sender: str
    recipient: str | list[str]
    queue: str
    site: str
    size: int
    response: _Response
    peer_address: _PeerAddress | None
    timestamp: int
    event_time: str
    created: int
    created_time: str
    num_attempts: int
    bounce_classification: str
    egress_pool: str | None
    egress_source: str | None
    source_address: _SourceAddress | None
    delivery_protocol: str | None
    reception_protocol: str | None
    feedback_report: None
    meta: dict[str, Any]
    headers: dict[str, str | list[str]]
    nodeid: str
    session_id: str | None = None
    provider_name: str | None = None
    tls_cipher: str | None = None
    tls_protocol_version: str | None = None
    tls_peer_name: str | None = None
    tls_peer_subject_name: tuple[str, ...] | None = None
    tls_verified: bool | None = None
    tls_why: str | None = None
    tls_resumed: bool | None = None
    tls_pin: str | None = None
    tls_client_certificate: str | None = None
    tls_sts: str | None = None
    dane_result: str | None = None
    smtp_auth_user: str | None = None
    smtp_auth_mechanism: str | None = None
    smtp_auth_version: str | None = None
    cause: str | None = None
    next_due: str | None = None
    attempt_ms: float | None = None
    queue_age: float | None = None
    dropped: int = 0


_NOTHING: dict[str, Any] = {}

# What JSON does not escape although a terminal acts on it: DEL and the C1 controls as UTF-8.
_DEL = b"\x7f"
_C1_LEAD = b"\xc2"
_C1 = tuple((b"\xc2" + bytes((code,)), b"\\u%04x" % code) for code in range(0x80, 0xA0))


class LineEncoder:
    """Makes JSON lines of records. One object per writer; not for two threads at once.

    `nodeid` is written into each line. `narrow`: functions that pick, out of captured `meta` and
    `headers`, what this writer was asked for; None takes all.
    """

    def __init__(
        self,
        nodeid: str = "",
        *,
        narrow_meta: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        narrow_headers: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        bounces: Bounces | None = None,
    ) -> None:
        self._nodeid = nodeid
        self._narrow_meta = narrow_meta
        self._narrow_headers = narrow_headers
        self._bounces = bounces
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._codes: dict[str, _EnhancedCode | None] = {"": None}
        self._now = _Instants()
        self._created = _Instants()

    def encode(self, records: Sequence[Record]) -> bytes:
        """The lines, each ended by LF. Never raises for what a record holds: a value that cannot be
        written is replaced, and the line still appears."""
        try:
            lines = self._encoder.encode_lines([self._line(record) for record in records])
        except Exception:
            # Captured metadata is the policy's: find the record whose value cannot be written.
            lines = b"".join([self._encode_one(record) for record in records])
        if _DEL in lines or _C1_LEAD in lines:
            lines = _without_controls(lines)
        return lines

    def _encode_one(self, record: Record) -> bytes:
        try:
            return self._encoder.encode(self._line(record)) + b"\n"
        except Exception:
            line = self._line(_plain(record))
            return self._encoder.encode(line) + b"\n"

    def _line(self, record: Record) -> _Line:
        timestamp = record.timestamp
        created = record.created
        age = None
        if created:
            if record.type != "Reception":
                age = timestamp - created
                age = round(age, 6) if age > 0.0 else 0.0
        else:
            created = timestamp
        enhanced = record.enhanced_code
        codes = self._codes
        code = codes[enhanced] if enhanced in codes else self._code(enhanced)
        command = record.command
        address = record.peer_addr
        name = record.peer_name
        source = record.source_address
        meta = record.meta
        if meta is None:
            meta = _NOTHING
        elif self._narrow_meta is not None:
            meta = self._narrow_meta(meta)
        headers = record.headers
        if headers is None:
            headers = _NOTHING
        elif self._narrow_headers is not None:
            headers = self._narrow_headers(headers)
        due = record.next_due
        return _Line(
            SCHEMA,
            record.type,
            record.id,
            record.sender,
            record.recipient,
            record.queue,
            record.site,
            record.size,
            _Response(record.code, code, record.content, command + "\r\n" if command else None),
            None if address is None and name is None else _PeerAddress(name or "", address or ""),
            int(timestamp),
            self._now.text(timestamp),
            int(created),
            self._created.text(created),
            record.num_attempts,
            bounce_class(record, self._bounces),
            record.egress_pool,
            record.egress_source,
            None if source is None else _SourceAddress(source),
            record.delivery_protocol,
            record.reception_protocol,
            None,
            meta,
            headers,
            self._nodeid,
            record.session_id,
            record.provider_name,
            record.tls_cipher,
            record.tls_protocol_version,
            record.tls_peer_name,
            record.tls_peer_subject_name,
            record.tls_verified,
            record.tls_why,
            record.tls_resumed,
            record.tls_pin,
            record.tls_client_certificate,
            record.tls_sts,
            record.dane_result,
            record.smtp_auth_user,
            record.smtp_auth_mechanism,
            record.smtp_auth_version,
            record.cause,
            None if due is None else self._now.text(due),
            record.attempt_ms,
            age,
            record.dropped,
        )

    def _code(self, text: str) -> _EnhancedCode | None:
        """The parts of an enhanced status code (RFC 3463 section 2); None if it is none."""
        try:
            parts = [int(part) for part in text.split(".")]
            code = _EnhancedCode(*parts) if len(parts) == 3 else None
        except ValueError:
            code = None
        if len(self._codes) < 10_000:  # peers choose these: the cache must not grow for ever
            self._codes[text] = code
        return code


class _Instants:
    """RFC 3339 in UTC with microseconds; events come in order, so the second is remembered."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, instant: float) -> str:
        second = int(instant)
        if second != self._second:
            try:
                self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            except (OverflowError, ValueError, OSError):
                return "1970-01-01T00:00:00.000000Z"
            self._second = second
        return f"{self._text}.{int((instant - second) * 1e6):06d}Z"


def _plain(record: Record) -> Record:
    """A copy in which all text can be encoded and captured data is reduced to text."""

    def text(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, list):
            return [text(item) for item in value]
        if isinstance(value, dict):
            return {text(str(key)): _shown(item) for key, item in value.items()}
        return value

    return Record(**{field: text(getattr(record, field)) for field in record.__struct_fields__})


def _shown(value: Any) -> str:
    try:
        shown = str(value)
    except Exception:
        shown = f"(a {type(value).__name__} that cannot be shown)"
    return shown.encode("utf-8", "replace").decode()


def _without_controls(lines: bytes) -> bytes:
    lines = lines.replace(_DEL, b"\\u007f")
    if _C1_LEAD in lines:
        for raw, escaped in _C1:
            if raw in lines:
                lines = lines.replace(raw, escaped)
    return lines
