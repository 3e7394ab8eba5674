"""What was spent long ago is forgotten, what gone batches and ended jobs leave behind, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import redis
import redis.asyncio

from turnout.ledger import Coalescer, Keys, Ledger
from turnout_workers.background import old_accounts
from turnout_workers.background.old_accounts import OldAccounts
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

TODAY = datetime(2030, 3, 10, 12, tzinfo=UTC).timestamp()
KEPT = [
    "total",
    "total@2030-03-10",
    "total@2030-02",
    "tenant:a@2030-01-07",
    "tenant:joe@example.com@2030-03-10",
    "batch:b@2020-01-01",
]
OVER = ["total@2020-01-01", "total@2020-01", "tenant:a@2030-01-06", "tenant:a@2030-01", "provider:p@2029-12-31"]


async def test_of_a_detached_batch_that_is_gone_nothing_is_left(redis_url: str, flushed: redis.Redis) -> None:
    keys = Keys("t")
    run, kept, expired, never_called = "run-1", "batch-1", "batch-2", "batch-3"
    flushed.hset(keys.batch(kept), "state", "feeding")
    flushed.zadd(keys.batches, {kept: 1, expired: 2, never_called: 3})
    flushed.hset(keys.money, mapping={f"batch:{id}|spent": 1 for id in (run, kept, expired)})
    flushed.hset(keys.ceilings, mapping={f"batch:{id}": 1 for id in (run, kept, expired, never_called)})
    await housekeep(redis_url, keys)
    assert flushed.zrange(keys.batches, 0, -1) == [b"batch-1"]
    assert set(flushed.hkeys(keys.money)) == {b"batch:run-1|spent", b"batch:batch-1|spent"}
    assert set(flushed.hkeys(keys.ceilings)) == {b"batch:run-1", b"batch:batch-1"}


async def test_of_the_jobs_only_live_ones_keep_their_accounts(redis_url: str, flushed: redis.Redis) -> None:
    keys = Keys("t")
    states = {"queued": 1, "delayed": 1, "leased": 1, "calling": 1, "succeeded": 0, "cancelled": 0}
    for state in states:
        flushed.hset(keys.job(state), "state", state)
    columns = ("spent", "reserved", "unsure", "duplicate")
    flushed.hset(keys.money, mapping={f"job:{id}|{column}": 1 for id in (*states, "gone@") for column in columns})
    await housekeep(redis_url, keys)
    left = {column.decode().rpartition("|")[0] for column in flushed.hkeys(keys.money)}
    assert left == {f"job:{state}" for state, lives in states.items() if lives}


async def housekeep(redis_url: str, keys: Keys, rounds: int = 1) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        store = RedisFleetStore(send := Coalescer(client), keys)
        poller = SnapshotPoller(store, Fleet(()), monotonic=lambda: TODAY)
        accounts = OldAccounts(Ledger(keys), send, store, poller)
        for _ in range(rounds):
            await accounts.round()


async def test_only_what_is_long_over_is_forgotten(redis_url: str, flushed: redis.Redis) -> None:
    keys = Keys("t")
    columns = {f"{account}|{column}": 1 for account in KEPT + OVER for column in ("reserved", "spent", "unsure")}
    flushed.hset(keys.money, mapping=columns)
    await housekeep(redis_url, keys)
    left = {column.decode().rpartition("|")[0] for column in flushed.hkeys(keys.money)}
    assert left == set(KEPT)


@pytest.mark.parametrize(("rounds", "all_gone"), [(1, False), (20, True)])
async def test_a_round_looks_through_some_of_very_many_and_the_next_ones_through_the_others(
    redis_url: str, flushed: redis.Redis, monkeypatch: pytest.MonkeyPatch, rounds: int, all_gone: bool
) -> None:
    monkeypatch.setattr(old_accounts, "PAGE", 100)
    keys = Keys("t")
    flushed.hset(keys.money, mapping={f"tenant:{n}@2020-01-01|spent": 1 for n in range(1000)})
    await housekeep(redis_url, keys, rounds)
    assert (flushed.hlen(keys.money) == 0) == all_gone
