"""What hangs is told by those who wait for it: calls whose worker has gone, or was not running, eject nobody."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.routing.fleets import NOW, endpoint

from turnout_workers.background import fleet_watch, tasks
from turnout_workers.background.fleet_watch import CallWatch, eject_hanging
from turnout_workers.routing.fleet import Circuit, Fleet, Limits
from turnout_workers.routing.health import circuit
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ask, Bid, Granted, Report

A = endpoint("a")


class Worker:
    """One of a fleet, with calls to one endpoint."""

    def __init__(self, name: str, store: MemoryFleetStore) -> None:
        self.name, self.store = name, store
        self.seen = SnapshotPoller(store, Fleet([A]), monotonic=store.clock)
        self.watch = CallWatch(store, self.seen, name)
        self.answer = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, count: int) -> None:
        """So many calls, each overdue after 2 s."""
        for number in range(len(self.tasks), len(self.tasks) + count):
            admitted = await self.store.admit(Ask(f"{self.name}{number}", (Bid(A.id, Limits(), 1, 1, 1),), 30.0))
            assert isinstance(admitted, Granted)
            self.tasks.append(asyncio.create_task(self._call(admitted.lease_id)))
        await asyncio.sleep(0)

    async def _call(self, lease_id: str) -> None:
        async with asyncio.timeout(60) as limit:
            with self.watch.call(A.id, 2.0, limit):
                await self.answer.wait()
        await self.store.report(Report(lease_id, A.id, ok=True, latency_s=0.1))

    async def judge(self) -> Circuit:
        await self.seen.poll()
        await eject_hanging(self.store, self.seen, random.Random(0), ejection_s=2.0)
        return circuit((await self.seen.poll()).views[0].health, self.seen.snapshot.at)


@asynccontextmanager
async def workers() -> AsyncIterator[tuple[list[float], Worker, Worker]]:
    clock = [NOW]
    store = MemoryFleetStore(lambda: clock[0])
    one, other = Worker("one", store), Worker("other", store)
    yield clock, one, other
    for worker in (one, other):
        worker.answer.set()
        await asyncio.gather(*worker.tasks)


async def test_calls_that_hang_eject_once_their_workers_tell() -> None:
    async with workers() as (clock, one, other):
        await one.begin(1)
        await other.begin(1)
        clock[0] += 2.5
        await one.watch.look()
        assert await other.judge() is Circuit.CLOSED, "one call is no hang yet"
        await other.watch.look()
        assert await other.judge() is Circuit.OPEN


async def test_an_ejection_is_made_once_however_seldom_a_large_fleet_is_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, fleet_watch.__name__)
    async with workers() as (clock, one, _other):
        await one.begin(3)
        await one.seen.poll()
        clock[0] += 2.5
        await one.watch.look()
        for _round in "12":
            await eject_hanging(one.store, one.seen, random.Random(0), ejection_s=2.0)
    assert len(caplog.messages) == 1


async def test_the_calls_of_a_worker_that_died_eject_nobody_while_their_leases_last() -> None:
    async with workers() as (clock, dead, other):
        await dead.begin(9)
        clock[0] += 20
        await other.begin(1)
        await other.watch.look()
        assert await other.judge() is Circuit.CLOSED
        assert other.seen.snapshot.views[0].load.in_flight == 10


async def test_calls_that_have_been_answered_are_told_of_as_hanging_no_longer() -> None:
    async with workers() as (clock, one, other):
        await one.begin(3)
        clock[0] += 2.5
        await one.watch.look()
        one.answer.set()
        await asyncio.gather(*one.tasks)
        await one.watch.look()
        assert await other.judge() is Circuit.CLOSED


async def test_an_endpoint_that_is_out_until_somebody_acts_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_watch, "REPORT_S", 0.0)
    caplog.set_level(logging.WARNING, fleet_watch.__name__)  # whatever others have made of it
    told: list[int] = []
    async with workers() as (_, one, _other):
        for what in ("disabled", "disabled", "restored", "isolated"):
            await one.store.mark(what, [A.id], f"was {what}")
            for _look in "12":
                await one.seen.poll()
                await one.watch.look()
            told.append(len(caplog.messages))
    assert told == [1, 1, 1, 2]
    assert caplog.messages == ["a/llama out: was disabled", "a/llama out: was isolated"]


async def test_a_process_that_was_not_running_reads_the_answers_before_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_watch, "LOOK_S", 0.01)
    monkeypatch.setattr(tasks, "PAUSED_S", 0.1)
    looks: list[float] = []
    async with workers() as (_, one, _other):

        async def look() -> None:
            looks.append(time.monotonic())

        monkeypatch.setattr(one.watch, "look", look)
        running = asyncio.create_task(one.watch.run())
        await asyncio.sleep(0)
        time.sleep(0.15)  # the whole process, as when it is paused
        ended_at = time.monotonic()
        while not looks:
            await asyncio.sleep(0.001)
        assert looks[0] >= ended_at + 0.01, "not at once, but after another round of the loop"
        running.cancel()
