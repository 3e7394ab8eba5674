"""What no single call shows: that calls hang, and that endpoints are back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from turnout_workers.background.tasks import log_if_redis_is_away, slept_on_time
from turnout_workers.routing.fleet import Circuit, Fleet, Snapshot
from turnout_workers.routing.health import after_watch, circuit
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

EVERY_S = 0.5
LOOK_S = 0.1
"""Between looks at this process's own calls."""


@dataclass(slots=True, eq=False)
class _Call:
    """One call, under way while its block runs. Not a generator, which takes more memory: thousands wait at a time."""

    overdue_at: float
    limit: asyncio.Timeout
    calls: set[_Call]
    """All that are under way to its endpoint, this one among them."""

    def __enter__(self) -> None:
        self.calls.add(self)

    def __exit__(self, *_: object) -> None:
        self.calls.discard(self)


@dataclass
class CallWatch:
    """Looks after this process's own calls."""

    store: FleetStore
    fleet: SnapshotPoller
    worker: str
    """Its name, under which the fleet is told."""
    came_back: Callable[[], Awaitable[None]] | None = None
    """Called when an endpoint is there again of which nobody knew when it would be, or a new one."""
    _calls: dict[str, set[_Call]] = field(default_factory=lambda: defaultdict(set), init=False)
    """Those under way, by endpoint."""
    _fleet_seen: Fleet | None = field(default=None, init=False)
    _out: frozenset[str] = field(default=frozenset(), init=False)
    """Endpoints that a refused key, or an operator, keeps out."""
    _told: Counter[str] = field(default_factory=Counter, init=False)
    """What is overdue, as it was told last."""
    _told_at: float = field(default=0.0, init=False)

    def call(self, endpoint_id: str, overdue_s: float, limit: asyncio.Timeout) -> AbstractContextManager[None]:
        """Make a call in this block. limit: of its time, and over at once if it is cut short."""
        return _Call(self.fleet.monotonic() + overdue_s, limit, self._calls[endpoint_id])

    def cut_short(self, endpoint_ids: Collection[str]) -> int:
        """End the calls to these endpoints that are overdue, and no others; tells how many."""
        overdue = [call for endpoint_id in endpoint_ids for call in self._overdue(endpoint_id)]
        for call in overdue:
            call.limit.reschedule(asyncio.get_running_loop().time())
            call.calls.discard(call)
        return len(overdue)

    def overdue(self) -> Counter[str]:
        """How many calls are overdue, by endpoint."""
        return +Counter({endpoint_id: len(self._overdue(endpoint_id)) for endpoint_id in self._calls})

    def _overdue(self, endpoint_id: str) -> list[_Call]:
        now = self.fleet.monotonic()
        return [call for call in self._calls.get(endpoint_id, ()) if call.overdue_at <= now]

    async def run(self) -> None:
        """Look again and again; not after a pause, when calls seem overdue whose answers are there."""
        while True:
            if await slept_on_time(LOOK_S):
                await self.look()

    async def look(self) -> None:
        """Cut short what hangs at endpoints that are out; tell the fleet of what hangs elsewhere."""
        snapshot = self.fleet.snapshot
        out = [v.endpoint.id for v in snapshot.views if circuit(v.health, snapshot.at) is Circuit.OPEN]
        if cut := self.cut_short(out):
            logger.warning("%d overdue calls to %s are cut short; their jobs move on", cut, ", ".join(out))
        overdue, now = self.overdue(), asyncio.get_running_loop().time()
        if overdue == self._told and now - self._told_at < EVERY_S:
            return
        with log_if_redis_is_away(logger.debug, "what hangs can't be told now"):
            if overdue or self._told:
                await self.store.publish(self.worker, overdue)
            self._told, self._told_at = overdue, now
            await self._tell_of_changes(snapshot)

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
        if ejection := after_watch(view, overdue[view.endpoint.id], snapshot.at, rng, base_s=ejection_s):
            await store.eject(view.endpoint.id, ejection.open_s, ejection.reason)
            logger.warning("%s ejected for %.1f s: %s", view.endpoint.id, ejection.open_s, ejection.reason)
