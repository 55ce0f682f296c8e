"""engine/egress/broker.py: a credential reaches those that `release_to` lists, and nobody else."""

from __future__ import annotations

import ast
import base64
import ssl
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import policy
from engine.egress import broker
from engine.egress.broker import refusal
from engine.egress.resolve import Candidate
from engine.errors import HeldError, NetworkError, ReleaseRefused, RemoteProtocolError
from engine.net import TlsFacts, key_pin
from policy.release import Release, read_release
from tests.support.bench import to
from tests.support.certificates import Authority
from tests.support.peer import FakePeer, open_peer

from .dialing import open_dial

TRUSTED, STRANGER = Authority(), Authority()
GOOD, EVIL = TRUSTED.server_context("good.example"), TRUSTED.server_context("evil.example")
UNTRUSTED = STRANGER.server_context("good.example")
OFFERS = ("AUTH PLAIN",)
SECRET = "tiger-4711"


def pin_of(authority: Authority, name: str) -> tuple[ssl.SSLContext, str]:
    context = authority.server_context(name)
    pin = key_pin(ssl.PEM_cert_to_DER_cert(authority.last_certificate.decode()))
    assert pin is not None
    return context, pin


PINNED, PIN = pin_of(TRUSTED, "good.example")


def told(peer: FakePeer) -> bool:
    """Whether a peer was told the secret."""
    return any(
        SECRET.encode() in base64.b64decode(line.split()[-1])
        for line in peer.commands
        if line.startswith("AUTH PLAIN ")
    )


def bound(release_to: dict[str, Any] | None, **options: Any) -> Any:
    auth: dict[str, Any] = {"username": "scott", "password": {"key_data": SECRET}}
    if release_to is not None:
        auth["release_to"] = release_to
    return policy.make_egress_path(
        smtp_auth=auth, **{"tls_ca": {"key_data": TRUSTED.pem.decode()}, "enable_tls": "Required", **options}
    )


# By itself


class Wire:
    """What `refusal` looks at."""

    def __init__(
        self, peer: tuple[str, int], tls: TlsFacts | None, pin: str | None, name: str | None
    ) -> None:
        self.peer, self.tls, self.pin, self.name = peer, tls, pin, name

    def peer_pin(self) -> str | None:
        return self.pin

    def asked_name(self) -> str | None:
        return self.name


PINS = ["sha256//" + base64.b64encode(bytes([i]) * 32).decode() for i in range(3)]


@st.composite
def rules(draw: st.DrawFn) -> Release:
    every = {
        "names": st.lists(st.sampled_from(["a.example", "*.a.example", "b.example"]), min_size=1),
        "addresses": st.lists(st.sampled_from(["192.0.2.0/24", "::1", "198.51.100.7"]), min_size=1),
        "ports": st.lists(st.sampled_from([25, 465, 587]), min_size=1),
        "pins": st.lists(st.sampled_from(PINS), min_size=1),
        "tls_minimum_version": st.sampled_from(["TLSv1.2", "TLSv1.3"]),
    }
    names = draw(st.lists(st.sampled_from(sorted(every)), min_size=1, unique=True))
    return read_release({name: draw(every[name]) for name in names})


@given(
    rules(),
    st.sampled_from(["192.0.2.9", "198.51.100.7", "198.51.100.8", "::1", "2001:db8::5"]),
    st.sampled_from([25, 465, 587, 2525]),
    st.sampled_from([None, "TLSv1", "TLSv1.2", "TLSv1.3", ""]),
    st.booleans(),
    st.sampled_from([None, *PINS]),
    st.sampled_from([None, "a.example", "x.a.example", "b.example", "evil.example"]),
)
@settings(max_examples=200)
def test_every_rule_by_itself_and_all_together(
    release: Release,
    address: str,
    port: int,
    version: str | None,
    verified: bool,
    pin: str | None,
    name: str | None,
) -> None:
    tls = None if version is None else TlsFacts(version, "", verified, None, "")
    said = refusal(release, Wire((address, port), tls, pin, name))  # type: ignore[arg-type]
    inside = {"192.0.2.0/24": "192.0.2.9", "::1/128": "::1", "198.51.100.7/32": "198.51.100.7"}
    proven = name if tls is not None and verified else None
    fits = {
        "addresses": not release.addresses
        or any(inside[str(network)] == address for network in release.addresses.networks),
        "ports": not release.ports or port in release.ports,
        "pins": not release.pins or (tls is not None and pin in release.pins),
        "tls": not release.tls_minimum_version
        or version == "TLSv1.3"
        or (version == "TLSv1.2" == release.tls_minimum_version),
        "names": not release.names
        or proven in release.names
        or (proven == "x.a.example" and "*.a.example" in release.names),
    }
    assert (said is None) == all(fits.values()), (said, fits)


# With sockets, certificates and a dialer around it

NAMES = ["good.example", "evil.example", "127.0.0.1"]


RULES: dict[str, Any] = {
    "names": ["good.example"],
    "addresses": ["127.0.0.2"],
    "ports": [0],  # the good one's, which is not known before it listens
    "pins": [PIN],
    "tls_minimum_version": "1.3",
}
HEARING = ("Required", False, None, [0], ["good.example"] * 5, "235 ok", "220 good.example ESMTP")
"""With these the first host hears it, whether or not `RULES` are demanded."""

HEARD: Counter[int] = Counter()
"""How often each host heard the secret, by its number."""


@given(
    release=st.fixed_dictionaries(
        {},
        optional={name: st.just(value) for name, value in RULES.items()},
    ),
    mode=st.sampled_from(
        ["Required", "Opportunistic", "RequiredInsecure", "OpportunisticInsecure", "Disabled"]
    ),
    relaxed=st.booleans(),
    server_name=st.sampled_from([None, "good.example", "evil.example"]),
    answers=st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True),
    called=st.lists(st.sampled_from(NAMES), min_size=5, max_size=5),
    reply=st.sampled_from(["235 ok", "454 later", "421 bye", "334 ", "250-odd\r\n250 odd"]),
    greeting=st.sampled_from(["220 good.example ESMTP", "220 evil.example", "554 no"]),
)
@example({}, *HEARING)
@example({name: RULES[name] for name in RULES}, *HEARING)
@settings(max_examples=60)
def released(
    release: dict[str, Any],
    mode: str,
    relaxed: bool,
    server_name: str | None,
    answers: list[int],
    called: list[str],
    reply: str,
    greeting: str,
) -> None:
    """DNS sends us to any of five hosts under any name; only those that the rules mean hear the secret."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            hosts = [
                ("127.0.0.2", PINNED),
                ("127.0.0.1", GOOD),
                ("127.0.0.2", EVIL),
                ("127.0.0.1", UNTRUSTED),
                ("127.0.0.2", None),
            ]
            peers = [
                await stack.enter_async_context(
                    open_peer(
                        host=host,
                        tls=context,
                        capabilities=OFFERS,
                        replies={"AUTH": reply, "connect": greeting},
                    )
                )
                for host, context in hosts
            ]
            demanded = {
                **release,
                **({"ports": [peers[0].port, peers[2].port]} if "ports" in release else {}),
            }
            options = dict.fromkeys(
                ("allow_smtp_auth_plain_without_tls", "allow_smtp_auth_plain_without_valid_certificate"),
                relaxed,
            )
            trust = {} if mode in ("Required", "Opportunistic") else {"tls_ca": None}
            try:
                path = bound(
                    demanded or None, enable_tls=mode, tls_server_name=server_name, **options, **trust
                )
            except policy.PolicyError:
                return
            dial = await stack.enter_async_context(open_dial())
            found = [Candidate(called[i], hosts[i][0], peers[i].port, called[i]) for i in answers]
            with trio.fail_after(20):
                with suppress(HeldError, NetworkError, RemoteProtocolError):
                    await dial(path, *found)
            for number, peer in enumerate(peers):
                if not told(peer):
                    continue
                HEARD[number] += 1
                host, context = hosts[number]
                name = server_name or called[number]
                known = (
                    context is not None and context is not UNTRUSTED and mode in ("Required", "Opportunistic")
                )
                owner = "evil.example" if context is EVIL else "good.example"
                inside = "(tls)" in peer.commands
                assert relaxed or (inside and known and name == owner)
                if "names" in demanded:
                    assert inside and known and name == owner == "good.example"
                if "addresses" in demanded:
                    assert host == "127.0.0.2"
                if "ports" in demanded:
                    assert number in (0, 2)
                if "pins" in demanded:
                    assert inside and context is PINNED
                if "tls_minimum_version" in demanded:
                    assert inside

    trio.run(main)


def test_no_options_answers_of_dns_and_replies_send_it_elsewhere() -> None:
    HEARD.clear()
    released()
    assert HEARD[0] >= 2, "not even the right one hears it in the examples: the draws show nothing"


@pytest.mark.parametrize(
    ("release_to", "said"),
    [
        (
            {"names": ["other.example"]},
            "release_to.names is other.example, and the peer was verified as good",
        ),
        (
            {"addresses": ["192.0.2.1"]},
            "release_to.addresses is 192.0.2.1, and the peer's address is 127.0.0.1",
        ),
        ({"ports": [587]}, "release_to.ports is 587, and the peer's port is"),
        ({"pins": [PINS[0]]}, "release_to.pins has not the peer's key, which is sha256//"),
        ({"names": ["good.example"], "pins": [PIN]}, None),
    ],
    ids=["names", "addresses", "ports", "pins", "fits"],
)
async def test_the_rule_that_is_broken_is_named(release_to: dict[str, Any], said: str | None) -> None:
    async with open_peer(tls=PINNED, capabilities=OFFERS) as peer, open_dial() as dial:
        path = bound(release_to, tls_server_name="good.example")
        if said is None:
            await dial(path, peer)
            assert told(peer)
            return
        with pytest.raises(ReleaseRefused) as caught:
            await dial(path, peer)
        assert said in str(caught.value) and SECRET not in str(caught.value)
        assert not told(peer) and "AUTH" not in peer.words()


async def test_an_old_version_of_tls_is_not_enough() -> None:
    old = TRUSTED.server_context("good.example")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with open_peer(tls=old, capabilities=OFFERS) as peer, open_dial() as dial:
        with pytest.raises(ReleaseRefused, match=r"is TLSv1.3, and the session has TLSv1.2"):
            await dial(bound({"tls_minimum_version": "1.3"}, tls_server_name="good.example"), peer)
        await dial(bound({"tls_minimum_version": "1.2"}, tls_server_name="good.example"), peer)


async def test_another_host_that_fits_gets_it() -> None:
    async with (
        open_peer(tls=EVIL, capabilities=OFFERS) as evil,
        open_peer(tls=GOOD, capabilities=OFFERS) as good,
    ):
        async with open_dial() as dial:
            names = zip((evil, good), ("evil.example", "good.example"), strict=True)
            found = [Candidate(name, "127.0.0.1", peer.port, name) for peer, name in names]
            await dial(bound({"names": ["good.example"]}), *found)
            assert told(good) and not told(evil)


async def test_mail_is_held_and_no_attempt_is_spent(bench: Any, clock: MockClock) -> None:
    auth = {"username": "scott", "password": {"key_data": SECRET}, "release_to": {"ports": [1]}}
    async with open_peer(capabilities=OFFERS) as peer:
        async with bench(to(peer, smtp_auth=auth, allow_smtp_auth_plain_without_tls=True)) as b:
            await b.submit_many(3)
            await b.records("TransientFailure")
            record = b.log.records[0]
            assert (record.cause, record.num_attempts) == ("credential-bound", 0)
            assert "release_to.ports is 1" in b.text() and SECRET not in b.text()
            await trio.sleep(3600)
            assert "Bounce" not in b.log.kinds() and "AUTH" not in peer.words()


def test_nobody_but_the_broker_opens_the_envelope() -> None:
    room = Path(broker.__file__).parent
    for file in room.glob("*.py"):
        names = {
            node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
        }
        assert ("_sealed" in names) == (file.name == "broker.py"), file
