"""Who asks a provider whether it is well: each process at its start, and then one for all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.routing.fleets import NOW, endpoint

from turnout_workers.background.health_checks import CHANCE_S, HealthChecks
from turnout_workers.background.tasks import cancel_all
from turnout_workers.providers.base import CallOutcome, CloudProviderBase
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.routing.fleet import Fleet
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

EVERY_S = 0.01


class Asked(CloudProviderBase):
    def __init__(self, name: str) -> None:
        super().__init__(name, [endpoint(name)])
        self.times = 0

    async def call(self, *_: Any, **__: Any) -> CallOutcome:
        raise NotImplementedError

    async def check_health(self) -> None:
        self.times += 1


class Store(MemoryFleetStore):
    away = False
    turns_asked = 0

    async def claim_work(self, work: str, for_s: float) -> bool:
        self.turns_asked += 1
        if self.away:
            raise ConnectionError("away")
        return await super().claim_work(work, for_s)


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not there():
            await asyncio.sleep(0.001)


async def test_the_processes_of_a_fleet_ask_each_provider_once_in_an_interval() -> None:
    now = [NOW]
    store = Store(lambda: now[0])
    processes: list[list[Asked]] = [[Asked("groq"), Asked("openai")] for _ in range(3)]

    def times() -> list[int]:
        return [sum(asked.times for asked in of_all) for of_all in zip(*processes, strict=True)]

    async def rounds() -> None:
        until_then = store.turns_asked + 20
        await until(lambda: store.turns_asked >= until_then)

    running = [
        asyncio.create_task(
            HealthChecks(asked, store, SnapshotPoller(store, Fleet(())), EVERY_S, random.Random(0)).run()
        )
        for asked in processes
    ]
    await rounds()
    assert times() == [3 + 1, 3 + 1], "each at its start, and one for all"
    now[0] += EVERY_S
    await rounds()
    assert times() == [3 + 2, 3 + 2]
    store.away = True
    now[0] += EVERY_S
    await rounds()
    assert times() == [3 + 2, 3 + 2], "what can't be shared is not asked for"
    processes[0].append(Asked("new"))
    await until(lambda: processes[0][-1].times == 1)
    await cancel_all(running)


@pytest.mark.parametrize(
    ("kind", "chance"),
    [
        (FailureKind.MODEL_NOT_FOUND, True),
        (FailureKind.FORBIDDEN, True),
        (FailureKind.MALFORMED, True),
        (FailureKind.UNAVAILABLE, False),
    ],
)
async def test_what_is_disabled_gets_its_chance_where_a_check_finds_nothing_to_ask(
    kind: FailureKind, chance: bool
) -> None:
    class Closed(Asked):
        async def check_health(self) -> None:
            raise ProviderError(Failure(kind, "not here"))

    now, asked = [NOW], Closed("groq")
    store = MemoryFleetStore(lambda: now[0])
    poller = SnapshotPoller(store, Fleet(asked.endpoints))
    checks = HealthChecks([asked], store, poller, EVERY_S, random.Random(0))
    (id,) = (endpoint.id for endpoint in asked.endpoints)
    await store.mark("disabled", [id], "billing: no credit")
    for later_s, is_back in ((CHANCE_S - 1, False), (1, chance)):
        now[0] += later_s
        await poller.poll()
        await checks.check(asked)
        _, observed = await store.state()
        assert (observed[id].health.disabled is None) == is_back
