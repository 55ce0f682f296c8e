"""policy/release.py: what `release_to` of `smtp_auth` takes, in Python and in a mapping from TOML."""

from __future__ import annotations

import base64
import tomllib
from typing import Any

import pytest

import policy
from policy.release import name_fits

PIN = "sha256//" + base64.b64encode(bytes(range(32))).decode()


def path(release_to: Any, **options: Any) -> Any:
    auth = {"username": "scott", "password": {"key_data": "tiger"}, "release_to": release_to}
    return policy.make_egress_path(smtp_auth=auth, **options)


def test_everything_that_may_be_demanded() -> None:
    release = path(
        {
            "names": ["SMTP.Relay.Example.", "*.mx.example", "192.0.2.1"],
            "addresses": ["192.0.2.0/24", "2001:db8::1"],
            "ports": [587, 465],
            "pins": [bytes(range(32)).hex(), PIN, PIN.removeprefix("sha256//")],
            "tls_minimum_version": "1.3",
        }
    ).smtp_auth.release_to
    assert release.names == ("*.mx.example", "192.0.2.1", "smtp.relay.example")
    assert "192.0.2.77" in release.addresses and "192.0.3.1" not in release.addresses
    assert (release.ports, release.pins, release.tls_minimum_version) == ((465, 587), (PIN,), "TLSv1.3")


def test_it_is_part_of_what_may_share_a_connection() -> None:
    assert path({"ports": [25]}) != path({"ports": [587]})
    assert hash(path({"ports": [25]})) == hash(path({"ports": [25]}))


def test_it_may_stand_in_toml() -> None:
    text = 'smtp_auth = {username = "a", password = {env = "P"}, release_to = {names = ["mx.example"]}}'
    assert policy.make_egress_path(tomllib.loads(text)).smtp_auth.release_to.names == ("mx.example",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "demands nothing"),
        ("mx.example", "no mapping but a str"),
        ({"name": ["mx.example"]}, 'unknown key "name"; did you mean "names"?'),
        ({"names": "mx.example"}, "is no list but a str"),
        ({"names": []}, "is empty"),
        ({"names": ["*.example"]}, "a whole top-level domain"),
        ({"names": ["mx.*.example"]}, '"mx.*.example", which is no host name'),
        ({"names": ["möx.example"]}, "A-label"),
        ({"names": [7]}, "holds an int"),
        ({"addresses": ["192.0.2.1/24"]}, 'did you mean "192.0.2.0/24"?'),
        ({"addresses": []}, "is empty"),
        ({"ports": ["587"]}, "'587', which is no port"),
        ({"ports": [True]}, "no port"),
        ({"ports": [65536]}, "no port"),
        ({"pins": ["abc"]}, "neither 64 hexadecimal digits nor base64"),
        ({"pins": ["sha256//" + base64.b64encode(b"short").decode()]}, "holds 5 octets"),
        ({"tls_minimum_version": "1.1"}, "is none of them"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(value: Any, said: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        path(value)
    assert said in str(caught.value) and "tiger" not in str(caught.value)
    assert "release_to" in str(caught.value)


def test_a_password_in_the_wrong_place_is_not_shown() -> None:
    with pytest.raises(policy.PolicyError, match='unknown key "password"') as caught:
        path({"ports": [25], "password": {"key_data": "tiger"}})
    assert "tiger" not in str(caught.value)


@pytest.mark.parametrize(
    ("release_to", "mode", "said"),
    [
        ({"names": ["mx.example"]}, "Disabled", "what only TLS can show"),
        ({"pins": [PIN]}, "Disabled", "what only TLS can show"),
        ({"tls_minimum_version": "1.3"}, "Disabled", "what only TLS can show"),
        ({"names": ["mx.example"]}, "RequiredInsecure", "verifies none"),
    ],
    ids=str,
)
def test_what_could_never_be_fulfilled_is_refused(release_to: Any, mode: str, said: str) -> None:
    with pytest.raises(policy.PolicyError, match=said):
        path(release_to, enable_tls=mode)
    path(release_to, enable_tls="Required")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("mx.example", "mx.example", True),
        ("mx.example", "a.mx.example", False),
        ("*.mx.example", "a.mx.example", True),
        ("*.mx.example", "mx.example", False),
        ("*.mx.example", "a.b.mx.example", False),
        ("*.mx.example", ".mx.example", False),
        ("*.mx.example", "amx.example", False),
        ("192.0.2.1", "192.0.2.1", True),
    ],
)
def test_a_star_is_one_label(pattern: str, name: str, fits: bool) -> None:
    assert name_fits(pattern, name) == fits


@pytest.mark.parametrize(
    ("value", "said"), [("101/h", "more than 100"), ("4/h,max_burst=2", "max_burst"), ("often", "")]
)
def test_a_budget_of_failures(value: str, said: str) -> None:
    auth: dict[str, Any] = {"username": "scott", "password": {"key_data": "tiger"}}
    with pytest.raises(policy.PolicyError, match=f"failure_budget.*{said}.*right would be"):
        policy.make_egress_path(smtp_auth={**auth, "failure_budget": value})  # type: ignore[typeddict-item]
    made = policy.make_egress_path(smtp_auth={**auth, "failure_budget": "2/30min"})  # type: ignore[typeddict-item]
    assert made.login is not None and (
        made.login.failure_budget.quantity,
        made.login.failure_budget.period,
    ) == (2, 1800)
