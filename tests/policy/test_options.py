"""The machinery of the constructors: errors that say where, what, and what would be right."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest

import policy
from policy import arguments, egress, ingress, runtime
from policy.errors import PolicyError
from policy.options import Constructor

CONSTRUCTORS: dict[str, Constructor[Any]] = {
    constructor.name: constructor
    for module in (egress, ingress, runtime)
    for constructor in vars(module).values()
    if isinstance(constructor, Constructor)
}
TYPED = {
    "make_egress_path": arguments.EgressPathOptions,
    "make_egress_source": arguments.EgressSourceOptions,
    "make_egress_pool": arguments.EgressPoolOptions,
    "make_queue_config": arguments.QueueConfigOptions,
    "make_listener_domain": arguments.ListenerDomainOptions,
    "start_esmtp_listener": arguments.ListenerOptions,
    "define_spool": arguments.SpoolOptions,
    "configure_memory": arguments.MemoryOptions,
    "configure_mta_sts": arguments.MtaStsOptions,
    "configure_local_logs": arguments.LogOptions,
}


def line() -> int:
    """The caller's line."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def failure(call: Callable[[], Any]) -> str:
    with pytest.raises(PolicyError) as caught:
        call()
    return str(caught.value)


def test_all_constructors_are_here() -> None:
    assert CONSTRUCTORS.keys() == TYPED.keys()


@pytest.mark.parametrize("name", TYPED)
def test_what_type_checkers_know_is_what_is_there(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    typed = TYPED[name]
    assert typed.__annotations__.keys() == constructor.table.kinds.keys()
    required = {name for name, hint in typed.__annotations__.items() if "Required[" in hint.__forward_arg__}
    assert required == constructor.table.required


@pytest.mark.parametrize("name", TYPED)
def test_every_default_is_a_value_that_may_be_given(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    required = {option: "x" for option in constructor.table.required}
    made = constructor.struct(**required)
    given = {option: getattr(made, option) for option in constructor.table.kinds}
    assert constructor(given, {}) == made


@pytest.mark.parametrize("name", TYPED)
def test_every_option_refuses_an_object_of_no_use(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    required = {option: "x" for option in constructor.table.required}
    for option, kind in constructor.table.kinds.items():
        text = failure(lambda option=option: constructor(None, {**required, option: object()}))  # type: ignore[misc]
        assert f"{name}: {option}" in text
        assert kind.right in text


@pytest.mark.parametrize("name", TYPED)
def test_what_is_not_supported_yet_is_refused_by_name(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    required = {option: "x" for option in constructor.table.required}
    for option, later in constructor.table.not_yet.items():
        text = failure(lambda option=option: constructor(None, {**required, option: "on"}))  # type: ignore[misc]
        assert f'option "{option}"' in text
        assert "is not supported yet" in text
        for off in later.off:
            constructor(None, {**required, option: off})
        for nearly in (0, 1, True) if False in later.off else (False,):
            failure(lambda o=option, n=nearly: constructor(None, {**required, o: n}))  # type: ignore[misc]
        assert option not in constructor.table.kinds


def test_the_place_is_the_policys_line() -> None:
    expected = line() + 1
    text = failure(lambda: policy.make_egress_path(enable_tls="Requird"))  # type: ignore[arg-type]
    assert text.startswith(f"{__file__}:{expected}: make_egress_path: enable_tls")


def test_misspelt_option() -> None:
    text = failure(lambda: policy.make_egress_path(enable_tsl="Required"))  # type: ignore[call-arg]
    assert 'unknown option "enable_tsl"; did you mean "enable_tls"?' in text


def test_small_tables_are_listed() -> None:
    text = failure(lambda: policy.make_egress_pool(name="x", zzz=1))  # type: ignore[call-overload]
    assert 'unknown option "zzz"; known are "name", "entries", "ttl"' in text


def test_the_value_of_a_secret_option_is_not_shown() -> None:
    for wrong in ({"key_dat": "tiger"}, ["tiger"], b"tiger", {"key_data": "tiger", "env": "tiger"}):
        text = failure(
            lambda wrong=wrong: policy.make_egress_path(  # type: ignore[misc]
                smtp_auth_plain_username="scott", smtp_auth_plain_password=wrong
            )
        )
        assert "tiger" not in text
    later = failure(lambda: policy.make_egress_source(name="x", socks5_proxy_password="tiger"))  # type: ignore[call-overload]
    misspelt = failure(lambda: policy.make_egress_path(smtp_auth_plain_pasword="tiger"))  # type: ignore[call-arg]
    assert "tiger" not in later + misspelt


def test_the_chain_of_exceptions_ends_here() -> None:
    with pytest.raises(PolicyError) as caught:
        policy.make_egress_path(smtp_port=0)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_long_values_are_cut() -> None:
    text = failure(lambda: policy.make_egress_path(enable_tls="x" * 10_000))  # type: ignore[arg-type]
    assert len(text) < 500


def test_missing_option() -> None:
    text = failure(lambda: policy.make_egress_source())  # type: ignore[call-overload]
    assert 'option "name" is missing; right would be text on one line' in text


def test_mapping_and_keywords() -> None:
    assert policy.make_egress_path({"smtp_port": 587}, enable_tls="Required").smtp_port == 587
    both = failure(lambda: policy.make_egress_path({"smtp_port": 587}, smtp_port=25))
    assert 'option "smtp_port" is given twice' in both
    neither = failure(lambda: policy.make_egress_path("Required"))  # type: ignore[arg-type]
    assert "takes one mapping or keyword arguments, not a str" in neither
    odd = failure(lambda: policy.make_egress_path({5: 1}))  # type: ignore[dict-item]
    assert "unknown option 5" in odd


def test_none_is_not_given_only_where_nothing_is_the_default() -> None:
    assert policy.make_egress_path(max_message_rate=None).max_message_rate is None
    assert "smtp_port=None" in failure(lambda: policy.make_egress_path(smtp_port=None))  # type: ignore[arg-type]


def test_bool_is_no_number_and_no_number_is_bool() -> None:
    failure(lambda: policy.make_egress_path(smtp_port=True))
    failure(lambda: policy.make_egress_path(enable_rset=1))  # type: ignore[arg-type]


def test_public_names_are_there() -> None:
    for name in policy.__all__:
        assert hasattr(policy, name)
    assert typing.get_type_hints(policy.make_egress_path)
