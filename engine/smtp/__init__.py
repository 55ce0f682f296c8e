"""SMTP without sockets: octets in, events out; no clock, no log, no waiting."""

from .address import NULL, Address, AddressError, parse_path_full, route_domain
from .auth import MECHANISMS, Credentials, client_mechanism, server_mechanism
from .client import Capabilities, ClientSession
from .events import (
    Auth,
    AuthDone,
    BodyReceived,
    ClientEvent,
    Data,
    Finished,
    GoAhead,
    Greeting,
    Hello,
    HelloDone,
    Mail,
    QuitDone,
    Rcpt,
    Refusal,
    Rsetted,
    ServerEvent,
    StartTls,
    StartTlsReply,
    Transaction,
    Unsolicited,
)
from .masking import Masker
from .reply import Reply
from .server import ServerConfig, ServerSession

__all__ = [
    "MECHANISMS",
    "NULL",
    "Address",
    "AddressError",
    "Auth",
    "AuthDone",
    "BodyReceived",
    "Capabilities",
    "ClientEvent",
    "ClientSession",
    "Credentials",
    "Data",
    "Finished",
    "GoAhead",
    "Greeting",
    "Hello",
    "HelloDone",
    "Mail",
    "Masker",
    "QuitDone",
    "Rcpt",
    "Refusal",
    "Reply",
    "Rsetted",
    "ServerConfig",
    "ServerEvent",
    "ServerSession",
    "StartTls",
    "StartTlsReply",
    "Transaction",
    "Unsolicited",
    "client_mechanism",
    "parse_path_full",
    "route_domain",
    "server_mechanism",
]
