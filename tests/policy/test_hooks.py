"""Registration, the table of events, STOP and Reject."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import policy
from policy.hooks import EVENTS, NOT_YET, STOP, HookTable, Reject, registering


@pytest.fixture
def table() -> Iterator[HookTable]:
    table = HookTable()
    token = registering.set(table)
    yield table
    registering.reset(token)


def test_registration_leaves_the_function_alone(table: HookTable) -> None:
    def queue_config(domain: Any, tenant: Any, campaign: Any, routing_domain: Any) -> Any:
        return domain

    assert policy.on("get_queue_config")(queue_config) is queue_config
    (hook,) = table.get("get_queue_config")
    assert hook.function is queue_config
    assert not hook.is_async
    assert hook.adapt is None
    assert hook.event == "get_queue_config"
    line = queue_config.__code__.co_firstlineno
    assert hook.where == f"{__file__}:{line} in queue_config()"
    assert table.get("init") == ()
    assert table.hooks == [hook]


def test_async_is_seen(table: HookTable) -> None:
    class Asker:
        async def __call__(self, conn_meta: Any) -> None: ...

        async def method(self, conn_meta: Any) -> None: ...

    @policy.on("smtp_server_connection_accepted")
    async def accepted(conn_meta: Any) -> None: ...

    policy.on("smtp_server_connection_accepted")(Asker())
    policy.on("smtp_server_connection_accepted")(Asker().method)
    hooks = table.get("smtp_server_connection_accepted")
    assert [hook.is_async for hook in hooks] == [True, True, True]
    assert hooks[1].where.endswith("in Asker()")
    assert hooks[2].where.endswith("in method()")


def test_chains_keep_the_order(table: HookTable) -> None:
    for _ in range(3):
        policy.on("get_queue_config")(lambda *args: None)
    hooks = table.get("get_queue_config")
    assert len(hooks) == 3
    assert len({hook.function for hook in hooks}) == 3


def test_a_single_event_has_one_hook(table: HookTable) -> None:
    @policy.on("get_egress_pool")
    def first(name: str) -> None: ...

    with pytest.raises(policy.PolicyError) as caught:

        @policy.on("get_egress_pool")
        def second(name: str) -> None: ...

    assert f"{__file__}:{first.__code__.co_firstlineno} in first()" in str(caught.value)
    assert table.get("get_egress_pool")[0].function is first


def test_outside_a_load_a_single_event_takes_the_last_hook() -> None:
    table = HookTable(strict=False)
    token = registering.set(table)
    policy.on("get_egress_pool")(lambda name: 1)
    policy.on("get_egress_pool")(lambda name: 2)
    registering.reset(token)
    (hook,) = table.get("get_egress_pool")
    assert hook.function("x") == 2


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("get_queue_conf", 'did you mean "get_queue_config"'),
        ("zzz", "keysource=True"),
        ("requeue_message", "is not supported yet"),
        (lambda: None, '@policy.on("init")'),
    ],
)
def test_unknown_events(table: HookTable, event: Any, says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.on(event)
    assert says in str(caught.value)
    assert __file__ in str(caught.value)
    assert not table.hooks


def test_signatures_are_checked_at_once(table: HookTable) -> None:
    with pytest.raises(policy.PolicyError) as caught:

        @policy.on("init")
        def init(engine: Any) -> None: ...

    assert "takes (engine: 'Any'); right would be ()" in str(caught.value)
    assert "in init()" in str(caught.value)
    with pytest.raises(policy.PolicyError, match="cannot be called"):
        policy.on("init")(5)  # type: ignore[type-var]


def test_the_two_argument_path_hook(table: HookTable) -> None:
    @policy.on("get_egress_path_config")
    def egress_path(domain: str, site_name: str) -> tuple[str, str]:
        return domain, site_name

    (hook,) = table.get("get_egress_path_config")
    assert hook.adapt is not None
    assert hook.function(*hook.adapt(("example.com", "source", "mx.example.com"))) == (
        "example.com",
        "mx.example.com",
    )
    (note,) = hook.notes
    assert "(domain, egress_source, site_name)" in note
    assert hook.where in note


def test_three_arguments_need_no_remark(table: HookTable) -> None:
    policy.on("get_egress_path_config")(lambda domain, egress_source, site_name: None)
    assert table.get("get_egress_path_config")[0].notes == ()


def test_key_source_callbacks(table: HookTable) -> None:
    @policy.on("my_password", keysource=True)
    def my_password(a: Any, b: Any, c: Any, d: Any, e: Any) -> bytes:
        return b"x"

    (hook,) = table.get("my_password")
    assert hook.adapt is None
    for answer in (b"x", "x", policy.Secret("x"), None, 5):
        assert hook.complaint(answer) is None  # for the key source to judge
    with pytest.raises(policy.PolicyError, match="is an event of the engine"):
        policy.on("init", keysource=True)


def test_answers_are_judged_by_type_only(table: HookTable) -> None:
    policy.on("get_egress_path_config")(lambda domain, egress_source, site_name: None)
    policy.on("get_queue_config")(lambda *args: None)
    policy.on("smtp_server_mail_from")(lambda *args: None)
    policy.on("smtp_server_auth_plain")(lambda *args: None)
    path = table.get("get_egress_path_config")[0]
    assert path.complaint(policy.make_egress_path()) is None
    canary = {"smtp_auth_plain_password": "canary"}
    said = str(path.complaint(canary))
    assert said.startswith(path.where)
    assert "returns policy.make_egress_path(...), not a dict" in said
    assert "canary" not in said
    assert "not None" in str(path.complaint(None))
    assert "not a _Stop" in str(path.complaint(STOP))
    queue = table.get("get_queue_config")[0]
    assert (
        queue.complaint(None) is queue.complaint(STOP) is queue.complaint(policy.make_queue_config()) is None
    )
    assert "not an EgressPath" in str(queue.complaint(policy.make_egress_path()))
    assert table.get("smtp_server_mail_from")[0].complaint(object()) is None
    auth = table.get("smtp_server_auth_plain")[0]
    assert auth.complaint(False) is None
    assert "True or False" in str(auth.complaint(1))

    async def forgotten() -> None: ...

    assert "async def" in str(auth.complaint(forgotten()))


def test_the_table_is_sound() -> None:
    assert not NOT_YET & EVENTS.keys()
    for name, event in EVENTS.items():
        names = [alias for aliases in event.arguments for alias in aliases]
        assert len(names) == len(set(names)), name
        assert event.must <= (event.kind == "single")
        assert bool(event.returns) <= bool(event.right)


def test_stop_is_one() -> None:
    assert copy.deepcopy(STOP) is STOP
    assert pickle.loads(pickle.dumps(STOP)) is STOP
    assert repr(policy.STOP) == "policy.STOP"


@pytest.mark.parametrize(
    ("arguments", "code", "enhanced", "text", "shown"),
    [
        ((550, "5.7.1 no"), 550, "5.7.1", "no", "550 5.7.1 no"),
        ((550, "no", "5.7.1"), 550, "5.7.1", "no", "550 5.7.1 no"),
        ((451, "4.7.1 later"), 451, "4.7.1", "later", "451 4.7.1 later"),
        ((550, "no"), 550, None, "no", "550 no"),
        ((550, "5.7 no"), 550, None, "5.7 no", "550 5.7 no"),
        ((550, ""), 550, None, "", "550"),
    ],
)
def test_reject(arguments: Any, code: int, enhanced: str | None, text: str, shown: str) -> None:
    reject = Reject(*arguments)
    assert (reject.code, reject.enhanced, reject.text, str(reject)) == (code, enhanced, text, shown)
    assert reject.mode == "If421"


@pytest.mark.parametrize(
    "arguments",
    [
        *((250, "ok"), ("550", "no"), (600, "no"), (550, None), (550, "no", "4.7.1"), (550, "4.7.1 no")),
        *(
            (550, "no", "5.7"),
            (550, "no", "2.0.0"),
            (550, "no", None, "Sometimes"),
            (550, "no", "5.\u0663.1"),
        ),
    ],
)
def test_wrong_rejects(arguments: Any) -> None:
    with pytest.raises(policy.PolicyError, match="Reject: "):
        Reject(*arguments)
