"""Asking the DNS: one question at a time, answers as plain values.

`Dns` is the seam; tests put static zones behind it. `StubResolver` is the real one, dnspython on Trio.
It opens a fresh socket per query, so the kernel draws the port and dnspython the id at random and neither
can collide with another query under way; answers from elsewhere, to another question, or unparseable
are ignored and do not end the wait (CVE-2023-29483).

Whether an answer was validated by DNSSEC is the name server's word, the AD bit (RFC 4035 3.2.3), which counts
only from a server on this machine: on the way from any other one it could be forged (reliability P1).

`Memo` remembers: bounded, by TTL, one lookup at a time per name however many callers want it.
`HostsFile` reads ``/etc/hosts``, asked for routes an operator wrote and never for strangers' domains.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from ipaddress import ip_address
from typing import Generic, Literal, Protocol, TypeVar

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver
import msgspec
import trio

from engine.egress.site import BadName, parse_endpoint
from engine.errors import ConfigError, ResolveError

__all__ = ["Answer", "Dns", "HostsFile", "Kind", "Memo", "StubResolver", "is_local_address"]

Kind = Literal["MX", "A", "AAAA", "CNAME", "TLSA", "TXT"]

MIN_TTL = 5.0
MAX_TTL = 86400.0
FAILURE_TTL = 30.0
"""Seconds a failed lookup is remembered (reliability N4)."""

_CNAME_LIMIT = 8  # reliability N3
_TRY_SECONDS = 1.5  # one server, one try; three servers fit into _LIFETIME
_LIFETIME = 4.8  # just under the resolver's own 5 s, so that the error can name the servers
_CONFIG_CHECK = 30.0  # how often a changed resolv.conf is noticed, seconds
_PROVEN = 300.0  # how long a server that validated once is taken to go on doing so, seconds
_DOUBTED = 60.0  # how long one that did not, or could not be asked, is left alone, seconds
_EDNS_PAYLOAD = 1232  # DNS flag day 2020: no fragmentation; longer answers come by TCP


class Answer(msgspec.Struct, frozen=True):
    """What the DNS said. `records` are (preference, host) for MX; (0, text) else: an address, a name, a TLSA
    record as in a zone, the strings of a TXT record joined, a character for each octet.

    ``empty``: the name exists but has no such records. ``nxdomain``: the name does not exist.
    `ttl` in seconds, as received. `secure`: all of it, aliases on the way and an absence too, was validated
    by DNSSEC, and that was said by somebody who is to be believed. `alias`: where CNAMEs led to, "": there
    was none.
    """

    status: Literal["found", "empty", "nxdomain"]
    records: tuple[tuple[int, str], ...] = ()
    ttl: float = FAILURE_TTL
    secure: bool = False
    alias: str = ""


class Dns(Protocol):
    """One DNS question."""

    async def query(self, name: str, kind: Kind) -> Answer:
        """Ask for the records of an A-label name (made absolute; no search list), CNAMEs followed.

        An MX host is returned without its final dot; the root (null MX) is "".

        Raises: ResolveError when there is no answer now: SERVFAIL, REFUSED, time-out, no server.
        """
        ...

    async def distrust(self) -> str:
        """Why no answer can be `secure`, whatever the zones are; "" when nothing speaks against it."""
        ...


class StubResolver:
    """`Dns` by dnspython. Servers come from ``/etc/resolv.conf``, or are given: ``address[:port]``.

    A changed resolv.conf is noticed within half a minute.
    """

    def __init__(self, servers: Sequence[str] = (), *, resolv_conf: str = "/etc/resolv.conf") -> None:
        self._resolv_conf = resolv_conf
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._changed: tuple[int, int] | None = None
        self._checked = -_CONFIG_CHECK
        self._backend = dns.asyncbackend.get_backend("trio")
        self._fixed = bool(servers)
        self._doubts: Memo[str, str] = Memo(16)
        self._proven: dict[str, float] = {}
        """When each name server last validated something."""
        if servers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [_server(text) for text in servers]
            self._resolver = _tuned(resolver)

    async def query(self, name: str, kind: Kind) -> Answer:
        resolver = self._resolver if self._fixed else await self._configured()
        if resolver is None:
            raise ResolveError(f"no name server: cannot read {self._resolv_conf}", stage="resolve")
        local = not _remote(resolver)
        try:
            answer = await self._resolve(resolver, name, kind)
        except dns.resolver.NXDOMAIN as error:
            response: dns.message.QueryMessage = error.response(  # type: ignore[no-untyped-call]
                dns.name.from_text(name + ".")
            )
            # Which server it was is not said, and so nothing is proven.
            secure = local and bool(response.flags & dns.flags.AD)
            return Answer("nxdomain", ttl=float(response.resolve_chaining().minimum_ttl), secure=secure)
        except (dns.exception.DNSException, OSError) as error:
            # dnspython has no order of exceptions here: all that is not NXDOMAIN is "no answer now".
            raise _failed(name, kind, _reason(error)) from error
        chain = answer.chaining_result
        if len(chain.cnames) > _CNAME_LIMIT:
            raise _failed(name, kind, f"more than {_CNAME_LIMIT} aliases")
        secure = local and self._validated(answer)
        alias = chain.canonical_name.to_text(omit_final_dot=True).lower() if chain.cnames else ""
        if answer.rrset is None:
            return Answer("empty", ttl=float(chain.minimum_ttl), secure=secure, alias=alias)
        if kind == "MX":
            records = tuple((rr.preference, rr.exchange.to_text(omit_final_dot=True)) for rr in answer.rrset)
            records = tuple((preference, "" if host in (".", "@") else host) for preference, host in records)
        elif kind == "TXT":
            records = tuple((0, b"".join(rr.strings).decode("latin-1")) for rr in answer.rrset)
        elif kind == "CNAME":
            records = tuple((0, rr.target.to_text(omit_final_dot=True)) for rr in answer.rrset)
        elif kind == "TLSA":
            records = tuple((0, rr.to_text()) for rr in answer.rrset)
        else:
            records = tuple((0, rr.address) for rr in answer.rrset)
        return Answer("found", records, float(chain.minimum_ttl), secure, alias)

    async def _resolve(
        self, resolver: dns.asyncresolver.Resolver, name: str, kind: str
    ) -> dns.resolver.Answer:
        return await resolver.resolve(
            dns.name.from_text(name + "."),
            dns.rdatatype.RdataType.make(kind),
            raise_on_no_answer=False,
            search=False,
            backend=self._backend,
        )

    def _validated(self, answer: dns.resolver.Answer) -> bool:
        secure = bool(answer.response.flags & dns.flags.AD)
        if secure:
            self._proven[f"{answer.nameserver}:{answer.port}"] = trio.current_time()
        return secure

    async def distrust(self) -> str:
        """See `Dns`. Each server that has not validated anything for five minutes is asked about the root,
        which is signed: when the others refuse to give what was forged (SERVFAIL) it is asked instead."""
        resolver = self._resolver if self._fixed else await self._configured()
        if resolver is None:
            return ""  # there are no answers, either
        if remote := _remote(resolver):
            return f"the name server {remote} is not on loopback, so what it says of DNSSEC does not count"
        doubts: list[str] = []

        async def ask(name: str, server: dns.nameserver.Nameserver) -> tuple[str, float]:
            alone = dns.asyncresolver.Resolver(configure=False)
            alone.nameservers = [server]
            try:
                answer = await self._resolve(_tuned(alone, _TRY_SECONDS), "", "SOA")
            except (dns.exception.DNSException, OSError):
                return "", _DOUBTED  # it says nothing of the root, so nothing can be said of it
            if self._validated(answer):
                return "", _PROVEN
            return f"the name server {name} does not validate: the root's SOA came without AD", _DOUBTED

        async def doubt(name: str, server: dns.nameserver.Nameserver) -> None:
            doubts.append(await self._doubts.fetch(name, lambda: ask(name, server)))

        since = trio.current_time() - _PROVEN
        unproven = {
            name: one for name, one in _servers(resolver) if self._proven.get(name, float("-inf")) <= since
        }
        if unproven:
            async with trio.open_nursery() as nursery:
                for name, server in unproven.items():
                    nursery.start_soon(doubt, name, server)
        return min(filter(None, doubts), default="")

    async def _configured(self) -> dns.asyncresolver.Resolver | None:
        now = trio.current_time()
        if now - self._checked >= _CONFIG_CHECK or self._resolver is None:
            self._checked = now
            found = await trio.to_thread.run_sync(_read_config, self._resolv_conf, self._changed)
            if found is not None:
                self._resolver, self._changed = found
                self._proven.clear()  # by those before
                self._doubts.clear()
        return self._resolver


def _read_config(
    path: str, changed: tuple[int, int] | None
) -> tuple[dns.asyncresolver.Resolver, tuple[int, int]] | None:
    """A resolver for this file, or None when it is as before or cannot be used (then the old one stays)."""
    try:
        status = os.stat(path)
        now = (status.st_mtime_ns, status.st_ino)
        if now == changed:
            return None
        return _tuned(dns.asyncresolver.Resolver(path)), now
    except (OSError, ValueError, dns.exception.DNSException):
        return None


def _tuned(resolver: dns.asyncresolver.Resolver, lifetime: float = _LIFETIME) -> dns.asyncresolver.Resolver:
    resolver.timeout = _TRY_SECONDS
    resolver.lifetime = lifetime
    resolver.use_edns(0, 0, _EDNS_PAYLOAD)
    # With AD in the question we ask for it in the answer, without signatures (RFC 6840 5.7).
    resolver.flags = dns.flags.RD | dns.flags.AD
    return resolver


def _remote(resolver: dns.asyncresolver.Resolver) -> str:
    """The first server that is not on this machine. One is enough: whoever can silence the others then
    chooses what is believed."""
    for server in resolver.nameservers:
        address = server if isinstance(server, str) else getattr(server, "address", str(server))
        try:
            if ip_address(address).is_loopback:
                continue
        except ValueError:
            pass
        return str(address)
    return ""


def _servers(resolver: dns.asyncresolver.Resolver) -> Iterator[tuple[str, dns.nameserver.Nameserver]]:
    """Each name server, under the name by which an answer says where it came from. All are addresses."""
    for server in resolver.nameservers:
        one = dns.nameserver.Do53Nameserver(server, resolver.port) if isinstance(server, str) else server
        yield f"{one.answer_nameserver()}:{one.answer_port()}", one


def _server(text: str) -> dns.nameserver.Nameserver:
    try:
        endpoint = parse_endpoint(text)
    except BadName as error:
        raise ConfigError(f"name server {text!r} (POSTHORN_DNS_SERVERS): {error}") from error
    if not endpoint.literal:
        raise ConfigError(f"name server {text!r} (POSTHORN_DNS_SERVERS): right would be ip or ip:port")
    return dns.nameserver.Do53Nameserver(endpoint.host, endpoint.port or 53)


def _failed(name: str, kind: Kind, why: str) -> ResolveError:
    return ResolveError(f"DNS lookup of {name} {kind} failed: {why}", stage="resolve")


def _reason(error: BaseException) -> str:
    """The failure in a few words: dnspython's own text repeats the whole question for each server."""
    failures = error.kwargs.get("errors") if isinstance(error, dns.exception.DNSException) else None
    if not failures:
        return "timed out" if isinstance(error, dns.exception.Timeout) else type(error).__name__
    words: dict[str, None] = {}
    for server, _tcp, _port, cause, response in failures:
        if response is not None and response.rcode() != dns.rcode.NOERROR:
            what = dns.rcode.to_text(response.rcode())
        elif isinstance(cause, dns.exception.Timeout):
            what = "timed out"
        elif isinstance(cause, OSError):
            what = os.strerror(cause.errno) if cause.errno else "network error"
        else:
            what = "unusable answer"
        words[f"{server}: {what}"] = None
    return ", ".join(words)


def is_local_address(address: str) -> bool:
    """Whether this machine has the address. No packet is sent.

    The kernel answers: for a destination of our own it chooses that same address as the source.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return ip_address(probe.getsockname()[0]) == ip_address(address)
    except (OSError, ValueError):
        return False


class HostsFile:
    """``/etc/hosts`` (hosts(5)), read again when it changes. A missing file is an empty one."""

    def __init__(self, path: str = "/etc/hosts") -> None:
        self._path = path
        self._changed: tuple[int, int] | None = None
        self._checked = -_CONFIG_CHECK
        self._addresses: dict[str, tuple[str, ...]] = {}

    async def addresses(self, name: str) -> tuple[str, ...]:
        """Addresses of a lower-case name, in file order; empty when it is not listed."""
        now = trio.current_time()
        if now - self._checked >= MIN_TTL:
            self._checked = now
            found = await trio.to_thread.run_sync(_read_hosts, self._path, self._changed)
            if found is not None:
                self._addresses, self._changed = found
        return self._addresses.get(name, ())


def _read_hosts(
    path: str, changed: tuple[int, int] | None
) -> tuple[dict[str, tuple[str, ...]], tuple[int, int] | None] | None:
    try:
        status = os.stat(path)
        now = (status.st_mtime_ns, status.st_ino)
        if now == changed:
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return {}, None
    table: dict[str, tuple[str, ...]] = {}
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = str(ip_address(words[0]))
        except ValueError:
            continue
        for word in words[1:]:
            name = word.lower().removesuffix(".")
            table[name] = (*table.get(name, ()), address)
    return table, now


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(Generic[V]):
    """An answer, or a failure (`value` None), and until when it counts."""

    __slots__ = ("failure", "until", "value", "weight")

    def __init__(self, until: float, value: V | None, failure: str, weight: int) -> None:
        self.until = until
        self.value = value
        self.failure = failure
        self.weight = weight


class Memo(Generic[K, V]):
    """Answers and failures by key until they expire. Bounded (least recently used goes first), single flight.

    `capacity`: entries, each of which counts as many as `weigh` says of its value, one by default. There is
    no task behind it: the first caller asks, the others wait. If the first is cancelled, one of the waiting
    takes over.
    """

    def __init__(self, capacity: int, weigh: Callable[[V], int] | None = None) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._flights: dict[K, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget all that is known. Questions under way go on."""
        self._entries.clear()
        self._weight = 0

    def get(self, key: K) -> V | None:
        """The live answer, or None when there is none or the last lookup failed."""
        entry = self._live(key)
        return entry.value if entry is not None else None

    def known(self, key: K) -> bool:
        """Whether `fetch` would return or raise without asking."""
        return self._live(key) is not None

    def _live(self, key: K) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until <= trio.current_time():
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _put(self, key: K, ttl: float, value: V | None, failure: str) -> None:
        weight = self._weigh(value) if self._weigh is not None and value is not None else 1
        self._forget(key)
        self._entries[key] = _Entry(trio.current_time() + ttl, value, failure, weight)
        self._weight += weight
        while self._weight > self._capacity and len(self._entries) > 1:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: K) -> None:
        old = self._entries.pop(key, None)
        self._weight -= old.weight if old is not None else 0

    async def fetch(self, key: K, ask: Callable[[], Awaitable[tuple[V, float]]]) -> V:
        """The answer of `ask` (value, TTL in seconds; clamped to 5 s to 1 day), remembered.

        Raises: ResolveError from `ask`, also when a remembered failure is still fresh.
        Checkpoint: only when it has to wait.
        """
        while True:
            entry = self._live(key)
            if entry is not None:
                if entry.value is None:
                    raise ResolveError(entry.failure, stage="resolve")
                return entry.value
            flight = self._flights.get(key)
            if flight is not None:
                await flight.wait()
                continue
            flight = self._flights[key] = trio.Event()
            try:
                value, ttl = await ask()
                self._put(key, min(max(ttl, MIN_TTL), MAX_TTL), value, "")
                return value
            except ResolveError as error:
                self._put(key, FAILURE_TTL, None, str(error))
                raise
            finally:
                del self._flights[key]
                flight.set()
