"""The end of this worker's hold on a job: settled, over to another endpoint, parked, or handed back."""

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
from turnout_workers.attempts.job import Elsewhere, End, HeldJob
from turnout_workers.attempts.parts import Parts
from turnout_workers.monitoring import tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobEnds:
    """Writes to the ledger what becomes of held jobs."""

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
        """Back to the lane's front, for another endpoint."""
        event = {"event": "failed_over", "from": failed.endpoint, "failure": failed.failure}
        progress = job.progress.to_json()
        call = self.parts.ledger.requeue(job.id, job.claim.token, progress, event, job.record, failovers=1)
        note = f"{failed.endpoint} failed ({failed.failure}), over to another"
        return await self._move(job, call, "failed_over", note)

    async def defer(
        self, job: HeldJob, wait_s: float, *, new_round: bool = False, line: str = "", for_room: bool = True
    ) -> End:
        """Park it in its line. new_round: every endpoint may be tried again. for_room: see `Progress.defer`."""
        job.progress.defer(self.parts.fleet.now(), new_round, for_room)
        event: dict[str, object] = {"event": "deferred", "for_s": round(wait_s, 3)}
        if job.record is None:
            event["behind"] = "others that wait for the same"
        call = self.parts.ledger.park(job.id, job.claim.token, wait_s, job.progress.to_json(), event, line, job.record)
        why = ", nothing has room" if for_room and not new_round else ""
        return await self._move(job, call, "deferred", f"parked for {wait_s:.1f} s{why}")

    async def put_off(self, job: HeldJob, wait_s: float, until: str) -> End:
        """Park it for so long, whatever comes before. until: what the time is for."""
        event = {"event": "deferred", "for_s": round(wait_s, 3), "until": until}
        call = self.parts.ledger.park_until(job.id, job.claim.token, wait_s, job.progress.to_json(), event)
        return await self._move(job, call, "deferred", f"parked for {wait_s:.1f} s, until {until}")

    async def hand_back(self, job: HeldJob) -> End:
        """To its lane's front for another worker, with what has been tried here."""
        event = {"event": "handed_back"}
        call = self.parts.ledger.requeue(job.id, job.claim.token, job.progress.to_json(), event)
        return await self._move(job, call, "handed_back", "back to its lane")

    async def _move(self, job: HeldJob, call: Operation[bool], how: Elsewhere, note: str) -> End:
        job.hold.ending = True
        moved = await self.parts.send.uninterrupted(call)
        return End(how, note) if moved else End("skipped", "it was no longer ours")

    async def _settle(self, job: HeldJob, result: JobResult) -> End:
        """Write the end of the job; on disk if Redis is away, for what it says has been paid for."""
        claim = job.claim
        accounts = [ceiling.account for ceiling in job.ceilings]
        keep = self.parts.current.config.retention
        settlement = self.parts.ledger.settle(
            claim.token, result, job.record, keep.results_s, claim.batch, keep.failed_s
        )
        kept: Path | None = None
        job.hold.ending = True
        try:
            with tracing.span("turnout.settle", **{"turnout.outcome": result.status.value}):
                try:
                    taken = await self.parts.send(settlement)
                except asyncio.CancelledError:
                    # The worker stops, or the lease is over: Redis may be away. So on disk first, and then once more:
                    # the ledger takes it once.
                    kept = self._keep(job, result, accounts)
                    taken = await self.parts.send.uninterrupted(settlement)
        except ResponseError:
            raise  # Redis has answered, and refused: a fault of ours, which won't be gone later
        except (RedisError, OSError) as error:
            kept = kept or self._keep(job, result, accounts)
            where = "its result waits on disk" if kept else "its result is lost, and it is done again"
            logger.warning("job %s can't be settled now (%s); %s", job.id, error, where)
            return End("skipped", where)
        # Else it was settled, and booked, from disk meanwhile.
        ours_to_book = kept is None or self.parts.spool.drop(kept)
        if not taken.accepted:
            if ours_to_book and taken.duplicate and result.cost_microusd:
                await self.parts.store.mark_duplicate(accounts, result.attempts[-1].cost_microusd)
            return End("skipped", f"its end here comes too late: the job is {taken.state or 'gone'}")
        if job.request.constraints.max_cost_microusd is not None:
            with suppress(RedisError, OSError):  # closed later, as that of a job that ended without its worker
                await self.parts.send.uninterrupted(self.parts.ledger.close_account(job.id))
        return End(result.status, result.summary(), result)

    def _keep(self, job: HeldJob, result: JobResult, accounts: Sequence[str]) -> Path | None:
        """None if the disk takes nothing either."""
        kept = {"job": job.id, "token": job.claim.token, "batch": job.claim.batch, "accounts": accounts}
        try:
            text = write_result(result, self.parts.ledger.keyring)
            return self.parts.spool.keep({**kept, "result": json.loads(text)})
        except OSError as error:
            logger.error("the result of job %s can't be kept on disk: %s", job.id, error)
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
            # Where there are keys, the job's record alone has them: sealed.
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
