"""What Prometheus is told while Redis says nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis.asyncio

from turnout.ledger import Coalescer, Keys
from turnout_workers.monitoring import fleet_metrics
from turnout_workers.monitoring.fleet_metrics import FleetCollector
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.memory import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller


async def test_a_scrape_does_not_wait_for_a_redis_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ten seconds at most, by default, Prometheus waits for a worker before it counts it as gone."""

    async def silence(_client: redis.asyncio.Redis, _commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return await asyncio.get_running_loop().create_future()

    assert fleet_metrics.WAIT_S <= 5
    monkeypatch.setattr(fleet_metrics, "WAIT_S", 0.01)
    poller = SnapshotPoller(MemoryFleetStore(time.monotonic), Fleet(()))
    collector = FleetCollector(poller, Coalescer(redis.asyncio.Redis(), exchange=silence), Keys(), lambda: ())
    async with asyncio.timeout(5):
        await collector.refresh()
    assert not list(collector.collect()), "a view that may be old would outweigh those of workers that reach Redis"
