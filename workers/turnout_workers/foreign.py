"""Jobs that plain Celery apps send and revoke, in messages alone: brought to the ledger, which is the truth."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from pydantic import ValidationError
from redis.exceptions import RedisError

from turnout.batch.lines import explain
from turnout.ledger import Coalescer, Intake, Ledger, NewJob, write_result
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus, Problem, celery_record
from turnout_workers.in_force import InForce

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Foreign:
    client: redis.asyncio.Redis
    ledger: Ledger
    call: Coalescer
    in_force: InForce

    async def accept(self, job_id: str, asked: Any, embed: Mapping[str, Any]) -> JobResult | None:
        """Take a request that came inside a Celery message into the ledger; the message is at hand already.

        What can't be accepted never was a job: its result, for Celery to read, is given back.
        """
        try:
            request = InferenceRequest.model_validate({"prompt": asked} if isinstance(asked, str) else asked)
        except ValidationError as error:
            return await self._ended(job_id, JobStatus.FAILED, "invalid_request", explain(error))
        callbacks = {name: value for name, value in embed.items() if value}
        job = NewJob.of(job_id, request, embed=json.dumps(callbacks) if callbacks else None, publish=False)
        outcome = (await self.call(self.ledger.enqueue(job))).outcome
        if outcome in (Intake.QUEUED, Intake.DUPLICATE):
            return None
        return await self._ended(job_id, JobStatus.FAILED, outcome.value, f"the job was not accepted: {outcome}")

    async def revoked(self, job_id: str) -> None:
        """Cancel a job that was revoked. Celery has dropped its message."""
        try:
            facts = await self.call(self.ledger.facts(job_id))
            if facts is None:  # it was in its message alone
                await self._ended(job_id, JobStatus.CANCELLED, "cancelled", "it was revoked")
            else:
                await self.call(self.ledger.cancel(job_id, facts.batch, self.in_force.file.retention.results_s))
            logger.info("cancelled, for it was revoked", extra={"job": job_id})
        except (RedisError, OSError) as error:  # published again it is revoked again
            logger.warning("job %s was revoked, but can't be cancelled now: %s", job_id, error, extra={"job": job_id})

    def stored(self, result: JobResult) -> Any:
        """The result as JSON, and as it may lie in Redis."""
        return json.loads(write_result(result, self.ledger.keyring))

    async def _ended(self, job_id: str, status: JobStatus, code: str, message: str) -> JobResult:
        result = JobResult(id=job_id, status=status, error=Problem(code=code, message=message))
        key, record = self.ledger.keys.result(job_id), celery_record(result, result.model_dump_json())
        await self.client.set(key, record, ex=int(self.in_force.file.retention.results_s))
        await self.client.publish(key, record)
        return result
