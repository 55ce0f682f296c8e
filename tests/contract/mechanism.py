"""What every SASL mechanism must do: its two halves understand each other, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.smtp import Credentials, client_mechanism, server_mechanism
from engine.smtp.auth import SaslError
from policy.secret import Secret

__all__ = ["CHECKS", "Check", "exchange"]

Check = Callable[[str], None]

ROUNDS = 8
"""No mechanism needs more challenges; a peer that sends more is given up (reliability C43)."""


def exchange(name: str, user: str, password: Secret) -> tuple[Credentials, list[bytes]]:
    """Let both halves talk until the server has the credentials; what the client said on the way."""
    client, server = client_mechanism(name, user, password), server_mechanism(name)
    assert client.name == server.name == name
    said: list[bytes] = []
    response = client.initial()
    for _ in range(ROUNDS):
        if response is not None:
            said.append(response)
        answer = server.step(response)
        if isinstance(answer, Credentials):
            return answer, said
        response = client.respond(answer)
        assert response is not None, "the client gave up"
    raise AssertionError("too many rounds")


def check_the_halves_understand_each_other(name: str) -> None:
    for user, password in [("scott", "tiger"), ("s", "t"), ("scótt", "tïger ∞"), ("a=b,c", "x" * 500)]:
        credentials, _ = exchange(name, user, Secret(password))
        assert credentials.authcid == user
        assert credentials.password == Secret(password)


def check_the_client_says_nothing_before_it_is_asked_twice(name: str) -> None:
    """An initial response is given once; what follows answers challenges, and ends."""
    client = client_mechanism(name, "scott", Secret("tiger"))
    client.initial()
    answers = [client.respond(b"") for _ in range(ROUNDS)]
    assert answers[-1] is None, "endless challenges are answered endlessly"


def check_the_server_refuses_what_it_cannot_read(name: str) -> None:
    for junk in (b"\xff\xfe", b"\xc3\x28"):
        server = server_mechanism(name)
        with pytest.raises(SaslError) as caught:
            for _ in range(ROUNDS):
                server.step(junk)
        assert "\xff" not in str(caught.value)


def check_an_empty_password_is_refused(name: str) -> None:
    client, server = client_mechanism(name, "scott", Secret("")), server_mechanism(name)
    with pytest.raises(SaslError):
        response = client.initial()
        for _ in range(ROUNDS):
            answer = server.step(response)
            assert not isinstance(answer, Credentials), "logged in without a password"
            response = client.respond(answer)


def check_nothing_shows_the_password(name: str) -> None:
    credentials, _ = exchange(name, "scott", Secret("c4n4ry"))
    for thing in (credentials, credentials.password, client_mechanism(name, "scott", Secret("c4n4ry"))):
        assert "c4n4ry" not in f"{thing!r} {thing!s}"


CHECKS: list[Check] = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
