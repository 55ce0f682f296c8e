"""A pytest plug-in: no output of any test shows a planted secret.

A secret that a test plants holds the word `WORD`. After each test everything it put out is searched for that
word, as it stands, in base64 at any offset, in hexadecimal: standard output and error, what was logged at the
level the test set, and the files below its `tmp_path`, compressed ones too.

A secret that is put in has a file called ``*.secret``, or is named by the test:
``@pytest.mark.plants("password", "relay/mail.py")``.
"""

from __future__ import annotations

from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support.canary import content, forms, output_files

__all__ = ["WORD", "pytest_configure", "pytest_runtest_makereport"]

WORD = "c4n4ry"
_FORMS = forms(WORD.encode())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "plants(*globs): files below tmp_path that the test put a secret into")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when != "teardown":
        return report
    found: list[str] = []
    for name, text in report.sections:
        found += [f"{form}, {name}" for form in _in(text.encode("utf-8", "backslashreplace"))]
    found += _in_files(item)
    if found and report.passed:
        report.outcome = "failed"
        report.longrepr = "a planted secret is shown:\n" + "\n".join(
            f"  {one}" for one in dict.fromkeys(found)
        )
    return report


def _in_files(item: pytest.Item) -> list[str]:
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    directory = funcargs.get("tmp_path")
    if not isinstance(directory, Path):
        return []
    planted = ["*.secret"] + [glob for mark in item.iter_markers("plants") for glob in mark.args]
    found: list[str] = []
    for path in output_files(directory):
        name = path.relative_to(directory).as_posix()
        if not path.is_file() or any(fnmatch(name, glob) for glob in planted):
            continue
        try:
            found += [f"{form}, in tmp_path/{name}" for form in _in(content(path))]
        except OSError:
            continue  # removed meanwhile, or not for us to read
    return found


def _in(text: bytes) -> list[str]:
    return [name for name, form in _FORMS.items() if form in text]
