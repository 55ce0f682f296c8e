"""docs/tls.md: its examples hold, and its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from engine.log import Record
from policy.load import load_policy
from policy.shaping.read import read
from policy.shaping.settings import PROTECTION
from policy.shaping.table import build

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tls.md").read_text()


def test_toml() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    document = read("shaping.toml", text.encode())
    assert [str(problem) for problem in document.problems] == []
    table = build([document])
    assert len(table.blocks) == 3
    options = {option for block in table.blocks for option, _ in block.layer.settings}
    assert options <= PROTECTION | {"enable_tls"}


def test_python(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "example.py"
    file.write_text(text)
    (hook,) = load_policy(file).hooks.get("get_egress_path_config")
    relay = hook.function("relay.example", "ip-1", "relay.example")
    assert relay.port == 465 and len(relay.tls_pins) == 2 and relay.tls_minimum_version == "TLSv1.3"
    partner = hook.function("partner.example", "ip-1", "mx.partner.example")
    assert partner.login.mechanisms == ("EXTERNAL",)
    assert partner.tls_certificate.name == "file:/etc/posthorn/client.pem"
    load_policy(None)


def test_the_fields_of_records() -> None:
    table = PAGE.split("## What is recorded")[1]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    fields = {name for name in Record.__struct_fields__ if name.startswith("tls_")}
    dane = ROOT / "docs" / "dane.md"
    elsewhere = dane.read_text() if dane.exists() else ""
    assert listed <= fields and all(f"`{name}`" in elsewhere for name in fields - listed)


def test_the_options_are_all_told() -> None:
    assert all(f"`{option}" in PAGE for option in PROTECTION)
