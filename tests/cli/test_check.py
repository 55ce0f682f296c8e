"""``posthorn check``: which mistakes it finds, what it says of them, and what it leaves alone."""

from __future__ import annotations

import re
import socket
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.cli.check import check
from engine.cli.demo import POLICY as DEMO
from engine.cli.run import run
from engine.ingress.tls import self_signed
from policy.load import load_policy

Write = Callable[[str, str], Path]
Said = Callable[..., str]

INIT = """
import policy

@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", **OPTIONS)
"""

PASSWORD = """
@policy.on("get_egress_path_config")
def path(domain):
    return policy.make_egress_path(smtp_auth_plain_username="scott", smtp_auth_plain_password=KEY)
"""

QUEUE = """
@policy.on("get_queue_config")
def queue(domain):
    return policy.make_queue_config(egress_pool="bulk")
"""

POOL = """
@policy.on("get_egress_pool")
def pool(name):
    return policy.make_egress_pool(name=name, entries=[{"name": "ip-1"}, {"name": "ip-2", "weight": 0}])
"""

SOURCE = """
@policy.on("get_egress_source")
def source(name):
    return policy.make_egress_source(name=name, source_address={"ip-1": "192.0.2.1"}[name])
"""


CALLBACK = """
@policy.on("vault", keysource=True)
def fetch():
    return "x"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.chdir(tmp_path)

    def write(text: str, options: str) -> Path:
        path = Path("mail.py")
        path.write_text(textwrap.dedent(text).replace("OPTIONS", options))
        return path

    yield write
    load_policy(None)


@pytest.fixture
def said(write: Write, capsys: pytest.CaptureFixture[str]) -> Said:
    """What check says of a policy with mistakes, or of one without."""

    def said(
        text: str,
        options: str = "{}",
        *,
        good: bool = False,
        domain: list[str] | None = None,
        tenant: list[str] | None = None,
        secrets: bool = False,
    ) -> str:
        path = write(text, options)
        status = check(path, domain=domain, tenant=tenant, secrets=secrets)
        out, err = capsys.readouterr()
        assert status == (0 if good else 2), out + err
        assert (err if good else out) == ""
        return out if good else err

    return said


def test_a_good_policy_is_shown(said: Said) -> None:
    text = said(INIT + QUEUE + POOL + SOURCE + PASSWORD.replace("KEY", "{'env': 'X'}"), good=True)
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert lines[:-2] == [
        ["mail.py:", "ok"],
        ["spool", "spool"],
        ["log", "none: nobody learns what became of mail; call policy.configure_local_logs(...) in init"],
        ["listener", "127.0.0.1:2525, relays for 127.0.0.1, ::1"],
        ["route", "example.com: by MX"],
        ["pool", "bulk: ip-1"],
        ["source", "ip-1: from 192.0.2.1"],
        ["path", "example.com from ip-1: enable_tls=Opportunistic, AUTH as 'scott', password from env:X"],
    ]
    assert "the password stays here" in lines[-2][1]
    assert "both get credentials" in lines[-1][1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", 'mail.py: no function is registered with @policy.on("init")'),
        (
            "import policy\npolicy.on('init')(lambda: None)",
            "mail.py: init defines no spool; call policy.define_spool",
        ),
        (
            INIT + PASSWORD.replace("KEY", '{"event_name": "vlt"}') + CALLBACK,
            'mail.py:9 in path(): smtp_auth_plain_password: no hook answers "vlt"; did you mean "vault"?; '
            'right would be a hook registered with @policy.on("vlt", keysource=True)',
        ),
        (
            INIT + PASSWORD.replace("KEY", '{"event_name": "init"}'),
            'mail.py:9 in path(): smtp_auth_plain_password: "init" is an event of the engine',
        ),
        (
            INIT + '    policy.configure_mta_sts(ca="absent.pem")\n',
            'mail.py:4 in init(): configure_mta_sts: ca="absent.pem" cannot be used: No such file',
        ),
        (
            INIT + QUEUE,
            'mail.py:9 in queue(): names egress_pool="bulk", but no hook answers get_egress_pool; right '
            'would be a function with @policy.on("get_egress_pool") that takes (pool_name) and returns '
            "policy.make_egress_pool(...)",
        ),
        (
            INIT + QUEUE + POOL,
            'mail.py:13 in pool(): names the source "ip-1", but no hook answers get_egress_source; right',
        ),
        (
            INIT + QUEUE + POOL + SOURCE.replace('["ip-1"', '["ip"').replace('{"ip-1"', '{"ip"'),
            'mail.py:17 in source(): get_egress_source raised KeyError at mail.py:19 (asked about "ip-1")',
        ),
        (
            INIT + QUEUE.replace("return ", "raise policy.Reject(550, 'no')  # "),
            "mail.py:9 in queue(): get_queue_config raised Reject at mail.py:11, but there is no client to "
            'refuse (asked about "example.com", None, None, None); right would be '
            "policy.make_queue_config(...)",
        ),
        (
            INIT + QUEUE.replace("egress_pool", "egress_pol"),
            'unknown option "egress_pol"; did you mean "egress_pool"? (asked about "example.com", None, None',
        ),
    ],
)
def test_mistakes_are_named_with_line_hook_and_what_would_be_right(said: Said, text: str, says: str) -> None:
    assert said(text).startswith("posthorn check: ")
    assert says in said(text)


@pytest.mark.parametrize("text", ["", "import policy\npolicy.on('init')(lambda: None)\n"])
def test_run_says_the_same_of_a_policy_without_a_spool(
    write: Write, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = write(text, "")
    assert (check(path), run(path, log_level="error")) == (2, 2)
    ours, theirs = capsys.readouterr().err.splitlines()
    assert ours.removeprefix("posthorn check: ") == theirs.removeprefix("posthorn run: ")


def test_all_mistakes_are_told_at_once(said: Said) -> None:
    text = said(INIT + PASSWORD.replace("KEY", "{'event_name': 'x'}"), CERTIFICATE)
    assert [
        re.sub(":.*", "", line.removeprefix("posthorn check: mail.py:")) for line in text.splitlines()
    ] == [
        "4 in init()",
        "4 in init()",
        "9 in path()",
    ]


def test_an_answer_under_a_condition_is_found_by_its_domain(said: Said) -> None:
    text = INIT + PASSWORD.replace(
        "    return",
        "    if domain != 'relay.example':\n        return policy.make_egress_path()\n    return",
    ).replace("KEY", '{"event_name": "gone"}')
    assert "no AUTH" in said(text, good=True)
    assert 'no hook answers "gone"' in said(text, domain=["example.com", "relay.example"])


LOGIN = """
@policy.on("get_egress_path_config")
def path(domain):
    return policy.make_egress_path(smtp_auth=LOGIN)
"""


@pytest.mark.parametrize(
    ("login", "says"),
    [
        ('{"username": "scott", "token": {"env": "X"}}', "AUTH as 'scott', token from env:X"),
        (
            '{"username": "scott", "oauth2": {"token_endpoint": "https://h.example/t", "client_id": "me",'
            ' "refresh_token": {"env": "X"}}}',
            "AUTH as 'scott', token from oauth2:me@h.example",
        ),
    ],
)
def test_how_a_path_logs_in_is_shown(login: str, says: str, said: Said) -> None:
    assert says in said(INIT + LOGIN.replace("LOGIN", login), good=True)


@pytest.mark.parametrize(
    ("options", "says", "good"),
    [
        ('enable_tls="Required"', "", True),
        ('enable_tls="Opportunistic"', 'AUTH with enable_tls = "Opportunistic"', True),
        ('enable_tls="Disabled"', 'right would be enable_tls = "Required"', False),
        ('enable_tls="RequiredInsecure"', "no certificate is verified", False),
        ('enable_tls="OpportunisticInsecure"', "no certificate is verified", False),
        (
            'enable_tls="Disabled", allow_smtp_auth_plain_without_tls=True',
            "the password is sent in clear text",
            True,
        ),
    ],
)
def test_a_hook_s_login_that_no_trusted_tls_protects(
    options: str, says: str, good: bool, said: Said, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("tiger")
    (tmp_path / "key").chmod(0o600)
    hook = PASSWORD.replace("(domain):", '(domain):\n    if domain != "example.com":\n        return None')
    hook = hook.replace("KEY", f'{{"file": "{tmp_path}/key"}}, {options}')
    text = said(INIT.replace("**OPTIONS", "") + hook, good=good)
    where = "mail.py:9 in path(): "
    lines = [line for line in text.splitlines() if where in line]
    assert len(lines) == bool(says) and all(says in line for line in lines), text


def test_the_secrets_of_a_token_are_looked_for_as_well(said: Said) -> None:
    login = """{"username": "scott", "oauth2": {"token_endpoint": "https://h.example/t", "client_id": "me",
        "client_secret": {"event_name": "gone"}}}"""
    text = said(INIT + LOGIN.replace("LOGIN", login))
    assert 'path(): smtp_auth: client_secret: no hook answers "gone"' in text


def test_a_mechanism_that_no_hook_serves(said: Said) -> None:
    text = said(INIT.replace("OPTIONS", "{'auth_mechanisms': ['SCRAM-SHA-256']}"))
    assert 'auth_mechanisms names "SCRAM-SHA-256", but no hook answers smtp_server_auth' in text


# -- files ---------------------------------------------------------------------------------------

CERTIFICATE = "{'tls_certificate': 'cert.pem', 'tls_private_key': 'key.pem'}"


def test_a_secret_where_a_path_belongs_is_not_shown(said: Said) -> None:
    text = said(INIT + PASSWORD.replace("KEY", "'tiger-9'"))
    assert "mail.py:9 in path(): smtp_auth_plain_password is a path that does not begin with /" in text
    assert "was a secret put there?" in text
    assert "tiger-9" not in text


def test_a_ca_that_is_not_here_is_named_once_and_where_it_was_looked_for(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = "{'key_data': 'x'}, tls_ca='ca.pem'"
    assert check(write(INIT + PASSWORD.replace("KEY", key), "{}"), secrets=True) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"tls_ca: there is no file ca.pem in {tmp_path}; a relative path begins in the directory" in line


def test_a_relative_path_that_leads_somewhere_is_fine(said: Said) -> None:
    Path("relay.password").write_text("tiger-9")
    text = said(INIT + PASSWORD.replace("KEY", "'relay.password'"), good=True)
    assert "password from file:relay.password" in text


def test_a_whole_path_may_come_later(said: Said) -> None:
    text = said(INIT + PASSWORD.replace("KEY", "'/nowhere/relay.password'"), good=True)
    assert "there is no file /nowhere/relay.password now" in text


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem"])
def test_a_listeners_files_must_be_there(said: Said, tmp_path: Path, missing: str) -> None:
    certificate, key = self_signed("mx.example", datetime.now(UTC))
    Path("cert.pem").write_bytes(certificate)
    Path("key.pem").write_bytes(key)
    options = CERTIFICATE.replace("'cert", f"'{tmp_path}/cert").replace("'key.", f"'{tmp_path}/key.")
    assert "ok" in said(INIT, options, good=True)
    assert "ok" in said(INIT, CERTIFICATE, good=True)
    Path(missing).unlink()
    option = "tls_certificate" if missing == "cert.pem" else "tls_private_key"
    text = said(INIT, options)
    assert text == (
        f"posthorn check: mail.py:4 in init(): start_esmtp_listener 127.0.0.1:2525: {option}: "
        f"there is no file {tmp_path}/{missing}; right would be the path of a PEM file\n"
    )
    text = said(INIT, CERTIFICATE)
    if missing == "cert.pem":
        assert f"{option}: there is no file cert.pem in {tmp_path}; a relative path begins" in text
    else:
        assert f"{option} is a path that does not begin with /" in text


def test_a_listeners_files_must_parse_and_belong_together(said: Said) -> None:
    certificate, key = self_signed("mx.example", datetime.now(UTC))
    other, other_key = self_signed("mx.example", datetime.now(UTC))
    old, old_key = self_signed("mx.example", datetime(2020, 1, 1, tzinfo=UTC))
    for content, private, says in [
        (certificate, other_key, "certificate and private key do not belong together"),
        (other, key, "certificate and private key do not belong together"),
        (b"no PEM", key, "the certificate is no PEM certificate"),
        (certificate, b"no PEM", "the private key is no PEM key"),
        (old, old_key, "the certificate is valid from 2019-12-31 to 2021-02-01, not now"),
        (b"", key, "tls_certificate: file:cert.pem: the file is empty"),
    ]:
        Path("cert.pem").write_bytes(content)
        Path("key.pem").write_bytes(private)
        text = said(INIT, CERTIFICATE)
        assert says in text and "mail.py:4 in init()" in text
        assert len(text.splitlines()) == 1


PAIR = """
@policy.on('get_egress_path_config')
def path(domain, source, site):
    return policy.make_egress_path(
        tls_certificate='CERT', tls_private_key='KEY', enable_tls='Required',
        smtp_auth={'mechanisms': ['EXTERNAL']},
    )
"""


SMTPS = """
@policy.on('get_queue_config')
def queue(domain, tenant, campaign, routing_domain):
    return policy.make_queue_config(protocol={'smtp': {'mx_list': ['relay.example:465']}})

@policy.on('get_egress_path_config')
def path(domain, source, site):
    return policy.make_egress_path(enable_tls='Required')
"""


def test_port_465_without_tls_from_the_first_octet_on(said: Said) -> None:
    assert "in path(): port 465 begins with TLS" in said(INIT + SMTPS, good=True)
    implicit = SMTPS.replace("'Required'", "'Required', tls_implicit=True")
    assert "begins with TLS" not in said(INIT + implicit, good=True)


def test_a_client_certificate_is_looked_at(said: Said, tmp_path: Path) -> None:
    certificate, key = self_signed("relay.example", datetime.now(UTC))
    _, other_key = self_signed("relay.example", datetime.now(UTC))
    policy = INIT + PAIR.replace("CERT", f"{tmp_path}/c.pem").replace("KEY", f"{tmp_path}/k.pem")
    text = said(policy, good=True)
    assert f"tls_private_key: there is no file {tmp_path}/k.pem now; mail that needs it waits" in text
    Path("c.pem").write_bytes(certificate)
    Path("k.pem").write_bytes(key)
    assert "enable_tls=Required, AUTH EXTERNAL" in said(policy, good=True)
    Path("k.pem").write_bytes(other_key)
    text = said(policy)
    assert "in path(): tls_certificate (file:" in text and "do not belong together" in text


CANARY = "c4n4ry=Check+1"
PER_TENANT = """
@policy.on("get_queue_config")
def queue(domain, tenant):
    protocol = {"smtp": {"mx_list": ["a.example"]}}
    return policy.make_queue_config(egress_pool=f"tenant-{tenant}", protocol=protocol)

@policy.on("get_egress_pool")
def pool(name):
    return policy.make_egress_pool(name=name, entries=[{"name": name}])

@policy.on("get_egress_source")
def source(name):
    return policy.make_egress_source(name=name)

@policy.on("get_egress_path_config")
def path(domain, source, site):
    name = source.removeprefix("tenant-")
    return policy.make_egress_path(
        enable_tls="Required", smtp_auth={"username": name, "password": f"{DIRECTORY}/{name}"}
    )
"""


@pytest.mark.plants("acme")
def test_the_login_of_a_tenant_that_is_none_is_not_asked_for(said: Said, tmp_path: Path) -> None:
    """Of docs/auth.md: each tenant has a login, and mail without a tenant does not exist."""
    text = INIT + PER_TENANT.replace("{DIRECTORY}", str(tmp_path))
    found = said(text, good=True, secrets=True)
    assert "None" not in found and "there is no file" not in found
    assert 'a made-up one was looked at ("some-tenant"), its secrets not; --tenant NAME' in found
    assert "enable_tls=Required, AUTH as 'some-tenant'" in found
    # One that is named is looked at, whatever it is called.
    (tmp_path / "acme").write_text(CANARY)
    (tmp_path / "acme").chmod(0o600)
    found = said(text, good=True, tenant=["acme"], secrets=True)
    assert "made-up" not in found and f"secret     file:{tmp_path}/acme, version" in found
    assert f"there is no file {tmp_path}/None now" in said(text, good=True, tenant=["None", "acme"])


def test_a_hook_that_fails_without_a_tenant_and_one_that_fails(said: Said) -> None:
    known = PER_TENANT.replace("{DIRECTORY}", "/none")
    lower = known.replace("{tenant}", "{tenant.lower()}")
    assert "the answer needs a tenant" in said(INIT + lower, good=True)
    assert "get_queue_config raised NameError" in said(INIT + known.replace("{tenant}", "{tenent}"))
    unknown = known.replace("name=name)", 'name={"tenant-acme": name}[name])')
    found = said(INIT + unknown, good=True)
    assert "get_egress_source raised KeyError" in found and 'there may be no tenant "some-tenant"' in found
    assert "there may be no" not in said(INIT + unknown, good=True, tenant=["acme"])


def test_mail_without_a_tenant_that_has_a_way_is_looked_at(said: Said) -> None:
    text = PER_TENANT.replace('egress_pool=f"tenant-{tenant}"', "egress_pool=f\"tenant-{tenant or 'all'}\"")
    found = said(INIT + text.replace("{DIRECTORY}", "/none"), good=True)
    assert "AUTH as 'all'" in found and "there is no file /none/all now" in found


def test_all_mistakes_of_bounce_files_named_in_init(said: Said, tmp_path: Path) -> None:
    Path("bounces.toml").write_text("[rules]\nA = ['(', ')']\nB = 1")
    text = said(INIT + "    policy.configure_bounce_classifier(['bounces.toml'])\n")
    assert text.count("posthorn check: bounces.toml:2: rules.A") == 2
    assert text.count("posthorn check: bounces.toml:3: rules.B") == 1


def test_a_log_directory_that_is_a_file(said: Said) -> None:
    Path("afile").write_text("x")
    text = said(INIT + "    policy.configure_local_logs(log_dir='afile')\n")
    assert 'mail.py:4 in init(): configure_local_logs: "afile" is not a directory' in text


def test_nothing_is_opened_made_or_fetched(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket was bound or connected")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    log = "    policy.configure_local_logs(log_dir='log')\n"
    said(INIT + log + PASSWORD.replace("KEY", "{'env': 'POSTHORN_NOT_SET'}"), good=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mail.py"]


@pytest.mark.parametrize(("name", "why"), [("none.py", "No such file"), (".", "Is a directory")])
def test_a_policy_that_cannot_be_read_is_named(
    name: str, why: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(Path(name)) == 2
    assert capsys.readouterr().err.startswith(f"posthorn check: {name}: cannot be read: {why}")


# -- everybody's password ------------------------------------------------------------------------

SMART = """
@policy.on("get_queue_config")
def queue(domain):
    return policy.make_queue_config(protocol={"smtp": {"mx_list": HOSTS}})
"""


@pytest.mark.parametrize(
    ("queue", "noted"),
    [
        ("", True),
        (SMART.replace("HOSTS", "['smtp.provider.example:587']"), False),
        (SMART.replace("HOSTS", "[]"), True),
        (SMART.replace("HOSTS", "['mx.' + domain]"), True),
        (SMART.replace("HOSTS", "['smtp.provider.example'] if domain == 'example.com' else []"), True),
    ],
)
def test_a_password_for_everybody_is_noted_unless_all_mail_goes_to_one_list(
    said: Said, queue: str, noted: bool
) -> None:
    text = said(INIT + PASSWORD.replace("KEY", "{'env': 'X'}") + queue, good=True)
    assert ("both get credentials" in text) is noted


@pytest.mark.parametrize(
    ("bound", "noted"),
    [
        ('"names": ["mx.example.com"]', False),
        ('"addresses": ["192.0.2.0/24"]', False),
        ('"ports": [25]', True),
    ],
)
def test_a_password_that_is_bound_to_hosts_is_not_everybodys(said: Said, bound: str, noted: bool) -> None:
    hook = f"""
@policy.on("get_egress_path_config")
def path(domain, egress_source, site_name):
    login = {{"username": "scott", "password": {{"env": "X"}}, "release_to": {{{bound}}}}}
    return policy.make_egress_path(enable_tls="Required", smtp_auth=login)
"""
    assert ("both get credentials" in said(INIT + hook, good=True)) is noted


ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("policy", "egress-paths", "keysources", "dane")))
EXAMPLES = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    if "get_egress_path_config" in block
]


def test_there_are_examples() -> None:
    assert {page for page, _ in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"{page}-{n}") for n, (page, block) in enumerate(EXAMPLES)]
)
def test_no_example_gives_everybody_a_password(said: Said, block: str) -> None:
    if '@policy.on("init")' not in block:
        block = f"{INIT}\n{block}"
    block = block.replace("/usr/bin/pass", "/bin/cat")  # one that is on every machine
    assert "both get credentials" not in said(block, good=True)
    for domain in ("relay.example", "partner.example", "legacy.example"):
        assert "ok" in said(block, good=True, domain=[domain])


def test_the_demos_policy_gives_no_reason_for_a_note_but_for_the_password_in_it(
    said: Said, tmp_path: Path
) -> None:
    (tmp_path / "next-hop-ca.pem").write_text("x")
    text = said(
        DEMO.format(directory=tmp_path, port=2525, next_hop=2600, user="scott", password="tiger"), good=True
    )
    assert [line.split(": ")[1] for line in text.splitlines() if line.startswith("  note ")] == [
        "smtp_auth_plain_password"
    ]
    assert "tiger" not in text
