"""``posthorn check``: every mistake of a policy at once, domains that are none, and listeners in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.cli.check import check
from policy.load import load_policy

INIT = """
import policy

@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", **OPTIONS)
"""

Said = Callable[..., str]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Said]:
    """What check says of a policy with mistakes, or of a good one."""
    monkeypatch.chdir(tmp_path)

    def said(text: str, options: str = "{}", *, good: bool = False, domain: list[str] | None = None) -> str:
        Path("mail.py").write_text(text.replace("OPTIONS", options))
        status = check(Path("mail.py"), domain=domain)
        out, err = capsys.readouterr()
        assert status == (0 if good else 2), out + err
        assert (err if good else out) == ""
        return out if good else err

    yield said
    load_policy(None)


BROKEN = """
import policy

@policy.on("init")
def init():
    policy.define_spool("spool")
    policy.define_spool(path="spool", sgment_size="1MiB", min_free_space="lots")
    policy.configure_local_logs(log_dir="log", compression_level=99)
    policy.start_esmtp_listener(relay_host=["127.0.0.1"])

@policy.on("get_queue_config")
def queue(domain):
    return policy.make_queue_config(max_age="old", retry_interval="soon")

@policy.on("get_egress_path_config")
def path(domain, source, site):
    return policy.make_egress_path(enable_tls="required", connection_limit="many")
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("{}", "relays for 127.0.0.1, ::1\n"),
        ("{'relay_hosts': []}", "relays for nobody but whom a hook allows\n"),
        ("{'relay_hosts': [], 'relay_authenticated': True}", "relays for whoever has logged in\n"),
        ("{'relay_authenticated': True}", "relays for 127.0.0.1, ::1 and whoever has logged in\n"),
        (
            "{'tls_certificate': {'env': 'C'}, 'tls_private_key': {'env': 'K'}}",
            "relays for 127.0.0.1, ::1, certificate env:C\n",
        ),
    ],
)
def test_for_whom_a_listener_relays(said: Said, options: str, says: str) -> None:
    hook = "\n@policy.on('smtp_server_auth')\ndef auth(user, mechanism, token, meta):\n    return None\n"
    assert f"listener   127.0.0.1:2525, {says}" in said(INIT + hook, options, good=True)


def test_every_mistake_of_a_broken_policy_is_told_once_with_its_line(said: Said) -> None:
    text = said(BROKEN)
    lines = [line.removeprefix("posthorn check: mail.py:") for line in text.splitlines()]
    assert [line.partition(":")[0] for line in lines] == ["6", "7", "8", "9", "11 in queue()", "15 in path()"]
    for mistake in (
        "takes keyword arguments",
        'unknown option "sgment_size"; did you mean "segment_size"? -- and min_free_space="lots"',
        "compression_level=99: is out of range",
        'unknown option "relay_host"; did you mean "relay_hosts"?',
        'max_age="old"',
        'retry_interval="soon"',
        'enable_tls="required"',
        'connection_limit="many"',
    ):
        assert text.count(mistake) == 1, mistake


def test_after_an_init_that_was_not_done_nothing_is_asked(said: Said) -> None:
    text = said(BROKEN.replace('policy.define_spool("spool")', "policy.define_spool(x=1)\n    nowhere"))
    assert [line.partition(": in init(): ")[2].split()[0] for line in text.splitlines()] == [
        "define_spool:",
        "NameError:",
    ]


@pytest.mark.parametrize("domain", ["b@@c", "exa mple", "", "user@", "x.example> SIZE=1"])
def test_a_domain_that_is_none(said: Said, domain: str) -> None:
    text = said(INIT, domain=[domain])
    assert f'--domain "{domain}": ' in text and "right would be user@example.com, or example.com" in text


def test_a_domain_is_asked_about_as_mail_for_it_would_be(said: Said) -> None:
    out = said(INIT, domain=["Bob@Example.ORG", "b\u00fccher.example", "[127.0.0.1]"], good=True)
    assert re.findall("route +(.+): by MX", out) == ["example.org", "xn--bcher-kva.example", "[127.0.0.1]"]
