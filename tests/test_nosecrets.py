"""The search for planted secrets in what tests put out: each place and form is found, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import base64, logging, os, subprocess, sys
import pytest

SECRET = "c4n4ry" + "-tiger"

def shown_print():
    print(SECRET)

def shown_program():
    subprocess.run([sys.executable, "-c", f"print({SECRET!r})"], check=True)

def shown_error():
    print(SECRET, file=sys.stderr)

def shown_base64():
    print(base64.b64encode(b"\\0scott\\0" + SECRET.encode()).decode())

def shown_hex():
    print(SECRET.encode().hex())

def shown_warning():
    logging.getLogger("posthorn.x").warning("password %s", SECRET)

def shown_debug(caplog):
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("posthorn.x").debug("password %s", SECRET)

def shown_after_the_test():
    pass

def shown_file(tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "0001").write_text(SECRET)

def shown_compressed(tmp_path):
    from tests.support.canary import zstd
    (tmp_path / "log.zst").write_bytes(zstd.compress(b"x" * 1000 + SECRET.encode()))

@pytest.mark.plants("password")
def shown_beside(tmp_path):
    (tmp_path / "password").write_text(SECRET)
    (tmp_path / "other").write_text(SECRET)

@pytest.mark.plants("password", "sub/*")
def hidden_input(tmp_path):
    (tmp_path / "password").write_text(SECRET)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_text(SECRET)

def hidden_unused(tmp_path):
    (tmp_path / "x").write_text("a canary in a mine")
    logging.getLogger("posthorn.x").warning("a %d that is none", "line")
""".replace(
    "def shown_after_the_test():\n    pass\n",
    "@pytest.fixture\ndef late():\n    yield\n    print(SECRET)\n\ndef shown_late(late):\n    pass\n",
)


@pytest.mark.plants("planted.py", "__pycache__/*")
def test_each_place_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(TESTS)
    root = Path(__file__).parents[1]
    options = ["-p", "tests.support.nosecrets", "-p", "no:cacheprovider", "-o", "addopts=", "-rA", "-q"]
    names = ["-o", "python_functions=shown_* hidden_*", "-o", "python_files=planted.py"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            *names,
            "-c",
            "/dev/null",
            f"--rootdir={tmp_path}",
            str(file),
        ],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    named = {line.split("::")[1].split()[0] for line in lines if line.startswith("ERROR ") and "::" in line}
    wanted = {line.split("(")[0].removeprefix("def ") for line in TESTS.splitlines() if "def shown_" in line}
    assert len(wanted) > 9 and named == wanted, done.stdout + done.stderr
    assert "in tmp_path/other" in done.stdout and "in tmp_path/password" not in done.stdout


def test_it_is_at_work_here(request: pytest.FixtureRequest) -> None:
    assert any(
        getattr(plugin, "__name__", "") == "tests.support.nosecrets"
        for plugin in request.config.pluginmanager.get_plugins()
    )
