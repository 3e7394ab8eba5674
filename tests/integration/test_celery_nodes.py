"""pytest-celery's own setup over local processes: plain Celery sees its tasks done, whichever node is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from pytest_celery import CeleryTestSetup, CeleryTestWorker, RedisTestBackend, RedisTestBroker
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

LIMIT_S = 60
FLEET = one_provider(ttft_s=60.0)


class Node:
    """One process under the plugin's names for a container, so that it needs no Docker."""

    name = "a process of this machine"

    def __init__(self, process: Callable[[], Any], start: Callable[[], object], url: str = "") -> None:
        """process: the one that there is now. start: another one. url: of a Redis."""
        self._process, self._start = process, start
        self.celeryconfig = {"url": url, "host_url": url}

    @property
    def status(self) -> str:
        return "running" if self._process().poll() is None else "exited"

    @property
    def id(self) -> str:
        return f"{self._process().pid:012d}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.celeryconfig["url"])

    def ready(self) -> bool:
        return self.status == "running"

    def reload(self) -> None:
        """Nothing: all of it is read from the process each time."""

    def kill(self, signal: str) -> None:
        assert signal == "SIGKILL"
        self._process().kill()
        self._process().wait(30)

    def restart(self, timeout: float) -> None:
        assert self.status == "exited"
        self._start()

    def teardown(self) -> None:
        """Nothing: the stand ends all that it has started, and Redis last."""


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=10, lease_s=9.0) as stand:
        yield stand


@pytest.fixture
def server(stand: Stand) -> Node:
    """Broker and result backend: one server, as in production."""
    return Node(lambda: stand.redis.proc, stand.redis.restart, stand.redis.url)


@pytest.fixture
def celery_broker(server: Node) -> RedisTestBroker:
    return RedisTestBroker(server)


@pytest.fixture
def celery_backend(server: Node) -> Iterator[RedisTestBackend]:
    backend = RedisTestBackend(server)
    yield backend
    backend.teardown()  # parts the results that a test has left from a server that is about to end


@pytest.fixture
def celery_worker(stand: Stand, celery_setup_app: Celery) -> CeleryTestWorker:
    stand.start_worker()
    return CeleryTestWorker(Node(lambda: stand.workers[-1], stand.start_worker), celery_setup_app)


def infer(setup: CeleryTestSetup) -> list[AsyncResult]:
    requests = [{"prompt": f"Question {n}?", "max_output_tokens": 8} for n in range(5)]
    return [setup.app.send_task("turnout.infer", [request], queue="standard") for request in requests]


def answers(sent: list[AsyncResult]) -> list[str]:
    return [one.get(timeout=LIMIT_S)["status"] for one in sent]


def test_tasks_are_done_though_the_worker_is_killed_with_them_and_then_the_broker(
    celery_setup: CeleryTestSetup, stand: Stand
) -> None:
    stand.until(lambda: bool(celery_setup.app.control.ping()))
    assert celery_setup.ready(control=True), "the worker answers to Celery's commands"
    sent = infer(celery_setup)
    stand.until(lambda: stand.oracle()["providers"]["sim"]["in_flight"] == 5, LIMIT_S)
    stand.hurry()
    celery_setup.worker.kill()
    stand.end_leases()
    celery_setup.worker.restart()
    assert answers(sent) == ["succeeded"] * 5
    assert [job["calls"] for job in stand.oracle()["jobs"].values()] == [2] * 5, "each was cut off once"
    worker = celery_setup.worker.container.id
    stand.redis.on_disk()
    celery_setup.broker.kill()
    celery_setup.broker.restart()
    sent = infer(celery_setup)
    stand.until(lambda: stand.settled() == 10, LIMIT_S)
    assert answers(sent) == ["succeeded"] * 5
    assert celery_setup.worker.container.id == worker, "it has outlived its broker"
