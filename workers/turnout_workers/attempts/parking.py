"""Jobs that nothing has room for: which wait for the same, and how those behind the first get their turn.

Parked jobs stand in lines in the ledger. The first of a line looks for room when its time has come. A job that finds
some wakes the next of its line, and one more when its call has ended: so a line is woken as fast as room appears and no
faster, and those behind cost nothing while they wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from turnout.ledger import Coalescer, Ledger
from turnout.request import CONTRACT_VERSION
from turnout_workers.background.tasks import log_if_redis_is_away, spawn
from turnout_workers.routing.images import UNKNOWN
from turnout_workers.routing.profile import JobProfile, Requirements

logger = logging.getLogger(__name__)

REMEMBERED = 1000
"""Lines whose wait a worker knows of."""


@dataclass(slots=True, eq=False)
class Parking:
    """What one worker knows of the lines, and does for them."""

    ledger: Ledger
    send: Coalescer
    any_parked: bool = field(default=False, init=False)
    """Whether there are parked jobs at all, as of this worker's last claim: otherwise none need be woken."""
    in_place: set[str] = field(default_factory=set, init=False)
    """Lines of which a job waits here in its slot, to have room the moment it appears. One of each line is enough: more
    would hold slots that other jobs can use."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _until: dict[str, tuple[float, bool]] = field(default_factory=dict, init=False)
    _wanted: dict[str, int] = field(default_factory=dict, init=False)
    """Jobs yet to be woken, by line."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def noted(self, line: str, until: float, now: float, for_room: bool) -> None:
        """A job of this line was refused, and is not to ask before `until`. for_room: room is all that it waits for."""
        if len(self._until) >= REMEMBERED:
            self._until = {other: told for other, told in self._until.items() if told[0] > now}
        self._until[line] = until, for_room
        self.any_parked = True

    def left_s(self, line: str, now: float) -> tuple[float, bool]:
        """How long a line waits yet, and whether for room: a fresh job is to stand behind those that came first."""
        until, for_room = self._until.get(line, (0.0, True))
        return until - now if self.any_parked else 0.0, for_room

    async def wait_in_place(self, line: str, wait_s: float) -> None:
        """Until the time is over or something has changed. `line`: '' where nothing is parked: any number may wait."""
        if line:
            self.in_place.add(line)
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self.in_place.discard(line)

    def wake(self, line: str, count: int = 1) -> None:
        """Wake so many more of the line, in the background: where a job has found room there may be more, and there is
        again once its call has ended. Two where one ends because there will never be room, for so do those behind it.
        """
        if not self.any_parked:
            return
        under_way = line in self._wanted
        self._wanted[line] = self._wanted.get(line, 0) + count
        if not under_way:
            spawn(_tried(self._wake(line)), self._tasks)

    async def _wake(self, line: str) -> None:
        following, before = [""], list[str]()
        try:
            while (count := self._wanted[line]) and following != before:
                before, following = following, await self.send(self.ledger.head_of_group(line, count))
                woken = await self.send.all(*map(self.ledger.wake, reversed(following)))
                # Another worker may have woken some of them first: then go on with those behind them.
                self._wanted[line] -= sum(woken) if len(following) == count else count
        finally:
            del self._wanted[line]

    def bring(self, job_id: str) -> None:
        """Publish a job that waited for its turn among its tenant's, in the background."""
        spawn(_tried(self.send(self.ledger.publish_turn(job_id))), self._tasks)

    async def hasten(self) -> None:
        """What jobs wait for may be there: let those in place and the first of every line look now."""
        self._until.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        await self.send(self.ledger.make_groups_due())


async def _tried(work: Awaitable[Any]) -> None:
    with log_if_redis_is_away(logger.debug, "waiting jobs are not woken now; housekeeping will do it"):
        await work


def wait_group_of(job: JobProfile, tried: frozenset[str], tenant: str | None, batch: str | None, now: float) -> str:
    """The line of all jobs for which there is room at the same time: of equal wishes, like size and like haste, for one
    whose deadline is near takes a dearer endpoint while others wait for the cheapest.
    """
    return _named(
        job.requirements,
        tenant,
        batch,
        job.constraints.lane,
        job.constraints.strategy,
        job.constraints.order,
        job.constraints.max_latency_s,
        job.constraints.max_cost_microusd,
        None if job.deadline is None else int(max(0.0, job.deadline - now)).bit_length(),
        job.input_at(UNKNOWN).upper.bit_length(),
        (job.output_tokens or 0).bit_length(),
        tried,
    )


@lru_cache(REMEMBERED)
def _named(requirements: Requirements, *same: Any) -> str:
    """Its name: the same in all workers, though their sets differ in order."""
    text = json.dumps((CONTRACT_VERSION, asdict(requirements), same), default=sorted)
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
