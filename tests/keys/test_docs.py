"""The examples of docs/keysources.md are what the code takes and says."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest

from engine.keys import key_sources, local, ring, vault, vaultlogin, vaultserver
from engine.keys.aws import AwsSource
from engine.keys.azure import AzureSource
from engine.keys.google import GoogleSource
from policy.cloudkeys import AWS, AZURE, GOOGLE
from policy.keysource import _AUTH, VaultKey, read_key
from policy.keyterms import TERMS, Terms
from policy.load import load_policy

PAGE = Path(__file__).parents[2] / "docs" / "keysources.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_policies_load_and_only_the_destination_meant_gets_the_password(block: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(block)
    (hook,) = load_policy(str(path)).hooks.get("get_egress_path_config")
    (meant,) = re.findall(r'if domain(?: == |\.endswith\()"(?:\.)?([\w.]+)"', block)
    paths = [hook.function(domain, "unspecified", "site") for domain in (f"a.{meant}", meant)]
    assert any(path.smtp_auth_plain_password is not None for path in paths)
    other = hook.function("other.example", "unspecified", "site")
    assert (other.smtp_auth_plain_username, other.smtp_auth_plain_password) == (None, None)


def test_there_is_a_block_for_each_form() -> None:
    assert len(BLOCKS) == 11
    for mark in (
        'password="/',
        '"credential"',
        '"exec"',
        '"env"',
        '"vault_mount"',
        '"vault_auth"',
        '"event_name"',
        '"aws_secret"',
        '"key_data"',
        '"ttl"',
    ):
        assert any(mark in block for block in BLOCKS)


def test_every_form_of_the_table_with_its_name() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (?:`([^`]+)`|the same) \|$", TEXT, re.MULTILINE)
    forms = [(eval(form), name) for form, name in rows if form[0] in '{"']
    assert len(forms) == 12
    kinds = set()
    for value, name in forms:
        ref = read_key(value)
        kinds.add(type(ref))
        assert not name or ref.name == name
    assert kinds == set(key_sources())


def test_every_vault_key_is_in_its_table() -> None:
    table = re.findall(r"^\| `(vault_\w+|kv_version)` \|", TEXT, re.MULTILINE)
    names = set(VaultKey.__struct_fields__) - {"terms"}
    fields = {name if name == "kv_version" else f"vault_{name}" for name in names}
    assert set(table) == fields


def test_every_key_of_the_clouds_is_in_the_table() -> None:
    section = TEXT.partition("## AWS, Google and Azure")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [
        key for keys in (AWS, GOOGLE, AZURE) for key in keys if key not in TERMS
    ]
    extras = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {source.extra for source in (AwsSource, GoogleSource, AzureSource)} <= set(extras)
    assert set(re.findall(r"posthorn\[(\w+)\]", section)) <= set(extras)


def test_every_term_is_in_its_table_with_its_default() -> None:
    section = TEXT.partition("## How long a secret serves")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    assert tuple(table) == TERMS
    for name in ("on_outage", "on_denied"):
        assert table[name] == f"`{getattr(Terms(), name)}`"
    assert table["ttl"].startswith(f"{ring.TTL / 60:g} minutes;")
    assert f"credentials {local.FileSource.fresh_for:g} second" in table["ttl"]
    assert table["stale_for"] == f"{ring.STALE_FOR / 3600:g} hours"


def test_every_way_to_log_in_is_in_its_table() -> None:
    section = TEXT.partition("### Logging in")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section, re.MULTILINE)
    rows = [row for row in rows if row[0] != "method"]
    assert {method for method, _ in rows} == set(_AUTH)
    for method, text in rows:
        assert {*re.findall(r"`(\w+)`", text), "mount"} == set(_AUTH[method])


def test_the_reasons_are_those_of_the_code() -> None:
    code = "".join(map(inspect.getsource, (vault, vaultlogin, vaultserver, local)))
    section = TEXT.partition("### What Vault's answers mean")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    reasons = [each for row in rows for each in row.split("`, `")]
    assert len(reasons) > 10
    for reason in reasons:
        words = re.split(r"HOST| is deleted|\.\.\.|\(\d+|sealed|\"key\"|:", reason.strip("`"))[0].strip()
        assert words in code, reason
