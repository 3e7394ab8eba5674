"""Jobs that nothing has room for: which of them wait for the same, and how they are woken one after the other.

The ledger keeps parked jobs in wait groups. The first of a group looks for room when its time comes. A job that finds
room wakes the next of its group, and one more when its call has ended. So a group is woken as fast as room appears and
no faster, and the jobs behind the first cost nothing while they wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from turnout.ledger import Coalescer, Ledger
from turnout.request import CONTRACT_VERSION
from turnout_workers.background.tasks import log_if_redis_is_away, spawn
from turnout_workers.routing.images import UNKNOWN
from turnout_workers.routing.profile import JobProfile, Requirements

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 1000
"""Wait groups whose wait a worker remembers."""


class GroupWait(NamedTuple):
    until: float
    for_room: bool
    """Room is all that the group waits for."""


NO_WAIT = GroupWait(0.0, True)


@dataclass(slots=True, eq=False)
class Parking:
    """What one worker knows about wait groups, and does for them."""

    ledger: Ledger
    send: Coalescer
    any_parked: bool = field(default=False, init=False)
    """Whether any jobs were parked at this worker's last claim: if not, none need to be woken."""
    in_place: set[str] = field(default_factory=set, init=False)
    """Wait groups of which a job waits here in its slot, to get room the moment it appears. One job of each group is
    enough: more would hold slots that other jobs can use."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _waits: dict[str, GroupWait] = field(default_factory=dict, init=False)
    _to_wake: dict[str, int] = field(default_factory=dict, init=False)
    """How many jobs are still to be woken, by wait group."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def note_wait(self, group: str, until: float, now: float, for_room: bool) -> None:
        """A job of this group was refused; it must not ask before `until`."""
        if len(self._waits) >= MAX_REMEMBERED:
            self._waits = {other: wait for other, wait in self._waits.items() if wait.until > now}
        self._waits[group] = GroupWait(until, for_room)
        self.any_parked = True

    def wait_of(self, group: str) -> GroupWait:
        """The wait that a fresh job joins, so that those that came first get room first."""
        return self._waits.get(group, NO_WAIT) if self.any_parked else NO_WAIT

    async def wait_in_place(self, group: str, wait_s: float) -> None:
        """Wait for a time, or until something changes. group: '' if nothing is parked and any number may wait."""
        if group:
            self.in_place.add(group)
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self.in_place.discard(group)

    def wake(self, group: str, count: int = 1) -> None:
        """Wake this many jobs of the group in the background: where one found room there may be more, and there is
        again once its call has ended. Two if one ends because there will never be room: so do those behind it.
        """
        if not self.any_parked:
            return
        under_way = group in self._to_wake
        self._to_wake[group] = self._to_wake.get(group, 0) + count
        if not under_way:
            spawn(_best_effort(self._wake(group)), self._tasks)

    async def _wake(self, group: str) -> None:
        heads, before = [""], list[str]()
        try:
            while (count := self._to_wake[group]) and heads != before:
                before, heads = heads, await self.send(self.ledger.head_of_group(group, count))
                woken = await self.send.all(*map(self.ledger.wake, reversed(heads)))
                # Another worker may have woken some of them first: then go on with those behind them.
                self._to_wake[group] -= sum(woken) if len(heads) == count else count
        finally:
            del self._to_wake[group]

    def publish_turn(self, job_id: str) -> None:
        """Publish, in the background, a job that waited for its turn among its tenant's jobs."""
        spawn(_best_effort(self.send(self.ledger.publish_turn(job_id))), self._tasks)

    async def look_again_now(self) -> None:
        """Let the jobs in place and the first of each group look now: what they wait for may have come."""
        self._waits.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        await self.send(self.ledger.make_groups_due())


async def _best_effort(work: Awaitable[Any]) -> None:
    with log_if_redis_is_away(logger.debug, "waiting jobs aren't woken now; housekeeping will do it"):
        await work


def wait_group_of(job: JobProfile, tried: frozenset[str], tenant: str | None, batch: str | None, now: float) -> str:
    """The group of all jobs that find room at the same time: with equal constraints, similar size and similar haste,
    because a job near its deadline takes a dearer endpoint while others wait for the cheapest.
    """
    return _group_name(
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


@lru_cache(MAX_REMEMBERED)
def _group_name(requirements: Requirements, *same: Any) -> str:
    """The group's name: the same in all workers, though their sets differ in order."""
    text = json.dumps((CONTRACT_VERSION, asdict(requirements), same), default=sorted)
    return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()
