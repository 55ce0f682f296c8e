"""The documentation says what the code does: options, defaults, events, examples."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import trio

import policy
from engine import errors
from engine.egress import login as egress_login
from engine.egress import resolve, rotation, tlsa
from engine.ingress import answers
from engine.keys import oauth2 as oauth2_source
from engine.log import KINDS, diagnostics
from engine.queues import ready
from policy import egress, ingress, keysource, login, protocols, release, runtime
from policy.egress import SmtpProtocol
from policy.hooks import EVENTS
from policy.ingress import TraceHeaders
from policy.load import load_policy
from policy.nets import CidrSet
from policy.options import Constructor
from policy.scramkeys import MOST_ITERATIONS
from policy.shaping import asked_by_name
from policy.shaping.read import read
from policy.shaping.table import build
from policy.units import format_duration, format_size

ROOT = Path(__file__).parents[2]
PATHS = (ROOT / "docs" / "egress-paths.md").read_text()
POLICY = (ROOT / "docs" / "policy.md").read_text()
AUTH = (ROOT / "docs" / "auth.md").read_text()
TLS = (ROOT / "docs" / "tls.md").read_text()
DANE = (ROOT / "docs" / "dane.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()

CONSTRUCTORS: dict[str, Constructor[Any]] = {
    constructor.name: constructor
    for module in (egress, ingress, runtime)
    for constructor in vars(module).values()
    if isinstance(constructor, Constructor)
}
FOUR = ("make_egress_path", "make_egress_source", "make_egress_pool", "make_queue_config")


def sections(text: str, mark: str) -> dict[str, str]:
    """Heading (without backquotes) -> what stands below it."""
    parts = re.split(rf"^{mark} (.+)$", text, flags=re.MULTILINE)[1:]
    headings = [heading.strip("`") for heading in parts[::2]]
    assert len(headings) == len(set(headings)), "a heading stands twice"
    return dict(zip(headings, parts[1::2], strict=True))


def default_text(constructor: Constructor[Any], option: str) -> str:
    """How the documents write a default."""
    field = next(f for f in msgspec.structs.fields(constructor.struct) if f.name == option)  # type: ignore[arg-type]
    if field.required:
        return "required"
    required = {name: "x" for name in constructor.table.required}
    value = getattr(constructor.struct(**required), option)
    if value is None:
        return "none"
    if value in ((), {}) or (isinstance(value, CidrSet) and not value):
        return "empty"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, float):
        return f"`{format_duration(value)}`"
    if isinstance(value, SmtpProtocol):
        return '`{"smtp": {}}`'
    if isinstance(value, TraceHeaders):
        return '`{"received_header": True}`'
    if type(value) is int and value and not value % 65536:
        return f"`{format_size(value)}`"
    return f"`{value}`"


@pytest.mark.parametrize("name", FOUR)
def test_every_option_of_the_four_has_its_heading(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    headings = sections(sections(PATHS, "##")[name], "####")
    assert headings.keys() == {*constructor.table.kinds, *constructor.table.not_yet}
    for option in constructor.table.kinds:
        text = headings[option]
        found = re.search(r"^Unit: (.+?)\. Default: (.+?)\. Enforced: (.+)\.$", text, re.MULTILINE)
        assert found, f"{name}.{option}: no line `Unit: ... Default: ... Enforced: ...`"
        assert found[2] == default_text(constructor, option), f"{name}.{option}"
        for file in re.findall(r"`(.+?)`", found[3]):
            assert option in (ROOT / file).read_text(), f"{name}.{option} is not enforced in {file}"
    for option, later in constructor.table.not_yet.items():
        off = [value for value in later.off if value is not None]
        accepted = f" Accepted: `{off[0]}`." if off else ""
        assert headings[option].strip().startswith(f"Not supported yet: {later.what}.{accepted}"), (
            f"{name}.{option}"
        )


INIT = [
    "define_spool",
    "configure_memory",
    "configure_mta_sts",
    "configure_local_logs",
    "start_esmtp_listener",
]


@pytest.mark.parametrize("name", INIT)
def test_every_option_of_init_is_in_its_table(name: str) -> None:
    constructor = CONSTRUCTORS[name]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", sections(POLICY, "###")[name], re.MULTILINE)
    assert [option for option, _ in rows if option not in constructor.table.kinds] == []
    assert dict(rows) == {option: default_text(constructor, option) for option in constructor.table.kinds}


def test_what_a_listener_does_not_know_yet_is_listed() -> None:
    (listed,) = re.findall(r"Not supported yet, and refused: ([^.]+)\.", POLICY)
    assert set(re.findall(r"`(\w+)`", listed)) == CONSTRUCTORS["start_esmtp_listener"].table.not_yet.keys()


def test_the_options_of_a_listener_domain() -> None:
    (text,) = re.findall(r"`make_listener_domain` knows ([^.]+)\.", POLICY)
    constructor = CONSTRUCTORS["make_listener_domain"]
    assert set(re.findall(r"`(\w+)`", text)) - {"False"} == {
        *constructor.table.kinds,
        *constructor.table.not_yet,
    }


def test_the_table_of_events() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (single|chain) \| (.+?) \|$", POLICY, re.MULTILINE)
    assert [name for name, *_ in rows] == list(EVENTS)
    for name, arguments, kind, answer in rows:
        event = EVENTS[name]
        assert arguments.strip("`") == ", ".join(event.names)
        assert kind == event.kind
        assert answer == (event.right or "not looked at")


def methods(protocol: type) -> set[str]:
    return {name for name, what in vars(protocol).items() if not name.startswith("_") and callable(what)}


def test_the_methods_of_messages_and_connections() -> None:
    section = sections(POLICY, "###")["What hooks are handed"]
    before, table = section.split("`msg` is a message")
    rows = re.findall(r"^\| (`.+?\)`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)\(", row)} == methods(protocols.Message)
    assert set(re.findall(r"`(\w+_meta)\(", before)) == methods(protocols.ConnectionMeta)
    properties = {name for name, what in vars(protocols.Address).items() if isinstance(what, property)}
    (has,) = re.findall(r"^An address .+ has (.+?);", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", has)) == properties


def test_the_meta_that_the_engine_sets() -> None:
    section = sections(POLICY, "###")["What hooks are handed"].split("`msg` is a message")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    source = (ROOT / "engine" / "ingress" / "connection.py").read_text()
    begun = re.search(r"ConnectionMeta\(\s*\{(.+?)\}", source, re.DOTALL)
    assert begun
    put = set(re.findall(r'"(\w+)": ', begun[1])) | set(re.findall(r'meta\.put\("(\w+)"', source))
    assert listed == put
    said = inspect.getdoc(protocols.ConnectionMeta) or ""
    assert listed <= set(re.findall(r"`(\w+)`", said))


def causes(error: type[errors.HeldError]) -> set[str]:
    return {error.cause}.union(*(causes(one) for one in error.__subclasses__()))


def test_the_causes_of_held_mail() -> None:
    table = sections(OPERATING, "##")["Held mail"]
    rows = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    more = {egress_login.LOGIN_DEFERRED, egress_login.LOGIN_UNANSWERED}
    assert set(rows) == (causes(errors.HeldError) - {"held"}) | more


def test_the_types_of_records() -> None:
    table = sections(OPERATING, "##")["Log records"]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(rows) - {"type"} == set(KINDS)
    assert "`cause`" in table and "hook-error" in table


def test_how_carefully_a_site_is_approached() -> None:
    states = sections(PATHS, "##")["When a site takes nothing"]
    assert f"| cold | no session is open | {ready._COLD} sessions at once" in states
    first, last = f"{ready._BACK_OFF_FIRST:.0f} s", f"{ready._BACK_OFF_LAST:.0f} s"
    assert f"after {first}, 2 s, 4 s ... up to {last}" in states
    slow = sections(OPERATING, "##")["Slow starts"]
    assert f"first met by {ready._COLD} sessions" in slow
    assert f"after {first}, 2 s, 4 s ... up to {last}" in slow


def test_the_mechanisms_and_the_keys_of_a_login() -> None:
    rows = re.findall(r"^\| (`.+?`) \| .+ \| .+ \| .+ \|$", AUTH.split("## ")[0], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`([\w-]+)`", row)] == list(login.EVERY)
    out = sections(AUTH, "##")["Mail that goes out"]
    parts = sections(out, "###")
    before, bound, oauth2 = out.split("### ")[0], parts["Bound to peers"], parts["OAuth 2"]
    assert re.findall(r"^\| `(\w+)` \|", bound, re.MULTILINE) == list(release._TABLE.kinds)
    keys = re.findall(r"^\| `(\w+)` \|", before, re.MULTILINE)
    assert set(keys) == login._TABLE.kinds.keys()
    form = next(keys for marker, keys, _ in keysource._FORMS if marker == "token_endpoint")
    assert set(re.findall(r"^\| `(\w+)` \|", oauth2, re.MULTILINE)) == set(form)
    assert f"more than {MOST_ITERATIONS:,} iterations" in out
    assert f"used until {'ten' if oauth2_source._EARLY == 10 else '?'} seconds before it expires" in oauth2


def test_what_a_full_disk_answers() -> None:
    for page in (sections(POLICY, "###")["define_spool"], OPERATING):
        assert str(answers.NOT_NOW.code) in page and str(answers.NO_STORAGE.code) in page
    line = f"{answers.NOT_NOW.code} {answers.NOT_NOW.enhanced}"
    assert line in OPERATING and f"{answers.NO_STORAGE.code} {answers.NO_STORAGE.enhanced}" in OPERATING


def test_what_prohibited_hosts_answers() -> None:
    text = sections(sections(PATHS, "##")["make_egress_path"], "####")["prohibited_hosts"]
    for route, code in ((False, "550 5.4.4"), (True, "451 4.4.4")):
        refused = resolve._no_route(550, "5.4.4", "", route)
        assert f"{refused.code} {refused.enhanced}" == code
        assert code in text


def test_that_no_bounce_message_is_sent_is_said_where_it_is_looked_for() -> None:
    for page in ("README.md", "docs/smtp.md"):
        text = (ROOT / page).read_text()
        assert "bounce message" in text and "`Bounce`" in text


def examples() -> Iterator[Any]:
    for name in ("policy.md", "egress-paths.md", "auth.md", "tls.md", "mta-sts.md", "dane.md"):
        blocks = re.findall(
            r"^```python\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL
        )
        for number, block in enumerate(blocks):
            yield pytest.param(block, id=f"{name}-{number}")


@pytest.mark.parametrize("block", [*examples()])
def test_every_example_loads_and_its_hooks_answer(block: str, tmp_path: Path) -> None:
    first = re.search(r"^```python\n(.*?)^```$", POLICY, re.MULTILINE | re.DOTALL)
    assert first
    (tmp_path / "mypolicy.py").write_text(first[1])
    file = tmp_path / "example.py"
    file.write_text(block)
    loaded = load_policy(file)
    trio.run(loaded.run_init)
    for hook in loaded.hooks.hooks:
        arguments = {
            "get_queue_config": ("slow.example", "news", None, None),
            "get_egress_pool": ("bulk",),
            "get_egress_source": ("ip-1",),
            "get_egress_path_config": ("relay.example", "ip-1", "mx.relay.example"),
            "get_listener_domain": ("customer.example", "127.0.0.1:2525", None),
            "smtp_server_auth_plain": ("scott", "scott", policy.Secret("tiger"), None),
            "smtp_server_auth": ("scott", "SCRAM-SHA-256", None, None),
        }.get(hook.event)
        if arguments is None:
            continue
        answer = hook.function(*(hook.adapt(arguments) if hook.adapt else arguments))
        if hook.is_async:
            answer = trio.run(_result, answer)
        assert answer is not None
        assert hook.complaint(answer) is None
    module = next(
        module for name, module in list(sys.modules.items()) if getattr(module, "__file__", "") == str(file)
    )
    for name, test in list(vars(module).items()):
        if name.startswith("test_"):
            test()
    load_policy(None)


async def _result(coroutine: Any) -> Any:
    return await coroutine


def test_the_error_shown_is_the_error_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", POLICY, re.MULTILINE)
    lines = [
        "import policy",
        "",
        "@policy.on('init')",
        "def init():",
        "    policy.define_spool(path='x')",
        "",
    ]
    (tmp_path / "mypolicy.py").write_text(
        "\n".join([*lines, "    policy.start_esmtp_listener(relay_host=[])"])
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(policy.PolicyLoadError) as caught:
        trio.run(load_policy("mypolicy.py").run_init)
    assert str(caught.value) == shown
    load_policy(None)


EXECUTED = {
    "README.md": "tests/cli/test_check.py",
    "docs/auth.md": "tests/cli/test_trial.py",
    "docs/bounces.md": "tests/policy/test_docs_bounces.py",
    "docs/dane.md": "tests/policy/test_docs.py",
    "docs/egress-paths.md": "tests/policy/test_docs.py",
    "docs/keysources.md": "tests/keys/test_docs.py",
    "docs/mta-sts.md": "tests/policy/test_docs.py",
    "docs/policy.md": "tests/policy/test_docs.py",
    "docs/shaping.md": "tests/policy/test_docs_shaping.py",
    "docs/testing.md": "tests/testing/test_docs.py",
    "docs/tls.md": "tests/policy/test_docs_tls.py",
}
"""Who runs the examples of each page that has any."""


def test_every_page_with_examples_has_a_test_that_runs_them() -> None:
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} | {"README.md"}
    fence = re.compile(r"^```(\w*)$", re.MULTILINE)
    languages = {page: set(fence.findall((ROOT / page).read_text())) for page in pages}
    assert {page for page, used in languages.items() if used & {"python", "toml", "json"}} == set(EXECUTED)
    # No example hides from those who look for it under another name.
    assert set().union(*languages.values()) <= {"", "python", "toml", "json", "sh", "text", "console"}
    for page, test in EXECUTED.items():
        assert Path(page).name in (ROOT / test).read_text(), f"{test} does not read {page}"


def test_the_rooms_of_the_log_and_what_lies_beside_the_spool() -> None:
    (listed,) = re.findall(r"others for single rooms: (.+?)\. `--log-format", OPERATING, re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == list(diagnostics.ROOMS)
    sources = "".join(file.read_text() for file in (ROOT / "engine").rglob("*.py"))
    for name in set(re.findall(r"rstrip\('/'\)\}\.([\w-]+)\"", sources)):
        assert f"| `spool.{name}/` |" in OPERATING and OPERATING.count(f"`spool.{name}") == 2


def test_dane() -> None:
    table = sections(DANE, "##")["What is demanded"]
    results = get_args(get_type_hints(tlsa.Dane)["result"])
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)[1:] == list(results)
    (block,) = re.findall(r"^```toml\n(.*?)^```$", DANE, re.MULTILINE | re.DOTALL)
    document = read("shaping.toml", block.encode())
    assert build([document]).find("example.com", "ip-1", asked_by_name("mx.example")).path.enable_dane


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", page.read_text()):
            if target.startswith(("https:", "http:")):
                continue
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_the_files_of_the_way_out_are_there() -> None:
    flow = (ROOT / "docs" / "flow.md").read_text()
    text = sections(flow, "##")["Out: `engine/egress"].partition("| outcome |")[0]
    named = re.findall(r"`(\w+)` (?:ask|place|start|count|make|decide|is|carr|say|write)", text)
    assert len(named) == 10
    for name in named:
        assert (ROOT / "engine" / "egress" / f"{name}.py").exists(), name


def test_what_is_said_of_a_password_that_changes() -> None:
    text = sections(sections(AUTH, "##")["Mail that goes out"], "###")["A password that changes"]
    assert f"for {rotation.FALLBACK / 3600:g} hours at most" in text
    assert f"repeated after {rotation.AGAIN:g} seconds" in text
    assert f'default `"{login.FAILURE_BUDGET}"`' in AUTH
