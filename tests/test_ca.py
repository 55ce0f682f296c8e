"""engine/cli/ca.py: certificates for one run, good enough for a client that verifies."""

from __future__ import annotations

import os
import ssl
import tempfile

import pytest

from engine.ca import ThrowAwayCa


def meet(server: ssl.SSLContext, ca: ThrowAwayCa, name: str) -> None:
    """A handshake in memory, by a client that trusts `ca` alone and expects `name`."""
    trusting = ssl.create_default_context(cadata=ca.pem.decode())
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert one.cipher() is not None and one.getpeercert()


@pytest.fixture(scope="module")
def ca() -> ThrowAwayCa:
    return ThrowAwayCa()


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost", "mx.example", "10.0.0.9"])
def test_a_strict_client_accepts_the_hosts_it_is_for(name: str, ca: ThrowAwayCa) -> None:
    meet(ca.server_context("mx.example", "10.0.0.9"), ca, name)


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
def test_and_no_others(name: str, ca: ThrowAwayCa) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch"):
        meet(ca.server_context("mx.example"), ca, name)


def test_each_run_has_an_authority_of_its_own(ca: ThrowAwayCa) -> None:
    another = ThrowAwayCa()
    assert another.pem != ca.pem
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(another.server_context(), ca, "localhost")


def test_keys_stay_in_memory(
    ca: ThrowAwayCa, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ca.server_context()
    assert os.listdir(tmp_path) == [] and b"PRIVATE" not in ca.pem
