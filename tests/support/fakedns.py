"""The zone tables of `engine.testing`, and a real server on loopback that answers from one."""

from __future__ import annotations

import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from engine.testing.zones import REFUSED, SERVFAIL, TIMEOUT, StaticDns, Zones, is_secure, lookup

__all__ = ["REFUSED", "SERVFAIL", "TIMEOUT", "StaticDns", "Zones", "run_dns", "serve_dns"]


@asynccontextmanager
async def serve_dns(zones: Zones, *, port: int = 0) -> AsyncIterator[str]:
    """A DNS server on 127.0.0.1 by UDP and TCP; gives its ``address:port``. Long answers come by TCP only."""
    udp, listeners = await _bind_both(port)
    port = udp.getsockname()[1]

    async def datagrams() -> None:
        while True:
            wire, peer = await udp.recvfrom(4096)
            answer = _respond(zones, wire, 512)
            if answer is not None:
                await udp.sendto(answer, peer)

    async def connection(stream: trio.SocketStream) -> None:
        with stream.socket:
            head = b""
            while len(head) < 2 or len(head) < 2 + struct.unpack("!H", head[:2])[0]:
                more = await stream.receive_some()
                if not more:
                    return
                head += more
            answer = _respond(zones, head[2:], 65535)
            if answer is not None:
                await stream.send_all(struct.pack("!H", len(answer)) + answer)

    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(datagrams)
            nursery.start_soon(trio.serve_listeners, connection, listeners)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                nursery.cancel_scope.cancel()


async def _bind_both(port: int) -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """The same port for UDP and TCP; with port 0 another one is tried when TCP's is taken."""
    for left in range(19, -1, -1):
        udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind(("127.0.0.1", port))
            return udp, await trio.open_tcp_listeners(udp.getsockname()[1], host="127.0.0.1")
        except OSError:
            udp.close()
            if port or not left:
                raise
    raise AssertionError("unreachable")


def _respond(zones: Zones, wire: bytes, limit: int) -> bytes | None:
    """The answer on the wire; None for a forced time-out. `limit` octets, else truncated."""
    query = dns.message.from_wire(wire)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    kind = dns.rdatatype.to_text(question.rdtype)
    status, found, ttl = lookup(zones, name, kind)
    if status == TIMEOUT:
        return None
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    if query.flags & dns.flags.AD and is_secure(zones, name, kind):
        response.flags |= dns.flags.AD
    response.set_rcode(dns.rcode.from_text(status))
    for owner, rdtype, texts in found:
        response.answer.append(dns.rrset.from_text(dns.name.from_text(owner), ttl, "IN", rdtype, *texts))
    if not found or found[-1][1] != kind:
        below = "" if name == "." else f"{name}."
        soa = f"ns.{below or '.'} root.{below or '.'} 1 3600 600 86400 {ttl}".replace("..", ".")
        response.authority.append(dns.rrset.from_text(dns.name.from_text(name), ttl, "IN", "SOA", soa))
    try:
        return response.to_wire(max_size=max(limit, query.payload if limit == 512 else limit))
    except dns.exception.TooBig:
        truncated = dns.message.make_response(query)
        truncated.flags |= dns.flags.RA | dns.flags.TC
        return truncated.to_wire()


@contextmanager
def run_dns(zones: Zones) -> Iterator[str]:
    """A name server in a thread; its ``address:port``. The table may be changed while it runs."""
    ready, found = threading.Event(), []
    token: list[trio.lowlevel.TrioToken] = []
    stop: list[trio.CancelScope] = []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            async with serve_dns(zones) as address:
                token.append(trio.lowlevel.current_trio_token())
                stop.append(scope)
                found.append(address)
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        token[0].run_sync_soon(stop[0].cancel)
        thread.join()
