"""``posthorn explain``: the way of a message, and who said so."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.cli import main
from engine.cli.explanation import auth_text, tls_text
from engine.egress.circuitfile import CircuitFile, InUse
from engine.egress.circuitfile import directory as logins_of
from engine.egress.circuits import OpenCircuit
from engine.shaping import State
from policy import make_egress_path
from policy.egress import EgressPath
from policy.load import load_policy
from policy.shaping import Asked, Failure
from tests.support.fakedns import SERVFAIL, run_dns

POLICY = """
import policy

SHAPING

@policy.on("init")
def init():
    policy.define_spool(path="spool")

@policy.on("get_queue_config")
def queue(domain, tenant, campaign, routing_domain):
    pool = "bulk" if tenant == "news" else "unspecified"
    return policy.make_queue_config(protocol={"smtp": {"mx_list": ["192.168.1.10:587"]}}, egress_pool=pool)

@policy.on("get_egress_pool")
def pool(name):
    return policy.make_egress_pool(name=name, entries=[{"name": "ip-1", "weight": 2}, {"name": "ip-2"}])

@policy.on("get_egress_source")
def source(name):
    return policy.make_egress_source(name=name)
"""
FILES = 'shaper = policy.shaping.setup([policy.shaping.SHIPPED, "shaping.toml", "more.json"])'
TOML = """\
["192.168.1.10"]
mx_rollup = false
smtp_auth_plain_username = "scott"
smtp_auth_plain_password = { file = "SECRET" }
["192.168.1.10".sources."ip-2"]
max_ready = 7
"""
MORE = '{"192.168.1.10": {"enable_tls": "Required",\n "max_ready": null}}'
CANARY = "c4n4ry=Explain+1"

pytestmark = pytest.mark.plants("more.json")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "password.secret"
    secret.write_text(CANARY)
    secret.chmod(0o600)
    Path("shaping.toml").write_text(TOML.replace("SECRET", str(secret)))
    Path("more.json").write_text(MORE)
    yield tmp_path
    load_policy(None)


@pytest.fixture
def ask(capfd: pytest.CaptureFixture[str]) -> Any:
    def ask(*words: str, shaping: str = FILES, status: int = 0, text: str = POLICY) -> str:
        Path("mail.py").write_text(text.replace("SHAPING", shaping))
        with pytest.raises(SystemExit) as end:
            main(["explain", *words, "--policy", "mail.py"])
        out, err = capfd.readouterr()
        assert end.value.code == status, out + err
        assert CANARY not in out + err
        return out if status == 0 else err

    return ask


def test_everything_is_said(ask: Any) -> None:
    text = ask("bob@example.com")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "bob@example.com",
        "queue example.com, mail.py:10 in queue()",
        "route smart hosts 192.168.1.10:587 mail.py:13 in queue()",
        "pool unspecified mail.py:13 in queue()",
        "site mx_list:192.168.1.10:587 (192.168.1.10:587)",
        "TLS Required: STARTTLS with a certificate trusted by the system's roots; "
        "if it is not offered, mail is held",
        "AUTH as 'scott' with PLAIN, else LOGIN, as offered; inside verified TLS only",
        'enable_tls Required more.json:1 ["192.168.1.10"]',
        'max_ready 1024 (default) more.json:2 ["192.168.1.10"]',
        'over 4096 posthorn:shaping.toml:10 ["default"]',
        "at most 10 connections (connection_limit)",
        'smtp_auth_plain_username scott shaping.toml:3 ["192.168.1.10"]',
    ):
        assert line in lines, text
    assert re.search(
        r"ready queue +unspecified->mx_list:192.168.1.10:587@smtp_client, key [0-9a-f]{24}", text
    )
    assert re.search(
        r"credential +file:.*secret, version [0-9a-f]{8}, since 20\d\d-[^(]* UTC \(\d+ s ago\)$",
        text,
        re.MULTILINE,
    )


def test_one_source_of_a_tenant_s_pool(ask: Any) -> None:
    both = ask("bob@example.com", "--tenant", "news")
    assert "from ip-1 (weight 2)" in both and "from ip-2 (weight 1)" in both
    one = ask("example.com", "--tenant", "news", "--source", "ip-2")
    assert "from ip-1" not in one
    assert re.search(r'max_ready +7 +shaping.toml:6 \["192.168.1.10"\] sources."ip-2"', one)
    wrong = ask("example.com", "--tenant", "news", "--source", "ip-3", status=2)
    assert 'the source "ip-3" is not in the pool of this queue; its sources are ip-1, ip-2' in wrong


def test_as_json(ask: Any) -> None:
    found = json.loads(ask("bob@example.com", "--json"))
    (road,) = found["roads"]
    options = {option["name"]: option for option in road["options"]}
    assert options["enable_tls"]["set_by"] == {
        "value": "Required",
        "file": "more.json",
        "line": 1,
        "block": '"192.168.1.10"',
        "source": "",
        "rule": "",
        "replaced_by": "",
        "hook": "",
    }
    assert [step["value"] for step in options["max_ready"]["overrode"]] == ["4096"]
    assert options["rset_timeout"]["set_by"] is None and options["rset_timeout"]["value"] == "5s"
    credential = road["credential"]
    assert credential["fingerprint"] and credential["age"] < 60 and time.time() - credential["changed"] < 3600
    assert len(options) >= 45


def test_what_dns_does_not_know_of_other_blocks_is_one_note(
    ask: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    more = "".join(f'["d{number}.example"]\n' for number in range(30))
    Path("shaping.toml").write_text(Path("shaping.toml").read_text() + more)
    with run_dns({f"d{number}.example": {"MX": SERVFAIL} for number in range(29)}) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        out = ask("bob@example.com", "--no-secrets")
    assert caplog.records == []
    assert "DNS did not say in time which hosts stand behind 29 blocks" in out


RATES = """
@policy.on("get_egress_path_config")
def path(domain, egress_source, site_name):
    return policy.make_egress_path(
        max_message_rate="100/s", max_connection_rate="1/s", max_deliveries_per_connection=20
    )
"""


def test_the_limit_that_wins_and_the_one_that_is_never_reached(ask: Any) -> None:
    """The figures of docs/egress-paths.md, which shows these very lines."""
    page = (Path(__file__).parents[2] / "docs" / "egress-paths.md").read_text().splitlines()
    said = ask("bob@example.com", shaping=RATES).splitlines()
    for word in ("  at most  ", "  note  "):
        (line,) = (line for line in said if line.startswith(word))
        assert line in page
    (road,) = json.loads(ask("bob@example.com", "--json", shaping=RATES))["roads"]
    assert road["at_most"]["message_rate"] == {
        "value": "20/s",
        "set_by": "max_connection_rate x max_deliveries_per_connection",
        "per_second": 20.0,
    }
    assert road["at_most"]["notes"] == road["notes"]


def test_a_smart_host_without_an_address_is_remarked(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = '"relay.example:587", "none.example", "192.168.1.10"'
    with run_dns({"relay.example": {"A": ["192.0.2.1"]}}) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        text = POLICY.replace('"192.168.1.10:587"', hosts)
        out = ask("bob@example.com", "--no-secrets", text=text, shaping="")
    notes = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("  note")]
    assert "none.example has no address, so nothing can be sent there now" in notes
    assert not any("relay.example" in note for note in notes)


def test_secrets_may_stay_where_they_are(ask: Any) -> None:
    assert "password.secret: not fetched" in ask("bob@example.com", "--no-secrets")
    Path("password.secret").unlink()
    assert re.search(r"credential +file:.*: .*No such file", ask("bob@example.com"))


HOOK = """
@policy.on("get_egress_path_config")
def path(domain, egress_source, site_name):
    return policy.make_egress_path(rset_timeout=9)
"""
BOTH = """
import msgspec
shaper = policy.shaping.load(["shaping.toml"])

@policy.on("get_egress_path_config")
def path(domain, egress_source, site_name):
    return msgspec.structs.replace(shaper(domain, egress_source, site_name), enable_tls="Required")
"""


def test_a_login_by_token_is_said_without_its_secrets(ask: Any) -> None:
    token = {
        "token_endpoint": "https://login.example/t",
        "client_id": "me",
        "client_secret": {"key_data": CANARY},
    }
    login = {"mechanisms": ["XOAUTH2"], "username": "scott", "oauth2": token}
    Path("shaping.toml").write_text("")
    Path("more.json").write_text(json.dumps({"192.168.1.10": {"mx_rollup": False, "smtp_auth": login}}))
    text = ask("bob@example.com", "--no-secrets")
    assert "as 'scott' with XOAUTH2, as offered; inside verified TLS only" in text
    assert "scott, oauth2:me@login.example, by XOAUTH2" in " ".join(text.split())


def test_what_a_hook_sets_is_the_hook_s(ask: Any) -> None:
    text = ask("bob@example.com", shaping=HOOK)
    assert re.search(r"rset_timeout +9s +mail.py:7 in path\(\)", text), "the line of the call"
    assert "AUTH          none" in text
    unset = len(EgressPath.__struct_fields__)
    assert f"and {unset} options that nobody set" in ask("bob@example.com", shaping="")


def test_what_a_hook_sets_to_the_default_is_the_hook_s_too(ask: Any) -> None:
    """Nobody is to think that nobody said it; and a helper in another file is where it was said."""
    Path("helpers.py").write_text(
        "import policy\n\ndef careful():\n    return policy.make_egress_path(PLAIN)\n"
    )
    text = Path("helpers.py").read_text()
    Path("helpers.py").write_text(text.replace("PLAIN", 'enable_tls="Opportunistic", connection_limit=7'))
    hook = HOOK.replace("policy.make_egress_path(rset_timeout=9)", "helpers.careful()")
    found = json.loads(ask("bob@example.com", "--json", shaping=f"import helpers\n{hook}"))
    options = {option["name"]: option for option in found["roads"][0]["options"]}
    for name, value in (("enable_tls", "Opportunistic"), ("connection_limit", "7")):
        by = options[name]["set_by"]
        assert by["file"].endswith("helpers.py")
        assert (by["value"], by["line"], by["hook"]) == (value, 4, "path()")
    assert options["rset_timeout"]["set_by"] is None


def test_what_queue_and_source_say_is_said_with_the_line(ask: Any) -> None:
    sources = "policy.make_egress_source(name=name)"
    assert sources in POLICY and "egress_pool=pool)" in POLICY
    changed = POLICY.replace(sources, 'policy.make_egress_source(name=name, ehlo_domain="me.example")')
    changed = changed.replace("egress_pool=pool)", 'egress_pool=pool, retry_interval="5 minutes")')
    text = ask("bob@example.com", "--tenant", "news", "--source", "ip-1", text=changed)
    assert re.search(r"retry_interval +5m +mail.py:13 in queue\(\)", text)
    assert re.search(r"ehlo_domain +me.example +mail.py:21 in source\(\)", text)
    assert "max_age" not in text and "source_address" not in text


@pytest.mark.parametrize("later", ['"replace_base": true', '"replace_base": true, "max_ready": 5'])
def test_what_replace_base_took_back_is_said(later: str, ask: Any) -> None:
    text = ask("bob@example.com", "--tenant", "news", "--source", "ip-2")
    assert "taken back" not in text
    Path("more.json").write_text(f'{{"192.168.1.10": {{"enable_tls": "Required",\n {later}}}}}')
    text = " ".join(ask("bob@example.com", "--tenant", "news", "--source", "ip-2").split())
    back = "taken back by replace_base more.json:2"
    block = '["192.168.1.10"]'
    by = (
        "5 more.json:2 " + block
        if "max_ready" in later
        else f"1024 (default) more.json:2 {block} replace_base"
    )
    assert (
        f'max_ready {by} over 7 shaping.toml:6 {block} sources."ip-2", {back} '
        f'over 4096 posthorn:shaping.toml:10 ["default"], {back}'
    ) in text
    said = f"not set (default) more.json:2 {block} replace_base over scott shaping.toml:3 {block}, {back}"
    assert f"smtp_auth_plain_username {said}" in text
    assert "AUTH none" in text


def key_of(text: str) -> str:
    (found,) = re.findall(r"ready queue .*, key ([0-9a-f]{24})", text)
    return str(found)


def test_the_key_of_a_ready_queue_is_that_of_whoever_shares_its_connections(ask: Any) -> None:
    logs_in = HOOK.replace("rset_timeout=9", "smtp_auth_plain_username='u', smtp_auth_plain_password=KEY")
    plain = key_of(ask("bob@example.com", shaping=HOOK))
    assert key_of(ask("eve@other.example", shaping=HOOK)) == plain, "the same hosts and the same path"
    others = {
        "another path": key_of(ask("bob@example.com", shaping=HOOK.replace("9", "8"))),
        "another source": key_of(
            ask("bob@example.com", "--tenant", "news", "--source", "ip-1", shaping=HOOK)
        ),
        "and another": key_of(ask("bob@example.com", "--tenant", "news", "--source", "ip-2", shaping=HOOK)),
        "a login": key_of(ask("bob@example.com", shaping=logs_in.replace("KEY", "'/a'"))),
        "another secret": key_of(ask("bob@example.com", shaping=logs_in.replace("KEY", "'/b'"))),
        "a literal": key_of(
            ask("bob@example.com", shaping=logs_in.replace("KEY", "{'key_data': 'secret-a'}"))
        ),
        "another": key_of(ask("bob@example.com", shaping=logs_in.replace("KEY", "{'key_data': 'secret-b'}"))),
    }
    assert len({plain, *others.values()}) == len(others) + 1


def test_a_secret_of_vault_has_its_version_and_age(
    ask: Any, openbao: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("VAULT_TOKEN", openbao.token)
    for value in ("old", CANARY):
        openbao.put("explained", {"key": value})
    vault = '{ vault_mount = "secret", vault_path = "explained" }'
    Path("shaping.toml").write_text(re.sub(r"\{ file = .* \}", vault, TOML))
    text = ask("bob@example.com")
    own = r"version 2 \(fingerprint [0-9a-f]{8}\), since 20\d\d-.* ago\)"
    assert re.search(rf"credential +vault:secret/explained#key, {own}$", text, re.MULTILINE)


def test_a_hook_that_asks_shaping_files_knows_the_smart_host_and_both_are_named(ask: Any) -> None:
    text = ask("bob@example.com", shaping=BOTH)
    assert re.search(r"enable_tls +Required +mail.py:8 in path\(\)", text)
    assert re.search(r"smtp_auth_plain_username +scott +shaping.toml:3", text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bob@"], 'ADDRESS "bob@": syntax error in the domain; right would be user@example.com'),
        (["bob@@example.com"], "syntax error in the domain"),
        (["bob@example.com", "--routing-domain", "not one"], '--routing-domain "not one": '),
        (["bob@example.com", "--policy", "none.py"], "none.py: cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mail.py").write_text(POLICY.replace("SHAPING", ""))
    if "--policy" not in words:
        words = [*words, "--policy", "mail.py"]
    with pytest.raises(SystemExit) as end:
        main(["explain", *words])
    err = capsys.readouterr().err
    assert end.value.code == 2 and says in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {},
            "Opportunistic: STARTTLS with a certificate trusted by the system's roots; "
            "if it is not offered, clear text",
        ),
        ({"enable_tls": "Disabled"}, "Disabled: clear text"),
        (
            {"enable_tls": "Required", "tls_ca": "/ca.pem"},
            "trusted by file:/ca.pem; if it is not offered, mail is held",
        ),
        ({"enable_tls": "Required", "tls_server_name": "a.example"}, "roots for a.example;"),
        (
            {"enable_tls": "Required", "tls_implicit": True},
            "Required: TLS from the first octet on (port 465) with a certificate trusted by",
        ),
        (
            {"enable_tls": "Required", "tls_pins": ["ab" * 32, "cd" * 32]},
            "roots, its or an issuer's key one of 2 pins; if it is not offered, mail is held",
        ),
        (
            {"enable_tls": "RequiredInsecure", "tls_pins": ["00" * 32]},
            f"STARTTLS with a certificate that nobody checks, its own key sha256//{'A' * 43}=; if",
        ),
        ({"tls_minimum_version": "1.3"}, "roots, TLSv1.3 at least; if it is not offered, clear text"),
        ({"openssl_cipher_list": "ECDHE"}, "roots, in TLS 1.2 the ciphers ECDHE;"),
        (
            {"tls_certificate": "/c.pem", "tls_private_key": "/k.pem"},
            "roots, showing file:/c.pem if asked; if it is not offered, clear text",
        ),
    ],
)
def test_the_tls_level_in_words(options: dict[str, Any], says: str) -> None:
    assert says in tls_text(make_egress_path(options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "if it is not offered, mail is held"),
        ({"allow_smtp_auth_plain_without_tls": True}, "if it is not offered, clear text"),
        ({"enable_tls": "RequiredInsecure"}, "any certificate (which AUTH does not allow, so mail is held)"),
        ({"enable_tls": "Disabled"}, "Disabled: mail is held"),
    ],
)
def test_the_tls_level_with_a_login(options: dict[str, Any], says: str) -> None:
    auth = {"smtp_auth_plain_username": "scott", "smtp_auth_plain_password": {"key_data": "x"}}
    assert says in tls_text(make_egress_path({**auth, **options}))


RULE = """
[["default".automation]]
code = 421
action = ["Suspend", { SetConfig = { name = "max_ready", value = 3 } }]
duration = "1 hour"
"""


def test_what_rules_have_set_and_brought_to_a_standstill(ask: Any, directory: Path) -> None:
    """The running relay wrote it down; here somebody only looks."""
    Path("shaping.toml").write_text(Path("shaping.toml").read_text() + RULE)
    asked = ask("bob@example.com", "--json")
    key = json.loads(asked)["roads"][0]["site_key"]
    shaper = load_policy("mail.py").hooks.shapers[0]
    failure = Failure("example.com", "unspecified", Asked("", (), True, key), 421, line="421 busy")
    shaper.orders.judge(shaper.table, failure, time.time())
    State("spool").keep_orders(list(shaper.orders))
    before = {path: path.read_bytes() for path in directory.glob("spool.shaping/*")}
    text = ask("bob@example.com")
    assert re.search(r'max_ready +3 +shaping.toml:8 \["default"\] automation, until 20\d\d-.* UTC', text), (
        text
    )
    assert re.search(
        r'note +suspended until .* UTC by shaping.toml:8 \["default"\] Suspend, because', text
    ), text
    assert {path: path.read_bytes() for path in directory.glob("spool.shaping/*")} == before


def test_whom_a_credential_may_be_told_is_said() -> None:
    release = {"names": ["a.example", "b.example"], "addresses": ["192.0.2.0/24"], "ports": [465]}
    auth = {"username": "scott", "password": {"key_data": CANARY}, "release_to": release}
    text = auth_text(make_egress_path(enable_tls="Required", smtp_auth=auth))
    assert text.endswith("; released only to a peer as a.example or b.example, at 192.0.2.0/24, at port 465")


def test_which_version_is_in_use_is_said(ask: Any) -> None:
    async def write() -> None:
        row = InUse(("192.168.1.10",), "scott", "ab12", "cd34", 3600.0, False)
        CircuitFile.load(logins_of("spool")).save([], trio.current_time(), [row])

    trio.run(write)
    text = ask("bob@example.com")
    assert "version ab12 of the credential is in use; cd34, which the source has for 36" in text
    assert "waits for a trial" in text


def test_a_login_that_was_refused_is_said(ask: Any) -> None:
    async def write() -> None:
        now = trio.current_time()
        text = "login as 'scott' refused with AUTH PLAIN: 535 5.7.8 no"
        host = "192.168.1.10"
        one = OpenCircuit(
            (host,), "scott", "ab12", (now,), 1, now + 300, f"{host}:587", text, "login-refused"
        )
        CircuitFile.load(logins_of("spool")).save([one], now)

    trio.run(write)
    text = ask("bob@example.com")
    assert "version ab12 of the credential was refused at 192.168.1.10:587, no try for another" in text
    assert "535 5.7.8 no" in text
