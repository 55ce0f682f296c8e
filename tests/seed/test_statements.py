"""The page on SMTP AUTH as statements: S1 to S22 of the egress specification, one test for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import policy
from engine.cli.check import check
from engine.keys import key_sources
from policy.keysource import parse_key
from policy.testing import SERVFAIL, NextHop, StripsStartTls, ThrowAwayCa, load, open_relay, run, scenario
from tests.support.openbao import OpenBao

ROOT = Path(__file__).parents[2]
SCOTT = {"scott": "tiger"}
TIGER = {"vault:secret/smtp-auth/local": "tiger", "vault:secret/smtp-auth/example.com": "tiger"}
MX = {"example.com": {"MX": ["10 mx.example.com."]}, "other.example": {"MX": ["10 mx.example.com."]}}
KEYS = {
    "enable_tls": "Required",
    "smtp_auth_plain_username": "scott",
    "smtp_auth_plain_password": {"key_data": "tiger"},
}

Hooks = dict[str, Callable[..., Any]]


def path(**options: Any) -> Hooks:
    return {
        "get_egress_path_config": lambda domain, egress_source, site_name: policy.make_egress_path(**options)
    }


def route(*hosts: str) -> Hooks:
    return {
        "get_queue_config": lambda domain, tenant, campaign, routing_domain: policy.make_queue_config(
            protocol={"smtp": {"mx_list": list(hosts)}}
        )
    }


def wants_login(**options: Any) -> NextHop:
    """A host that takes no mail from strangers."""
    hop = NextHop(tls=True, users=SCOTT, **options)
    hop.replies["MAIL"] = lambda line: "250 ok" if hop.logins else "530 5.7.0 Authentication required"
    return hop


def with_init(file: Path) -> Path:
    """The same policy with what a start needs."""
    made = file.with_name(f"whole_{file.name}")
    made.write_text(
        file.read_text() + '\n@policy.on("init")\ndef init():\n    policy.define_spool(path="spool")\n'
        '    policy.start_esmtp_listener(listen="127.0.0.1:2525")\n'
    )
    return made


def wire(hop: NextHop) -> list[str]:
    """What was said up to the first login."""
    words = ["(tls)" if line == "(tls)" else line.split()[0] for line in hop.commands]
    return words[: words.index("AUTH") + 1]


@scenario
async def test_S01_by_default_nobody_logs_in() -> None:
    hop = NextHop(tls=True, users=SCOTT)
    async with open_relay({}, hops={"mx.example.com": hop}, dns=MX) as relay:
        await relay.submit("bob@example.com")
        (record,) = await relay.wait_for("Delivery")
    assert hop.tried == [] and record.smtp_auth_user is None and "(tls)" in hop.commands


@scenario
async def test_S02_an_internal_host_that_wants_a_login() -> None:
    stranger, friend = wants_login(), wants_login()
    async with open_relay(route("192.168.1.10"), hops={"192.168.1.10": stranger}) as relay:
        await relay.submit()
        assert (await relay.wait_for("TransientFailure"))[0].code == 530
    async with open_relay(route("192.168.1.10") | path(**KEYS), hops={"192.168.1.10": friend}) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
    assert not stranger.arrived and len(friend.arrived) == 1


@pytest.mark.parametrize(
    ("place", "hop", "options"),
    [
        ("smtp.provider.example:587", {}, {}),
        ("smtp.provider.example:587", {"mechanisms": ["LOGIN"]}, {}),
        ("smtp.provider.example:465", {"implicit": True}, {"tls_implicit": True}),
    ],
)
@scenario
async def test_S03_a_relay_provider(place: str, hop: dict[str, Any], options: dict[str, Any]) -> None:
    provider = wants_login(**hop)
    async with open_relay(route(place) | path(**KEYS, **options), hops={place: provider}) as relay:
        await relay.submit()
        (record,) = await relay.wait_for("Delivery")
    assert record.tls_verified and record.smtp_auth_user == "scott"
    assert record.smtp_auth_mechanism == hop.get("mechanisms", ["PLAIN"])[0]


def test_S05_auth_is_set_on_the_path_by_its_hook(page: Path) -> None:
    made = load(page / "auth_everywhere.py", dns=MX).path("bob@example.com")
    assert (made.enable_tls, made.smtp_auth_plain_username) == ("Required", "scott")
    assert load({}, dns=MX).path("bob@example.com").smtp_auth_plain_username is None


@scenario
async def test_S08_the_wire_shows_it_once_and_inside_of_tls(page: Path) -> None:
    """The first configuration of the page."""
    hop = wants_login()
    async with open_relay(page / "auth_everywhere.py", hops={"mx.example.com": hop}, dns=MX) as relay:
        for _ in range(3):
            await relay.submit()
        await relay.wait_for("Delivery", 3)
    assert wire(hop) == ["EHLO", "STARTTLS", "(tls)", "EHLO", "AUTH"]
    said = [line for line in hop.commands if line.startswith("AUTH")]
    assert said == ["AUTH PLAIN AHNjb3R0AHRpZ2Vy"] * hop.connections


@scenario
async def test_S06_a_handler_of_two_arguments() -> None:
    asked: list[tuple[str, str]] = []

    def handler(domain: str, site_name: str) -> Any:
        asked.append((domain, site_name))
        return policy.make_egress_path(**KEYS)

    hop = wants_login()
    hooks: Hooks = {"get_egress_path_config": handler}
    async with open_relay(hooks, hops={"mx.example.com": hop}, dns=MX) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
    assert asked and set(asked) == {("example.com", "mx.example.com")}


@pytest.mark.parametrize("fault", ["no STARTTLS", "a certificate of somebody else"])
@scenario
async def test_S07_required_means_required(fault: str, page: Path) -> None:
    strips = StripsStartTls(users=SCOTT)
    false = NextHop(tls=ThrowAwayCa().server_context("mx.example.com"), users=SCOTT)
    hop = strips if fault == "no STARTTLS" else false
    async with open_relay(page / "auth_everywhere.py", hops={"mx.example.com": hop}, dns=MX) as relay:
        await relay.submit()
        await relay.wait("1 hour")
        assert relay.queued == 1 and not relay.records("Bounce")
        (record, *_) = relay.records("TransientFailure")
        assert record.cause == "tls"
    assert not hop.tried and "MAIL" not in hop.words() and "AUTH" not in hop.words()


FORMS: dict[str, Any] = {
    "key_data": {"key_data": "tiger"},
    "a path": "password.secret",
    "file": {"file": "password.secret"},
    "env": {"env": "SEED_PASSWORD"},
    "credential": {"credential": "smtp"},
    "exec": {"exec": ["/bin/cat", "password.secret"]},
    "event": {"event_name": "fetch_it", "event_args": ["ti", "ger"]},
    "vault": {"vault_mount": "secret", "vault_path": "seed/forms", "vault_key": "password"},
}


@pytest.mark.parametrize("form", FORMS)
def test_S09_the_password_may_be_any_key_source(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openbao: OpenBao
) -> None:
    for name in ("password.secret", "smtp"):
        (tmp_path / name).write_text("tiger")
        (tmp_path / name).chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEED_PASSWORD", "tiger")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    openbao.put("seed/forms", {"password": "tiger"})
    given = FORMS[form]
    if form in ("a path", "file"):
        given = str(tmp_path / "password.secret") if form == "a path" else {"file": str(tmp_path / "smtp")}
    if form == "exec":
        given = {"exec": ["/bin/cat", str(tmp_path / "password.secret")]}
    hooks = path(**KEYS | {"smtp_auth_plain_password": given})
    hooks["fetch_it"] = lambda *parts: "".join(parts)
    hop = wants_login()

    async def deliver() -> None:
        async with open_relay(hooks, hops={"mx.example.com": hop}, dns=MX, real_keys=True) as relay:
            await relay.submit()
            await relay.wait_for("Delivery")

    # A program takes real time, for which the clock of a scenario does not wait.
    (trio.run if form == "exec" else run)(deliver)
    assert hop.logins[0] == ("PLAIN", "scott")


def test_S09_every_kind_of_key_source_is_in_the_table() -> None:
    kinds = {type(parse_key(form)) for form in FORMS.values()}
    # A token is no password; the clouds' secret managers have stand-ins of their own in tests/keys.
    elsewhere = {"OAuth2Key", "AwsKey", "GoogleKey", "AzureKey"}
    assert {kind.__name__ for kind in set(key_sources()) - kinds} == elsewhere


@scenario
async def test_S10_an_unconditional_hook_logs_in_everywhere(page: Path) -> None:
    hops = {"mx.example.com": wants_login(), "mx.other.example": wants_login()}
    dns = MX | {"other.example": {"MX": ["10 mx.other.example."]}}
    async with open_relay(page / "auth_everywhere.py", hops=hops, dns=dns) as relay:
        for domain in ("example.com", "other.example"):
            await relay.submit(f"bob@{domain}")
        await relay.wait_for("Delivery", 2)
    assert all(hop.logins for hop in hops.values())


def test_S10_and_the_check_says_so(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(page / "auth_everywhere.py", offline=True) == 2  # it declares no spool
    assert check(with_init(page / "auth_everywhere.py"), offline=True) == 0
    assert "both get credentials: make the hook look at the domain or the site" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["domain", "site_name"])
@scenario
async def test_S11_only_the_chosen_destination_sees_the_password(by: str) -> None:
    def handler(domain: str, egress_source: str, site_name: str) -> Any:
        chosen = domain == "example.com" if by == "domain" else site_name == "mx.chosen.example"
        return policy.make_egress_path(**KEYS) if chosen else policy.make_egress_path()

    shared, other = NextHop(tls=True, users=SCOTT), NextHop(tls=True, users=SCOTT)
    place = "mx.chosen.example"
    dns = {
        "example.com": {"MX": [f"10 {place}."]},
        # By domain: somebody else's domain at the very same host. By site: another host.
        "other.example": {"MX": [f"10 {place}." if by == "domain" else "10 mx.other.example."]},
    }
    hops = {place: shared, "mx.other.example": other}
    async with open_relay({"get_egress_path_config": handler}, hops=hops, dns=dns) as relay:
        for _ in range(5):
            await relay.submit("bob@example.com")
            await relay.submit("bob@other.example")
        records = await relay.wait_for("Delivery", 10)
    users = {(record.queue, record.smtp_auth_user) for record in records}
    assert users == {("example.com", "scott"), ("other.example", None)}
    assert other.tried == []


def test_S12_a_secret_in_the_configuration_is_remarked_on(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(with_init(page / "auth_everywhere.py"), offline=True) == 0
    assert 'smtp_auth_plain_password: the secret itself is in the configuration ("key_data")' in (
        out := capsys.readouterr().out
    )
    assert "tiger" not in out
    assert check(with_init(page / "auth_by_domain.py"), offline=True) == 0
    assert "key_data" not in capsys.readouterr().out


PAIR = ["tls_certificate", "tls_private_key"]


@pytest.mark.parametrize("option", ["smtp_auth_plain_password", "tls_ca", *PAIR])
def test_S12_one_implementation_for_all_keys(option: str) -> None:
    """What is a key source of one option is one of every other."""
    given = {"vault_mount": "secret", "vault_path": "seed"}
    options = {"tls_certificate": given, "tls_private_key": given} if option in PAIR else {}
    made = policy.make_egress_path(
        **{"smtp_auth_plain_username": "scott", "smtp_auth_plain_password": given, **options, option: given}
    )
    assert getattr(made, option) == parse_key(given)


@scenario
async def test_S13_vault_by_domain(page: Path, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second configuration of the page, with a real server. Its address and our token are in the
    environment, as S14 says."""
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    openbao.put("smtp-auth/example.com", {"key": "tiger"})
    hop = wants_login()
    file = page / "auth_by_domain.py"
    async with open_relay(file, hops={"mx.example.com": hop}, dns=MX, real_keys=True) as relay:
        await relay.submit()
        await relay.wait_for("Delivery")
    assert hop.logins == [("PLAIN", "scott")]


@pytest.mark.parametrize("missing", ["VAULT_ADDR", "VAULT_TOKEN"])
@scenario
async def test_S14_without_the_environment_mail_waits_and_the_reason_is_told(
    missing: str, page: Path, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    monkeypatch.delenv(missing)
    hop = wants_login()
    file = page / "auth_by_domain.py"
    async with open_relay(file, hops={"mx.example.com": hop}, dns=MX, real_keys=True) as relay:
        await relay.submit()
        (record,) = await relay.wait_for("TransientFailure")
        assert record.cause == "secret-unavailable" and missing in record.content
        assert openbao.token not in record.content + caplog.text
        assert relay.queued == 1 and not hop.tried


@scenario
async def test_S15_each_domain_has_its_own_and_a_new_one_is_used(page: Path) -> None:
    first = NextHop(tls=True, users={"scott": "of the first"})
    second = NextHop(tls=True, users={"scott": "of the second"})
    dns = {f"{name}.example": {"MX": [f"10 mx.{name}.example."]} for name in ("first", "second")}
    secrets = {f"vault:secret/smtp-auth/{name}.example": f"of the {name}" for name in ("first", "second")}
    hops = {"mx.first.example": first, "mx.second.example": second}
    file = page / "auth_by_domain.py"
    async with open_relay(file, hops=hops, dns=dns, secrets=secrets) as relay:
        for name in ("first", "second"):
            await relay.submit(f"bob@{name}.example")
        await relay.wait_for("Delivery", 2)
        await relay.wait("1 hour")  # sessions are over, the value is older than its ttl
        first.users = {"scott": "another"}
        relay.secrets.values["vault:secret/smtp-auth/first.example"] = "another"
        await relay.submit("bob@first.example")
        record = (await relay.wait_for("Delivery", 3))[-1]
        assert record.num_attempts == 0
    assert len(first.logins) == 2 and len(second.logins) == 1


SHAPING = {
    "shaping.toml": '["{0}"]\nmx_rollup = false\nenable_tls = "Required"\n'
    'smtp_auth_plain_username = "scott"\n'
    'smtp_auth_plain_password = {{ vault_mount = "secret", vault_path = "smtp-auth/local" }}\n',
    "shaping.json": '{{"{0}": {{"mx_rollup": false, "enable_tls": "Required",'
    ' "smtp_auth_plain_username": "scott",'
    ' "smtp_auth_plain_password": {{"vault_mount": "secret", "vault_path": "smtp-auth/local"}}}}}}',
}
BY_FILE = """\
import policy

policy.shaping.setup([policy.shaping.SHIPPED, {0!r}])

@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:2525")

@policy.on("get_queue_config")
def queue(domain, tenant, campaign, routing_domain):
    if domain == "literal.example":
        return policy.make_queue_config(protocol={{"smtp": {{"mx_list": {1!r}}}}})
"""


BY_ROUTE = """\
@policy.on("smtp_server_message_received")
def received(message, conn_meta):
    if message.recipient().domain == "literal.example":
        message.set_meta("routing_domain", "relay.internal.example")
"""


def by_file(directory: Path, name: str, block: str, *route: str) -> Path:
    (directory / name).write_text(SHAPING[name].format(block))
    file = directory / "by_file.py"
    file.write_text(BY_FILE.format(name, list(route or ["192.168.1.10"])))
    return file


@pytest.mark.parametrize("name", SHAPING)
@scenario
async def test_S16_shaping_files_of_both_kinds_carry_auth(name: str, tmp_path: Path) -> None:
    hop = wants_login()
    file = by_file(tmp_path, name, "192.168.1.10")
    async with open_relay(file, hops={"192.168.1.10": hop}, secrets=TIGER) as relay:
        await relay.submit("bob@literal.example")
        (record,) = await relay.wait_for("Delivery")
        assert record.smtp_auth_user == "scott" and relay.secrets.reads["vault:secret/smtp-auth/local"] == 1


@pytest.mark.parametrize("way", ["smart host", "routing domain"])
@scenario
async def test_S17_a_host_as_a_block_is_for_that_host_alone(way: str, tmp_path: Path) -> None:
    file = by_file(tmp_path, "shaping.toml", "relay.internal.example", "relay.internal.example")
    if way == "routing domain":
        text = file.read_text().partition('@policy.on("get_queue_config")')[0]
        file.write_text(text + BY_ROUTE)
    inside, outside = wants_login(), NextHop(tls=True, users=SCOTT)
    hops = {"relay.internal.example": inside, "mx.example.com": outside}
    async with open_relay(file, hops=hops, dns=MX, secrets=TIGER) as relay:
        await relay.submit("bob@literal.example")
        await relay.submit("bob@example.com")
        await relay.wait_for("Delivery", 2)
    assert inside.logins and not outside.tried


def test_S17_a_host_as_a_block_loads_without_dns(tmp_path: Path) -> None:
    file = by_file(tmp_path, "shaping.toml", "relay.internal.example", "relay.internal.example")
    nothing: dict[str, Any] = {"A": SERVFAIL, "AAAA": SERVFAIL, "MX": SERVFAIL}
    asked = load(file, dns={"relay.internal.example": nothing, "literal.example": nothing})
    assert asked.path("bob@literal.example").smtp_auth_plain_username == "scott"


@pytest.mark.parametrize("block", ["192.168.1.10", "[192.168.1.10]"])
@pytest.mark.parametrize("way", ["192.168.1.10", "[192.168.1.10]", "routing domain", "[routing domain]"])
def test_S18_an_address_as_a_block_is_found_however_it_is_written(
    block: str, way: str, tmp_path: Path
) -> None:
    file = by_file(tmp_path, "shaping.toml", block, "192.168.1.10" if "routing" in way else way)
    asked = load(file)
    if "routing" in way:
        domain = "[192.168.1.10]" if way.startswith("[") else "192.168.1.10"
        made = asked.path("bob@anything.example", routing_domain=domain)
    else:
        made = asked.path("bob@literal.example")
    assert made.smtp_auth_plain_username == "scott"


def test_S19_a_password_as_an_inline_table(page: Path) -> None:
    made = load(page / "auth_by_file.py").path("bob@internal.example")
    assert made.smtp_auth_plain_password == parse_key(
        {"vault_mount": "secret", "vault_path": "smtp-auth/local"}
    )


@pytest.mark.parametrize("fault", ["no STARTTLS", "a certificate of somebody else"])
@scenario
async def test_S20_a_block_without_a_tls_mode_sends_no_password_in_the_open(fault: str, page: Path) -> None:
    """The third configuration of the page."""
    false = NextHop(tls=ThrowAwayCa().server_context("192.168.1.10"), users=SCOTT)
    hop = StripsStartTls(users=SCOTT) if fault == "no STARTTLS" else false
    async with open_relay(page / "auth_by_file.py", hops={"192.168.1.10": hop}, secrets=TIGER) as relay:
        assert (await relay.submit("bob@internal.example", client="10.1.2.3")).ok
        await relay.wait("1 hour")
        (record, *_) = relay.records("TransientFailure")
        assert "TLS" in record.content or "certificate" in record.content
        assert relay.queued == 1 and not relay.records("Bounce")
    assert not hop.tried and "AUTH" not in hop.words() and "MAIL" not in hop.words()


@scenario
async def test_S20_inside_of_trusted_tls_it_is_told(page: Path) -> None:
    hop = wants_login()
    async with open_relay(page / "auth_by_file.py", hops={"192.168.1.10": hop}, secrets=TIGER) as relay:
        assert (await relay.submit("bob@internal.example", client="10.1.2.3")).ok
        (record,) = await relay.wait_for("Delivery")
    assert record.tls_verified and hop.logins == [("PLAIN", "scott")]


def test_S22_the_three_pages_are_there() -> None:
    for page, names in {
        "egress-paths.md": ["smtp_auth_plain_username", "smtp_auth_plain_password", "enable_tls"],
        "keysources.md": ["vault_mount", "vault_path", "key_data"],
        "shaping.md": ["mx_rollup", "replace_base"],
    }.items():
        text = (ROOT / "docs" / page).read_text()
        assert all(name in text for name in names), page
        assert os.path.basename(page) in (ROOT / "README.md").read_text()


# What follows from the page


@scenario
async def test_a_wrong_password_bounces_nothing_and_is_mended_without_a_restart(page: Path) -> None:
    hop = NextHop(tls=True, users={"scott": "lion"})
    file = page / "auth_by_domain.py"
    async with open_relay(file, hops={"mx.example.com": hop}, dns=MX, secrets=TIGER) as relay:
        await relay.submit()
        await relay.until(lambda: relay.held)
        assert "login" in next(iter(relay.held.values())) and not relay.records("Bounce")
        relay.secrets.values["vault:secret/smtp-auth/example.com"] = "lion"
        (record,) = await relay.wait_for("Delivery")
        assert record.num_attempts == 0
