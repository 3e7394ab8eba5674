"""What is told of a call when Redis is not there to be told."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import redis
from tests.unit.routing.fleets import endpoint, request, snapshot

from turnout_workers.attempts import reporting
from turnout_workers.attempts.reporting import STOPPED, Finished, Reporter
from turnout_workers.routing import JobProfile, failover, rank
from turnout_workers.state.memory import MemoryFleetStore
from turnout_workers.state.store import Counters, Report


class Away(MemoryFleetStore):
    """A store that is away for the first reports."""

    def __init__(self, times: int) -> None:
        super().__init__(lambda: 0.0)
        self.times, self.told = times, asyncio.Event()

    async def report(self, report: Report) -> Counters:
        if self.times > 0:
            self.times -= 1
            raise redis.ConnectionError("away")
        self.told.set()
        return await super().report(report)


async def test_a_report_that_redis_did_not_take_is_sent_again_without_holding_up_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "TOLD_LATER_S", (0.0, 0.0, 0.0))
    seen: Any = type("Sight", (), {"snapshot": snapshot(endpoint())})
    best = rank(JobProfile.of(request(), accepted_at=0.0), seen.snapshot, 0.0, random.Random(0)).best
    assert best is not None
    store = Away(times=3)
    reporter = Reporter(store, seen, 2.0, random.Random(0))
    await reporter.report(Finished("job:1:0", best, 0.0, 1.0, None, STOPPED), failover.judge(STOPPED, random.Random(0)))
    assert not store.told.is_set()
    await asyncio.wait_for(store.told.wait(), 10)
