"""engine/smtp/scram.py: a peer that cheats, and what is stored of a password."""

from __future__ import annotations

import base64

import pytest

from engine.smtp import (
    ClientSession,
    Context,
    Lookup,
    SaslError,
    client_mechanism,
    password_fits,
    server_mechanism,
)
from engine.smtp.scram import ScramClient
from policy.scramkeys import MOST_ITERATIONS, derive, scram_keys
from policy.secret import Secret
from tests.contract.mechanism import UNKNOWN, context, exchange, keys_for

NAMES = ["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"]
SALT = base64.b64encode(b"sixteen octets 1").decode()


def client(name: str = "SCRAM-SHA-256", **options: object) -> ScramClient:
    made = client_mechanism(name, "user", Secret("pencil"), Context(nonce="rOprNGfwEbeRWgbNEkqO", **options))  # type: ignore[arg-type]
    assert isinstance(made, ScramClient)
    return made


def test_the_example_of_rfc_7677() -> None:
    one = client()
    assert one.initial() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    final = one.respond(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert final == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert not one.finished
    assert one.respond(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") == b""
    assert one.finished and not one.failure


@pytest.mark.parametrize(
    "first",
    [
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i={MOST_ITERATIONS + 1}",
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=9999999999999999999",
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=1",
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=-4096",
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=04096",
        f"r=rOprNGfwEbeRWgbNEkqO,s={SALT},i=4096",  # no nonce of the server's
        f"r=somebody-elses,s={SALT},i=4096",
        f"m=must,r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=4096",
        f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},s={SALT},i=4096",
        "r=rOprNGfwEbeRWgbNEkqO1,s=,i=4096",
        "r=rOprNGfwEbeRWgbNEkqO1,s=AA==,i=4096",
        "r=rOprNGfwEbeRWgbNEkqO1,s=!!!!,i=4096",
        f"s={SALT},r=rOprNGfwEbeRWgbNEkqO1,i=4096",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        "e=unknown-user",
        "e=\u2028",
        "",
        ",,,",
        "r=rOprNGfwEbeRWgbNEkqO1," + "x=1," * 5000 + f"s={SALT},i=4096",
    ],
)
def test_a_first_answer_that_cheats_gets_no_proof(first: str) -> None:
    one = client()
    one.initial()
    assert one.respond(first.encode()) is None
    assert one.failure and not one.finished and not one.exposed
    assert one.respond(b"v=AAAA") is None and not one.finished


@pytest.mark.parametrize(
    "final", [b"v=AAAA", b"v=", b"e=invalid-proof", b"", b"\xff", b"v=" + base64.b64encode(b"x" * 32), b"x"]
)
def test_a_server_that_does_not_know_the_password_is_not_believed(final: bytes) -> None:
    one = client()
    one.initial()
    assert one.respond(f"r=rOprNGfwEbeRWgbNEkqO1,s={SALT},i=4096".encode())
    assert one.exposed
    assert one.respond(final) is None
    assert (not one.finished and "prove" in one.failure) or "read" in one.failure


def test_the_flag_says_what_the_client_saw() -> None:
    binding = context("client").binding
    assert (client(binding=binding, peer_binds=False).initial() or b"")[:3] == b"y,,"
    assert (client(binding=binding, peer_binds=True).initial() or b"")[:3] == b"n,,"
    assert (client("SCRAM-SHA-256-PLUS", binding=binding).initial() or b"").startswith(
        b"p=tls-server-end-point,,"
    )


def test_a_list_that_somebody_shortened_is_noticed() -> None:
    """The client could bind and was shown no such mechanism; the server did offer one (RFC 5802 6)."""
    server = server_mechanism("SCRAM-SHA-256", context("server"))
    one = client(binding=context("client").binding, peer_binds=False)
    with pytest.raises(SaslError):
        server.step(one.initial())


@pytest.mark.parametrize("name", NAMES)
def test_stored_keys_do_as_well_as_the_password(name: str) -> None:
    found, _ = exchange(name, "scott", Secret("tiger"), known=keys_for(name, "tiger"))
    assert found.proven
    found, _ = exchange(name, "scott", Secret("lion"), known=keys_for(name, "tiger"))
    assert found.proven is False


def test_the_stored_keys_of_rfc_7677s_example() -> None:
    text = (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert scram_keys(text) == derive("SHA-256", b"pencil", salt, 4096)


def test_keys_of_another_hash_are_no_keys() -> None:
    found, _ = exchange("SCRAM-SHA-256", "scott", Secret("tiger"), known=keys_for("SCRAM-SHA-1", "tiger"))
    assert found.proven is False


def test_an_unknown_user_hears_what_a_known_one_hears() -> None:
    said = []
    for known in (Secret("lion"), None):
        server = server_mechanism("SCRAM-SHA-256", Context(nonce="S"))
        assert isinstance(server.step(b"n,,n=scott,r=C"), Lookup)
        said.append(server.known(known, UNKNOWN))
    assert said[0] == said[1]


def test_a_plain_password_fits_stored_keys() -> None:
    keys = keys_for("SCRAM-SHA-256", "tiger")
    assert password_fits(Secret("tiger"), keys)
    assert not password_fits(Secret("lion"), keys)
    assert not password_fits(Secret(b"\xff"), keys)
    assert not password_fits(Secret("\0"), derive("SHA-256", b"\0", b"a stored salt", 4096))


def test_an_empty_answer_within_an_exchange_is_an_empty_line() -> None:
    """RFC 4954 4: the equals sign is for an initial response only."""
    session = ClientSession("client.example")
    session.receive_data(b"220 hi\r\n")
    session.next_event()
    session.auth(client_mechanism("XOAUTH2", "scott", Secret("token")))
    session.data_to_send()
    session.receive_data(b"334 " + base64.b64encode(b'{"status":"400"}') + b"\r\n")
    assert session.next_event() is None
    assert session.data_to_send() == [b"\r\n"]
