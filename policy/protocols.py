"""What hooks are handed: the shapes of the engine's objects, so that policies type-check without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["Address", "ConnectionMeta", "Message"]


class Address(Protocol):
    """An envelope address. ``str(address)`` is its text as given, ``""`` for the null reverse-path."""

    @property
    def user(self) -> str:
        """The local part without quoting."""
        ...

    @property
    def domain(self) -> str:
        """The domain as given; ``""`` for the null reverse-path and for a bare Postmaster."""
        ...

    @property
    def email(self) -> str:
        """The whole address as given."""
        ...


class ConnectionMeta(Protocol):
    """Facts about an SMTP session, and room for a policy's own.

    Set by the engine: `reception_protocol`, `received_from`, `received_via` ("ip:port"), `hostname`,
    `ehlo_domain`, `authn_id`, `authz_id`, `tls_cipher`, `tls_protocol_version`. Names of your own
    begin with ``x_``. All of it becomes meta of the session's messages.
    """

    def get_meta(self, name: str) -> Any:
        """The value, or None."""
        ...

    def set_meta(self, name: str, value: Any) -> None:
        """Set one value: anything that JSON can hold. Raises: TypeError, ValueError."""
        ...

    def del_meta(self, name: str) -> None:
        """Forget one value; nothing happens when there is none."""
        ...


class Message(Protocol):
    """A message that is being accepted: envelope, meta and content."""

    def id(self) -> str:
        """Its id, as in records and in the reply to the client."""
        ...

    def sender(self) -> Address:
        """The reverse-path."""
        ...

    def set_sender(self, sender: str) -> None:
        """Replace the reverse-path; ``""`` for the null one. Raises: ValueError."""
        ...

    def recipient(self) -> Address | Sequence[Address]:
        """The forward-path; a list when there are several."""
        ...

    def recipient_list(self) -> Sequence[Address]:
        """The forward-paths, always a list."""
        ...

    def set_recipient(self, recipient: str | list[str]) -> None:
        """Replace the forward-paths: one address, or several. Raises: ValueError."""
        ...

    def get_meta(self, name: str) -> Any:
        """The value, or None. `tenant`, `campaign` and `routing_domain` choose the queue."""
        ...

    def set_meta(self, name: str, value: Any) -> None:
        """Set one value: anything that JSON can hold. Raises: TypeError, ValueError."""
        ...

    def del_meta(self, name: str) -> None:
        """Forget one value; nothing happens when there is none."""
        ...

    def queue_name(self) -> str:
        """The scheduled queue it is going to."""
        ...

    def get_data(self) -> bytes:
        """The whole content, header and body, with CR LF line ends."""
        ...

    def set_data(self, data: bytes) -> None:
        """Replace the whole content."""
        ...

    def get_first_named_header_value(self, name: str) -> str | None:
        """The value of the first field of that name, decoded; None when there is none."""
        ...

    def get_all_named_header_values(self, name: str) -> list[str]:
        """The values of all fields of that name, decoded."""
        ...

    def get_all_headers(self) -> list[tuple[str, str]]:
        """Name and decoded value of every field, in order."""
        ...

    def prepend_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Add a field above all others.

        What is not ASCII becomes RFC 2047 encoded words, or stays UTF-8 with `utf8`; the message then
        needs SMTPUTF8 on its way. Raises: ValueError for a control character in name or value.
        """
        ...

    def append_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Add a field below all others; otherwise as `prepend_header`."""
        ...

    def set_header(self, name: str, value: str, *, utf8: bool = False) -> None:
        """Replace the first field of that name where it stands and remove the others; append it when
        there is none. Otherwise as `prepend_header`."""
        ...

    def remove_all_named_headers(self, name: str) -> None:
        """Remove every field of that name."""
        ...

    def remove_x_headers(self, names: list[str] | None = None) -> None:
        """Remove every ``X-`` field, or those of the names given."""
        ...

    def import_x_headers(self, names: list[str] | None = None) -> None:
        """Copy ``X-`` fields into meta: ``X-Tenant-Id`` becomes ``x_tenant_id``."""
        ...
