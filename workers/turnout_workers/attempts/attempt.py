"""One attempt at a job: claim → rank → admit → call → settle, or move on. No Celery, no HTTP, no Lua here.

Each step is done elsewhere: the ledger knows the job, `search.py` finds an endpoint that has room, `calling.py` calls
it, `judging.py` says what follows, `closing.py` writes the end. This module is their order.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from functools import partial

from pydantic import ValidationError

from turnout.errors import Unreadable
from turnout.ledger import NotClaimed
from turnout.request import InferenceRequest
from turnout.result import JobStatus
from turnout.validation import explain, is_of_a_later_release
from turnout_workers.attempts.calling import Caller
from turnout_workers.attempts.closing import JobEnds
from turnout_workers.attempts.job import End, HeldJob
from turnout_workers.attempts.judging import Judge, Judged
from turnout_workers.attempts.parts import Parts
from turnout_workers.attempts.reporting import Finished, Reporter
from turnout_workers.attempts.search import MIXED_S, RECHECK_S, EndpointSearch
from turnout_workers.attempts.streaming import Pieces
from turnout_workers.monitoring import logs, tracing
from turnout_workers.providers.base import current_job
from turnout_workers.routing.decision import Candidate
from turnout_workers.routing.failover import Next
from turnout_workers.state.store import Granted

logger = logging.getLogger(__name__)


class Attempts:
    """Makes attempts at jobs, any number at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        router = parts.current.config.router
        reporter = Reporter(parts.store, parts.fleet, router.failover_cooldown, parts.rng, parts.metrics.called)
        self._caller = Caller(parts.fleet, reporter, parts.watch, parts.current.connector)
        self._ends = JobEnds(parts)
        self._judge = Judge(reporter, parts.rng, router.hedge)
        self._search = EndpointSearch(parts, self._judge, self._ends)

    async def run(self, job_id: str, not_before: float = 0.0) -> End:
        """Claim the job and take it as far as it goes now. Until `not_before` (Unix time) it is parked."""
        current_job.set(job_id)
        claimed_at = asyncio.get_running_loop().time()
        parts = self._parts
        claim = await parts.send.uninterrupted(parts.ledger.claim(job_id, parts.owner, parts.heartbeat.ttl_s))
        if isinstance(claim, NotClaimed):
            return await self._unclaimed(job_id, claim)
        self._search.learn_from(claim)
        if not claim.progress:
            parts.metrics.claimed(claim.lane, parts.fleet.now() - claim.accepted_at)
        with parts.heartbeat.holding(job_id, claim.token, claimed_at) as hold:
            job = HeldJob.of(claim, hold)
            with tracing.holding(job) as span:
                end = await self._work(job, not_before)
                if span:
                    span.set_attribute("turnout.outcome", end.how)
                logger.info("%s: %s", end.how, end.note)
        parts.metrics.ended(claim.lane, end.how)
        return end

    async def _unclaimed(self, job_id: str, claim: NotClaimed) -> End:
        if claim.state == "unknown_version":
            logger.error("job %s has a record version that this release doesn't know; it is left untouched", job_id)
        elif claim.state == "unknown_key":
            why = Unreadable("its request", claim.key, self._parts.ledger.keyring.refs)
            logger.error("job %s is left queued: %s", job_id, why)
        elif claim.state in set(JobStatus):  # perhaps not ended by a worker
            await self._parts.send.uninterrupted(self._parts.ledger.close_account(job_id))
        return End("skipped", f"can't be claimed: {claim.state}")

    async def _work(self, job: HeldJob, not_before: float) -> End:
        if not isinstance(unread := job.claim.request, InferenceRequest):
            return await self._unread(job, unread)
        job.progress.not_before = max(job.progress.not_before, not_before)
        if (early_s := job.progress.not_before - self._parts.fleet.now()) > 0:
            return await self._ends.park_until(job, early_s, "the time that its sender set")
        try:
            while True:
                step = await self._search.find(job)
                if step is None:
                    continue
                if isinstance(step, End):
                    return step
                finished = await self._judge.start(
                    step, partial(self._search.admit, job, second=True), partial(self._begin, job)
                )
                if (end := await self._follow(job, self._judge.judge(job, step, finished))) is not None:
                    return end
        except asyncio.CancelledError:  # while it waited for a provider, for room, or to retry a call
            if job.hold.lost:
                self._parts.metrics.lease_lost()
                return End("skipped", "the lease was lost")
            return await self._ends.hand_back(job)  # the worker stops

    async def _unread(self, job: HeldJob, error: Unreadable | ValidationError) -> End:
        """Fail a job whose request can't be read, or leave it for a while to workers that may know its fields."""
        age_s = self._parts.fleet.now() - job.claim.accepted_at
        if age_s < MIXED_S and isinstance(error, ValidationError) and is_of_a_later_release(error):
            return await self._ends.park_until(job, max(RECHECK_S, age_s), "a worker of a later release takes it")
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        logger.error("job %s fails, its request can't be read: %s", job.id, why)
        return await self._ends.give_up(job, JobStatus.FAILED, "unreadable", why)

    async def _follow(self, job: HeldJob, judged: Judged) -> End | None:
        """Act on how the call went. None: look for an endpoint again."""
        end = None if job.retry_endpoint else await self._end(job, judged)
        await judged.reports_delivered()
        self._parts.parking.wake(job.wait_group)
        if job.retry_endpoint:
            left_s = math.inf if job.deadline is None else job.deadline - self._parts.fleet.now()
            await asyncio.sleep(min(judged.verdict.delay_s, left_s))
        return end

    def _begin(self, job: HeldJob, chosen: Candidate, grant: Granted) -> Awaitable[Finished]:
        logs.at_attempt(grant.lease_id, chosen.endpoint.provider)
        parts, pieces = self._parts, None
        if job.claim.stream:
            kept_s = parts.current.config.retention.results_s
            pieces = Pieces(parts.ledger, parts.send, job.id, grant.lease_id, kept_s)
        return tracing.called(job, chosen, self._caller.call(job, chosen, grant, pieces))

    async def _end(self, job: HeldJob, judged: Judged) -> End:
        """End this worker's hold on the job after its last call here."""
        verdict, call, ends = judged.verdict, judged.call, self._ends
        if call.failure is None:
            return await ends.succeed(job, call.response)
        match verdict.action:
            case Next.FAIL_OVER:
                job.progress.failovers += 1
                if verdict.delay_s > 0:
                    return await ends.park(job, verdict.delay_s)
                return await ends.fail_over(job, call.attempt)
            case Next.DEFER:
                return await ends.park(job, verdict.delay_s, new_round=True)
            case _:
                kind, message = call.failure.kind.value, call.failure.message
                return await ends.give_up(job, JobStatus.FAILED, kind, message)
