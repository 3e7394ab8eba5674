"""How a job's end is told to Celery, and when its tracer is asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore
from celery.signals import task_success

from turnout_workers.pool import OUTCOME, AsyncTask, Ended, TaskPool, _Job

TRACED = (0, "by the tracer", 1.5)
never: Any = None


def ended(outcome: Callable[[], Any], embed: dict[str, Any] | None = None, **request: Any) -> tuple[Any, Any, float]:
    said = {"ignore_result": True, **request, OUTCOME: outcome}
    args = ("turnout.infer", "id", said, [["id"], {}, embed], None, None)
    return _Job(1, never, lambda *_: TRACED, args, None).traced()


def failing() -> Any:
    raise ValueError


@pytest.mark.parametrize("embed", [None, {}, {"callbacks": None, "errbacks": [], "chain": None, "chord": None}])
def test_a_success_of_which_only_an_event_tells_passes_the_tracer_by(embed: dict[str, Any] | None) -> None:
    assert ended(lambda: "answer", embed) == (False, "'answer'", 0.0)


@pytest.mark.parametrize("name", ["callbacks", "chain", "chord"])
def test_what_follows_a_task_is_left_to_the_tracer(name: str) -> None:
    assert ended(lambda: "answer", {name: [{"task": "next"}]}) == TRACED


def test_so_are_failures_and_results_that_celery_is_to_store() -> None:
    assert ended(failing) == TRACED
    assert ended(lambda: "answer", ignore_result=False) == TRACED


def test_so_are_signals_that_somebody_receives() -> None:
    def receiver(**_: Any) -> None: ...

    task_success.connect(receiver)
    try:
        assert ended(lambda: "answer") == TRACED
    finally:
        task_success.disconnect(receiver)
    assert ended(lambda: "answer") != TRACED


def test_an_end_that_came_about_elsewhere_is_told_and_nothing_follows_from_it() -> None:
    job = _Job(1, never, lambda *_: TRACED, ("turnout.infer", "id", {}, [[], {}, {"chord": {}}], None, None), None)
    job.untraced = Ended(lambda: "answer")
    assert job.traced() == (False, "'answer'", 0.0)
    job.untraced = Ended(failing)
    failed, error, _ = job.traced()
    assert failed
    assert isinstance(error.exception, ValueError)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_that_is_stopped_before_it_has_claimed_ends_and_not_the_worker(begun: bool) -> None:
    class Waiting(AsyncTask):
        name = "waiting"

        async def execute(self, request: dict[str, Any], body: Any) -> Callable[[], Any]:
            return await asyncio.Future()

    pool = object.__new__(TaskPool)  # without its loop and thread
    pool.app, pool._done, pool._woken = SimpleNamespace(tasks={"waiting": Waiting()}), deque(), True
    pool._loop = asyncio.get_running_loop()
    job = _Job(1, pool._loop, lambda *_: TRACED, ("waiting", "id", {}, [[], {}, None], None, None), None)
    pool._begin(job)
    if begun:
        await asyncio.sleep(0)
    job.terminate()
    while not pool._done:
        await asyncio.sleep(0)
    failed, error, _ = job.traced()
    assert failed
    assert isinstance(error.exception, Ignore)


def test_a_jobs_repr_which_asyncio_may_log_shows_no_prompt() -> None:
    args = ("turnout.infer", "id", {}, [[], {"request": {"prompt": "the secret prompt"}}, None], None, None)
    assert "secret" not in repr(_Job(1, never, lambda *_: TRACED, args, None))
