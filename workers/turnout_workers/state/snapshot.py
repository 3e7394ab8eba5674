"""A worker's own copy of the fleet's state, refreshed in the background, so that a decision costs no round trip.

While the store can't be reached, the last snapshot serves the calls in flight. No call begins meanwhile, because Redis
itself hands out jobs and admits calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field

from turnout_workers.routing.eligibility import match
from turnout_workers.routing.fleet import Fleet, Observed, Snapshot
from turnout_workers.state.store import FleetStore

POLL_S = 0.1
"""In a small fleet, a worker sees what another reported within this time plus a round trip."""
MAX_POLLS_PER_S = 500
"""Of all workers together, because they share Redis's one thread. In a large fleet each polls less often."""


@dataclass(slots=True, eq=False)
class SnapshotPoller:
    """Combines the configured fleet with what the store observed."""

    store: FleetStore
    fleet: InitVar[Fleet]
    monotonic: Callable[[], float] = time.monotonic
    """The local clock that extends the store's time between two polls. A worker's wall clock is never read."""
    snapshot: Snapshot = field(init=False)
    every_s: float = field(default=POLL_S, init=False)
    """Pause between polls in the background."""
    _observed: Mapping[str, Observed] = field(default_factory=dict, init=False)
    _ahead_s: float = field(default=0.0, init=False)

    def __post_init__(self, fleet: Fleet) -> None:
        self.snapshot = fleet.snapshot(0.0, {})

    def now(self) -> float:
        """The store's time, extended by the local clock. Valid after the first poll."""
        return self.monotonic() + self._ahead_s

    def use(self, fleet: Fleet) -> None:
        """Adopt a new configuration; the very next decision uses it."""
        self.snapshot = fleet.snapshot(self.snapshot.at, self._observed)
        match.cache_clear()  # it would keep the old fleet alive

    def share_polls(self, workers: int) -> None:
        """Poll as often as this many workers may, this one included."""
        self.every_s = max(POLL_S, workers / MAX_POLLS_PER_S)

    async def follow(self) -> None:
        """Wait until it is time, then poll."""
        await asyncio.sleep(self.every_s)
        await self.poll()

    async def poll(self) -> Snapshot:
        """Read the store once. Raises what the store raises; the last snapshot then stays."""
        asked_at = self.monotonic()
        at, self._observed = await self.store.state()
        self._ahead_s = at - (asked_at + self.monotonic()) / 2
        self.snapshot = self.snapshot.fleet.snapshot(at, self._observed)
        return self.snapshot
