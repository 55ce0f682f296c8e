"""What all tests share: how hard hypothesis tries."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: on a busy machine it would only measure the neighbours.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=200, print_blob=True, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=20_000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "default")
)
