"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings
from tests import redis_server as servers
from tests.properties.ledger.bed import Bed

for name in [name for name in os.environ if name == "REDIS_URL" or name.endswith("_API_KEY")]:
    del os.environ[name]  # no test works on a Redis that isn't its own, or asks a real provider
settings.register_profile("any_machine", deadline=None)  # a busy one is slow, and not wrong
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One server for the whole run. A test that kills or fills a server starts one of its own."""
    server = servers.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: servers.Server) -> str:
    """The address of an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def flushed(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis; replies are bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine that a server of the test can take, and nobody else."""
    with servers.bind_free_port() as bound:
        yield bound.getsockname()[1]


@pytest.fixture
def bed(redis_url: str) -> Iterator[Bed]:
    """A ledger in an empty Redis, on a clock that the test moves."""
    bed = Bed(redis_url)
    yield bed
    bed.close()
