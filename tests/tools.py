"""Programs that some tests need and that no Python package brings."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str) -> str:
    """Its path. Where it is missing the test is skipped, but fails in CI. `package`: Debian's."""
    if (found := shutil.which(name)) is None:
        missing = f"{name} is missing: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found
