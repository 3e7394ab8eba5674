"""An app with plain Celery sees its tasks done, whichever node of pytest-celery's setup is killed and restarted."""

from __future__ import annotations

from celery.result import AsyncResult
from pytest_celery import CeleryTestSetup
from tests.chaos.stand import Stand

LIMIT_S = 60


def infer(setup: CeleryTestSetup, count: int = 5) -> list[AsyncResult]:
    requests = [{"prompt": f"Question {n}?", "max_output_tokens": 8} for n in range(count)]
    return [setup.app.send_task("turnout.infer", [request], queue="standard") for request in requests]


def answers(sent: list[AsyncResult]) -> list[str]:
    return [one.get(timeout=LIMIT_S)["status"] for one in sent]


def under_way(stand: Stand) -> int:
    return int(stand.oracle()["providers"]["sim"]["in_flight"])


def calls(stand: Stand) -> list[int]:
    return [job["calls"] for job in stand.oracle()["jobs"].values()]


def test_a_task_sent_by_name_is_answered_and_the_worker_answers_to_celery(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(control=True)
    assert answers(infer(celery_setup)) == ["succeeded"] * 5


def test_a_killed_worker_s_tasks_are_delivered_again(celery_setup: CeleryTestSetup, stand: Stand) -> None:
    sent = infer(celery_setup)
    stand.until(lambda: under_way(stand) == 5, LIMIT_S)
    celery_setup.worker.kill()
    assert celery_setup.worker.container.status == "exited"
    celery_setup.worker.restart()
    assert answers(sent) == ["succeeded"] * 5
    assert calls(stand) == [2] * 5, "each was cut off once"


def test_a_worker_restarted_in_order_finishes_its_calls_first(celery_setup: CeleryTestSetup, stand: Stand) -> None:
    sent = infer(celery_setup)
    stand.until(lambda: under_way(stand) == 5, LIMIT_S)
    celery_setup.worker.restart()
    assert answers(sent) == ["succeeded"] * 5
    assert calls(stand) == [1] * 5


def test_a_broker_killed_and_restarted_keeps_its_queue(celery_setup: CeleryTestSetup, stand: Stand) -> None:
    celery_setup.worker.kill("SIGTERM")
    sent = infer(celery_setup)
    stand.on_disk()
    celery_setup.broker.kill()
    assert celery_setup.broker.container.status == "exited"
    celery_setup.broker.restart()
    celery_setup.worker.restart()
    assert answers(sent) == ["succeeded"] * 5
    assert calls(stand) == [1] * 5


def test_a_worker_outlives_its_broker(celery_setup: CeleryTestSetup, stand: Stand) -> None:
    assert answers(infer(celery_setup)) == ["succeeded"] * 5
    before = celery_setup.worker.container.id
    stand.on_disk()
    celery_setup.broker.kill()
    celery_setup.broker.restart()
    sent = infer(celery_setup)
    stand.until(lambda: stand.settled() == 10, LIMIT_S)
    assert answers(sent) == ["succeeded"] * 5
    assert celery_setup.worker.container.id == before
