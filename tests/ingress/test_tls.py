"""The certificate a listener shows."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trustme

from engine.errors import SecretUnavailable, TlsError
from engine.ingress.tls import ServerTls, self_signed, server_context
from engine.keys import Credential
from policy.keysource import FileKey
from policy.secret import Secret

NOW = datetime.now(UTC)
CERTIFICATE, KEY = FileKey("/cert.pem"), FileKey("/key.pem")


class Ring:
    """A key ring that holds what the test puts there."""

    def __init__(self, **values: bytes | None) -> None:
        self.values = values
        self.asked = 0

    async def fetch(self, ref: Any) -> Credential:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        value = self.values["certificate" if ref == CERTIFICATE else "key"]
        if value is None:
            raise SecretUnavailable(f"{ref.name}: no such file")
        return Credential(Secret(value), "v", 0.0)


def pair(name: str = "mx.example", **options: Any) -> tuple[bytes, bytes]:
    issued = trustme.CA().issue_cert(name, **options)
    return b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes()


def shown(context: ssl.SSLContext) -> bytes:
    """The certificate that a client of `context` sees."""
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server)
    two = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    der = one.getpeercert(binary_form=True)
    assert der is not None
    assert one.version() in ("TLSv1.2", "TLSv1.3")
    return der


def test_a_pair_that_belongs_together_is_taken() -> None:
    certificate, key = pair()
    context = server_context(certificate, key, NOW)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert ssl.DER_cert_to_PEM_cert(shown(context)).encode().strip() in certificate


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        (b"", None, "no PEM certificate"),
        (b"nonsense", None, "no PEM certificate"),
        (None, b"nonsense", "no PEM key"),
        (None, "other", "do not belong together"),
    ],
)
def test_a_wrong_pair_is_refused_in_words(
    certificate: bytes | None, key: bytes | str | None, words: str
) -> None:
    good_certificate, good_key = pair()
    if key == "other":
        key = pair()[1]
    with pytest.raises(ValueError, match=words):
        server_context(
            certificate if certificate is not None else good_certificate,
            key if isinstance(key, bytes) else good_key,
            NOW,
        )


def test_a_pair_out_of_date_is_refused() -> None:
    certificate, key = pair(not_after=NOW + timedelta(days=1))
    server_context(certificate, key, NOW)
    with pytest.raises(ValueError, match="not now"):
        server_context(certificate, key, NOW + timedelta(days=2))


@pytest.mark.parametrize("hostname", ["mx.example", "192.0.2.1", "x" * 60 + ".example.com", "a_b.example"])
def test_self_signed(hostname: str) -> None:
    certificate, key = self_signed(hostname, NOW)
    shown(server_context(certificate, key, NOW))


async def test_without_a_certificate_one_is_made_and_kept() -> None:
    tls = ServerTls(Ring(), "mx.example", None, None)  # type: ignore[arg-type]
    assert await tls.context() is await tls.context()


async def test_sources_are_read_again_after_five_minutes(autojump_clock: trio.testing.MockClock) -> None:
    first, second = pair(), pair()
    ring = Ring(certificate=first[0], key=first[1])
    tls = ServerTls(ring, "mx.example", CERTIFICATE, KEY)  # type: ignore[arg-type]
    context = await tls.context()
    assert await tls.context() is context
    assert ring.asked == 2
    await trio.sleep(301)
    assert await tls.context() is context, "the same pair again"
    assert ring.asked == 4
    ring.values = {"certificate": second[0], "key": second[1]}
    assert await tls.context() is context
    await trio.sleep(301)
    assert await tls.context() is not context


async def test_a_bad_new_pair_leaves_the_old_one_in_use(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pair(), pair()
    ring = Ring(certificate=first[0], key=first[1])
    tls = ServerTls(ring, "mx.example", CERTIFICATE, KEY)  # type: ignore[arg-type]
    context = await tls.context()
    bad: list[dict[str, bytes | None]] = [
        {"certificate": second[0], "key": first[1]},
        {"certificate": None, "key": second[1]},
    ]
    for values in bad:
        ring.values = values
        await trio.sleep(301)
        with caplog.at_level(logging.WARNING):
            assert await tls.context() is context
        assert "stays in use" in caplog.text
    ring.values = {"certificate": second[0], "key": second[1]}
    await trio.sleep(31)
    assert await tls.context() is not context


async def test_no_usable_pair_at_all() -> None:
    ring = Ring(certificate=None, key=b"")
    tls = ServerTls(ring, "mx.example", CERTIFICATE, KEY)  # type: ignore[arg-type]
    with pytest.raises(TlsError, match=r"file:/cert\.pem"):
        await tls.context()
    ring.values = dict(zip(("certificate", "key"), pair(), strict=True))
    await tls.context()


@pytest.fixture(autouse=True)
def _no_prompt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked for a passphrase")

    monkeypatch.setattr("getpass.getpass", asked)
    yield
