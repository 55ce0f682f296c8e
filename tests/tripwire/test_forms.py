"""Every way in which a secret may be written down is searched for, and ordinary text is left alone."""

from __future__ import annotations

import base64
import html
import json
import random
import re
import unicodedata
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine._fast import PatternSet
from engine.tripwire import SHORTEST, forms
from tests.support.canary import forms as sought
from tests.support.certificates import Authority


def lower(coded: str) -> str:
    return re.sub("%..", lambda found: found[0].lower(), coded)


def by_number(marks: str, text: str) -> str:
    return "".join(f"\\u{ord(each):04x}" if each in marks else each for each in text)


def capitals(text: str) -> str:
    return re.sub(r"\\u....", lambda found: "\\u" + found[0][2:].upper(), text)


WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda s: s,
    "hex": lambda s: s.hex().encode(),
    "HEX": lambda s: s.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64, one before": lambda s: base64.b64encode(b"x" + s),
    "base64, two before": lambda s: base64.b64encode(b"xy" + s),
    "base64, some behind": lambda s: base64.b64encode(s + b"\x01\x01"),
    "base64url": base64.urlsafe_b64encode,
    "base64url in a blob": lambda s: base64.urlsafe_b64encode(b"\xff" + s + b"\xff"),
    "AUTH PLAIN": lambda s: base64.b64encode(b"\0scott\0" + s),
    "AUTH PLAIN, longer user": lambda s: base64.b64encode(b"\0scotty\0" + s),
    "AUTH PLAIN, even longer": lambda s: base64.b64encode(b"a@b\0scott.b\0" + s),
    "OAUTHBEARER": lambda s: base64.b64encode(b"n,a=u,\x01auth=Bearer " + s + b"\x01\x01"),
    "percent": lambda s: urllib.parse.quote(s, safe="").encode(),
    "percent, path": lambda s: urllib.parse.quote(s).encode(),
    "percent, lower": lambda s: lower(urllib.parse.quote(s, safe="")).encode(),
    "percent, form": lambda s: urllib.parse.quote_plus(s).encode(),
    "JSON": lambda s: json.dumps(s.decode("utf-8", "replace")).encode(),
    "JSON, twice": lambda s: json.dumps(json.dumps(s.decode("utf-8", "replace"))).encode(),
    "JSON of msgspec": lambda s: msgspec.json.encode(s.decode("utf-8", "replace")),
    "repr of text": lambda s: repr(s.decode("utf-8", "replace")).encode(),
    "repr of octets": lambda s: repr(s).encode(),
    "repr beside both quotation marks": lambda s: repr("\"'" + s.decode("utf-8", "replace")).encode(),
    "repr of octets beside both": lambda s: repr(b"\"'" + s).encode(),
    "OAuth 2, Basic": lambda s: base64.b64encode(b"id:" + urllib.parse.quote_plus(s).encode()),
    "encodeURIComponent": lambda s: urllib.parse.quote(s, safe="!'()*").encode(),
    "encodeURI": lambda s: urllib.parse.quote(s, safe="!#$&'()*+,/:;=?@").encode(),
    "requests": lambda s: urllib.parse.quote(s, safe="!#$%&'()*+,/:;=?@[]").encode(),
    "JSON, capitals": lambda s: capitals(json.dumps(s.decode("utf-8", "replace"))).encode(),
    "JSON of Go": lambda s: by_number(
        "<>&", json.dumps(s.decode("utf-8", "replace"), ensure_ascii=False)
    ).encode(),
    "JSON of .NET": lambda s: capitals(
        by_number("<>&'\"`+", json.dumps(s.decode("utf-8", "replace"))[1:-1].replace('\\"', '"'))
    ).encode(),
    "JSON of PHP": lambda s: json.dumps(s.decode("utf-8", "replace")).replace("/", "\\/").encode(),
    "JSON, quotation mark by number": lambda s: (
        json.dumps(s.decode("utf-8", "replace")).replace('\\"', "\\u0022").encode()
    ),
    "HTML": lambda s: html.escape(s.decode("utf-8", "replace")).encode(),
    "composed": lambda s: unicodedata.normalize("NFC", s.decode("utf-8", "replace")).encode(),
    "decomposed": lambda s: unicodedata.normalize("NFD", s.decode("utf-8", "replace")).encode(),
    "compatible, as SASL has it": lambda s: unicodedata.normalize(
        "NFKC", s.decode("utf-8", "replace")
    ).encode(),
    "UTF-8 taken for Latin-1": lambda s: s.decode("latin-1").encode(),
}
SECRETS = [
    b"correct horse battery",
    b"c4n4ry=S3cret/+ with all",
    b'quote"back\\slash\ttab',
    "gr\u00fc\u00dfe-\u65e5\u672c!".encode(),
    b"\xfb\xff\xfe?>binary-octets",
    b"sesame123",
    b"x7!Q%2z",
    b'<it\'s> & (all)!* [in] "one"?',
    "\uff21\uff22c \ufb01 1\u0327 wide".encode(),
]


def search(secret: bytes, text: bytes) -> list[tuple[int, int, int]] | None:
    known = forms(secret)
    found = sorted(known)
    return PatternSet(found, bytes(known[form] for form in found)).search(text)


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("written", WRITTEN)
def test_a_secret_in_any_dress(written: str, secret: bytes) -> None:
    form = WRITTEN[written](secret)
    assert search(secret, b"535 wrong: " + form + b" (said)")
    assert search(b"something else", b"535 wrong: " + form + b" (said)") is None


@pytest.mark.parametrize("user", ["u", "us", "use", "user", "scott@example.com"])
def test_no_more_than_two_digits_of_a_blob_are_left(user: str) -> None:
    """In AUTH PLAIN all of the password's digits go."""
    secret = b"correct horse 7"
    blob = base64.b64encode(b"\0" + user.encode() + b"\0" + secret)
    spans = search(secret, b">" + blob + b"<")
    assert spans is not None and len(spans) == 1
    begin, end, _ = spans[0]
    left = blob[: begin - 1] + blob[end - 1 :]
    assert len(left.strip(b"=")) <= -(-8 * (len(user) + 2) // 6)


@given(st.binary(min_size=8, max_size=200), st.binary(max_size=5), st.binary(max_size=5))
def test_any_secret_in_any_blob(secret: bytes, before: bytes, behind: bytes) -> None:
    assume(re.fullmatch(rb"[-_0-9a-zA-Z]+", secret) is None)
    assume(b"-----BEGIN" not in secret and (len(secret) <= 128 or len(secret.splitlines()) == 1))
    assume(len(secret) <= 128 or secret.strip() == secret)
    assert search(secret, base64.b64encode(before + secret + behind))
    assert search(secret, before + secret + behind)
    assert search(secret, (before + secret + behind).hex().encode())


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_the_search_of_the_tests_knows_nothing_that_this_one_does_not(secret: bytes) -> None:
    for name, form in sought(secret).items():
        assert len(form) < 8 or search(secret, b" " + form + b" "), name


def test_a_short_secret_is_left_alone_in_ordinary_text() -> None:
    assert SHORTEST == 6
    assert search(b"tiger", b"the tiger of tiger.example says tiger") is None
    # ... but not where nobody writes such things by chance.
    assert search(b"tiger", base64.b64encode(b"\0scott\0tiger"))
    assert search(b"tiger", base64.b64encode(b"tiger"))
    assert search(b"tiger", b"tiger".hex().encode())


def test_a_word_counts_where_it_stands_alone() -> None:
    assert search(b"secret", b'"password": "secret"')
    assert search(b"secret", b"secret-unavailable secrets my_secret") is None
    assert search(b"sesame-open1", b"xxsesame-open1xx")  # twelve octets are no ordinary word


@pytest.mark.parametrize("octet", [b"\0", b"\xff", b"\\", b'"', b"a", b"\n"])
@pytest.mark.parametrize("size", [6, 128, 129, 9000])
def test_forms_of_odd_secrets_are_patterns(octet: bytes, size: int) -> None:
    search(octet * size, b"anything")


def test_a_long_secret_is_found_in_parts() -> None:
    token = base64.urlsafe_b64encode(bytes(range(256)) * 4)
    spans = search(token, b"Bearer " + token)
    assert spans is not None and sum(end - begin for begin, end, _ in spans) >= len(token) - 16
    assert search(token, b"Bearer " + token[200:420])
    blob = base64.b64encode(b"user=u\x01auth=Bearer " + token)
    spans = search(token, blob)
    assert spans is not None and sum(end - begin for begin, end, _ in spans) > 0.95 * len(token) * 8 / 6


def test_lines_and_ends_of_a_secret() -> None:
    """A traceback indents each line of a text; what is printed may lose the blanks at its ends."""
    secret = b" first line 123\nanother line 456\nshort\n"
    assert search(secret, b"first line 123") and search(secret, b"another line 456")
    assert search(secret, b"short") is None
    assert search(b"  blanks+around ", b"535 no: blanks+around")


def test_a_huge_secret_costs_no_more_than_a_large_one() -> None:
    large = random.Random(1).randbytes(16384).hex().encode()
    assert forms(large) == forms(large[:16384])


def test_of_a_pem_file_only_the_key_is_secret(tmp_path: Path) -> None:
    certificate, key = (path.read_bytes() for path in Authority().write_pair(tmp_path))
    both = certificate + key
    assert search(both, certificate) is None
    body = b"".join(key.splitlines()[1:-1])
    assert search(both, body) and search(both, key.splitlines()[2])
    assert forms(certificate) == {}
