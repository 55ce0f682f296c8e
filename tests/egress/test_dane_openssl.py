"""TLSA records against certificates, judged by Posthorn and by OpenSSL: any chain, any records."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from engine.egress.dane import DaneCheck, usable
from tests.support.pki import CLIENT_AUTH, Pki
from tests.support.programs import need
from tests.support.tlsa import authority, chain_of, tlsa

BASE = "mx.peer.example"
ROOT = Pki()
MIDDLE = Pki(issuer=ROOT)
DEEP = Pki(issuer=MIDDLE)
NO_CA = Pki(issuer=ROOT, is_ca=False)
OTHER = Pki()
WRONG: list[dict[str, Any]] = [
    {"days": (-9, -2)},
    {"days": (2, 9)},
    {"usage": [CLIENT_AUTH]},
    {"self_signed": True},
]
NAMES = [(BASE,), (BASE,), ("*.peer.example",), ("MX.Peer.EXAMPLE", "x.example"), ("other.example",)]


def openssl(context: ssl.SSLContext, records: list[str]) -> bool:
    """Whether it speaks to this server under these records."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                peer, _ = listening.accept()
                with peer, context.wrap_socket(peer, server_side=True) as secured:
                    secured.recv(1)

        server = Thread(target=serve)
        server.start()
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        words = [need("openssl", "openssl"), "s_client", "-connect", where, "-servername", BASE]
        words += ["-dane_tlsa_domain", BASE, "-dane_ee_no_namechecks", "-verify_return_error"]
        words += [word for record in records for word in ("-dane_tlsa_rrdata", record)]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
        server.join()
    return b"Verification: OK" in done.stdout


@pytest.mark.parametrize("seed", range(5))
def test_openssl_says_the_same(seed: int) -> None:
    rng = random.Random(seed)
    said = set()
    for number in range(12):
        how = rng.choice(WRONG) if number % 3 == 0 else {}
        issuer = rng.choice([ROOT, MIDDLE, DEEP, NO_CA])
        chain, key = issuer.pair(*rng.choice(NAMES), **how)
        sent = chain + rng.choice([b"", ROOT.pem, OTHER.pem, OTHER.pem + ROOT.pem])
        context = ROOT.server(given=(sent, key))
        shown = chain_of(context)
        named = [shown[0], *(authority(one) for one in (ROOT, MIDDLE, DEEP, NO_CA, OTHER))]
        records: list[str] = []
        while len(records) < rng.choice([1, 1, 2, 3]):
            usage, selector, matching = rng.choice([2, 3]), rng.choice([0, 1]), rng.choice([0, 1, 2])
            if (usage, selector, matching) != (2, 1, 0):  # for OpenSSL that key need not be sent
                which = rng.choice(named[:1] if usage == 3 and number % 2 else named)
                records.append(tlsa(which, usage, selector, matching))
        verdict = DaneCheck(usable(records), (BASE,))([one.public_bytes(Encoding.DER) for one in shown])
        assert verdict.ok is openssl(context, records), (verdict.why, how, records)
        said.add(verdict.ok)
    assert said == {True, False}
