"""Fixtures that several files of integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from turnout_workers import local


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Local]:
    """A Redis, a worker process and a simulated fleet without latency, for all tests of a file."""
    with local.running(tmp_path_factory.mktemp("local"), None, simulate=("--instant", "--no-faults")) as running:
        yield running
