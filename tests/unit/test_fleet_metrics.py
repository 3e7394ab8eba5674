"""What Prometheus is told while Redis says nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis
import redis.asyncio

from turnout.ledger import Coalescer, Keys
from turnout_workers.monitoring import fleet_metrics
from turnout_workers.monitoring.fleet_metrics import FleetCollector
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ceiling


async def test_a_scrape_does_not_wait_for_a_redis_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ten seconds at most, by default, Prometheus waits for a worker before it counts it as gone."""

    async def silence(_client: redis.asyncio.Redis, _commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return await asyncio.get_running_loop().create_future()

    assert fleet_metrics.TIMEOUT_S <= 5
    monkeypatch.setattr(fleet_metrics, "TIMEOUT_S", 0.01)
    poller = SnapshotPoller(MemoryFleetStore(time.monotonic), Fleet(()))
    collector = FleetCollector(poller, Coalescer(redis.asyncio.Redis(), send_commands=silence), Keys(), lambda: ())
    async with asyncio.timeout(60):
        await collector.refresh()
    assert not list(collector.collect()), "a view that may be old would outweigh those of workers that reach Redis"


async def test_a_ceilings_series_bears_its_account_whole(redis_url: str, flushed: redis.Redis) -> None:
    """A tenant may be called by an address."""
    accounts = ("total@2030-01-31", "tenant:ann@a.example@2030-01-31", "tenant:ann@b-c.example@2030-01")
    flushed.hset(Keys().money, mapping={f"{account}|spent": 1 for account in accounts})
    poller = SnapshotPoller(MemoryFleetStore(time.monotonic), Fleet(()))
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        collector = FleetCollector(poller, Coalescer(client), Keys(), lambda: [Ceiling(one, 2) for one in accounts])
        await collector.refresh()
    (used,) = (family for family in collector.collect() if family.name == "turnout_fleet_ceiling_used_ratio")
    assert [(sample.labels["account"], sample.labels["period"], sample.value) for sample in used.samples] == [
        ("total", "day", 0.5),
        ("tenant:ann@a.example", "day", 0.5),
        ("tenant:ann@b-c.example", "month", 0.5),
    ]
