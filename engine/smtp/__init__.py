"""SMTP without sockets: octets in, events out; no clock, no log, no waiting."""

from .address import NULL, Address, AddressError, parse_path_full, route_domain
from .auth import MECHANISMS, Mechanism, client_mechanism, server_mechanism
from .capabilities import Capabilities
from .client import ClientSession
from .events import (
    Auth,
    AuthChallenge,
    AuthDone,
    AuthLookup,
    BodyReceived,
    ClientEvent,
    Data,
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
    Unsolicited,
)
from .masking import Masker
from .reply import Reply
from .sasl import Binding, ClientMechanism, Context, Credentials, Known, Lookup, SaslError
from .scram import password_fits
from .server import ServerSession
from .serverconfig import ServerConfig
from .transaction import Finished, GoAhead, Transaction

__all__ = [
    "MECHANISMS",
    "NULL",
    "Address",
    "AddressError",
    "Auth",
    "AuthChallenge",
    "AuthDone",
    "AuthLookup",
    "Binding",
    "BodyReceived",
    "Capabilities",
    "ClientEvent",
    "ClientMechanism",
    "ClientSession",
    "Context",
    "Credentials",
    "Data",
    "Finished",
    "GoAhead",
    "Greeting",
    "Hello",
    "HelloDone",
    "Known",
    "Lookup",
    "Mail",
    "Masker",
    "Mechanism",
    "QuitDone",
    "Rcpt",
    "Refusal",
    "Reply",
    "Rsetted",
    "SaslError",
    "ServerConfig",
    "ServerEvent",
    "ServerSession",
    "StartTls",
    "StartTlsReply",
    "Transaction",
    "Unsolicited",
    "client_mechanism",
    "parse_path_full",
    "password_fits",
    "route_domain",
    "server_mechanism",
]
