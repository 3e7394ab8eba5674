"""Work that one worker does for the whole fleet: wake parked jobs, take back jobs of dead workers, find lost messages.

Every worker runs this, and a mutex in Redis lets one at a time do a round. Each round is bounded; what is left
comes with the next. All of it may run twice or be cut off anywhere without harm, because each step is one atomic
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
"""How long after a worker's last round another one takes over, usually because that worker has died."""
MAX_JOBS = 1000
"""Most jobs of each kind in one round."""
NEXT_S = 5.0
"""If the first of the parked jobs that wait for the same thing has woken no other, the next one looks after this
time."""
LOST_AFTER_S = 5.0
"""Time between two looks at the front of a lane. A queued job without a message at both has lost it."""
LAPSE, POISON = 3, 9
"""A lapsed lease counts `LAPSE` points if its worker may have died, and 1 point if that worker lives. With `POISON`
points a job is poison: usually three workers died while it was being worked on, or it keeps its workers from
renewing."""
WHY_POISON = "three workers died, or up to seven lost their leases, while it was being worked on"
INTAKE_CHECK_S = 2.0


@dataclass(slots=True)
class Housekeeping:
    """Rounds of fleet-wide work, in the worker that holds the mutex."""

    ledger: Ledger
    send: Coalescer
    store: FleetStore
    owner: str
    current: CurrentConfig
    also: Sequence[Callable[[], Awaitable[None]]]
    """Further work, done once a round."""
    recovered: Callable[[Recovery, int], None]
    """Called with how jobs were brought back, and how many."""
    _fronts: dict[Lane, tuple[float, int]] = field(default_factory=dict, init=False)
    """By lane: when its front was looked at, and the position of the front."""
    _intake_checked_at: float = field(default=0.0, init=False)
    _full: bool = field(default=False, init=False)
    _keeps: bool = field(default=True, init=False)

    async def run_if_ours(self) -> None:
        """Do a round if this worker holds the mutex."""
        if await self.send(self.ledger.take_mutex(self.owner, MUTEX_S)):
            await self.round()

    async def round(self) -> None:
        """One bounded round. A part that fails because of what is in Redis, or because Redis is full, doesn't stop the
        others."""
        failed: Exception | None = None
        end_calls: Callable[[], Awaitable[object]] = partial(self.store.expire, MAX_JOBS)
        parts = (self._wake, self._take_back, self._expire, self._republish, end_calls, self._guard_intake)
        for part in (*parts, *self.also):
            try:
                await part()
            except (ResponseError, TakesNoWrites, ValueError) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _wake(self) -> None:
        """Let the first of the parked jobs that wait for the same thing look for room, and hand out turns that came
        free."""
        due = await self.send(self.ledger.due_heads(MAX_JOBS))
        woken = await self.send.all(*(self.ledger.wake(job_id, NEXT_S) for job_id in due))
        self.recovered("woken", sum(woken))
        spare = await self.send(self.ledger.hand_out_turns(MAX_JOBS))
        await self.send.all(*map(self.ledger.publish_turn, spare))

    async def _take_back(self) -> None:
        """Queue jobs again whose leases ran out, or give them up."""
        lapsed = await self.send(self.ledger.lapsed(MAX_JOBS))
        fates = await self.send.all(*(self.ledger.sweep(job_id, LAPSE, POISON) for job_id in lapsed))
        poison = [job_id for job_id, fate in zip(lapsed, fates, strict=True) if fate == "poison"]
        self.recovered("poison", len(poison))
        self.recovered("swept", requeued := fates.count("queued"))
        if requeued:
            logger.warning("took back %d jobs whose leases ran out", requeued)
        for job_id, job in await self._known(poison):
            await self.send(self.ledger.give_up(job_id, WHY_POISON, job.batch, self.current.config.retention.failed_s))
            logger.warning("job %s is given up: %s", job_id, WHY_POISON, extra={"job": job_id})

    async def _expire(self) -> None:
        """End waiting jobs whose deadlines have passed."""
        overdue = await self._known(await self.send(self.ledger.overdue(MAX_JOBS)))
        late = await self.send.all(*(self.ledger.expire(job_id, job.batch) for job_id, job in overdue))
        self.recovered("expired", sum(end.accepted for end in late))

    async def _republish(self) -> None:
        """Publish the messages of queued jobs that were lost."""
        now = asyncio.get_running_loop().time()
        for lane in Lane:
            seen_at, before = self._fronts.get(lane, (-LOST_AFTER_S, 0))
            if now - seen_at < LOST_AFTER_S:
                continue
            front, missing = await self.send(self.ledger.without_message(lane, before, MAX_JOBS))
            republish = (self.ledger.republish(job_id, before, LOST_AFTER_S) for job_id in missing)
            again = await self.send.all(*republish)
            if len(missing) < MAX_JOBS:  # else the next round continues with those behind
                self._fronts[lane] = now, front
            self.recovered("republished", sum(again))
            if any(again):
                logger.warning("lane %s: republished %d jobs whose messages were lost", lane, sum(again))

    async def _known(self, job_ids: list[str]) -> list[tuple[str, Facts]]:
        """Those of the jobs that exist, with their facts."""
        facts = await self.send.all(*map(self.ledger.facts, job_ids))
        return [(job_id, job) for job_id, job in zip(job_ids, facts, strict=True) if job is not None]

    async def _guard_intake(self) -> None:
        """Close the intake while memory is short, so that accepted jobs can be settled. Log if Redis may evict jobs:
        nothing else would."""
        now = asyncio.get_running_loop().time()
        if now - self._intake_checked_at < INTAKE_CHECK_S:
            return
        self._intake_checked_at = now
        memory = await self.send(Operation(("INFO", "memory"), lambda reply: reply))
        kept_before, (self._keeps, policy) = self._keeps, fitness.eviction(memory)
        if kept_before and not self._keeps:
            logger.error("Redis is not fit for production: %s", policy)
        was_full, self._full = self._full, fitness.is_full(memory)
        used = memory["used_memory"], memory["maxmemory"]
        if self._full and not was_full:
            logger.error("Redis uses %d of %d bytes: no new jobs are accepted", *used)
        elif was_full and not self._full:
            logger.info("Redis uses %d of %d bytes: new jobs are accepted again", *used)
        intake = self.ledger.keys.intake
        if self._full:
            with contextlib.suppress(TakesNoWrites):  # then Redis accepts none itself
                await self.send(Operation(("SET", intake, "memory", "EX", int(INTAKE_CHECK_S * 3)), nothing))
        else:
            await self.send(Operation(("DEL", intake), nothing))
