"""What no single call shows: calls that hang, and what the scarce endpoints are worth to those who wait."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.routing.fleet import Circuit, Fleet, Snapshot
from turnout_workers.routing.health import Step, after_watch, circuit
from turnout_workers.routing.strategies import next_shadow_price
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

EVERY_S = 0.5
LOOK_S = 0.1
"""Between looks at this process's own calls."""
PAUSED_S = 0.5
"""A look that comes so late is left out: the process was not running, so calls seem overdue whose answers are there."""
NOTHING = 1e-3
"""A shadow price below this is none."""


class FleetWatch:
    """`run` looks after this worker's jobs; `judge`, for the one that does the housekeeping, after the fleet."""

    def __init__(
        self,
        store: FleetStore,
        fleet: SnapshotPoller,
        under_way: UnderWay,
        worker: str,
        rng: random.Random,
        ejection_s: float,
        came_back: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """came_back: called when an endpoint is there again of which nobody knew when it would be, or a new one."""
        self._store = store
        self._fleet = fleet
        self._under_way = under_way
        self._worker = worker
        self._rng = rng
        self._ejection_s = ejection_s
        self._came_back = came_back
        self._fleet_seen: Fleet | None = None
        self._there: frozenset[str] = frozenset()
        self._priced_at = 0.0
        self._told_at = 0.0
        self._told: tuple[Counter[str], Counter[str]] = Counter(), Counter()

    async def run(self) -> None:
        """Look after this process's calls, again and again."""
        clock = asyncio.get_running_loop().time
        while True:
            due_at = clock() + LOOK_S
            await asyncio.sleep(LOOK_S)
            if clock() - due_at < PAUSED_S:
                await self.look()

    async def look(self) -> None:
        """Cut short what hangs at endpoints that are out; tell the fleet what hangs, and what jobs wait for."""
        snapshot = self._fleet.snapshot
        out = [v.endpoint.id for v in snapshot.views if circuit(v.health, snapshot.at) is Circuit.OPEN]
        if cut := self._under_way.cut_short(out):
            logger.warning("%d overdue calls to %s are cut short; their jobs move on", cut, ", ".join(out))
        overdue, now = self._under_way.overdue(), asyncio.get_running_loop().time()
        if overdue == self._told[1] and now - self._told_at < EVERY_S:
            return
        waiting = self._under_way.waiting()
        try:
            if waiting or overdue or any(self._told):
                await self._store.publish(self._worker, waiting, overdue)
            self._told, self._told_at = (waiting, overdue), now
            await self._tell_of_returns(snapshot)
        except (RedisError, OSError) as error:
            logger.debug("what waits and hangs can't be told now: %s", error)

    async def _tell_of_returns(self, snapshot: Snapshot) -> None:
        """Of new configurations, and of endpoints that an operator or a good key has brought back: jobs wait for them
        without a time at which to look."""
        gone = (Circuit.DISABLED, Circuit.ISOLATED)
        there = frozenset(v.endpoint.id for v in snapshot.views if circuit(v.health, snapshot.at) not in gone)
        if self._came_back and (snapshot.fleet is not self._fleet_seen or there - self._there):
            await self._came_back()
        self._fleet_seen, self._there = snapshot.fleet, there

    async def judge(self) -> None:
        """Eject endpoints whose calls hang, long before their timeouts, and move the shadow prices a step."""
        snapshot = self._fleet.snapshot
        for view in snapshot.views:
            endpoint_id = view.endpoint.id
            step = after_watch(view.health, view.load, view.metrics, snapshot.at, self._rng, base_s=self._ejection_s)
            if step.step is Step.TRIP:
                await self._store.trip(endpoint_id, step.open_s, step.reason)
                logger.warning("%s ejected for %.1f s: %s", endpoint_id, step.open_s, step.reason)
        if snapshot.at - self._priced_at < EVERY_S:
            return
        self._priced_at = snapshot.at
        prices = {}
        for view in snapshot.views:
            price = next_shadow_price(view.load.shadow_price, view.load)
            if price > NOTHING or view.load.shadow_price > NOTHING:
                prices[view.endpoint.id] = price
        if prices:
            await self._store.set_shadow_prices(prices)
