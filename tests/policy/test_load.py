"""Loading policy files: the shape users write, files beside them, and errors that name the line."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import policy
from policy.load import LoadedPolicy, load_policy
from policy.runtime import Declarations

Write = Callable[..., Path]

SHAPE = """
import policy

@policy.on("init")
def init():
    policy.define_spool(path="var/spool")
    policy.configure_local_logs(log_dir="var/log")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["127.0.0.1"])

@policy.on("get_queue_config")
def queue_config(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={"smtp": {"mx_list": ["127.0.0.1:2600"]}})

@policy.on("get_egress_path_config")
def egress_path(domain, egress_source, site_name):
    return policy.make_egress_path(
        enable_tls="Required",
        smtp_auth_plain_username="scott",
        smtp_auth_plain_password={"key_data": "tiger"},   # or {"vault_mount": "secret", "vault_path": ...}
    )
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mypolicy.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture(autouse=True)
def _tidy() -> Any:
    """Leave the import path and the module table as they were."""
    yield
    load_policy(None)


def call(loaded: LoadedPolicy, event: str, *arguments: Any) -> Any:
    (hook,) = loaded.hooks.get(event)
    return hook.function(*(hook.adapt(arguments) if hook.adapt else arguments))


def init(loaded: LoadedPolicy) -> Declarations:
    return trio.run(loaded.run_init)


def failure(path: Path | str, *, in_init: bool = False) -> policy.PolicyLoadError:
    with pytest.raises(policy.PolicyLoadError) as caught:
        loaded = load_policy(path)
        assert in_init, "the import should have failed"
        init(loaded)
    return caught.value


def test_the_published_shape(write: Write) -> None:
    loaded = load_policy(write(SHAPE))
    declared = init(loaded)
    assert declared.spool is not None
    assert declared.spool.path == "var/spool"
    assert [log.log_dir for log in declared.logs] == ["var/log"]
    assert [str(listener.listen) for listener in declared.listeners] == ["127.0.0.1:2525"]
    assert call(loaded, "get_queue_config", "a.example", None, None, None).protocol.mx_list[0].port == 2600
    path = call(loaded, "get_egress_path_config", "a.example", "unspecified", "mx_list:127.0.0.1:2600")
    assert (path.enable_tls, path.smtp_auth_plain_username) == ("Required", "scott")
    assert path.smtp_auth_plain_password.data.reveal() == b"tiger"
    assert loaded.notes == []


def test_the_older_two_argument_form(write: Write) -> None:
    loaded = load_policy(write(SHAPE.replace("domain, egress_source, site_name", "domain, site_name")))
    assert call(loaded, "get_egress_path_config", "a.example", "unspecified", "site").enable_tls == "Required"
    (note,) = loaded.notes
    assert "mypolicy.py:14 in egress_path()" in note


def test_the_default_policy() -> None:
    loaded = load_policy(None)
    declared = init(loaded)
    (listener,) = declared.listeners
    assert str(listener.listen) == "127.0.0.1:2525"
    assert "127.0.0.1" in listener.relay_hosts
    assert "192.0.2.1" not in listener.relay_hosts
    assert declared.spool is not None
    assert (declared.spool.path, declared.logs[0].log_dir) == ("var/spool", "var/log")
    assert loaded.path.name == "default.py"
    assert str(loaded.path.parent) not in sys.path


def test_async_init_and_pre_init(write: Write) -> None:
    loaded = load_policy(
        write("""
        import policy, trio
        order = []

        @policy.on("pre_init")
        def one():
            order.append(1)

        @policy.on("pre_init")
        async def two():
            await trio.lowlevel.checkpoint()
            order.append(2)

        @policy.on("init")
        async def init():
            await trio.lowlevel.checkpoint()
            assert order == [1, 2]
            policy.define_spool(path="x")
        """)
    )
    assert init(loaded).spool is not None


def test_a_policy_without_init_declares_nothing(write: Write) -> None:
    declared = init(load_policy(write("")))
    assert declared.spool is None
    assert not declared.logs
    assert not declared.listeners


def test_a_file_called_policy_beside_its_modules(write: Write) -> None:
    write("RATE = '5/s'\n", "shared_names.py")
    write("from . import more\n", "pack/__init__.py")
    write("WORD = 'pack'\n", "pack/more.py")
    loaded = load_policy(
        write(
            """
            import policy
            import shared_names
            from pack.more import WORD

            @policy.on("get_queue_config")
            def queue_config(domain):
                import later
                pool = WORD + later.WORD
                return policy.make_queue_config(max_message_rate=shared_names.RATE, egress_pool=pool)
            """,
            "policy.py",
        )
    )
    write("WORD = '-later'\n", "later.py")
    config = call(loaded, "get_queue_config", "a.example", None, None, None)
    assert (str(config.max_message_rate), config.egress_pool) == ("5/s", "pack-later")
    assert sys.modules["policy"] is policy


def test_two_policies_one_after_the_other(tmp_path: Path) -> None:
    loads = []
    for number in (1, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "same_name.py").write_text(f"NUMBER = {number}\n")
        (directory / "p.py").write_text(
            "import policy, same_name\npolicy.on('get_egress_pool')(lambda name: same_name.NUMBER)\n"
        )
        loads.append(load_policy(directory / "p.py"))
    assert [call(loaded, "get_egress_pool", "x") for loaded in loads] == [1, 2]
    assert str(tmp_path / "1") not in sys.path
    load_policy(None)
    assert str(tmp_path / "2") not in sys.path
    assert "same_name" not in sys.modules


def test_dataclasses_and_main_guards_work(write: Write) -> None:
    load_policy(
        write("""
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Customer:
            name: str

        assert Customer("x") == Customer("x")
        if __name__ == "__main__":
            raise SystemExit("not run as a script")
        """)
    )


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("import policy\nx = (\n", 2, "SyntaxError: '(' was never closed, in: x = ("),
        ("import policy\nif x\n    pass\n", 2, "SyntaxError: expected ':', in: if x"),
        (
            "import policy\npolicy.configure_local_log(log_dir='x')\n",
            2,
            "AttributeError: module 'policy' has no attribute 'configure_local_log'; did you mean "
            '"configure_local_logs"?',
        ),
        ("import policy\npolicy.xyzzy\n", 2, "AttributeError: module 'policy' has no attribute 'xyzzy'"),
        ("from policy import make_path, on\n", 1, "cannot import name 'make_path' from 'policy'"),
        ("from policy import make_egres_path\n", 1, '; did you mean "make_egress_path"?'),
        ("def f():\n\tx\n        y\n", 3, "TabError"),
        ("import policy\n\nundefined\n", 3, "NameError: name 'undefined' is not defined"),
        ("import policy\npolicy.on('int')\n", 2, 'unknown event "int"; did you mean "init"?'),
        ("import policy\nraise SystemExit\n", 2, "SystemExit"),
        ("import policy\nraise ValueError\n", 2, "ValueError"),
        ("import policy\npolicy.define_spool(path='x')\n", 2, "define_spool: may only be called in"),
        ("import policy\n\npolicy.make_egress_path(\n  smtp_port=0)\n", 3, "smtp_port=0: is out of range"),
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
        (
            "import policy\nfor _ in 1, 2:\n    policy.on('get_egress_pool')(lambda name: 1)\n",
            3,
            "mypolicy.py:3 in <lambda>(); there can be only one",
        ),
    ],
)
def test_errors_while_the_file_runs(write: Write, text: str, line: int, says: str) -> None:
    path = write(text)
    error = failure(path)
    assert error.where == f"{path}:{line}"
    assert says in str(error)
    assert str(error).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        (
            "policy.start_esmtp_listener(relay_host=['127.0.0.1'])",
            5,
            'in init(): start_esmtp_listener: unknown option "relay_host"; did you mean "relay_hosts"?',
        ),
        ("1 / 0", 5, "in init(): ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", 5, "in init(): SystemExit: 3"),
        ("return policy.make_egress_path()", 3, "in init(): init returns nothing, not an EgressPath"),
        ("return policy.STOP", 3, "in init(): init returns nothing, not a _Stop"),
        ("open('/nonexistent/x')", 5, "FileNotFoundError"),
        ("helper()", 8, "in init(): KeyError"),
        ("policy.on('get_queue_confg')", 5, "unknown event"),
        (
            "policy.define_spool('var/spool')",
            5,
            "in init(): define_spool: takes keyword arguments, not a str by position; "
            'right would be define_spool(path="var/spool", ...)',
        ),
        ("policy.configure_local_logs(5)", 5, 'right would be configure_local_logs(log_dir="var/log", ...)'),
        ("policy.start_esmtp_listener([])", 5, 'right would be start_esmtp_listener(listen="127.0.0.1:2525"'),
        (
            "policy.configure_local_logs(compression_level=3)",
            5,
            'option "log_dir" is missing; right would be the path of a directory, such as "var/log", or "-"',
        ),
        (
            "policy.define_spool(name='x')",
            5,
            'option "path" is missing; right would be the path of a directory',
        ),
        ("return later()", 3, "`async def` missing"),
    ],
)
def test_errors_in_init(write: Write, body: str, line: int, says: str) -> None:
    path = write(
        f"import policy\n\n@policy.on('init')\ndef init():\n    {body}\n\n"
        "def helper():\n    {}['x']\n\nasync def later():\n    pass\n"
    )
    error = failure(path, in_init=True)
    assert error.where == f"{path}:{line}"
    assert error.hook == "init()"
    assert says in str(error)


def test_what_is_missing_when_there_is_no_spool(write: Write) -> None:
    assert '@policy.on("init")' in load_policy(write("")).no_spool()
    text = load_policy(write("import policy\npolicy.on('init')(lambda: None)\n")).no_spool()
    assert text.endswith(
        'mypolicy.py: init defines no spool; call policy.define_spool(path="var/spool") in it'
    )


def test_pre_init_cannot_declare(write: Write) -> None:
    path = write("import policy\n\n@policy.on('pre_init')\ndef early():\n    policy.define_spool(path='x')\n")
    error = failure(path, in_init=True)
    assert (error.where, error.hook) == (f"{path}:5", "early()")


def test_errors_in_a_module_beside_it_name_that_module(write: Write) -> None:
    beside = write("import policy\n\ndef setup():\n    policy.define_spool(pth='x')\n", "setup_helper.py")
    path = write("import policy, setup_helper\n\n@policy.on('init')\ndef init():\n    setup_helper.setup()\n")
    assert failure(path, in_init=True).where == f"{beside}:4"
    broken = write("x = (\n", "broken_beside.py")
    path = write("import broken_beside\n")
    assert failure(path).where == f"{broken}:1"


def test_no_module_beside_it_takes_the_place_of_an_installed_one(write: Write) -> None:
    sys.modules.pop("colorsys", None)
    write("raise AssertionError('imported instead of the standard library')\n", "colorsys.py")
    path = write("import colorsys\ncolorsys.rgb_to_hsv(0, 0, 0)\n")
    load_policy(path)
    assert sys.path[-1] == str(path.parent)


def test_a_hidden_module_is_explained(write: Write) -> None:
    write("def routes(): ...\n", "queue.py")
    assert '"queue" beside the policy is hidden by ' in str(failure(write("from queue import routes\n")))
    assert '"queue" beside the policy is hidden by ' in str(failure(write("import queue\nqueue.routes()\n")))
    assert "is hidden by" not in str(failure(write("import json\njson.routes()\n")))


def test_errors_in_an_async_init_with_tasks(write: Write) -> None:
    path = write(
        """
        import policy, trio

        @policy.on("init")
        async def init():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task)

        async def task():
            raise RuntimeError("in a task")
        """
    )
    error = failure(path, in_init=True)
    assert error.where == f"{path}:10"
    assert "RuntimeError: in a task" in str(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"
    assert str(failure(missing)) == f"{missing}: cannot be read: No such file or directory"
    assert "cannot be read" in str(failure(tmp_path))
    nul = tmp_path / "nul.py"
    nul.write_bytes(b"x = 1\x00\n")
    assert str(nul) in str(failure(nul))


def test_a_relative_path_is_shown_as_given(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("import policy\nundefined\n")
    monkeypatch.chdir(path.parent)
    assert failure("mypolicy.py").where == "mypolicy.py:2"


def test_a_failed_load_leaves_nothing_behind(write: Write) -> None:
    before = set(sys.modules)
    failure(write("import policy\n@policy.on('init')\ndef init(): ...\nundefined\n"))
    assert set(sys.modules) == before
    assert init(load_policy(write(""))).spool is None


def test_ctrl_c_and_cancellation_are_nobodys_mistake(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_policy(write("raise KeyboardInterrupt\n"))

    loaded = load_policy(
        write("import policy, trio\n@policy.on('init')\nasync def init():\n    await trio.sleep_forever()\n")
    )

    async def cancelled() -> bool:
        with trio.move_on_after(0.01) as scope:
            await loaded.run_init()
        return scope.cancelled_caught

    assert trio.run(cancelled)


def test_importing_a_policy_for_its_tests_registers_nowhere_else(write: Write) -> None:
    loaded = load_policy(write(SHAPE))
    policy.on("get_egress_pool")(lambda name: None)
    assert loaded.hooks.get("get_egress_pool") == ()
