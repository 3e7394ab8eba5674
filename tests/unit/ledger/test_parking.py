"""What workers do for parked jobs, on a real ledger: wake as many as there is room for, in order, and together."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis.asyncio
from tests.properties.ledger.bed import Bed
from tests.unit.ledger.test_parked import parked

from turnout.ledger import Coalescer
from turnout_workers.attempts.parking import Parking


async def background_work() -> None:
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


@pytest.mark.parametrize("workers", [1, 3])
async def test_calls_that_end_together_wake_a_job_each(bed: Bed, redis_url: str, workers: int) -> None:
    ids = parked(bed, 20)
    clients = [redis.asyncio.Redis.from_url(redis_url) for _ in range(workers)]
    for parking in [Parking(bed.ledger, Coalescer(client)) for client in clients]:
        parking.any_parked = True
        for _ in range(5):
            parking.wake("group", 1)
    await background_work()
    for client in clients:
        await client.aclose()
    woken = [json.loads(message)["headers"]["id"] for message in bed.messages()]
    assert set(woken) == set(ids[: 5 * workers])
    if workers == 1:
        assert woken == ids[:5], "the first of them first"


async def test_no_more_are_woken_than_are_parked(bed: Bed, redis_url: str) -> None:
    parked(bed, 2)
    client = redis.asyncio.Redis.from_url(redis_url)
    parking = Parking(bed.ledger, Coalescer(client))
    parking.any_parked = True
    parking.wake("group", 5)
    await background_work()
    parking.wake("group", 1)
    await background_work()
    assert len(bed.messages()) == 2
    await client.aclose()


async def test_a_change_ends_waiting_in_place_and_lets_fresh_jobs_look(bed: Bed, redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    parking = Parking(bed.ledger, Coalescer(client))
    parking.note_wait("group", until=100.0, now=0.0, for_room=False)
    assert parking.wait_of("group") == (100.0, False)
    waiting = asyncio.create_task(parking.wait_in_place("group", 3600))
    await asyncio.sleep(0)
    assert parking.in_place == {"group"}
    await parking.look_again_now()
    await asyncio.wait_for(waiting, 60)
    assert parking.in_place == set()
    assert parking.wait_of("group").until == 0
    await client.aclose()
