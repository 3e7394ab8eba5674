"""What somebody must do for the whole fleet: wake parked jobs, take back those of the dead, find what was lost.

Every worker runs this, and a mutex in Redis lets one at a time do a round. Each round is bounded; what is left
comes with the next. All of it may run twice or be cut off anywhere without harm, for each step is one atomic
operation on one job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import ResponseError

from turnout.ledger import Coalescer, Facts, Ledger, Operation
from turnout.ledger.operations import nothing
from turnout.request import Lane
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.monitoring.metrics import Recovery
from turnout_workers.state import fitness
from turnout_workers.state.fast_pipeline import TakesNoWrites
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

EVERY_S = 0.25
"""Between rounds: how late a parked job may wake."""
MUTEX_S = 2.0
"""How long after a worker's last round another one takes over, as a rule because that worker has died."""
BATCH = 1000
"""Most jobs of each kind in one round."""
NEXT_S = 5.0
"""How long after the first of a line of parked jobs the next one looks, if the first has woken none."""
LOST_AFTER_S = 5.0
"""Between two looks at the front of a lane: a queued job that has no message at both has lost it."""
LAPSE, POISON = 3, 9
"""What a lapsed lease counts if its worker may have died; it counts 1 if that one lives. From so much on, the job is
poison: as a rule it was at work at three deaths, or it keeps its workers from renewing."""
WHY_POISON = "three workers died, or up to seven lost their leases, while it was being worked on"
INTAKE_CHECK_S = 2.0


@dataclass(slots=True)
class Housekeeping:
    """Rounds of fleet-wide work, by whichever worker holds the mutex."""

    ledger: Ledger
    send: Coalescer
    store: FleetStore
    owner: str
    current: CurrentConfig
    also: Sequence[Callable[[], Awaitable[None]]]
    """What else is done once a round."""
    recovered: Callable[[Recovery, int], None]
    """Is told how many jobs were brought back, and how."""
    _fronts: dict[Lane, tuple[float, int]] = field(default_factory=dict, init=False)
    """Of each lane: when its front was looked at, and its place."""
    _intake_checked_at: float = field(default=0.0, init=False)
    _full: bool = field(default=False, init=False)
    _keeps: bool = field(default=True, init=False)

    async def turn(self) -> None:
        """A round, if it is this worker's turn."""
        if await self.send(self.ledger.take_mutex(self.owner, MUTEX_S)):
            await self.round()

    async def round(self) -> None:
        """One bounded round. A part that fails on what stands in Redis, or because it is full, keeps no other one
        from being done."""
        failed: Exception | None = None
        end_calls: Callable[[], Awaitable[object]] = partial(self.store.expire, BATCH)
        parts = (self._wake, self._take_back, self._expire, self._republish, end_calls, self._guard_intake)
        for part in (*parts, *self.also):
            try:
                await part()
            except (ResponseError, TakesNoWrites, ValueError) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _wake(self) -> None:
        """Let the first of each line of parked jobs look for room, and give out turns that came free."""
        due = await self.send(self.ledger.due(BATCH))
        woken = await self.send.all(*(self.ledger.wake(job_id, NEXT_S) for job_id in due))
        self.recovered("woken", sum(woken))
        spare = await self.send(self.ledger.spare(BATCH))
        await self.send.all(*map(self.ledger.bring, spare))

    async def _take_back(self) -> None:
        """Queue jobs again whose leases are over, or give them up."""
        lapsed = await self.send(self.ledger.lapsed(BATCH))
        fates = await self.send.all(*(self.ledger.sweep(job_id, LAPSE, POISON) for job_id in lapsed))
        poison = [job_id for job_id, fate in zip(lapsed, fates, strict=True) if fate == "poison"]
        self.recovered("poison", len(poison))
        self.recovered("swept", again := fates.count("queued"))
        if again:
            logger.warning("took back %d jobs, whose leases ran out", again)
        for job_id, job in await self._known(poison):
            await self.send(self.ledger.give_up(job_id, WHY_POISON, job.batch, self.current.config.retention.failed_s))
            logger.warning("job %s is given up: %s", job_id, WHY_POISON, extra={"job": job_id})

    async def _expire(self) -> None:
        """End jobs that wait past their deadlines."""
        overdue = await self._known(await self.send(self.ledger.overdue(BATCH)))
        late = await self.send.all(*(self.ledger.expire(job_id, job.batch) for job_id, job in overdue))
        self.recovered("expired", sum(one.accepted for one in late))

    async def _republish(self) -> None:
        """Publish queued jobs again whose messages were lost."""
        now = asyncio.get_running_loop().time()
        for lane in Lane:
            seen_at, before = self._fronts.get(lane, (-LOST_AFTER_S, 0))
            if now - seen_at < LOST_AFTER_S:
                continue
            front, missing = await self.send(self.ledger.lost(lane, before, BATCH))
            republish = (self.ledger.republish(job_id, before, LOST_AFTER_S) for job_id in missing)
            again = await self.send.all(*republish)
            if len(missing) < BATCH:  # else the next round goes on with those behind
                self._fronts[lane] = now, front
            self.recovered("republished", sum(again))
            if any(again):
                logger.warning("lane %s: published %d again whose messages were lost", lane, sum(again))

    async def _known(self, job_ids: list[str]) -> list[tuple[str, Facts]]:
        """Those of the jobs that there are, with what is known of them."""
        facts = await self.send.all(*map(self.ledger.facts, job_ids))
        return [(job_id, job) for job_id, job in zip(job_ids, facts, strict=True) if job is not None]

    async def _guard_intake(self) -> None:
        """Close the intake while memory is short, so that what was accepted can be settled. Say if jobs may be evicted:
        nobody else would."""
        now = asyncio.get_running_loop().time()
        if now - self._intake_checked_at < INTAKE_CHECK_S:
            return
        self._intake_checked_at = now
        memory = await self.send(Operation(("INFO", "memory"), lambda reply: reply))
        kept, (self._keeps, policy) = self._keeps, fitness.keeping(memory)
        if kept and not self._keeps:
            logger.error("Redis is not fit for production: %s", policy)
        was_full, self._full = self._full, fitness.is_full(memory)
        used = memory["used_memory"], memory["maxmemory"]
        if self._full and not was_full:
            logger.error("Redis uses %d of %d bytes: no new jobs are accepted", *used)
        elif was_full and not self._full:
            logger.info("Redis uses %d of %d bytes: new jobs are accepted again", *used)
        intake = self.ledger.keys.intake
        if self._full:
            with contextlib.suppress(TakesNoWrites):  # then Redis itself accepts none
                await self.send(Operation(("SET", intake, "memory", "EX", int(INTAKE_CHECK_S * 3)), nothing))
        else:
            await self.send(Operation(("DEL", intake), nothing))
