"""Pins, the least version, ciphers: what is taken, in how many forms, and what the refusals say."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.egress import EgressPath, make_egress_path
from policy.errors import PolicyError
from policy.tlskinds import pin_text


def path(**options: Any) -> EgressPath:
    return make_egress_path(**options)


def refused(**options: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        make_egress_path(**options)
    return str(caught.value)


@given(digest=st.binary(min_size=32, max_size=32))
def test_every_form_of_a_pin_is_the_same_pin(digest: bytes) -> None:
    b64, digits = base64.b64encode(digest).decode(), digest.hex()
    colons = digest.hex(":").upper()
    forms = [b64, digits, digits.upper(), colons]
    forms += [f"{prefix}{form}" for prefix in ("sha256//", "sha256/", "SHA256:") for form in list(forms)]
    for form in forms:
        assert path(enable_tls="Required", tls_pins=[form]).tls_pins == (pin_text(digest),)
    assert path(enable_tls="Required", tls_pins=forms).tls_pins == (pin_text(digest),)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (["nonsense!"], "neither 64 hexadecimal digits nor base64"),
        (["ab" * 31], "neither 64 hexadecimal digits nor base64"),
        (["abcd" * 8], "holds 24 octets, and a SHA-256 hash has 32"),
        (["sha256//" + base64.b64encode(b"x" * 20).decode()], "holds 20 octets"),
        (["sha1//" + base64.b64encode(b"x" * 20).decode()], "is a SHA1 hash"),
        ([], "is empty, and would refuse everybody"),
        (["ab" * 32, 5], "5 is no text but"),
        ("ab" * 32, "is no list but a str"),
    ],
)
def test_what_is_no_pin_is_refused(pins: Any, words: str) -> None:
    text = refused(enable_tls="Required", tls_pins=pins)
    assert words in text and "tls_pins" in text and "sha256//BASE64" in text


@pytest.mark.parametrize("mode", ["Opportunistic", "OpportunisticInsecure", "Disabled"])
def test_pins_and_implicit_tls_want_tls_in_any_case(mode: str) -> None:
    assert 'tls_pins says whose key alone is right, and enable_tls="' in refused(
        enable_tls=mode, tls_pins=["ab" * 32]
    )
    assert "tls_implicit is TLS from the first octet on" in refused(enable_tls=mode, tls_implicit=True)
    for right in ("Required", "RequiredInsecure"):
        assert path(enable_tls=right, tls_pins=["ab" * 32], tls_implicit=True)


def test_the_port_of_implicit_tls() -> None:
    implicit: dict[str, Any] = {"enable_tls": "Required", "tls_implicit": True}
    assert path().port == 25 and path(**implicit).port == 465
    assert path(smtp_port=587).port == 587 and path(smtp_port=2465, **implicit).port == 2465


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("1.2", "TLSv1.2"),
        ("TLSv1.2", "TLSv1.2"),
        ("tls 1.3", "TLSv1.3"),
        ("TLS1_3", "TLSv1.3"),
        ("TLSv1", "TLSv1.0"),
        ("1.0", "TLSv1.0"),
        ("TLSv1.1", "TLSv1.1"),
    ],
)
def test_versions(given: str, read: str) -> None:
    assert path(tls_minimum_version=given).tls_minimum_version == read


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("SSLv3", "RFC 7568 forbids"),
        ("1.4", "is no TLS version"),
        (1.3, "is no text but a float"),
        ("", "is no TLS version"),
    ],
)
def test_versions_that_are_refused(given: Any, words: str) -> None:
    text = refused(tls_minimum_version=given)
    assert words in text and 'right would be "TLSv1.2" or "TLSv1.3"' in text


@pytest.mark.parametrize("ciphers", ["ECDHE+AESGCM", "ECDHE+CHACHA20:ECDHE+AESGCM:!aRSA", "HIGH:@STRENGTH"])
def test_ciphers(ciphers: str) -> None:
    assert path(openssl_cipher_list=ciphers).openssl_cipher_list == ciphers


@pytest.mark.parametrize(
    ("ciphers", "words"),
    [
        ("ECDHE+AESGCM:TYPO", 'holds "TYPO", of which the ssl module says: no cipher can be selected'),
        ("ECDHE+AESGCM:!TYPO", 'holds "!TYPO"'),
        ("TLS_AES_128_GCM_SHA256", "a TLS 1.3 cipher suite; those cannot be chosen"),
        ("aNULL", "no cipher that authenticates and encrypts"),
        ("ECDHE:!ECDHE", "no cipher that authenticates and encrypts"),
        ("", "no cipher"),
        ("DEFAULT:@SECLEVEL=0", "sets a security level"),
        ("ECDHE\n", "character"),
        (["ECDHE"], "is no text but a list"),
    ],
)
def test_ciphers_that_are_refused(ciphers: Any, words: str) -> None:
    text = refused(openssl_cipher_list=ciphers)
    assert words in text and "openssl_cipher_list" in text


@pytest.mark.parametrize("word", ["EXPORT", "RC4", "MD5", "3DES", "SSLv2", "LOW"])
def test_what_is_long_gone_may_still_be_excluded(word: str) -> None:
    assert path(openssl_cipher_list=f"HIGH:!{word}")


def test_ciphers_of_a_version_that_is_not_spoken() -> None:
    text = refused(openssl_cipher_list="ECDHE", tls_minimum_version="1.3")
    assert "give one of them" in text


def test_half_a_client_certificate() -> None:
    key = {"key_data": "x"}
    assert "tls_certificate without tls_private_key is half" in refused(tls_certificate=key)
    assert "tls_private_key without tls_certificate is half" in refused(tls_private_key=key)
    assert "shown in TLS" in refused(tls_certificate=key, tls_private_key=key, enable_tls="Disabled")
    assert path(tls_certificate=key, tls_private_key=key)


def test_external_needs_a_certificate() -> None:
    login = {"mechanisms": ["EXTERNAL"]}
    assert "client certificate of tls_certificate" in refused(enable_tls="Required", smtp_auth=login)
    key = {"key_data": "x"}
    assert path(enable_tls="Required", smtp_auth=login, tls_certificate=key, tls_private_key=key)
