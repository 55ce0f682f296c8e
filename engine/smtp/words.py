"""What a server says again and again: fixed replies, encoded where nothing but octets is needed."""

from __future__ import annotations

from engine import _fast

from .reply import Reply

OK_MAIL = b"250 2.1.0 OK\r\n"
OK_RCPT = b"250 2.1.5 OK\r\n"
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
OK = Reply(250, "2.0.0", "OK")
BYE = Reply(221, "2.0.0", "Bye")
TLS_READY = Reply(220, "2.0.0", "Ready to start TLS")
LOGGED_IN = Reply(235, "2.7.0", "Authentication succeeded")
TOO_LONG = Reply(500, "5.5.2", "Line too long")
BARE_LINE = Reply(500, "5.5.2", "A command ends with CR LF only")
CONTROL_LINE = Reply(500, "5.5.2", "Control characters in a command")
BAD_LINES = {_fast.LINE_TOO_LONG: TOO_LONG, _fast.LINE_BARE: BARE_LINE, _fast.LINE_CONTROL: CONTROL_LINE}
UNKNOWN = Reply(500, "5.5.2", "Command not recognized")
ENOUGH_ERRORS = Reply(421, "4.7.0", "Too many errors")
TOO_MANY = Reply(452, "4.5.3", "Too many recipients")
INJECTED = Reply(554, "5.5.0", "Commands behind STARTTLS")
