"""How a job's end is told to Celery, and when its tracer is asked."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore
from celery.signals import task_success

from turnout_workers.pool import AsyncTask, Ended, TaskPool, _Job

TRACED = (False, "by the tracer")


def ended(outcome: Any, embed: dict[str, Any] | None = None, **request: Any) -> tuple[bool, Any]:
    args = ("turnout.infer", "id", {"ignore_result": True, **request}, [["id"], {}, embed], None, None)
    job = _Job(1, lambda *_: (*TRACED, 1.5), args, None)
    job.outcome = outcome
    return job.finish()


@pytest.mark.parametrize("embed", [None, {}, {"callbacks": None, "chain": None, "chord": None, "root_id": "a"}])
def test_a_success_of_which_only_an_event_tells_passes_the_tracer_by(embed: dict[str, Any] | None) -> None:
    assert ended("answer", embed) == (False, "'answer'")


@pytest.mark.parametrize("name", ["callbacks", "chain", "chord"])
def test_what_follows_a_task_is_left_to_the_tracer(name: str) -> None:
    assert ended("answer", {name: [{"task": "next"}]}) == TRACED


def test_so_are_failures_and_results_that_celery_is_to_store() -> None:
    assert ended(ValueError()) == TRACED
    assert ended("answer", ignore_result=False) == TRACED


def test_so_are_signals_that_somebody_receives() -> None:
    def receiver(**_: Any) -> None: ...

    task_success.connect(receiver)
    try:
        assert ended("answer") == TRACED
    finally:
        task_success.disconnect(receiver)
    assert ended("answer") != TRACED


def test_an_end_that_came_about_elsewhere_is_told_and_nothing_follows_from_it() -> None:
    embed = {"chord": {"task": "next"}}
    assert ended(Ended("answer"), embed) == (False, "'answer'")
    failed, error = ended(Ended(ValueError()), embed)
    assert failed
    assert isinstance(error.exception, ValueError)


async def test_a_panic_of_a_library_in_rust_fails_the_job_and_ends_no_worker() -> None:
    class PanicException(BaseException):
        """As pyo3's is."""

    class Panicking(AsyncTask):
        name = "panicking"

        async def execute(self, request: dict[str, Any], body: Any) -> Any:
            raise PanicException("perhaps with the prompt")

    pool = object.__new__(TaskPool)
    pool.app = SimpleNamespace(tasks={"panicking": Panicking()})
    job = _Job(1, lambda *_: (*TRACED, 1.5), ("panicking", "id", {}, [[], {}, None], None, None), None)
    await pool._execute(job)
    assert (type(job.outcome), str(job.outcome)) == (RuntimeError, "PanicException in a library")


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_that_is_stopped_before_it_has_claimed_ends_and_not_the_worker(begun: bool) -> None:
    class Waiting(AsyncTask):
        name = "waiting"

        async def execute(self, request: dict[str, Any], body: Any) -> Any:
            return await asyncio.Future()

    pool = object.__new__(TaskPool)  # without its loop and thread
    pool.app, pool._done = SimpleNamespace(tasks={"waiting": Waiting()}), deque()
    pool._loop, pool._hub, pool._finishing = asyncio.get_running_loop(), SimpleNamespace(call_soon=id), None
    job = _Job(1, lambda *_: (*TRACED, 1.5), ("waiting", "id", {}, [[], {}, None], None, None), None)
    pool._jobs = {job.pid: job}
    pool._begin(job)
    if begun:
        await asyncio.sleep(0)
    pool.terminate_job(job.pid)
    while not pool._done:
        await asyncio.sleep(0)
    failed, error = job.finish()
    assert failed
    assert isinstance(error.exception, Ignore)


def test_a_jobs_repr_which_asyncio_may_log_shows_no_prompt() -> None:
    args = ("turnout.infer", "id", {}, [[], {"request": {"prompt": "the secret prompt"}}, None], None, None)
    assert "secret" not in repr(_Job(1, lambda *_: (*TRACED, 1.5), args, None))
