"""How this worker's hold on a job ends: settled, failed over, parked, or handed back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError, ResponseError

from turnout.ledger import Operation, write_result
from turnout.request import InferenceResponse
from turnout.result import Attempt, JobResult, JobStatus, Problem
from turnout_workers.attempts.job import End, HeldJob, MovedOn
from turnout_workers.attempts.parts import Parts
from turnout_workers.monitoring import tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEnds:
    """Ends held jobs in the ledger."""

    parts: Parts

    async def succeed(self, job: HeldJob, response: InferenceResponse | None) -> End:
        return await self._settle(job, self._result(job, JobStatus.SUCCEEDED, response))

    async def give_up(self, job: HeldJob, status: JobStatus, code: str, message: str) -> End:
        retryable = status is JobStatus.FAILED and code not in ("refused", "unreadable")
        problem = Problem(code=code, message=message, retryable=retryable)
        return await self._settle(job, self._result(job, status, error=problem))

    async def at_ceiling(self, job: HeldJob, account: str) -> End:
        message = f"a call may cost more than what is left under the cost ceiling of {account}, or has no known price"
        status = JobStatus.EXPIRED if account.startswith("batch:") else JobStatus.FAILED
        return await self.give_up(job, status, "cost_ceiling", message)

    async def fail_over(self, job: HeldJob, failed: Attempt) -> End:
        """Return the job to its lane's front, for another endpoint."""
        event = {"event": "failed_over", "from": failed.endpoint, "failure": failed.failure}
        progress = job.progress.to_json()
        operation = self.parts.ledger.requeue(job.id, job.claim.token, progress, event, job.decision_json, failovers=1)
        note = f"{failed.endpoint} failed ({failed.failure}); moving to another endpoint"
        return await self._move(job, operation, "failed_over", note)

    async def park(
        self, job: HeldJob, wait_s: float, *, new_round: bool = False, wait_group: str = "", for_room: bool = True
    ) -> End:
        """Park the job with its wait group. new_round, for_room: see `Progress.park`."""
        job.progress.park(self.parts.fleet.now(), new_round, for_room)
        event: dict[str, object] = {"event": "deferred", "for_s": round(wait_s, 3)}
        if job.decision_json is None:
            event["behind"] = "others that wait for the same"
        operation = self.parts.ledger.park(
            job.id, job.claim.token, wait_s, job.progress.to_json(), event, wait_group, job.decision_json
        )
        why = ": nothing has room" if for_room and not new_round else ""
        return await self._move(job, operation, "deferred", f"parked for {wait_s:.1f} s{why}")

    async def park_until(self, job: HeldJob, wait_s: float, until: str) -> End:
        """Park the job for this long, whatever happens meanwhile. until: what it waits for."""
        event = {"event": "deferred", "for_s": round(wait_s, 3), "until": until}
        operation = self.parts.ledger.park_until(job.id, job.claim.token, wait_s, job.progress.to_json(), event)
        return await self._move(job, operation, "deferred", f"parked for {wait_s:.1f} s, until {until}")

    async def hand_back(self, job: HeldJob) -> End:
        """Return the job to its lane's front for another worker, with what was tried here."""
        event = {"event": "handed_back"}
        operation = self.parts.ledger.requeue(job.id, job.claim.token, job.progress.to_json(), event)
        return await self._move(job, operation, "handed_back", "handed back to its lane")

    async def _move(self, job: HeldJob, operation: Operation[bool], how: MovedOn, note: str) -> End:
        job.hold.ending = True
        moved = await self.parts.send.uninterrupted(operation)
        return End(how, note) if moved else End("skipped", "it was no longer ours")

    async def _settle(self, job: HeldJob, result: JobResult) -> End:
        """Write the job's result to the ledger, or to disk if Redis is away, because it has been paid for."""
        claim = job.claim
        accounts = [ceiling.account for ceiling in job.ceilings]
        keep = self.parts.current.config.retention
        settlement = self.parts.ledger.settle(
            claim.token, result, job.decision_json, keep.results_s, claim.batch, keep.failed_s
        )
        kept: Path | None = None
        job.hold.ending = True
        try:
            with tracing.span("turnout.settle", **{"turnout.outcome": result.status.value}):
                try:
                    taken = await self.parts.send(settlement)
                except asyncio.CancelledError:
                    # The worker stops, or the lease is over and Redis may be away. So write to disk first, then try
                    # again: the ledger accepts the result only once.
                    kept = self._keep(job, result, accounts)
                    taken = await self.parts.send.uninterrupted(settlement)
        except ResponseError:
            raise  # Redis refused it: our fault, so it would refuse it later, too
        except (RedisError, OSError) as error:
            kept = kept or self._keep(job, result, accounts)
            where = "its result waits on disk" if kept else "its result is lost, and the job will run again"
            logger.warning("job %s can't be settled now (%s); %s", job.id, error, where)
            return End("skipped", where)
        # Otherwise it was settled from disk meanwhile, and booked.
        ours_to_book = kept is None or self.parts.spool.drop(kept)
        if not taken.accepted:
            if ours_to_book and taken.duplicate and result.cost_microusd:
                await self.parts.store.mark_duplicate(accounts, result.attempts[-1].cost_microusd)
            return End("skipped", f"result dropped: the job is already {taken.state or 'gone'}")
        if job.request.constraints.max_cost_microusd is not None:
            with suppress(RedisError, OSError):  # closed later, as if the job had ended without its worker
                await self.parts.send.uninterrupted(self.parts.ledger.close_account(job.id))
        return End(result.status, result.summary(), result)

    def _keep(self, job: HeldJob, result: JobResult, accounts: Sequence[str]) -> Path | None:
        """The file with the result; None if the disk fails, too."""
        fields = {"job": job.id, "token": job.claim.token, "batch": job.claim.batch, "accounts": accounts}
        try:
            text = write_result(result, self.parts.ledger.keyring)
            return self.parts.spool.keep({**fields, "result": json.loads(text)})
        except OSError as error:
            logger.error("the result of job %s can't be written to disk: %s", job.id, error)
            return None

    def _result(
        self, job: HeldJob, status: JobStatus, response: InferenceResponse | None = None, error: Problem | None = None
    ) -> JobResult:
        progress = job.progress
        return JobResult(
            id=job.id,
            status=status,
            response=response,
            error=error,
            # With payload keys, only the job's record has the metadata, sealed.
            metadata={} if self.parts.ledger.keyring else job.request.metadata,
            attempts=progress.attempts,
            failovers=progress.failovers,
            deferrals=progress.deferrals,
            accepted_at=job.claim.accepted_at,
            started_at=progress.attempts[0].started_at if progress.attempts else None,
            settled_at=self.parts.fleet.now(),
            cost_microusd=progress.cost_microusd,
            unsure_microusd=progress.unsure_microusd,
        )
