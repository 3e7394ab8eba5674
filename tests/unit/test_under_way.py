"""Calls that hang at an endpoint that is out are cut short; no others are."""

from __future__ import annotations

import asyncio

import pytest

from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller


def own_calls() -> CallWatch:
    store = MemoryFleetStore(lambda: 0.0)
    return CallWatch(store, SnapshotPoller(store, Fleet(())), "w")


async def hanging(calls: CallWatch, endpoint_id: str, overdue_s: float) -> None:
    async with asyncio.timeout(60) as limit:
        with calls.call(endpoint_id, overdue_s, limit):
            await asyncio.Event().wait()


async def test_the_time_of_a_call_that_is_cut_short_is_over_at_once() -> None:
    calls = own_calls()
    task = asyncio.create_task(hanging(calls, "a", 0.0))
    await asyncio.sleep(0)
    assert calls.cut_short({"a"}) == 1
    assert calls.cut_short({"a"}) == 0
    with pytest.raises(TimeoutError):
        await task
    assert not calls.overdue()


async def test_calls_in_time_and_calls_elsewhere_go_on() -> None:
    calls = own_calls()
    young = asyncio.create_task(hanging(calls, "a", 60.0))
    elsewhere = asyncio.create_task(hanging(calls, "b", 0.0))
    await asyncio.sleep(0)
    assert calls.cut_short({"a"}) == 0
    await asyncio.sleep(0)
    assert not young.done()
    assert not elsewhere.done()
    for task in (young, elsewhere):
        task.cancel()
    assert [type(one) for one in await asyncio.gather(young, elsewhere, return_exceptions=True)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]


async def test_a_call_that_somebody_else_cancels_at_the_same_time_stays_cancelled() -> None:
    calls = own_calls()
    task = asyncio.create_task(hanging(calls, "a", 0.0))
    await asyncio.sleep(0)
    calls.cut_short({"a"})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
