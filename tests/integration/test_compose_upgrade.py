"""A rolling upgrade: what old and new parts do with each other's records and messages."""

from __future__ import annotations

import json
import uuid

import pytest
import redis

from turnout.ledger import Claimed, Ending, Intake, Ledger, NewJob, NotClaimed, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus

LEDGER = Ledger()
KEYS = LEDGER.keys


@pytest.fixture
def job(flushed: redis.Redis) -> NewJob:
    job = NewJob.of(uuid.uuid4().hex, InferenceRequest(prompt="Say yes."))
    assert run(flushed, [LEDGER.enqueue(job)])[0].outcome is Intake.QUEUED
    return job


def settle(job: NewJob, token: int) -> object:
    return LEDGER.settle(token, JobResult(id=job.id, status=JobStatus.CANCELLED), None, 60)


def test_a_record_of_another_contract_is_left_as_it_is(flushed: redis.Redis, job: NewJob) -> None:
    flushed.hset(KEYS.job(job.id), mapping={"v": "999", "of_a_later_release": "1"})
    before = flushed.hgetall(KEYS.job(job.id))
    assert run(flushed, [LEDGER.claim(job.id, "old worker", 30)]) == [NotClaimed("unknown_version")]
    assert run(flushed, [settle(job, 0)])[0].outcome is Ending.REFUSED
    assert flushed.hgetall(KEYS.job(job.id)) == before
    assert flushed.zscore(KEYS.pending(job.lane), job.id) is not None


def test_it_is_done_once_a_worker_of_its_contract_comes(flushed: redis.Redis, job: NewJob) -> None:
    now = flushed.hget(KEYS.job(job.id), "v")
    flushed.hset(KEYS.job(job.id), "v", "999")
    run(flushed, [LEDGER.claim(job.id, "old worker", 30)])
    flushed.hset(KEYS.job(job.id), "v", now)
    [claimed] = run(flushed, [LEDGER.claim(job.id, "new worker", 30)])
    assert isinstance(claimed, Claimed)
    assert run(flushed, [settle(job, claimed.token)])[0].accepted


def test_fields_that_a_later_release_adds_to_a_record_survive_and_are_ignored(
    flushed: redis.Redis, job: NewJob
) -> None:
    flushed.hset(KEYS.job(job.id), "of_a_later_release", "kept")
    [claimed] = run(flushed, [LEDGER.claim(job.id, "old worker", 30)])
    assert claimed.request.prompt == "Say yes."
    assert run(flushed, [settle(job, claimed.token)])[0].accepted
    assert flushed.hget(KEYS.job(job.id), "of_a_later_release") == b"kept"
    assert run(flushed, [LEDGER.result(job.id)])[0].status is JobStatus.CANCELLED


def test_a_message_holds_only_what_names_its_job(flushed: redis.Redis, job: NewJob) -> None:
    """So whatever a release changes in a job, a message of the release before still names it."""
    message = json.loads(flushed.lrange(KEYS.queue(job.lane), 0, -1)[0])
    assert json.loads(message["body"])[0] == [job.id]
    assert message["headers"]["task"] == "turnout.infer"
    assert "Say yes." not in json.dumps(message)
