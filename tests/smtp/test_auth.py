"""engine/smtp/auth.py and exchange.py: each mechanism keeps the contract; what is not SASL is refused."""

from __future__ import annotations

import base64

import pytest

from engine.smtp import MECHANISMS, Auth, Context, Reply, SaslError, client_mechanism
from engine.smtp.auth import decode_base64
from engine.smtp.exchange import ServerExchange
from policy.secret import Secret
from tests.contract.mechanism import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@pytest.mark.parametrize("name", sorted(MECHANISMS))
def test_contract(name: str, check: Check) -> None:
    check(name)


def test_plain_is_the_documented_blob() -> None:
    initial = client_mechanism("PLAIN", "scott", Secret("tiger")).initial()
    assert initial is not None and base64.b64encode(initial) == b"AHNjb3R0AHRpZ2Vy"


def test_equals_is_the_empty_response() -> None:
    assert decode_base64(b"=") == b""


@pytest.mark.parametrize(
    "text", [b"a", b"====", b"AA=A", b"AAAA\n", b" AAAA", b"A A A A", b"\xff\xff\xff\xff"]
)
def test_base64_is_strict(text: bytes) -> None:
    with pytest.raises(SaslError):
        decode_base64(text)


def test_an_exchange_with_an_initial_response() -> None:
    turn = ServerExchange("PLAIN", Context()).begin(b"AHNjb3R0AHRpZ2Vy")
    assert isinstance(turn, Auth)
    assert (turn.authcid, turn.authzid, turn.password) == ("scott", "", Secret("tiger"))


def test_an_exchange_with_challenges() -> None:
    exchange = ServerExchange("LOGIN", Context())
    assert exchange.begin(b"") == b"334 " + base64.b64encode(b"Username:") + b"\r\n"
    assert exchange.line(base64.b64encode(b"scott")) == b"334 " + base64.b64encode(b"Password:") + b"\r\n"
    assert isinstance(exchange.line(base64.b64encode(b"tiger")), Auth)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"*", "501 5.7.0"),
        (b"not base64!", "501 5.5.2"),
        (b"AAAA", "501 5.5.2"),
        (b"YQBiAGMAZA==", "501 5.5.2"),
    ],
)
def test_what_ends_an_exchange(line: bytes, code: str) -> None:
    exchange = ServerExchange("PLAIN", Context())
    exchange.begin(b"")
    turn = exchange.line(line)
    assert isinstance(turn, Reply) and turn.encode().decode().startswith(code)
