"""One attempt at a job: claim → rank → admit → call → settle, or move on. No Celery, no HTTP, no Lua here.

Each step is somebody else's: the ledger knows the job, `search.py` finds it an endpoint that has room, `calling.py`
calls, `judging.py` says what follows, `closing.py` writes the end. What is here is their order.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial

from pydantic import ValidationError

from turnout.errors import Unreadable
from turnout.ledger import Coalescer, Ledger, NotClaimed
from turnout.request import InferenceRequest
from turnout.result import Attempt, JobStatus
from turnout.validation import explain
from turnout_workers.attempts.calling import Calling
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.closing import Closing
from turnout_workers.attempts.held import End, HeldJob, Skipped, outcome
from turnout_workers.attempts.judging import Judged, Judging, Room
from turnout_workers.attempts.parking import Parking
from turnout_workers.attempts.progress import Progress
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.attempts.search import Search, Searching
from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.background.spool import Spool
from turnout_workers.config.in_force import InForce
from turnout_workers.crash_points import reached
from turnout_workers.monitoring import logs, tracing
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.providers.base import current_job
from turnout_workers.routing.decision import Candidate, Hedge
from turnout_workers.routing.failover import Next
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore, Granted

logger = logging.getLogger(__name__)


class Attempts:
    """Makes attempts at jobs, any number at a time."""

    def __init__(
        self,
        *,
        owner: str,
        ledger: Ledger,
        send: Coalescer,
        store: FleetStore,
        fleet: SnapshotPoller,
        heartbeat: Heartbeat,
        ceilings: ConfiguredCeilings,
        spool: Spool,
        in_force: InForce,
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self._owner = owner
        self._ledger = ledger
        self._send = send
        self._fleet = fleet
        self._heartbeat = heartbeat
        self._in_force = in_force
        self._metrics = metrics
        reporter = Reporter(store, fleet, in_force.file.router.failover_cooldown, rng, metrics)
        self.under_way = UnderWay()
        self._calling = Calling(
            ledger=ledger, send=send, fleet=fleet, reporter=reporter, in_force=in_force, under_way=self.under_way
        )
        self._closing = Closing(
            ledger=ledger, send=send, store=store, fleet=fleet, ceilings=ceilings, spool=spool, in_force=in_force
        )
        self._judging = Judging(reporter, rng, in_force.file.router.hedge)
        self.parking = Parking(ledger, send)
        self._searching = Searching(
            store=store,
            fleet=fleet,
            ttl_s=heartbeat.ttl_s,
            ceilings=ceilings,
            judging=self._judging,
            closing=self._closing,
            parking=self.parking,
            under_way=self.under_way,
            in_force=in_force,
            metrics=metrics,
            rng=rng,
        )

    async def __call__(self, job_id: str, not_before: float = 0.0) -> End:
        """Claim the job and take it as far as it goes now: until `not_before`, Unix time, it is parked."""
        current_job.set(job_id)
        claimed_at = asyncio.get_running_loop().time()
        claim = await self._send.whole(self._ledger.claim(job_id, self._owner, self._heartbeat.ttl_s))
        if isinstance(claim, NotClaimed):
            return await self._unclaimed(job_id, claim)
        self._searching.learn(claim)
        reached("claimed")
        if not claim.progress:
            self._metrics.claimed(claim.lane, self._fleet.now() - claim.accepted_at)
        with self._heartbeat.holding(job_id, claim.token, claimed_at) as hold:
            if not isinstance(request := claim.request, InferenceRequest):
                why = explain(request) if isinstance(request, ValidationError) else str(request)
                return await self._closing.unreadable(hold, claim, why)
            job = HeldJob(job_id, claim, request, hold, Progress.from_json(claim.progress))
            with tracing.holding(job) as span:
                end = await self._work(job, not_before)
                if span:
                    span.set_attribute("turnout.outcome", outcome(end))
                logger.info("%s: %s", outcome(end), end)
        self._metrics.ended(claim.lane, outcome(end))
        return end

    async def _unclaimed(self, job_id: str, claim: NotClaimed) -> Skipped:
        if claim.state == "unknown_version":
            logger.error("job %s has a record of a version unknown here; it is left untouched", job_id)
        elif claim.state == "unknown_key":
            why = Unreadable("its request", claim.key, self._ledger.keyring.refs)
            logger.error("job %s is left queued: %s", job_id, why)
        elif claim.state in set(JobStatus):  # perhaps ended by others than a worker
            await self._closing.forget(job_id)
        return Skipped(f"not to be claimed: {claim.state}")

    async def _work(self, job: HeldJob, not_before: float) -> End:
        if not_before > job.progress.not_before:
            job.progress = replace(job.progress, not_before=not_before)
        known = self._in_force.settings.webhooks
        if (webhook := job.claim.webhook) and webhook not in known:
            message = f"no webhook is called {webhook}; there are {', '.join(sorted(known)) or 'none'}"
            return await self._closing.give_up(job, JobStatus.FAILED, "refused", message)
        if (early_s := job.progress.not_before - self._fleet.now()) > 0:
            return await self._closing.put_off(job, early_s)
        search = Search.of(job)
        try:
            while True:
                found = await self._searching(job, search)
                if isinstance(found, Room):
                    # Thousands wait here at a time: so no frame, and no partial, that a lone call can do without.
                    stopped: list[Attempt] = []
                    if found.hedge is None:
                        calls = [await self._begin(job, stopped, found.chosen, found.grant)]
                    else:
                        calls = await self._race(job, stopped, found, found.hedge)
                    judged = self._judging(found, job.request, job.progress, calls, stopped, search.retries_here)
                    found = await self._follow(job, search, judged)
                if found is not None:
                    return found
        except asyncio.CancelledError:  # where it waited: for a provider, for room, or to repeat a call
            if job.hold.lost:
                self._metrics.lease_lost()
                return Skipped("the lease was lost")
            return await self._closing.hand_back(job)  # the worker stops

    async def _follow(self, job: HeldJob, search: Search, judged: Judged) -> End | None:
        """Act on how the call went. None: look for an endpoint again."""
        again = judged.verdict.action is Next.RETRY
        job.progress = judged.progress
        end = None if again else await self._end(job, judged, search.record)
        await judged.told()
        self._searching.wake_next(job, search)
        if again:
            search.again = judged.call.chosen.endpoint.id
            search.retries_here += 1
            await asyncio.sleep(judged.verdict.delay_s)
        return end

    async def _race(self, job: HeldJob, stopped: list[Attempt], room: Room, hedge: Hedge) -> list[Finished]:
        begin, admit = partial(self._begin, job, stopped), partial(self._searching.admit, job, second=True)
        return await self._judging.hedging.race(hedge, begin(room.chosen, room.grant), admit, begin)

    def _begin(self, job: HeldJob, stopped: list[Attempt], chosen: Candidate, grant: Granted) -> Awaitable[Finished]:
        logs.at_attempt(grant.lease_id, chosen.endpoint.provider)
        return tracing.called(job, chosen, self._calling(job, chosen, grant, stopped))

    async def _end(self, job: HeldJob, judged: Judged, record: bytes) -> End:
        """What becomes of the job after its last call here."""
        verdict, call, closing = judged.verdict, judged.call, self._closing
        if call.failure is None:
            return await closing.succeed(job, call.response, record)
        match verdict.action:
            case Next.FAIL_OVER:
                job.progress = job.progress.failed_over()
                if verdict.delay_s > 0:
                    return await closing.defer(job, verdict.delay_s, record)
                return await closing.fail_over(job, record, call.attempt)
            case Next.DEFER:
                return await closing.defer(job, verdict.delay_s, record, new_round=True)
            case _:
                kind, message = call.failure.kind.value, call.failure.message
                return await closing.give_up(job, JobStatus.FAILED, kind, message, record)
