"""What was spent in days and months long over is forgotten, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import redis
import redis.asyncio

from turnout.ledger import Coalescer, Keys
from turnout_workers.background.old_accounts import OldAccounts
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.redis import RedisFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

TODAY = datetime(2030, 3, 10, 12, tzinfo=UTC).timestamp()
KEPT = [
    "total",
    "total@2030-03-10",
    "total@2030-02",
    "tenant:a@2030-01-07",
    "tenant:joe@example.com@2030-03-10",
    "batch:b@2020-01-01",
    "job:j@2020-01-01",
    "tenant:a@2020-13",
]
OVER = ["total@2020-01-01", "total@2020-01", "tenant:a@2030-01-06", "tenant:a@2030-01", "provider:p@2029-12-31"]


async def test_only_what_is_long_over_is_forgotten(redis_url: str, flushed: redis.Redis) -> None:
    keys = Keys("t")
    columns = {f"{account}|{column}": 1 for account in KEPT + OVER for column in ("reserved", "spent", "unsure")}
    flushed.hset(keys.money, mapping=columns)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        store = RedisFleetStore(Coalescer(client), keys)
        poller = SnapshotPoller(store, Fleet(()), monotonic=lambda: TODAY)
        await OldAccounts(client, keys.money, store, poller).round()
    left = {column.decode().rpartition("|")[0] for column in flushed.hkeys(keys.money)}
    assert left == set(KEPT)
