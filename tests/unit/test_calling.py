"""One leased call of a worker, whatever its connector does."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.routing.fleets import endpoint

from turnout.request import InferenceRequest, Lane
from turnout_workers.attempts.calling import Calling
from turnout_workers.attempts.held import HeldJob
from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.state.store import Granted

PROMPT = "the secret prompt"


class Broken:
    async def call(self, *_: Any) -> Any:
        raise ValueError(f"a bug, and {PROMPT}")


class Deaf:
    async def call(self, *_: Any) -> Any:
        await asyncio.Event().wait()


async def failed(connector: Any, timeout_s: float) -> Failure:
    at: Any = endpoint("acme")
    fleet: Any = SimpleNamespace(now=lambda: 0.0, monotonic=lambda: 0.0)
    connectors: Any = {at.id: connector}
    nothing: Any = None
    calling = Calling(fleet, nothing, UnderWay(), connectors.get)
    leases: list[str] = []
    hold: Any = SimpleNamespace(job_id="j", leases=leases, valid_until=math.inf, lost=False)
    claim: Any = SimpleNamespace(
        request=InferenceRequest(prompt=PROMPT), deadline=None, progress="", lane=Lane.STANDARD
    )
    job = HeldJob.of(claim, hold)
    chosen: Any = SimpleNamespace(endpoint=at, timeout_s=timeout_s, overdue_s=1.0)
    finished = await asyncio.wait_for(calling(job, chosen, Granted("l", at.id, 0.0)), 60)
    assert not leases
    assert finished.failure is not None
    return finished.failure


async def test_a_connector_that_keeps_no_deadline_holds_no_job_for_ever() -> None:
    failure = await failed(Deaf(), timeout_s=0.01)
    assert (failure.kind, failure.billed) == (FailureKind.TIMED_OUT, Billed.MAYBE)
    assert failure.message == "no answer in time"


async def test_a_connector_that_breaks_its_promise_has_failed_the_call_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = await failed(Broken(), timeout_s=1.0)
    assert (failure.kind, failure.billed) == (FailureKind.MALFORMED, Billed.MAYBE)
    assert failure.message == "its connector raised ValueError"
    assert "in call" in caplog.text
    assert "secret" not in caplog.text
