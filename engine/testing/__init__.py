"""Testing policies: ask them, or run the real engine with them among scripted next hops. See docs/testing.md;
users import all of this from `policy.testing`."""

from engine.ca import ThrowAwayCa
from engine.spool import MemoryStore

from .client import Client, Said, Submission
from .clock import Stuck, run, scenario, sleep
from .hop import DROP, HANG, PLAIN, Arrived, NextHop, Wire, slowly
from .journal import Journal
from .personas import (
    CountsFailedLogins,
    ExpiredCertificate,
    LiesAboutSize,
    LimitsConnections,
    RestartsBackEnd,
    Storm,
    StripsStartTls,
    TarPit,
)
from .questions import Questions, Road, Route, load
from .relay import Relay, open_relay
from .secrets import Secrets
from .zones import REFUSED, SERVFAIL, TIMEOUT, StaticDns

__all__ = [
    "DROP",
    "HANG",
    "PLAIN",
    "REFUSED",
    "SERVFAIL",
    "TIMEOUT",
    "Arrived",
    "Client",
    "CountsFailedLogins",
    "ExpiredCertificate",
    "Journal",
    "LiesAboutSize",
    "LimitsConnections",
    "MemoryStore",
    "NextHop",
    "Questions",
    "Relay",
    "RestartsBackEnd",
    "Road",
    "Route",
    "Said",
    "Secrets",
    "StaticDns",
    "Storm",
    "StripsStartTls",
    "Stuck",
    "Submission",
    "TarPit",
    "ThrowAwayCa",
    "Wire",
    "load",
    "open_relay",
    "run",
    "scenario",
    "sleep",
    "slowly",
]
