"""A race of two calls."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import redis

from turnout_workers.attempts.hedging import Permit, race
from turnout_workers.routing.allowance import Allowance
from turnout_workers.routing.decision import Hedge


async def test_a_second_call_that_redis_cannot_admit_leaves_the_first_one_alone() -> None:
    nothing: Any = None
    refused = asyncio.Event()

    async def call(*_: Any) -> Any:
        await refused.wait()
        return SimpleNamespace(failure=None)

    async def admit(_: Any) -> Any:
        refused.set()
        raise redis.ConnectionError("away")

    permit = Permit(nothing, nothing, nothing, ())
    ended = await asyncio.wait_for(race(permit, Hedge(0.0, ()), Allowance(1.0, 1), admit, call), 60)
    assert len(ended) == 1
