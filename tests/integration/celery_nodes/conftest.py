"""pytest-celery's own fixtures over local processes: its broker, backend and worker are those of a test stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryTestWorker, RedisTestBackend, RedisTestBroker
from tests.chaos.stand import Stand, standing
from tests.integration.celery_nodes.local import LocalRedis, LocalWorker

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = 1.0
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }
"""


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        yield stand


@pytest.fixture
def celery_broker(stand: Stand) -> RedisTestBroker:
    return RedisTestBroker(LocalRedis(stand.redis))


@pytest.fixture
def celery_backend(stand: Stand) -> Iterator[RedisTestBackend]:
    backend = RedisTestBackend(LocalRedis(stand.redis))
    yield backend
    backend.teardown()  # parts the results that a test has left from a server that is about to end


@pytest.fixture
def celery_worker(stand: Stand, celery_setup_app: Celery) -> CeleryTestWorker:
    return CeleryTestWorker(LocalWorker(stand), celery_setup_app)
