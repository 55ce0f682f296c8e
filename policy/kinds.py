"""The kinds of value that options take, as annotated types: ``connect_timeout: Timeout = 60.0``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from .errors import Wrong, a_type
from .keysource import FORMS, KeyRef, read_key
from .nets import CidrSet, SocketAddress, parse_cidr_set, parse_host, parse_ip, parse_listen
from .options import Kind
from .units import (
    Floor,
    Limit,
    Named,
    Throttle,
    parse_duration,
    parse_floor,
    parse_limit,
    parse_size,
    parse_throttle,
)

__all__ = [
    "AtMost",
    "AuthName",
    "Count",
    "Directory",
    "File",
    "Free",
    "HostAddress",
    "HostName",
    "Ip",
    "Key",
    "Level",
    "ListenAddress",
    "LogDirectory",
    "NamedLimits",
    "NamedRates",
    "Names",
    "Networks",
    "Number",
    "Port",
    "Rate",
    "Seconds",
    "ServerName",
    "Size",
    "Text",
    "Timeout",
]

_DURATION = 'a duration: seconds, or text such as "5 minutes", "1h 30m" or "500ms"'


def _timeout(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise Wrong("is 0")
    return seconds


def _integer(least: int, most: int | None = None) -> Kind:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong(f"is no whole number but {a_type(value)}")
        if value < least or (most is not None and value > most):
            raise Wrong("is out of range")
        return value

    return Kind(f"a whole number of at least {least}" + (f" and at most {most}" if most else ""), read)


def _text(value: Any) -> str:
    """Text on one line: a control character in it could end a command or a record (reliability C32)."""
    if not isinstance(value, str):
        raise Wrong(f"is no text but {a_type(value)}")
    if not value:
        raise Wrong("is empty")
    if not value.isprintable():
        raise Wrong("holds a control character")
    return value


def _ehlo_name(value: Any) -> str:
    text = _text(value)
    if not text.isascii() or " " in text or len(text) > 255:
        raise Wrong("cannot be sent with EHLO")
    if text.startswith("[") and text.endswith("]"):
        literal = text[1:-1]
        parse_ip(literal[5:] if literal[:5].lower() == "ipv6:" else literal)
    else:
        parse_host(text)
    return text


def _server_name(value: Any) -> str:
    text = _text(value)
    try:
        return parse_ip(text)
    except Wrong:
        if not text.isascii():
            raise Wrong("is not ASCII; write the A-label form (xn--...)") from None
        return parse_host(text)


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise Wrong("is no list of names")
    return tuple(_text(name) for name in value)


def _named(read: Callable[[Any], Any]) -> Callable[[Any], Named[Any]]:
    """Reads a mapping of names to what `read` reads."""

    def entries(value: Any) -> Named[Any]:
        if value is None:
            return Named()
        if not isinstance(value, Mapping):
            raise Wrong(f"is no mapping but {a_type(value)}")
        found = {}
        for name, item in value.items():
            try:
                found[_text(name)] = read(item)
            except Wrong as wrong:
                raise Wrong(f"{name!r}: {wrong}") from None
        return Named(found)

    return entries


def _host_address(value: Any) -> SocketAddress:
    address = parse_listen(value)
    if not address.port:
        raise Wrong("has port 0")
    return address


Seconds = Annotated[float, Kind(_DURATION, parse_duration)]
"""A duration that may be 0."""
Timeout = Annotated[float, Kind(_DURATION + ", above 0", _timeout)]
Rate = Annotated[
    Throttle, Kind('a rate such as "100/s", "20/30minute" or "local:5/h,max_burst=1"', parse_throttle)
]
AtMost = Annotated[
    Limit, Kind('a limit of at least 1: an integer, or text such as "1,000" or "local:20"', parse_limit)
]
NamedLimits = Annotated[
    Named[Limit], Kind('a mapping of names to limits, such as {"provider-x": 10}', _named(parse_limit))
]
NamedRates = Annotated[
    Named[Throttle],
    Kind('a mapping of names to rates, such as {"provider-x": "100/s"}', _named(parse_throttle)),
]
Count = Annotated[int, _integer(1)]
Number = Annotated[int, _integer(0)]
Port = Annotated[int, _integer(1, 65535)]
Level = Annotated[int, _integer(0, 21)]
Size = Annotated[int, Kind('a size: octets, or text such as "50 MiB"', parse_size)]
Free = Annotated[Floor, Kind('"10%", an amount such as "1 GiB", or both: "10% or 1 GiB"', parse_floor)]
Networks = Annotated[
    CidrSet, Kind('a list of IP addresses and networks such as ["10.0.0.0/8", "::1"]', parse_cidr_set)
]
Ip = Annotated[str, Kind("an IP address without brackets", parse_ip)]
Key = Annotated[KeyRef, Kind(f"a key source: {FORMS}", read_key, secret=True)]
Text = Annotated[str, Kind("text on one line", _text)]
Directory = Annotated[str, Kind('the path of a directory, such as "var/spool"', _text)]
File = Annotated[str, Kind('the path of a file, such as "ca.pem"', _text)]
LogDirectory = Annotated[
    str, Kind('the path of a directory, such as "var/log", or "-" for standard output', _text)
]
AuthName = Annotated[str, Kind("a user name without control characters", _text)]
HostName = Annotated[str, Kind("a host name, or an address literal such as [192.0.2.1]", _ehlo_name)]
ServerName = Annotated[str, Kind("a host name or an IP address", _server_name)]
Names = Annotated[tuple[str, ...], Kind("a list of names", _names)]
ListenAddress = Annotated[SocketAddress, Kind('"ip:port" or "[ipv6]:port"', parse_listen)]
HostAddress = Annotated[SocketAddress, Kind('"ip:port" or "[ipv6]:port"', _host_address)]
