"""What the sessions of a listener share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

__all__ = ["ServerConfig"]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener's sessions share. Sizes in octets."""

    hostname: str
    banner: str = "ESMTP Posthorn"
    max_message_size: int = 50 * 1024 * 1024
    max_recipients: int = 1000
    require_tls_for_auth: bool = True
    offer_starttls: bool = True
    offer_auth: tuple[str, ...] = ()
    nonce: Callable[[], str] | None = None
    """Makes fresh random text, without a comma; mechanisms that need chance are not offered without."""
    max_errors: int = 20
    max_noop: int = 100
    text_line_limit: int = 65536
    bare_lines: Literal["Deny", "Fix"] = "Deny"

    def extensions(self, *, tls: bool, mechanisms: Sequence[str]) -> list[str]:
        """What EHLO advertises; `mechanisms`: those of AUTH that work in this session."""
        offered = [
            "PIPELINING",
            f"SIZE {self.max_message_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
        ]
        if self.offer_starttls and not tls:
            offered.append("STARTTLS")
        if self.offer_auth and (tls or not self.require_tls_for_auth):
            offered.append("AUTH " + " ".join(mechanisms))
        return offered
