"""Sees what no single call shows: that calls hang, and that endpoints are back."""

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

REPORT_S = 0.5
"""How often this worker repeats its report while nothing has changed."""
LOOK_S = 0.1
"""How often a process looks at its own calls."""


@dataclass(slots=True, eq=False)
class _WatchedCall:
    """One call, under way while its block runs. A class because a generator takes more memory: thousands wait at a
    time."""

    overdue_at: float
    limit: asyncio.Timeout
    calls: set[_WatchedCall]
    """All calls under way to its endpoint, including this one."""

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
    """The name under which it reports to the fleet."""
    came_back: Callable[[], Awaitable[None]] | None = None
    """Called when there is a new endpoint, or one is back whose return had no known time."""
    _calls: dict[str, set[_WatchedCall]] = field(default_factory=lambda: defaultdict(set), init=False)
    """Calls under way, by endpoint."""
    _fleet_seen: Fleet | None = field(default=None, init=False)
    _out: frozenset[str] = field(default=frozenset(), init=False)
    """Disabled and isolated endpoints."""
    _reported: Counter[str] = field(default_factory=Counter, init=False)
    """The overdue calls last reported."""
    _reported_at: float = field(default=0.0, init=False)

    def call(self, endpoint_id: str, overdue_s: float, limit: asyncio.Timeout) -> AbstractContextManager[None]:
        """Watch the call that is made in this block. limit: its timeout, which is also used to cut it short."""
        return _WatchedCall(self.fleet.monotonic() + overdue_s, limit, self._calls[endpoint_id])

    def cut_short(self, endpoint_ids: Collection[str]) -> int:
        """End the overdue calls to these endpoints. Returns how many there were."""
        overdue = [call for endpoint_id in endpoint_ids for call in self._overdue(endpoint_id)]
        for call in overdue:
            call.limit.reschedule(asyncio.get_running_loop().time())
            call.calls.discard(call)
        return len(overdue)

    def overdue(self) -> Counter[str]:
        """How many calls are overdue, by endpoint."""
        return +Counter({endpoint_id: len(self._overdue(endpoint_id)) for endpoint_id in self._calls})

    def _overdue(self, endpoint_id: str) -> list[_WatchedCall]:
        now = self.fleet.monotonic()
        return [call for call in self._calls.get(endpoint_id, ()) if call.overdue_at <= now]

    async def run(self) -> None:
        """Look repeatedly, except right after this process was paused: then calls seem overdue whose answers have
        arrived."""
        while True:
            if await slept_on_time(LOOK_S):
                await self.look()

    async def look(self) -> None:
        """Cut short overdue calls to endpoints that are out; report the others to the fleet."""
        snapshot = self.fleet.snapshot
        out = [v.endpoint.id for v in snapshot.views if circuit(v.health, snapshot.at) is Circuit.OPEN]
        if cut := self.cut_short(out):
            logger.warning("%d overdue calls to %s are cut short; their jobs move on", cut, ", ".join(out))
        overdue, now = self.overdue(), asyncio.get_running_loop().time()
        if overdue == self._reported and now - self._reported_at < REPORT_S:
            return
        with log_if_redis_is_away(logger.debug, "overdue calls can't be reported now"):
            if overdue or self._reported:
                await self.store.publish(self.worker, overdue)
            self._reported, self._reported_at = overdue, now
            await self._announce_changes(snapshot)

    async def _announce_changes(self, snapshot: Snapshot) -> None:
        """Wake jobs that wait with no time at which to look again: for a new configuration, or for an endpoint that an
        operator or a good key has brought back. Log endpoints that stay out until somebody acts."""
        gone = (Circuit.DISABLED, Circuit.ISOLATED)
        why = {v.endpoint.id: v.health.why for v in snapshot.views if circuit(v.health, snapshot.at) in gone}
        if self.came_back and (snapshot.fleet is not self._fleet_seen or self._out - why.keys()):
            await self.came_back()
        newly_out = {id: reason for id, reason in why.items() if id not in self._out}
        for reason in dict.fromkeys(newly_out.values()):
            logger.warning("%s out: %s", ", ".join(id for id in newly_out if newly_out[id] == reason), reason)
        self._fleet_seen, self._out = snapshot.fleet, frozenset(why)


async def eject_hanging(store: FleetStore, fleet: SnapshotPoller, rng: random.Random, ejection_s: float) -> None:
    """Eject endpoints at which any worker's calls hang, long before the calls time out.

    ejection_s: length of the first ejection in a row; each further one is twice as long.
    """
    if not (overdue := await store.overdue()):
        return
    snapshot = await fleet.poll()  # the last one of a large fleet may not show recent ejections
    for view in snapshot.views:
        if ejection := after_watch(view, overdue[view.endpoint.id], snapshot.at, rng, base_s=ejection_s):
            await store.eject(view.endpoint.id, ejection.open_s, ejection.reason)
            logger.warning("%s ejected for %.1f s: %s", view.endpoint.id, ejection.open_s, ejection.reason)
