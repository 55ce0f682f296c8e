"""Every form of key source, every wrong form, and that no value is ever shown."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgspec
import pytest

import policy
from policy.keysource import (
    AppRoleLogin,
    CallbackKey,
    CredentialKey,
    EnvKey,
    FileKey,
    JwtLogin,
    KeyRef,
    LiteralKey,
    TokenLogin,
    VaultKey,
    parse_key,
    read_key,
    safe_segment,
)
from policy.keyterms import Terms
from policy.secret import Secret
from tests.contract.key_source import everything

CANARY = "c4n4ry-77aa"
ENDLESS: list[Any] = [CANARY]
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "expected", "name"),
    [
        ("/etc/key", FileKey("/etc/key"), "file:/etc/key"),
        ({"file": "key.pem"}, FileKey("key.pem"), "file:key.pem"),
        ({"key_data": "tiger"}, LiteralKey(Secret("tiger")), "literal"),
        ({"key_data": b"tiger"}, LiteralKey(Secret("tiger")), "literal"),
        ({"key_data": Secret("tiger")}, LiteralKey(Secret("tiger")), "literal"),
        ({"env": "PASSWORD"}, EnvKey("PASSWORD"), "env:PASSWORD"),
        (
            {"vault_mount": "secret", "vault_path": "smtp-auth/local"},
            VaultKey("secret", "smtp-auth/local"),
            "vault:secret/smtp-auth/local#key",
        ),
        (
            {
                "vault_mount": "kv/team",
                "vault_path": "a",
                "vault_key": "password",
                "vault_address": "https://vault.example:8200/",
                "vault_token": "t",
                "kv_version": 1,
                "vault_namespace": "/team/",
                "vault_ca": "/etc/ca.pem",
            },
            VaultKey(
                "kv/team",
                "a",
                "password",
                "https://vault.example:8200",
                Secret("t"),
                1,
                "team",
                "/etc/ca.pem",
            ),
            "vault:kv/team/a#password",
        ),
        (
            {"event_name": "ask", "event_args": ["a", 1, None]},
            CallbackKey("ask", policy.Secret('["a",1,null]')),
            "callback:ask",
        ),
        ({"event_name": "ask"}, CallbackKey("ask"), "callback:ask"),
        ({"credential": "relay"}, CredentialKey("relay"), "credential:relay"),
        (
            {"env": "PASSWORD", "ttl": "1m", "stale_for": 30, "on_denied": "hold"},
            EnvKey("PASSWORD", terms=Terms(ttl=60.0, stale_for=30.0, on_denied="hold")),
            "env:PASSWORD",
        ),
        (
            {"file": "/x", "ttl": "2s", "on_outage": "hold"},
            FileKey("/x", terms=Terms(ttl=2.0, on_outage="hold")),
            "file:/x",
        ),
        (
            {
                "vault_mount": "s",
                "vault_path": "p",
                "vault_token": {"file": "/run/token"},
                "vault_version": 3,
            },
            VaultKey("s", "p", auth=TokenLogin(FileKey("/run/token")), version=3),
            "vault:s/p#key@3",
        ),
        (
            {
                "vault_mount": "s",
                "vault_path": "p",
                "vault_auth": {"method": "approle", "role_id": "/r", "secret_id": {"credential": "s"}},
            },
            VaultKey("s", "p", auth=AppRoleLogin(FileKey("/r"), CredentialKey("s"), "approle")),
            "vault:s/p#key",
        ),
        (
            {
                "vault_mount": "s",
                "vault_path": "p",
                "vault_auth": {"method": "kubernetes", "role": "mail", "mount": "k8s/a"},
            },
            VaultKey(
                "s",
                "p",
                auth=JwtLogin(
                    "mail", FileKey("/var/run/secrets/kubernetes.io/serviceaccount/token"), "k8s/a"
                ),
            ),
            "vault:s/p#key",
        ),
    ],
)
def test_forms(value: Any, expected: KeyRef, name: str) -> None:
    ref = parse_key(value)
    assert ref == expected
    assert ref.name == name
    assert parse_key(ref) is ref
    assert hash(ref) == hash(parse_key(value))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"ttl": 0}, '"ttl" is a duration from 1 s to 400 days'),
        ({"ttl": "soon"}, '"ttl" is no duration'),
        ({"ttl": True}, '"ttl" is a duration like 300 or "5m", not a bool'),
        ({"stale_for": -1}, '"stale_for" is no duration'),
        ({"stale_for": "3 years"}, '"stale_for" is '),
        ({"on_outage": "hodl"}, '"on_outage" is "stale" or "hold"; did you mean "hold"?'),
        ({"on_denied": 1}, '"on_denied" is "stale" or "hold"'),
        ({"on_outage": "hold", "stale_for": 5}, '"on_outage" is "hold": none does'),
        ({"on_outrage": "hold"}, 'did you mean "on_outage"?'),
    ],
)
def test_terms_that_cannot_be(extra: dict[str, Any], says: str) -> None:
    for form in ({"file": "/x"}, {"env": "X"}, {"vault_mount": "s", "vault_path": "p"}, {"event_name": "e"}):
        with pytest.raises(policy.PolicyError) as caught:
            parse_key({**form, **extra})
        assert says in str(caught.value)


@pytest.mark.parametrize("form", [{"key_data": "x"}, {"token_endpoint": "https://x/", "client_id": "c"}])
def test_what_has_a_life_of_its_own_takes_no_terms(form: dict[str, Any]) -> None:
    with pytest.raises(policy.PolicyError, match='unknown key "ttl"'):
        parse_key({**form, "ttl": 5})


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"vault_auth": "approle"}, '"vault_auth" is a mapping with "method"'),
        ({"vault_auth": {"method": "aprole"}}, 'did you mean "approle"?'),
        ({"vault_auth": {"method": "approle"}}, '"role_id" is missing'),
        ({"vault_auth": {"method": "jwt", "role": "x"}}, '"jwt" is missing'),
        ({"vault_auth": {"method": "kubernetes"}}, '"role" is missing'),
        ({"vault_auth": {"method": "kubernetes", "role_id": "x"}}, 'unknown key "role_id"'),
        ({"vault_auth": {"method": "jwt", "jwt": {"vault_mount": "a", "vault_path": "b"}}}, "needs a login"),
        ({"vault_auth": {"method": "jwt", "jwt": "/x"}, "vault_token": "t"}, "two ways to log in"),
        ({"vault_version": 0}, '"vault_version" is the number'),
        ({"vault_version": True}, '"vault_version" is the number'),
        ({"vault_version": 2, "kv_version": 1}, "needs KV version 2"),
        ({"vault_token": {"file": ""}}, '"file" is empty'),
    ],
)
def test_logins_that_cannot_be(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        parse_key({"vault_mount": "s", "vault_path": "p", **extra})
    assert says in str(caught.value)


def test_none_means_left_out_in_vault_options() -> None:
    key = parse_key({"vault_mount": "s", "vault_path": "p", "vault_token": None, "kv_version": None})
    assert key == VaultKey("s", "p")


def test_callback_arguments_are_a_copy_and_hash_by_value() -> None:
    arguments = ["example.com", {"b": [1], "a": 2}]
    key = parse_key({"event_name": "ask", "event_args": arguments})
    twin = parse_key({"event_name": "ask", "event_args": ["example.com", {"a": 2, "b": [1]}]})
    arguments.append("more")
    assert isinstance(key, CallbackKey)
    assert key.event_args == ("example.com", {"b": [1], "a": 2})
    assert key == twin
    assert hash(key) == hash(twin)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (0, False), (0.0, -0.0), ("1", 1), ([1], [True]), ({"a": 1}, {"a": 1.0})],
)
def test_callback_arguments_of_another_type_make_another_reference(one: Any, other: Any) -> None:
    first = parse_key({"event_name": "ask", "event_args": [one]})
    second = parse_key({"event_name": "ask", "event_args": [other]})
    assert first != second
    assert len({first: 1, second: 2}) == 2
    paths = [policy.make_egress_path(smtp_auth_plain_username="u", smtp_auth_plain_password=first)]
    assert policy.make_egress_path(smtp_auth_plain_username="u", smtp_auth_plain_password=second) not in paths


def test_a_hook_cannot_change_the_reference_by_its_arguments() -> None:
    key = parse_key({"event_name": "ask", "event_args": [["a"]]})
    assert isinstance(key, CallbackKey)
    key.event_args[0].append("b")
    assert key.event_args == (["a"],)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "None is no key source"),
        (5, "an int is no key source"),
        ("", '"file" is empty'),
        ("a\nb", "control character"),
        ({}, "no key source"),
        ({1: "x"}, "no key source"),
        ({"vault_mont": CANARY}, 'did you mean "vault_mount"'),
        ({"vault_path": CANARY}, '"vault_mount" is missing beside "vault_path"'),
        ({"vault_mount": CANARY}, '"vault_path" is missing'),
        ({"key_data": CANARY, "file": "x"}, "two different kinds"),
        ({"key_data": CANARY, "extra": "x"}, 'unknown key "extra" beside "key_data"; known are "key_data"'),
        ({"key_data": ""}, '"key_data" is empty'),
        ({"key_data": [CANARY]}, "not a list"),
        ({"file": ["x"]}, "not a list"),
        ({"env": "A=B"}, 'without "="'),
        ({"vault_mount": "s", "vault_path": "a/../b"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a/./b"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a%2fb"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a?b"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a#b"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a\\b"}, '"vault_path" has a segment'),
        ({"vault_mount": "s", "vault_path": "a\x00b"}, "control character"),
        ({"vault_mount": "s", "vault_path": "smtp-auth/"}, "empty segment"),
        ({"vault_mount": "s//t", "vault_path": "p"}, '"vault_mount" has an empty segment'),
        (
            {"vault_mount": "s", "vault_path": "p", "vault_namespace": "a/.."},
            '"vault_namespace" has a segment',
        ),
        ({"vault_mount": "s", "vault_path": "p", "vault_address": "vault:8200"}, "is no URL"),
        ({"vault_mount": "s", "vault_path": "p", "vault_address": f"https://u:{CANARY}@v"}, "holds a user"),
        ({"vault_mount": "s", "vault_path": "p", "vault_address": "https://v:x"}, "is no URL"),
        ({"vault_mount": "s", "vault_path": "p", "kv_version": 3}, "is 1 or 2"),
        ({"vault_mount": "s", "vault_path": "p", "kv_version": True}, "is 1 or 2"),
        ({"vault_mount": "s", "vault_path": "p", "kv_version": 2.0}, "is 1 or 2"),
        ({"key_data": CANARY + "\ud800"}, "characters that UTF-8 has not"),
        ({"event_name": "ask", "event_args": [CANARY + "\ud800"]}, "other than JSON values"),
        ({"event_name": "ask", "event_args": ENDLESS}, "other than JSON values"),
        (
            {"vault_mount": "s", "vault_path": "p", "vault_token": f"{CANARY}\n"},
            '"vault_token" holds a control',
        ),
        ({"event_name": "ask", "event_args": CANARY}, '"event_args" is a list'),
        ({"event_name": "ask", "event_args": [object()]}, "other than JSON values"),
    ],
)
def test_wrong_forms(value: Any, says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        parse_key(value, "make_egress_path: smtp_auth_plain_password")
    text = str(caught.value)
    assert says in text
    assert "make_egress_path: smtp_auth_plain_password: " in text
    assert CANARY not in everything(caught.value)
    assert __file__ in text
    with pytest.raises(ValueError) as inner:
        read_key(value)
    assert CANARY not in everything(inner.value)


def test_nothing_of_a_reference_shows_a_secret() -> None:
    literal = parse_key({"key_data": CANARY})
    vault = parse_key({"vault_mount": "s", "vault_path": "p", "vault_token": CANARY})
    callback = parse_key({"event_name": "ask", "event_args": [CANARY]})
    for ref in (literal, vault, callback):
        shown = [f"{ref} {ref!r} {[ref]} {ref.name}", str(list(ref.__rich_repr__()))]
        shown += [
            str(msgspec.structs.asdict(ref)),
            str(msgspec.structs.astuple(ref)),
            repr(copy.deepcopy(ref)),
        ]
        shown.append(msgspec.json.encode(ref, enc_hook=repr).decode())
        assert CANARY not in "".join(shown)
        for encode in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins, pickle.dumps):
            with pytest.raises(TypeError) as caught:
                encode(ref)
            assert CANARY not in everything(caught.value)


def test_one_safe_segment() -> None:
    assert safe_segment("example.com") == "example.com"
    assert safe_segment("[10.0.0.1]") == "[10.0.0.1]"
    for wrong in ("", "a/b", "..", ".", "a%b", "a?b", "a#b", "a\x7fb", "a\nb"):
        with pytest.raises(policy.PolicyError):
            safe_segment(wrong)


def test_a_segment_is_text() -> None:
    with pytest.raises(policy.PolicyError, match="safe_segment: not one path segment: is no text but an int"):
        safe_segment(5)  # type: ignore[arg-type]
