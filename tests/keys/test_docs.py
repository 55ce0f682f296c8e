"""The examples of docs/keysources.md are what the code takes and says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from engine.keys import key_sources, local, vault
from policy.keysource import VaultKey, read_key
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
    assert len(BLOCKS) == 7
    for mark in ('password="/', "CREDENTIALS", '"env"', '"vault_mount"', '"event_name"', '"key_data"'):
        assert any(mark in block for block in BLOCKS)


def test_every_form_of_the_table_with_its_name() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (?:`([^`]+)`|the same) \|$", TEXT, re.MULTILINE)
    forms = [(eval(form), name) for form, name in rows if form[0] in '{"']
    assert len(forms) == 7
    kinds = set()
    for value, name in forms:
        ref = read_key(value)
        kinds.add(type(ref))
        assert not name or ref.name == name
    assert kinds == set(key_sources())


def test_every_vault_key_is_in_its_table() -> None:
    table = re.findall(r"^\| `(vault_\w+|kv_version)` \|", TEXT, re.MULTILINE)
    fields = {name if name == "kv_version" else f"vault_{name}" for name in VaultKey.__struct_fields__}
    assert set(table) == fields


def test_the_reasons_are_those_of_the_code() -> None:
    code = inspect.getsource(vault) + inspect.getsource(local)
    section = TEXT.partition("### What Vault's answers mean")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    reasons = [each for row in rows for each in row.split("`, `")]
    assert len(reasons) > 10
    for reason in reasons:
        words = re.split(r"HOST|\.\.\.|\(\d+|sealed|\"key\"|:", reason.strip("`"))[0].strip()
        assert words in code, reason
