"""A worker's own copy of the fleet's state, kept fresh in the background, so that a decision costs no round trip.

While the store is out of reach the last snapshot stands, for the calls that are under way. No call begins meanwhile,
for jobs are claimed, and calls admitted, by Redis itself.
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
"""A worker of a small fleet sees what another reported within this time and a round trip."""
POLLS_A_S = 500
"""At most so many polls of all workers together, later ones in a large fleet: they take turns on Redis's one thread."""


@dataclass(slots=True, eq=False)
class SnapshotPoller:
    """Binds the configured fleet to what the store knows of it."""

    store: FleetStore
    fleet: InitVar[Fleet]
    monotonic: Callable[[], float] = time.monotonic
    """The local clock that carries the store's time on between two polls; a worker's wall clock is never read."""
    snapshot: Snapshot = field(init=False)
    every_s: float = field(default=POLL_S, init=False)
    """Between polls in the background."""
    _observed: Mapping[str, Observed] = field(default_factory=dict, init=False)
    _ahead_s: float = field(default=0.0, init=False)

    def __post_init__(self, fleet: Fleet) -> None:
        self.snapshot = fleet.snapshot(0.0, {})

    def now(self) -> float:
        """The store's time, carried on by the local clock. Valid after the first poll."""
        return self.monotonic() + self._ahead_s

    def use(self, fleet: Fleet) -> None:
        """Take over a new configuration; the very next decision sees it."""
        self.snapshot = fleet.snapshot(self.snapshot.at, self._observed)
        match.cache_clear()  # it would keep the fleet of before alive

    def among(self, workers: int) -> None:
        """Take turns with so many workers, this one included."""
        self.every_s = max(POLL_S, workers / POLLS_A_S)

    async def follow(self) -> None:
        """Read the store once more when it is time."""
        await asyncio.sleep(self.every_s)
        await self.poll()

    async def poll(self) -> Snapshot:
        """Read the store once. Raises what the store raises, and leaves the last snapshot in place."""
        asked_at = self.monotonic()
        at, self._observed = await self.store.state()
        self._ahead_s = at - (asked_at + self.monotonic()) / 2
        self.snapshot = self.snapshot.fleet.snapshot(at, self._observed)
        return self.snapshot
