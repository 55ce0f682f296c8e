"""What all tests share: how hard hypothesis tries, and reports that can be sent to another process."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.support import nosecrets

# No deadline: on a busy machine it would only measure the neighbours.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=200, print_blob=True, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=20_000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "default")
)


def pytest_configure(config: pytest.Config) -> None:
    """Every output of every test is searched for planted secrets."""
    config.pluginmanager.register(nosecrets)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text may hold half a surrogate pair, as some tests log one; pytest-xdist cannot send it."""
    report = yield
    report.sections = [
        (name, content.encode("utf-8", "backslashreplace").decode()) for name, content in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _no_variables_of_other_tests() -> Iterator[None]:
    """What key sources took out of the environment is remembered by the process."""
    yield
    environment = sys.modules.get("engine.keys.environment")
    if environment is not None:
        environment._taken.clear()
