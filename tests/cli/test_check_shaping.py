"""``posthorn check`` of a policy with shaping files."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.cli.check import check
from engine.ingress.tls import self_signed
from policy.load import load_policy
from tests.support.fakedns import run_dns

POLICY = """
import policy

policy.shaping.setup(FILES)

@policy.on("init")
def init():
    policy.define_spool(path="spool")
"""
CANARY = "c4n4ry=Check+1"

pytestmark = pytest.mark.plants("shaping.toml", "more.json")
Said = Callable[..., str]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Said]:
    """What check says of a shaping file; `good`: that it is fine."""
    monkeypatch.chdir(tmp_path)

    def said(
        text: str,
        *,
        good: bool = True,
        files: str = '["shaping.toml"]',
        offline: bool = True,
        secrets: bool = False,
        hook: str = "",
    ) -> str:
        Path("shaping.toml").write_text(text)
        Path("mail.py").write_text(POLICY.replace("FILES", files) + hook)
        status = check(Path("mail.py"), offline=offline, secrets=secrets)
        out, err = capfd.readouterr()
        assert status == (0 if good else 2), out + err
        assert CANARY not in out + err
        return out if good else err

    yield said
    load_policy(None)


def test_files_that_are_fine_are_shown(said: Said) -> None:
    text = said('["a.example"]\nmx_rollup = false\n', files='[policy.shaping.SHIPPED, "shaping.toml"]')
    assert "blocks from posthorn:shaping.toml, shaping.toml" in text
    assert "note" not in text


def test_every_mistake_of_every_file_is_told_with_a_suggestion(said: Said) -> None:
    text = said('["a.example"]\nsmtp_prt = 1\n["b.example"]\nmx_rolup = false\n', good=False)
    assert text.splitlines() == [
        'posthorn check: shaping.toml:2: ["a.example"] unknown option "smtp_prt"; did you mean "smtp_port"?',
        'posthorn check: shaping.toml:4: ["b.example"] unknown option "mx_rolup"; did you mean "mx_rollup"?',
    ]


def test_mistakes_come_by_file_and_line_whatever_finds_them(said: Said) -> None:
    Path("more.toml").write_text('["b.example"]\nmax_ready = 0\n')
    text = said(
        '["a.example"]\nsmtp_auth_plain_username = "u"\n["default"]\nsmtp_prt = 1\n'
        '[provider."p"]\nmax_ready = 0\n',
        good=False,
        files='["shaping.toml", "more.toml"]',
    )
    assert re.findall(r"check: (\w+\.toml:\d+): (?:.*?)(\w*u\w*th\w*|max_ready|smtp_prt|match)", text) == [
        ("shaping.toml:2", "smtp_auth_plain_username"),
        ("shaping.toml:4", "smtp_prt"),
        ("shaping.toml:5", "match"),
        ("shaping.toml:6", "max_ready"),
        ("more.toml:2", "max_ready"),
    ]


def test_mistakes_that_fill_a_screen_are_counted(said: Said) -> None:
    lines = said('["a.example"]\nsmtp_prt = 1\n' + "".join(f"x{n} = 1\n" for n in range(19)), good=False)
    assert len(lines.splitlines()) == 20
    lines = said("".join(f'["d{n}.example"]\nsmtp_prt = 1\n' for n in range(1200)), good=False)
    assert len(lines.splitlines()) == 1201
    assert lines.endswith('did you mean "smtp_port"?\nposthorn check: 1,200 mistakes\n')


def test_what_would_be_right_is_written_as_the_file_is(said: Said) -> None:
    text = said('["a.example"]\nenable_dane = "yes"\nuse_lmtp = true\n', good=False)
    assert 'enable_dane="yes": is no bool but a str; right would be true or false\n' in text
    assert "not supported yet; use_lmtp = false is accepted\n" in text


def test_a_file_that_is_not_there_hides_no_mistake_of_another(said: Said) -> None:
    text = said('["a.example"]\nsmtp_prt = 1\n', good=False, files='["none.toml", "shaping.toml"]')
    assert re.findall("check: ([^ ]+): ", text) == ["none.toml", "shaping.toml:2"]


LOGIN = '["a.example"]\nmx_rollup = false\nsmtp_auth_plain_username = "u"\n'
LOGIN += 'smtp_auth_plain_password = {env = "X"}\n'


@pytest.mark.parametrize(
    ("rest", "says", "good"),
    [
        ("", 'shaping.toml:1: ["a.example"]: AUTH with enable_tls = "Opportunistic"', True),
        ('enable_tls = "Disabled"', 'right would be enable_tls = "Required"', False),
        ('enable_tls = "RequiredInsecure"', "no certificate is verified", False),
        (
            'enable_tls = "RequiredInsecure"\nallow_smtp_auth_plain_without_valid_certificate = true',
            "a host that nobody verified",
            True,
        ),
        (
            'enable_tls = "Disabled"\nallow_smtp_auth_plain_without_tls = true',
            "the password is sent in clear text",
            True,
        ),
        (
            '["a.example".sources."ip-1"]\nenable_tls = "Disabled"',
            'from source "ip-1": AUTH with enable_tls = "Disabled"',
            False,
        ),
    ],
)
def test_a_login_that_no_trusted_tls_protects(said: Said, rest: str, says: str, good: bool) -> None:
    assert says in said(LOGIN + rest, good=good)


def test_a_login_inside_required_tls_is_no_word_worth(said: Said) -> None:
    assert "note" not in said(LOGIN + 'enable_tls = "Required"')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '["a.example"]\nsmtp_auth_plain_username = "u"',
            "without smtp_auth_plain_password; give both or neither",
        ),
        (
            '["a.example"]\nsmtp_auth_plain_password = {env = "X"}',
            "without smtp_auth_plain_username; give both",
        ),
        ('["default"]\nsmtp_auth_plain_username = "u"', 'AUTH in "default" would be used at every next hop'),
        (LOGIN.replace('{env = "X"}', '"tiger"'), "leads to no file; a plain string is always a path"),
        (LOGIN.replace('{env = "X"}', '{event_name = "none"}'), 'no hook answers "none"'),
        (LOGIN + 'smtp_auth = {username = "u", password = {env = "X"}}', "are two logins; give one of them"),
        (
            '["a.example"]\nmx_rollup = false\nsmtp_auth = {username = "u", token = {event_name = "none"}}',
            'smtp_auth: no hook answers "none"',
        ),
        (
            '["default"]\nsmtp_auth = {username = "u", token = {env = "X"}}',
            'smtp_auth: AUTH in "default" would be used at every next hop',
        ),
    ],
)
def test_a_login_that_cannot_be(said: Said, text: str, says: str) -> None:
    assert says in said(text, good=False)


def test_secrets_are_fetched_when_asked_for(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LOGIN.replace('"X"', '"SHAPING_SECRET"') + 'enable_tls = "Required"'
    monkeypatch.delenv("SHAPING_SECRET", raising=False)
    assert "ok" in said(text)
    wrong = said(text, secrets=True, good=False)
    assert 'shaping.toml:4: ["a.example"] smtp_auth_plain_password: env:SHAPING_SECRET: ' in wrong
    monkeypatch.setenv("SHAPING_SECRET", CANARY)
    assert "secret     env:SHAPING_SECRET, version " in said(text, secrets=True)


def test_secrets_are_fetched_side_by_side(said: Said) -> None:
    """Where Vault is out each takes five seconds, and there may be thousands."""
    hook = """
import trio
both = trio.Event()

@policy.on("meet", keysource=True)
async def meet(number):
    if number == 1:
        await both.wait()
    both.set()
    return f"secret number {number}"
"""
    text = "".join(
        f'["h{n}.example"]\nmx_rollup = false\nenable_tls = "Required"\nsmtp_auth_plain_username = "u"\n'
        f'smtp_auth_plain_password = {{ event_name = "meet", event_args = [{n}] }}\n'
        for n in (1, 2)
    )
    assert said(text, hook=hook, secrets=True).count("secret     callback:meet, version ") == 2


def test_a_library_that_is_not_installed_is_a_mistake(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LOGIN.replace('{env = "X"}', '{aws_secret = "mail/relay", aws_region = "eu-west-1"}')
    monkeypatch.setattr("engine.keys.aws.AwsSource.modules", ("posthorn_none",))
    wrong = said(text, good=False)
    assert "aws:mail/relay: the SDK is not installed (posthorn_none); right would be: pip install" in wrong
    assert wrong.startswith('posthorn check: shaping.toml:4: ["a.example"] smtp_auth_plain_password')


def test_a_secret_in_the_file_is_remarked(said: Said) -> None:
    text = said(LOGIN.replace('{env = "X"}', f'{{key_data = "{CANARY}"}}'))
    assert text.count("the secret itself is in the configuration") == 1 and CANARY not in text
    assert "1 block from shaping.toml" in text


def test_providers_that_overlap_are_remarked(said: Said) -> None:
    text = '[provider."a"]\nmatch = [{MXSuffix = ".example.net"}]\n'
    text += '[provider."b"]\nmatch = [{MXSuffix = "mx.example.net"}]\n'
    assert 'shaping.toml:3: [provider."b"] and [provider."a"] (shaping.toml:1) overlap' in said(text)
    assert "overlap" not in said(text.replace("mx.example.net", "notexample.net"))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ('MXSuffix = ".big.example"', 'HostName = "mx1.big.example"', 'and HostName "mx1.big.example" can'),
        ('HostName = "mx1.big.example"', 'MXSuffix = ".BIG.example"', 'and MXSuffix ".BIG.example" can'),
        ('HostName = "mx.big.example"', 'HostName = "MX.big.example."', "can be met by one host"),
        ('MXSuffix = "big.example"', 'HostName = "big.example"', "can be met by one host"),
        ('MXSuffix = ".big.example"', 'HostName = "big.example"', ""),
        ('MXSuffix = ".big.example"', 'MXSuffix = "big.example"', "can be met by one host"),
        ('MXSuffix = ".a.big.example"', 'MXSuffix = ".b.big.example"', ""),
        ('HostName = "big.example"', 'HostName = "mx.big.example"', ""),
        ('DomainSuffix = ".big.example"', 'DomainSuffix = "x.big.example"', "can be met by one domain"),
        ('DomainSuffix = ".big.example"', 'MXSuffix = ".big.example"', ""),
    ],
)
def test_who_can_belong_to_two_providers(said: Said, one: str, other: str, says: str) -> None:
    first, second = f'[provider."a"]\nmatch = [{{{one}}}]\n', f'[provider."b"]\nmatch = [{{{other}}}]\n'
    for text in (first + second, first.replace('"a"', '"b"') + second.replace('"b"', '"a"')):
        told = said(text)
        assert says in told and told.count("overlap") == (1 if says else 0)
    both = f'[provider."a"]\nmatch = [{{{one}}}, {{{other}}}]\n'
    assert "overlap" not in said(both), "one provider may say it twice"


def test_a_large_set_of_providers_is_compared_fast(said: Said) -> None:
    text = "".join(
        f'[provider."p{n}"]\nmatch = [{{MXSuffix = ".mx{n}.example"}}, {{HostName = "h{n}.example"}}]\n'
        for n in range(3000)
    )
    begun = time.process_time()
    assert "overlap" not in said(text)
    assert time.process_time() - begun < 20  # 3 s; pair by pair it would be a minute


SOURCES = """
@policy.on("get_egress_source")
def source(name):
    return policy.make_egress_source(name=name, source_address={"ip-1": "192.0.2.1"}[name])
"""


@pytest.mark.parametrize(
    ("block", "hook", "says"),
    [
        ('"a.example"', SOURCES, "mail.py:10 in source(): get_egress_source raised KeyError"),
        ('"a.example"', "", 'no hook answers get_egress_source, so the only source is "unspecified"'),
        ('"default"', SOURCES, "get_egress_source raised KeyError"),
    ],
)
def test_a_source_that_the_policy_does_not_give(said: Said, block: str, hook: str, says: str) -> None:
    head = "mx_rollup = false\n" if block != '"default"' else ""
    text = f'[{block}]\n{head}[{block}.sources."ip-l"]\nmax_ready = 7\n'
    line = text.count("\n")
    told = said(text, hook=hook)
    assert f'shaping.toml:{line}: [{block}] sources."ip-l" holds for nobody: ' in told and says in told
    for name in (["ip-1"] if hook else []) + ["unspecified"]:
        assert "holds for nobody" not in said(text.replace("ip-l", name), hook=hook)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('smtp_auth = { username = "v", password = {env = "X"} }', "are two logins; give one of them (for"),
        (
            'enable_tls = "Disabled"',
            'from unspecified: AUTH with enable_tls = "Disabled": the password is never',
        ),
        ('[SELF.sources."ip-1"]\nenable_tls = "RequiredInsecure"', "from ip-1: AUTH with enable_tls ="),
    ],
)
def test_what_a_block_and_its_provider_say_together(
    said: Said, more: str, says: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is fine by itself: only a look-up tells."""
    domain = "mx.big.example" if offline else "a.example"
    rest = LOGIN.partition("mx_rollup = false\n")[2]
    text = f'[provider."p"]\nmatch = [{{HostName = "mx.big.example"}}]\nenable_tls = "Required"\n{rest}'
    text += f'["{domain}"]\n{"mx_rollup = false" if offline else ""}\nmax_ready = 7\n'
    wrong = text + more.replace("SELF", f'"{domain}"')
    if offline:
        assert "mistake" not in said(text) and says in said(wrong, good=False)
        return
    with run_dns({"a.example": {"MX": ["10 mx.big.example."]}}) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        assert "mistake" not in said(text, offline=False)
        assert says in said(wrong, offline=False, good=False)


def test_what_a_later_file_takes_back_is_remarked(said: Said) -> None:
    block = '["a.example"]\nmax_ready = 1\n'
    Path("later.toml").write_text('["a.example"]\nreplace_base = true\n')
    text = said(block, files='["shaping.toml", "later.toml"]')
    assert 'later.toml:2: ["a.example"] replace_base: what shaping.toml:1 and earlier files say' in text
    assert "replace_base" not in said(block + "replace_base = true\n", files='["shaping.toml"]')


def test_a_test_that_fails_is_a_mistake(said: Said) -> None:
    text = '["a.example"]\n[["a.example".test]]\nexpect = { enable_tls = "Required" }\n'
    assert "shaping.toml:2: this test fails: enable_tls for a.example is Opportunistic" in said(
        text, good=False
    )


def test_a_name_without_a_dot_is_remarked(said: Said) -> None:
    assert 'shaping.toml:1: the name of the block "example" has no dot' in said(
        "[example]\nmx_rollup = false"
    )
    for name in ("::1", "10.0.0.1", "localhost"):
        assert "note" not in said(f'["{name}"]\nmx_rollup = false')


def test_what_dns_says_is_remarked(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    mx = {"MX": ["10 mx.example.net."]}
    zones = {"a.example": mx, "b.example": mx, "null.example": {"MX": ["0 ."]}}
    text = "".join(f'["{name}.example"]\n' for name in ("a", "b", "null", "none"))
    text += '[provider."p"]\nmatch = [{MXSuffix = ".example.net"}]\n'
    with run_dns(zones) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        out = said(text, offline=False)
    for says in (
        'shaping.toml:2: ["b.example"] has the same hosts as ["a.example"] (shaping.toml:1)',
        'shaping.toml:1: the hosts of ["a.example"] belong to [provider."p"] (shaping.toml:5), too',
        'shaping.toml:3: "null.example" has no hosts to roll up: domain null.example accepts no mail',
        'shaping.toml:4: "none.example" has no hosts to roll up: domain none.example does not exist',
    ):
        assert says in out


def test_a_host_that_dns_does_not_know_is_remarked(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block without roll-up needs no DNS to hold, but a name with a misprint holds for nobody."""
    zones = {"relay.example": {"A": ["192.0.2.1"]}, "null.example": {"MX": ["0 ."]}}
    names = ("relay.example", "relay.example:587", "rleay.example:587", "null.example", "192.0.2.7", "::1")
    text = "".join(f'["{name}"]\nmx_rollup = false\n' for name in names)
    with run_dns(zones) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        out = said(text, offline=False)
        assert "note" not in said(text)
    notes = [line.strip() for line in out.splitlines() if "note" in line]
    assert notes == [
        'note       shaping.toml:5: ["rleay.example:587"]: domain rleay.example does not exist, so '
        "nothing can be sent there now"
    ]


def test_a_name_server_that_knows_nothing_does_not_bury_the_rest(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_dns({}) as address:
        monkeypatch.setenv("POSTHORN_DNS_SERVERS", address)
        out = said("".join(f'["d{number}.example"]\n' for number in range(200)), offline=False)
    told = [f'shaping.toml:{number + 1}: "d{number}.example" has no hosts to roll up' for number in range(10)]
    assert re.findall(r"shaping.toml:\d+: \S+ has no hosts to roll up", out) == told
    assert "and 190 more blocks have no hosts to roll up" in out


def test_a_url_that_cannot_be_fetched_is_a_remark(said: Said) -> None:
    files = '["shaping.toml", "http://127.0.0.1:9/more.toml"]'
    assert "http://127.0.0.1:9/more.toml cannot be fetched now" in said("", files=files, offline=False)
    assert "not read, because of --offline: http://127.0.0.1:9/more.toml" in said("", files=files)


# -- TLS -------------------------------------------------------------------------------------------------


def test_a_client_certificate_in_a_block(said: Said, tmp_path: Path) -> None:
    certificate, key = self_signed("relay.example", datetime.now(UTC))
    _, other_key = self_signed("relay.example", datetime.now(UTC))
    (tmp_path / "c.pem").write_bytes(certificate)
    text = f"""
["relay.example"]
enable_tls = "Required"
tls_certificate = "{tmp_path}/c.pem"
tls_private_key = "{tmp_path}/k.pem"
"""
    missing = f'shaping.toml:5: ["relay.example"] tls_private_key: there is no file {tmp_path}/k.pem now'
    assert missing in said(text)
    (tmp_path / "k.pem").write_bytes(other_key)
    found = said(text, good=False)
    assert 'shaping.toml:2: ["relay.example"]: tls_certificate' in found and "do not belong together" in found
    (tmp_path / "k.pem").write_bytes(key)
    said(text)


def test_port_465_without_tls_from_the_first_octet_on(said: Said) -> None:
    text = '["relay.example"]\nenable_tls = "Required"\nsmtp_port = 465\n'
    assert "port 465 begins with TLS, and without tls_implicit a greeting" in said(text)
    assert "begins with TLS" not in said(text + "tls_implicit = true\n")


def test_a_pinned_key_is_enough_for_a_password(said: Said) -> None:
    text = """
["relay.example"]
enable_tls = "RequiredInsecure"
smtp_auth_plain_username = "scott"
smtp_auth_plain_password = { env = "RELAY_PASSWORD" }
"""
    assert "no certificate is verified" in said(text, good=False)
    said(text + f'tls_pins = ["{"ab" * 32}"]\n')


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('tls_pins = ["nonsense!"]', "neither 64 hexadecimal digits nor base64"),
        ('tls_minimum_version = "SSLv3"', "a version that RFC 7568 forbids"),
        ('openssl_cipher_list = "TYPO"', "the ssl module says: no cipher can be selected"),
        ('tls_certificate = "/c.pem"', "half a client certificate"),
        ("tls_implicit = 465", "is no bool but an int"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(said: Said, line: str, words: str) -> None:
    found = said(f'["relay.example"]\nenable_tls = "Required"\n{line}\n', good=False)
    assert words in found and "shaping.toml:" in found and line.split(" ")[0] in found
