"""Requests that only a Celery message holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from turnout.ledger import Enqueued, Intake, Ledger
from turnout_workers import celery_jobs


async def test_a_request_that_came_while_redis_is_away_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_jobs, "RETRY_S", 0)
    replies: list[Any] = [redis.ConnectionError("away"), redis.TimeoutError("slow"), Enqueued(Intake.QUEUED, "queued")]
    replies += [redis.ConnectionError("away"), Enqueued(Intake.DUPLICATE, "queued"), None]

    class Away:
        async def uninterrupted(self, _: object) -> Any:
            reply = replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        async def all(self, *_: object) -> None:
            await self.uninterrupted(_)

        async def __call__(self, call: Any) -> Any:
            return call.read(await self.uninterrupted(call))

    nothing: Any = None
    call: Any = Away()
    current: Any = SimpleNamespace(config=SimpleNamespace(retention=SimpleNamespace(results_s=10)))
    taken = celery_jobs.CeleryJobs(Ledger(), call, nothing)
    assert await taken.accept("a", [["Why?"], {}, {}], None) is None
    assert not replies
    replies += [redis.ConnectionError("away"), nothing]
    refused = await celery_jobs.CeleryJobs(Ledger(), call, current).accept("a", [[], {"prompt": 1}, None], None)
    assert refused is not None, "and what becomes of one that is no request is told when Redis is back"
    assert not replies


def test_a_constraint_beside_a_request_takes_none_of_its_own_away() -> None:
    private = {"request": {"prompt": "Why?", "constraints": {"no_training": True}}, "constraints": {"deadline_s": 60}}
    assert celery_jobs._request_of([], private)["constraints"] == {"no_training": True, "deadline_s": 60}


async def test_who_sent_what_nobody_foresaw_is_told_and_does_not_wait_for_nothing() -> None:
    stored: list[Any] = []

    class Kept:
        async def all(self, *calls: Any) -> None:
            stored.extend(call.command for call in calls)

    send: Any = Kept()
    current: Any = SimpleNamespace(config=SimpleNamespace(retention=SimpleNamespace(results_s=10)))
    accepting = celery_jobs.CeleryJobs(Ledger(), send, current).accept
    refused = await accepting("a", [["Why?"], {}, {"chain": [{"args": [object()]}]}], None)
    assert refused is not None
    assert refused.error is not None
    assert (refused.error.code, stored[0][:2]) == ("invalid_request", ("SET", "celery-task-meta-a"))
    assert "TypeError" in refused.error.message
