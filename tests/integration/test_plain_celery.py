"""An app that has only Celery: its tasks go on with Turnout's answers, in its own worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain, group
from celery.contrib.testing.worker import start_worker
from tests.chaos.stand import Stand, standing

FLEET = """
output_tokens = 8
[providers.sim]
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.1 } }
"""


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand"), FLEET, concurrency=20) as stand:
        stand.start_worker()
        yield stand


@pytest.fixture(scope="module")
def app(stand: Stand) -> Iterator[Celery]:
    app = Celery("shop", broker=stand.redis.url, backend=stand.redis.url)
    app.conf.update(task_default_queue="shop", accept_content=["json"], worker_hijack_root_logger=False)

    @app.task(name="shop.keep")
    def keep(answer: dict[str, Any]) -> str:
        redis.Redis.from_url(stand.redis.url).rpush("kept", answer["response"]["text"])
        return str(answer["response"]["text"])

    @app.task(name="shop.mourn")
    def mourn(job_id: str) -> None:
        redis.Redis.from_url(stand.redis.url).rpush("mourned", job_id)

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        yield app


def infer(app: Celery, prompt: str, **fields: Any) -> Any:
    return app.signature("turnout.infer", kwargs={"request": {"prompt": prompt, **fields}}, queue="standard")


def test_a_group_gives_each_answer(app: Celery) -> None:
    answers = group(infer(app, f"Question {number}?") for number in range(5)).apply_async().get(timeout=30)
    assert [answer["status"] for answer in answers] == ["succeeded"] * 5


def test_a_chain_goes_on_with_the_answer(app: Celery) -> None:
    text = chain(infer(app, "First?"), app.signature("shop.keep", queue="shop")).apply_async().get(timeout=30)
    assert text.startswith("[simulated by sim]")


def test_callbacks_and_errbacks_are_called(stand: Stand, app: Celery) -> None:
    stand.client.delete("kept", "mourned")
    good = infer(app, "Good?").apply_async(link=app.signature("shop.keep", queue="shop"))
    bad = infer(app, "Bad?", model="nobody's").apply_async(link_error=app.signature("shop.mourn", queue="shop"))
    assert good.get(timeout=30)["status"] == "succeeded"
    stand.until(lambda: stand.client.llen("kept") == 1 and stand.client.llen("mourned") == 1, 20)
    assert stand.client.lindex("mourned", 0) == bad.id.encode()
