"""A worker's copy of the fleet's state is fresh, outlives the store's absence, and follows the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from turnout_workers.background import tasks
from turnout_workers.background.tasks import cancel_all, run_repeatedly
from turnout_workers.routing.fleet import Circuit, Endpoint, Fleet, Observed
from turnout_workers.routing.health import circuit
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

GROQ = Endpoint("groq", "llama", "llama-3.3")
OPENAI = Endpoint("openai", "gpt", "gpt-5")


class Flaky(MemoryFleetStore):
    """A store that is out of reach while `away`, and tells when it was asked."""

    away = False

    def __init__(self, now: float) -> None:
        super().__init__(lambda: now)
        self.asked = asyncio.Event()

    async def state(self) -> tuple[float, Mapping[str, Observed]]:
        self.asked.set()
        if self.away:
            raise ConnectionError("connection refused")
        return await super().state()

    async def asked_again(self) -> None:
        for _ in range(2):  # the first may have been under way
            self.asked.clear()
            await asyncio.wait_for(self.asked.wait(), 60)
        await asyncio.sleep(0)


def test_before_the_first_poll_all_is_well() -> None:
    poller = SnapshotPoller(MemoryFleetStore(lambda: 50.0), Fleet([GROQ]))
    assert [circuit(view.health, 0) for view in poller.snapshot.views] == [Circuit.CLOSED]


async def test_the_stores_clock_is_carried_on_by_the_local_one() -> None:
    local = [7.0]
    poller = SnapshotPoller(MemoryFleetStore(lambda: 5_000.0), Fleet([GROQ]), monotonic=lambda: local[0])
    await poller.poll()
    local[0] += 3
    assert (poller.now(), poller.snapshot.at) == (5_003.0, 5_000.0)


async def test_what_others_report_is_seen_in_the_background() -> None:
    store = Flaky(1_000.0)
    poller = SnapshotPoller(store, Fleet([GROQ]))
    await poller.poll()
    following = asyncio.create_task(run_repeatedly(poller.follow, 0.0))
    await store.eject(GROQ.id, 10, "refused")
    await store.asked_again()
    assert poller.snapshot.by_id[GROQ.id].health.open_until == 1_010
    await cancel_all([following])


async def test_the_workers_of_a_large_fleet_take_turns_in_reading() -> None:
    poller, paces = SnapshotPoller(MemoryFleetStore(lambda: 1_000.0), Fleet([GROQ])), []
    for workers in (1, 50, 300, 1):
        poller.share_polls(workers)
        paces.append(poller.every_s)
    assert paces == [0.1, 0.1, 0.6, 0.1]


async def test_the_last_snapshot_stands_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ERROR_PAUSE_S", 0.001)
    store = Flaky(1_000.0)
    await store.eject(GROQ.id, 10, "refused")
    poller = SnapshotPoller(store, Fleet([GROQ]))
    await poller.poll()
    following = asyncio.create_task(run_repeatedly(poller.poll, 0.001))
    store.away = True
    await store.asked_again()
    assert poller.snapshot.by_id[GROQ.id].health.open_until == 1_010
    store.away = False
    await store.mark("restored", [GROQ.id])
    await store.asked_again()
    assert poller.snapshot.by_id[GROQ.id].health.open_until == 0
    await cancel_all([following])


async def test_a_new_configuration_is_taken_over_at_once() -> None:
    store = MemoryFleetStore(lambda: 1_000.0)
    await store.mark("isolated", [OPENAI.id], "maintenance")
    poller = SnapshotPoller(store, Fleet([GROQ]))
    before = await poller.poll()
    poller.use(Fleet([GROQ, OPENAI]))
    assert [view.endpoint for view in before.views] == [GROQ]
    assert poller.snapshot.by_id[OPENAI.id].health.isolated
