"""Signed DNS on this machine: NSD serves zones, Unbound validates what it serves, both on loopback ports of
their own and with a trust anchor of their own. The system's name servers are neither read nor touched.

`SIGNED` is signed and anchored, `UNSIGNED` is not. Names that a test forges after the signing are bogus.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dns.dnssec
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec
from dns.dnssectypes import Algorithm

from tests.support.ports import free_port, until
from tests.support.programs import need

__all__ = ["SIGNED", "UNSIGNED", "SignedDns", "run_signed_dns"]

SIGNED, UNSIGNED = "signed.example", "unsigned.example"

_HEAD = """\
$ORIGIN {zone}
$TTL 60
@ SOA ns.signed.example. root.signed.example. 1 3600 600 86400 60
@ NS ns.signed.example.
"""

_NSD = """\
server:
  ip-address: 127.0.0.1@{port}
  username: ""
  chroot: ""
  database: ""
  server-count: 1
  zonesdir: "{directory}"
  pidfile: "{directory}/nsd.pid"
  logfile: "{directory}/nsd.log"
  xfrdfile: "{directory}/xfrd.state"
  xfrdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
remote-control:
  control-enable: no
{zones}
"""

_UNBOUND = """\
server:
  interface: 127.0.0.1@{port}
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  num-threads: 1
  outgoing-range: 64
  do-not-query-localhost: no
  qname-minimisation: no
  module-config: "{modules}"
  {anchor}
remote-control:
  control-enable: no
{stubs}
"""


class SignedDns:
    """Running servers. `validating` and `trusting`: ``address:port`` of a resolver that validates, and of one
    that believes everything."""

    def __init__(self, validating: str, trusting: str) -> None:
        self.validating = validating
        self.trusting = trusting


@contextmanager
def run_signed_dns(
    signed: Sequence[str], unsigned: Sequence[str] = (), *, forged: Mapping[str, str] | None = None
) -> Iterator[SignedDns]:
    """Serve these records (lines of a zone file, names relative to the zone). `forged`: text in the signed
    zone, and what stands there instead after the signing."""
    nsd, unbound = need("nsd", "nsd"), need("unbound", "unbound")
    directory = Path(tempfile.mkdtemp(prefix="posthorn-dns-"))
    try:
        ns = "ns A 127.0.0.1"
        text, anchor = _sign(_zone(SIGNED, [ns, *signed]))
        for before, after in (forged or {}).items():
            assert before in text, f"{before} does not stand in the signed zone:\n{text}"
            text = text.replace(before, after)
        (directory / "anchor").write_text(anchor)
        (directory / f"{SIGNED}.zone").write_text(text)
        (directory / f"{UNSIGNED}.zone").write_text(_zone(UNSIGNED, unsigned))
        (directory / "root.zone").write_text(_zone("", []))
        zones = {SIGNED: f"{SIGNED}.zone", UNSIGNED: f"{UNSIGNED}.zone", ".": "root.zone"}
        with ExitStack() as stack:
            served = free_port()
            listed = "\n".join(
                f'zone:\n  name: "{name}"\n  zonefile: "{file}"' for name, file in zones.items()
            )
            config = directory / "nsd.conf"
            config.write_text(_NSD.format(port=served, directory=directory, zones=listed))
            stack.enter_context(_running([nsd, "-d", "-c", str(config)], directory, served))
            resolvers: list[str] = []
            for modules, line in (
                ("validator iterator", f'trust-anchor-file: "{directory}/anchor"'),
                ("iterator", ""),
            ):
                port = free_port()
                stubs = "\n".join(
                    f'stub-zone:\n  name: "{name}"\n  stub-addr: 127.0.0.1@{served}' for name in zones
                )
                config = directory / f"unbound-{port}.conf"
                config.write_text(
                    _UNBOUND.format(port=port, directory=directory, modules=modules, anchor=line, stubs=stubs)
                )
                stack.enter_context(_running([unbound, "-d", "-p", "-c", str(config)], directory, port))
                resolvers.append(f"127.0.0.1:{port}")
            yield SignedDns(*resolvers)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _zone(name: str, lines: Sequence[str]) -> str:
    return _HEAD.format(zone=f"{name}.") + "\n".join(lines) + "\n"


def _sign(text: str) -> tuple[str, str]:
    """The signed zone and its trust anchor, both as text."""
    zone = dns.zone.from_text(text, relativize=False)
    key = ec.generate_private_key(ec.SECP256R1())
    public = dns.dnssec.make_dnskey(key.public_key(), Algorithm.ECDSAP256SHA256, flags=257)
    dns.dnssec.sign_zone(
        zone, keys=[(key, public)], dnskey_ttl=60, lifetime=86400, inception=int(time.time()) - 3600
    )
    assert zone.origin is not None
    anchor = f"{zone.origin.to_text()} IN DNSKEY {public.to_text()}\n"
    return zone.to_text(relativize=False), anchor


@contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """A server in the foreground, in a process group of its own, once it answers."""
    output = directory / f"{Path(command[0]).name}-{port}.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )
    question = dns.message.make_query(SIGNED, dns.rdatatype.SOA)

    def answers() -> bool:
        assert process.poll() is None, f"{command[0]} ended:\n{output.read_text()}"
        with contextlib.suppress(OSError, dns.exception.DNSException):
            return bool(dns.query.udp(question, "127.0.0.1", timeout=0.5, port=port).answer)
        return False

    try:
        until(answers, seconds=20, what=lambda: f"{command[0]} answers at {port}:\n{output.read_text()}")
        yield
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
