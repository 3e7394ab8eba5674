"""What runs in the background of a worker goes on, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import cast

import pytest
import redis.asyncio
from tests import redis_server
from tests.properties.ledger.bed import new_job

from turnout.ledger import Coalescer, Ledger
from turnout_workers.background import housekeeping, tasks
from turnout_workers.background.housekeeping import Housekeeping
from turnout_workers.background.tasks import cancel_all, run_repeatedly
from turnout_workers.config import Settings, Source
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.tables import Config
from turnout_workers.monitoring.metrics import Recovery
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.runtime import _close
from turnout_workers.state.fast_pipeline import send_commands
from turnout_workers.state.memory_store import MemoryFleetStore

CURRENT = CurrentConfig(Settings(Config(), {}, {}, "1", Source("the test")))


@pytest.mark.parametrize("error", [ValueError("unforeseen"), PermissionError("unforeseen")])
async def test_work_that_an_error_ended_is_told_of_and_begun_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tasks, "ERROR_PAUSE_S", 0)
    begun, again = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise error
        again.set()
        await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING, "turnout_workers.background.tasks"):
        task = asyncio.create_task(run_repeatedly(work, every_s=0))
        await asyncio.wait_for(again.wait(), 60)
    assert "unforeseen" in caplog.text
    assert "for Redis" not in caplog.text, "which has no part in it"
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_that_lasts_is_told_once_and_again_after_a_success(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "ERROR_PAUSE_S", 0)
    turns, done = iter([True, True, False, True, True]), asyncio.Event()

    async def work() -> None:
        match next(turns, None):
            case True:
                raise redis.ConnectionError("away")
            case None:
                done.set()

    with caplog.at_level(logging.WARNING, "turnout_workers.background.tasks"):
        task = asyncio.create_task(run_repeatedly(work, every_s=0, name="it"))
        await asyncio.wait_for(done.wait(), 60)
    await cancel_all([task])
    assert [record.getMessage() for record in caplog.records] == ["it waits: away"] * 2


async def test_work_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = 0

    async def work() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_all([task]), 60)
    assert task.cancelled()


@pytest.mark.parametrize("after_s", [0.0, 60.0])
async def test_a_retired_connector_is_closed_after_its_time_or_when_its_worker_stops(after_s: float) -> None:
    closed = asyncio.Event()

    class Retired:
        async def aclose(self) -> None:
            closed.set()

    task = asyncio.create_task(_close([cast("CloudProviderBase", Retired())], after_s))
    if after_s:
        await asyncio.sleep(0)  # begun
        assert not closed.is_set()
        await cancel_all([task])
    await asyncio.wait_for(closed.wait(), 60)


async def test_a_connector_that_closes_slowly_or_wrongly_keeps_none_from_being_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "CANCEL_EVERY_S", 0)
    closed: list[str] = []

    class Slow:
        async def aclose(self) -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            closed.append("slow")

    class Wrong:
        async def aclose(self) -> None:
            raise ValueError

    class Good:
        async def aclose(self) -> None:
            closed.append("good")

    task = asyncio.create_task(_close([cast("CloudProviderBase", one()) for one in (Slow, Wrong, Good)], 60.0))
    await asyncio.sleep(0)  # begun
    await cancel_all([task])
    assert sorted(closed) == ["good", "slow"]


async def test_with_memory_full_the_jobs_of_the_dead_are_taken_back_all_the_same(tmp_path: Path) -> None:
    server = redis_server.start(tmp_path)
    client = redis.asyncio.Redis.from_url(server.url)
    call, ledger, swept = Coalescer(client, send_commands=send_commands), Ledger(), asyncio.Event()

    def recovered(how: Recovery, count: int) -> None:
        if how == "swept" and count:
            swept.set()

    store = MemoryFleetStore(lambda: 0.0)
    housekeeping = Housekeeping(ledger, call, store, "w", CURRENT, (), recovered)
    try:
        await call(ledger.enqueue(new_job("a")))
        await call(ledger.claim("a", "dead", 0.001))
        await client.config_set("maxmemory", 1)
        task = asyncio.create_task(run_repeatedly(housekeeping.run_if_ours, 0.01))
        await asyncio.wait_for(swept.wait(), 60)
        await cancel_all([task])
    finally:
        await client.aclose()
        server.stop()


async def test_however_many_messages_of_a_lane_are_lost_one_wait_brings_all_of_them_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "MAX_JOBS", 10)
    monkeypatch.setattr(housekeeping, "LOST_AFTER_S", 0)
    ids = {f"job {n}" for n in range(35)}
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        call, ledger, store = Coalescer(client, send_commands=send_commands), Ledger(), MemoryFleetStore(lambda: 0.0)
        keeping = Housekeeping(ledger, call, store, "w", CURRENT, (), lambda *_: None)
        await call.all(*(ledger.enqueue(new_job(id)) for id in ids))
        await client.delete(queue := ledger.keys.queue("standard"))
        await client.wait(1, 2)  # for no replica: so that their places are past
        found = []
        for _ in range(6):
            await keeping.round()
            found.append(await client.llen(queue))
        assert found == [0, 10, 20, 30, 35, 35]
        assert {json.loads(message)["headers"]["id"] for message in await client.lrange(queue, 0, -1)} == ids


async def test_with_memory_full_and_a_message_lost_all_parts_of_a_round_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "LOST_AFTER_S", 0)
    server, done = redis_server.start(tmp_path), list[str]()

    async def also() -> None:
        done.append("also")

    async with redis.asyncio.Redis.from_url(server.url) as client:
        call, ledger, store = Coalescer(client, send_commands=send_commands), Ledger(), MemoryFleetStore(lambda: 0.0)
        keeping = Housekeeping(ledger, call, store, "w", CURRENT, (also,), lambda *_: None)
        try:
            await call(ledger.enqueue(new_job("a")))
            await client.delete(ledger.keys.queue("standard"))
            await client.wait(1, 2)  # for no replica: so that its place is past
            await keeping._republish()  # a first look
            await client.config_set("maxmemory", 1)
            with pytest.raises(redis.ConnectionError, match="takes no writes"):
                await keeping.round()
            assert (done, keeping._full) == (["also"], True)
        finally:
            server.stop()


async def test_a_redis_that_is_full_or_begins_to_evict_is_told_of_once_and_once_when_it_is_not_full(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "turnout_workers.background.housekeeping")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        send, store = Coalescer(client), MemoryFleetStore(lambda: 0.0)
        housekeeping = Housekeeping(Ledger(), send, store, "w", CURRENT, (), lambda *_: None)
        used = (await client.info("memory"))["used_memory"]
        try:
            for limit in (int(used * 1.05), int(used * 1.05), 0, 0):
                await client.config_set("maxmemory", limit)
                await client.config_set("maxmemory-policy", "noeviction" if limit else "volatile-lru")
                housekeeping._intake_checked_at = float("-inf")
                await housekeeping._guard_intake()
                assert await client.exists(Ledger().keys.intake) == (limit > 0)
        finally:
            await client.config_set("maxmemory", 0)
            await client.config_set("maxmemory-policy", "noeviction")
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "no new jobs are accepted",
        "maxmemory-policy is volatile-lru: jobs would vanish; set it to noeviction",
        "new jobs are accepted again",
    ]


@pytest.mark.parametrize(
    ("key", "wrong"), [("delayed", "a-line-of-nobody"), ("delayed", b"\xff"), ("deadlines", b"\xff")]
)
async def test_what_was_spoilt_in_redis_stops_one_part_of_a_round(redis_url: str, key: str, wrong: str | bytes) -> None:
    """Else nobody took back the jobs of dead workers any more."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        call, ledger, done = Coalescer(client, send_commands=send_commands), Ledger(), list[str]()

        async def also() -> None:
            done.append("also")

        def recovered(how: Recovery, count: int) -> None:
            done.extend([how] * count)

        store = MemoryFleetStore(lambda: 0.0)
        housekeeping = Housekeeping(ledger, call, store, "w", CURRENT, (also,), recovered)
        await call(ledger.enqueue(new_job("a")))
        await call(ledger.claim("a", "dead", 60))
        await client.zadd(ledger.keys.job_leases, {"a": 1})  # its end
        await client.zadd(getattr(ledger.keys, key), {wrong: 1})
        with pytest.raises((redis.ResponseError, ValueError)):
            await housekeeping.round()
        assert done == ["swept", "also"]
