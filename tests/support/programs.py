"""System programs that some tests need: found, or the test says which package has them."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["missing", "need"]

_LIST = "tests/system-packages.txt"
_INSTALL = f"grep -v '^#' {_LIST} | xargs apt-get install -y"

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Daemons lie in sbin, which an ordinary user's PATH may lack."""


def need(program: str, package: str) -> str:
    """The path of `program`. Without it the test is skipped, naming the Debian `package`.

    With ``CI=true`` in the environment a missing program fails the test: there the packages of
    ``tests/system-packages.txt`` are installed, and a skip would hide that they are not.
    """
    path = shutil.which(program, path=_PATH)
    if path is not None:
        return path
    missing(f"needs {program} of the Debian package {package}")


def missing(text: str) -> NoReturn:
    """Skip the test, saying how to get everything that tests need; with ``CI=true`` fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{text} ({_LIST})", pytrace=False)
    pytest.skip(f"{text}; all that tests need: {_INSTALL}")
