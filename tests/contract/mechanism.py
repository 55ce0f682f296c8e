"""What every SASL mechanism must do: its two halves understand each other, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.smtp import (
    MECHANISMS,
    Binding,
    Context,
    Credentials,
    Known,
    Lookup,
    SaslError,
    client_mechanism,
    server_mechanism,
)
from policy.scramkeys import ScramKeys, derive
from policy.secret import Secret

__all__ = ["CHECKS", "UNKNOWN", "Check", "context", "exchange", "rights"]

Check = Callable[[str], None]

ROUNDS = 8
"""No mechanism needs more challenges; a peer that sends more is given up (reliability C43)."""

UNKNOWN = derive("SHA-256", b"nobody", b"salt of nobodies", 4096)
"""What a server shows of users it does not know."""

TOKEN = Secret("c4n4ry.token-of_an+access/server~9=")


def context(side: str, *, binding: bytes = b"certificate") -> Context:
    """What a driver hands in; the nonces of the two sides differ."""
    tied = Binding("tls-server-end-point", binding)
    return Context(nonce=f"nonce-of-the-{side}", binding=tied, peer_binds=True, host="mx.example", port=587)


def secret_of(name: str) -> Secret:
    return TOKEN if MECHANISMS[name].needs == "token" else Secret("c4n4ry")


def rights(name: str, secret: Secret, found: Credentials) -> bool:
    """The verdict of a server on what was presented, as a driver finds it."""
    if found.proven is not None:
        return found.proven
    if found.password is not None:
        return found.password == secret
    return found.token == secret if MECHANISMS[name].needs == "token" else True


def exchange(
    name: str,
    user: str,
    secret: Secret,
    *,
    known: Known | str = "same",
    theirs: Context | None = None,
) -> tuple[Credentials, list[bytes]]:
    """Let both halves talk until the server knows enough; what the client said on the way. `known`: what is
    stored at the server, unless it is the same password."""
    client = client_mechanism(name, user, secret, context("client"))
    server = server_mechanism(name, theirs or context("server"))
    assert client.name == server.name == name
    stored = secret if isinstance(known, str) else known
    said: list[bytes] = []
    response = client.initial()
    for _ in range(ROUNDS):
        if response is not None:
            said.append(response)
        answer = server.step(response)
        if isinstance(answer, Lookup):
            assert answer.authcid == user
            answer = server.known(stored, UNKNOWN)
        if isinstance(answer, Credentials):
            assert client.finished or answer.proven is False
            return answer, said
        response = client.respond(answer)
        if response is None:
            raise SaslError(f"the client gave up: {client.failure}")
    raise AssertionError("too many rounds")


USERS = [("scott", "tiger"), ("s", "t"), ("scótt", "tïger ∞"), ("a=b,c", "x" * 500)]


def check_the_halves_understand_each_other(name: str) -> None:
    for user, password in USERS:
        secret = TOKEN if MECHANISMS[name].needs == "token" else Secret(password)
        found, _ = exchange(name, user, secret)
        assert user in (found.authcid, found.authzid)
        assert rights(name, secret, found)


def check_a_wrong_secret_gets_nowhere(name: str) -> None:
    if MECHANISMS[name].needs == "certificate":
        return
    right = secret_of(name)
    for known in (right, None):
        try:
            found, _ = exchange(name, "scott", Secret("wrong"), known=known)
        except SaslError:
            continue  # the client saw that the server knows no such password
        assert not rights(name, right, found)


def check_success_is_not_believed_before_everything_was_said(name: str) -> None:
    client = client_mechanism(name, "scott", secret_of(name), context("client"))
    assert not client.finished and not client.exposed
    if client.initial() is None or MECHANISMS[name].random:
        assert not client.finished


def check_the_client_says_nothing_before_it_is_asked_twice(name: str) -> None:
    """An initial response is given once; what follows answers challenges, and ends."""
    for challenge in (b"", b"\xff", b"<1@peer.example>", b"{}", b"r=,s=,i=", b"x" * 10_000):
        client = client_mechanism(name, "scott", secret_of(name), context("client"))
        client.initial()
        answers = [client.respond(challenge) for _ in range(ROUNDS)]
        assert answers[-1] is None, "endless challenges are answered endlessly"


def check_the_server_refuses_what_it_cannot_read(name: str) -> None:
    for junk in (b"\xff\xfe", b"\xc3\x28"):
        server = server_mechanism(name, context("server"))
        with pytest.raises(SaslError) as caught:
            for _ in range(ROUNDS):
                server.step(junk)
        assert "\xff" not in str(caught.value)


def check_an_empty_secret_is_refused(name: str) -> None:
    if MECHANISMS[name].needs == "certificate":
        return
    try:
        found, _ = exchange(name, "scott", Secret(""), known=Secret("tiger"))
    except SaslError:
        return
    assert found.proven is False, "logged in without a password"


def check_nothing_shows_the_secret(name: str) -> None:
    secret = secret_of(name)
    found, _ = exchange(name, "scott", secret)
    client = client_mechanism(name, "scott", secret, context("client"))
    for thing in (found, found.password, found.token, client, server_mechanism(name, context("server"))):
        assert "c4n4ry" not in f"{thing!r} {thing!s}"


def check_a_binding_to_another_session_is_refused(name: str) -> None:
    if not MECHANISMS[name].binds:
        return
    secret = secret_of(name)
    found, _ = exchange(name, "scott", secret)
    assert found.proven
    try:
        found, _ = exchange(name, "scott", secret, theirs=context("server", binding=b"another"))
    except SaslError:
        return
    assert found.proven is False
    with pytest.raises(SaslError):
        exchange(name, "scott", secret, theirs=Context(nonce="server"))


def check_the_same_nonces_are_not_the_same_exchange(name: str) -> None:
    """What was said once does not log anybody in at a server with another nonce."""
    if not MECHANISMS[name].random:
        return
    _, said = exchange(name, "scott", Secret("tiger"))
    server = server_mechanism(name, Context(nonce="another", binding=context("server").binding))
    answer: object = server.step(None) if name == "CRAM-MD5" else b""
    try:
        for response in said:
            answer = server.step(response)
            if isinstance(answer, Lookup):
                answer = server.known(Secret("tiger"), UNKNOWN)
    except SaslError:
        return
    assert isinstance(answer, Credentials) and answer.proven is False


def keys_for(name: str, password: str) -> ScramKeys:
    """Stored keys for a mechanism."""
    return derive("SHA-256" if "256" in name else "SHA-1", password.encode(), b"a stored salt", 5000)


CHECKS: list[Check] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
