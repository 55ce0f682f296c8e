"""Messages like the ones people send, for the demo: built once with the standard library."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

__all__ = ["samples"]

_TEXTS = [
    ("Your order has shipped", "Hello,\n\nyour order left our warehouse today.\n\n.\n..two dots\nRegards\n"),
    ("Grüße aus Köln", "Schöne Grüße,\nmit Umlauten: äöüß und einem Euro: €\n"),
    (
        "Meeting notes",
        "\n".join(f"{i}. item number {i}, with some text behind it" for i in range(1, 60)) + "\n",
    ),
    ("Re: the posthorn", "> a quoted line\n\nIt is a valveless brass instrument that announced the mail.\n"),
]


def samples() -> list[bytes]:
    """A dozen complete messages with CRLF line ends: plain, UTF-8, HTML alternative, attachment."""
    messages: list[bytes] = []
    for number, (subject, text) in enumerate(_TEXTS):
        for kind in ("plain", "html", "attachment"):
            message = EmailMessage()
            message["From"] = "Newsletter <news@sender.example>"
            message["To"] = "Reader <reader@domain.example>"
            message["Subject"] = subject
            message["Date"] = format_datetime(datetime.now(UTC))
            message["Message-ID"] = make_msgid(f"demo-{number}-{kind}", "sender.example")
            message.set_content(text, cte="8bit" if not text.isascii() else None)
            if kind != "plain":
                paragraphs = "".join(f"<p>{line}</p>" for line in text.split("\n") if line)
                message.add_alternative(f"<html><body>{paragraphs}</body></html>", subtype="html")
            if kind == "attachment":
                message.add_attachment(
                    bytes(range(256)) * 8,
                    maintype="application",
                    subtype="octet-stream",
                    filename="table.bin",
                )
            raw = message.as_bytes()
            messages.append(raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return messages
