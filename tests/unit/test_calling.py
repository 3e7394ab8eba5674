"""One leased call of a worker, whatever its connector does."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.routing.fleets import endpoint

from turnout.request import InferenceRequest, Lane
from turnout_workers.attempts.calling import LATE_S, Caller
from turnout_workers.attempts.job import HeldJob
from turnout_workers.attempts.judging import _proves_nothing
from turnout_workers.attempts.reporting import Finished
from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.background.tasks import PAUSED_S
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.store import Granted

PROMPT = "the secret prompt"


class Broken:
    async def call(self, *_: Any) -> Any:
        raise ValueError(f"a bug, and {PROMPT}")


class Deaf:
    async def call(self, *_: Any) -> Any:
        await asyncio.Event().wait()


class Paused:
    async def call(self, *_: Any) -> Any:
        time.sleep(0.1 + LATE_S + PAUSED_S + 0.1)
        await asyncio.Event().wait()


async def failed(connector: Any, timeout_s: float) -> Failure:
    failure = (await finished(connector, timeout_s)).failure
    assert failure is not None
    return failure


async def finished(connector: Any, timeout_s: float) -> Finished:
    at: Any = endpoint("acme")
    fleet: Any = SimpleNamespace(now=lambda: 0.0, monotonic=time.monotonic)
    connectors: Any = {at.id: connector}
    nothing: Any = None
    caller = Caller(fleet, nothing, CallWatch(nothing, fleet, "w"), connectors.get)
    leases: list[str] = []
    hold: Any = SimpleNamespace(job_id="j", leases=leases, valid_until=math.inf, lost=False)
    claim: Any = SimpleNamespace(
        request=InferenceRequest(prompt=PROMPT), deadline=None, progress="", lane=Lane.STANDARD
    )
    job = HeldJob.of(claim, hold)
    chosen: Any = SimpleNamespace(endpoint=at, timeout_s=timeout_s, overdue_s=1.0)
    ended = await asyncio.wait_for(caller.call(job, chosen, Granted("l", at.id, 0.0)), 60)
    assert not leases
    return ended


async def test_a_connector_that_keeps_no_deadline_holds_no_job_for_ever() -> None:
    failure = await failed(Deaf(), timeout_s=0.01)
    assert (failure.kind, failure.billed) == (FailureKind.TIMED_OUT, Billed.MAYBE)
    assert failure.message == "no answer in time"


@pytest.mark.parametrize(("connector", "late"), [(Deaf(), False), (Paused(), True)])
async def test_a_deadline_that_a_paused_process_notices_late_proves_nothing_about_the_endpoint(
    connector: Any, late: bool
) -> None:
    ended = await finished(connector, timeout_s=0.1)
    assert ended.failure is not None
    assert ended.failure.kind is FailureKind.TIMED_OUT
    assert (ended.late, _proves_nothing(ended, InferenceRequest(prompt=PROMPT))) == (late, late)


async def test_a_connector_that_breaks_its_promise_has_failed_the_call_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = await failed(Broken(), timeout_s=1.0)
    assert (failure.kind, failure.billed) == (FailureKind.MALFORMED, Billed.MAYBE)
    assert failure.message == "its connector raised ValueError"
    assert "in call" in caplog.text
    assert "secret" not in caplog.text
