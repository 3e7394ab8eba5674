"""What no single call shows: that calls hang, and that endpoints are back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.background.lasting import came_in_time
from turnout_workers.routing.fleet import Circuit, Fleet, Snapshot
from turnout_workers.routing.health import after_watch, circuit
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

EVERY_S = 0.5
LOOK_S = 0.1
"""Between looks at this process's own calls."""


@dataclass
class CallWatch:
    """Looks after this process's own calls."""

    store: FleetStore
    fleet: SnapshotPoller
    under_way: UnderWay
    worker: str
    """Its name, under which the fleet is told."""
    came_back: Callable[[], Awaitable[None]] | None = None
    """Called when an endpoint is there again of which nobody knew when it would be, or a new one."""
    _fleet_seen: Fleet | None = field(default=None, init=False)
    _out: frozenset[str] = field(default=frozenset(), init=False)
    """Endpoints that a refused key, or an operator, keeps out."""
    _told: Counter[str] = field(default_factory=Counter, init=False)
    """What is overdue, as it was told last."""
    _told_at: float = field(default=0.0, init=False)

    async def run(self) -> None:
        """Look again and again; not after a pause, when calls seem overdue whose answers are there."""
        while True:
            if await came_in_time(LOOK_S):
                await self.look()

    async def look(self) -> None:
        """Cut short what hangs at endpoints that are out; tell the fleet of what hangs elsewhere."""
        snapshot = self.fleet.snapshot
        out = [v.endpoint.id for v in snapshot.views if circuit(v.health, snapshot.at) is Circuit.OPEN]
        if cut := self.under_way.cut_short(out):
            logger.warning("%d overdue calls to %s are cut short; their jobs move on", cut, ", ".join(out))
        overdue, now = self.under_way.overdue(), asyncio.get_running_loop().time()
        if overdue == self._told and now - self._told_at < EVERY_S:
            return
        try:
            if overdue or self._told:
                await self.store.publish(self.worker, overdue)
            self._told, self._told_at = overdue, now
            await self._tell_of_changes(snapshot)
        except (RedisError, OSError) as error:
            logger.debug("what hangs can't be told now: %s", error)

    async def _tell_of_changes(self, snapshot: Snapshot) -> None:
        """Of new configurations, and of endpoints that an operator or a good key has brought back: jobs wait for them
        without a time at which to look. And for people, of those that are out until somebody does something."""
        gone = (Circuit.DISABLED, Circuit.ISOLATED)
        why = {v.endpoint.id: v.health.why for v in snapshot.views if circuit(v.health, snapshot.at) in gone}
        if self.came_back and (snapshot.fleet is not self._fleet_seen or self._out - why.keys()):
            await self.came_back()
        told = {id: reason for id, reason in why.items() if id not in self._out}
        for reason in dict.fromkeys(told.values()):
            logger.warning("%s out: %s", ", ".join(id for id in told if told[id] == reason), reason)
        self._fleet_seen, self._out = snapshot.fleet, frozenset(why)


async def eject_hanging(store: FleetStore, fleet: SnapshotPoller, rng: random.Random, ejection_s: float) -> None:
    """Eject endpoints whose calls hang, of whatever worker, long before their timeouts.

    ejection_s: of the first ejection in a row; each further one is twice as long.
    """
    if not (overdue := await store.overdue()):
        return
    snapshot = await fleet.poll()  # of a large fleet the last one may not show what was ejected since
    for view in snapshot.views:
        if trip := after_watch(view, overdue[view.endpoint.id], snapshot.at, rng, base_s=ejection_s):
            await store.trip(view.endpoint.id, trip.open_s, trip.reason)
            logger.warning("%s ejected for %.1f s: %s", view.endpoint.id, trip.open_s, trip.reason)
