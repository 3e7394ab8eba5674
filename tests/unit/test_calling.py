"""One leased call of a worker, whatever its connector does."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.routing.fleets import endpoint

from turnout.request import InferenceRequest
from turnout_workers.attempts.calling import Calling
from turnout_workers.attempts.held import HeldJob
from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.routing.failure import Billed, FailureKind
from turnout_workers.state.store import Granted

PROMPT = "the secret prompt"


class Broken:
    async def call(self, *_: Any) -> Any:
        raise ValueError(f"a bug, and {PROMPT}")


async def test_a_connector_that_breaks_its_promise_has_failed_the_call_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at: Any = endpoint("acme")
    fleet: Any = SimpleNamespace(now=lambda: 0.0, monotonic=lambda: 0.0)
    connectors: Any = {at.id: Broken()}
    nothing: Any = None
    calling = Calling(fleet, nothing, UnderWay(), connectors.get)
    leases: list[str] = []
    hold: Any = SimpleNamespace(job_id="j", leases=leases, valid_until=math.inf, lost=False)
    claim: Any = SimpleNamespace(accepted_at=0.0, deadline=None, progress="")
    job = HeldJob.of(claim, InferenceRequest(prompt=PROMPT), hold)
    chosen: Any = SimpleNamespace(endpoint=at, timeout_s=1.0, overdue_s=1.0)
    finished = await calling(job, nothing, chosen, Granted("l", at.id, 0.0))
    assert finished.failure is not None
    assert (finished.failure.kind, finished.failure.billed) == (FailureKind.MALFORMED, Billed.MAYBE)
    assert finished.failure.message == "its connector raised ValueError"
    assert not leases
    assert "in call" in caplog.text
    assert "secret" not in caplog.text
