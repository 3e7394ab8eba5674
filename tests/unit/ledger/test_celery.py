"""The ledger speaks Celery without Celery: held to an unmodified Celery worker and to its `AsyncResult`."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from tests.properties.ledger.bed import LANE, Bed

from turnout.errors import Cancelled, Expired, Failed, JobError
from turnout.result import JobStatus


@pytest.fixture
def app(redis_url: str) -> Celery:
    app = Celery("plain", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.update(task_default_queue=LANE.value, worker_hijack_root_logger=False)
    return app


@pytest.mark.parametrize("job_id", ["a", "b1:line-7", 'ö "quoted" \\ <id> %1'])
def test_an_unmodified_worker_runs_what_the_ledger_publishes(bed: Bed, app: Celery, job_id: str) -> None:
    ran: list[dict[str, Any]] = []
    done = threading.Event()

    @app.task(name="turnout.infer", bind=True, ignore_result=True, shared=False)
    def infer(self: Any, *args: Any, **kwargs: Any) -> None:
        request = self.request
        ran.append({"id": request.id, "args": args, "kwargs": kwargs, "retries": request.retries})
        if len(ran) == 2:
            done.set()

    bed.enqueue(job_id)
    bed.enqueue("front")
    token = bed.claimed(job_id).token
    bed.client.rpop(bed.keys.queue(LANE))
    bed.fail_over(token, job_id)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        assert done.wait(60)
    assert ran == [
        {"id": job_id, "args": (job_id,), "kwargs": {}, "retries": 1},
        {"id": "front", "args": ("front",), "kwargs": {}, "retries": 0},
    ]


def test_what_a_plain_app_has_sent_along_is_called_by_an_unmodified_worker(bed: Bed, app: Celery) -> None:
    called = threading.Event()

    @app.task(name="turnout.infer", shared=False)
    def infer(job_id: str) -> str:
        return job_id

    @app.task(name="told", ignore_result=True, shared=False)
    def told(result: Any) -> None:
        called.set()

    callback = '{"task":"told","args":[],"kwargs":{},"options":{},"subtask_type":null,"immutable":false}'
    bed.enqueue(embed=f'{{"callbacks":[{callback}],"errbacks":null,"chain":null,"chord":null}}')
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        assert called.wait(60)


def test_a_waiting_async_result_gets_the_answer(bed: Bed, app: Celery) -> None:
    bed.enqueue()
    token = bed.claimed().token
    waiting = app.AsyncResult("a")
    settler = threading.Timer(0.2, lambda: bed.settle(token))
    settler.start()
    assert waiting.get(timeout=60)["status"] == "succeeded"
    settler.join()
    assert waiting.state == "SUCCESS"


@pytest.mark.parametrize(
    ("end", "state", "error"),
    [("failed", "FAILURE", Failed), ("expired", "FAILURE", Expired), ("cancelled", "REVOKED", Cancelled)],
)
def test_an_async_result_raises_what_the_job_ended_with(
    bed: Bed, app: Celery, end: str, state: str, error: type[JobError]
) -> None:
    bed.enqueue()
    if end == "cancelled":
        bed(bed.ledger.cancel("a", None))
    else:
        bed.settle(bed.claimed().token, JobStatus(end))
    result = app.AsyncResult("a")
    assert result.state == state
    with pytest.raises(error) as raised:
        result.get(timeout=60)
    assert raised.value.result.status.value == end
