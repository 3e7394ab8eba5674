"""Jobs that plain Celery apps send and revoke by messages alone: entered into the ledger, which is the truth."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from kombu.utils.json import dumps
from pydantic import ValidationError

from turnout.ledger import Coalescer, Enqueued, Intake, Ledger, NewJob, Operation, write_result
from turnout.ledger.operations import nothing
from turnout.redis_trouble import server_message, takes_no_writes
from turnout.request import InferenceRequest, Lane, merged_fields
from turnout.result import JobResult, JobStatus, celery_record
from turnout.validation import MAX_ID_CHARS, TOO_DEEP, explain, too_deep
from turnout_workers.background.tasks import log_if_redis_is_away
from turnout_workers.config.current_config import CurrentConfig

logger = logging.getLogger(__name__)

RETRY_S = 1.0
REVOKE_TIMEOUT_S = 5.0
"""Celery's thread waits for a revocation."""


@dataclass(frozen=True, slots=True)
class CeleryJobs:
    ledger: Ledger
    send: Coalescer
    current: CurrentConfig

    async def accept(self, job_id: str, body: Any, lane: Lane | None) -> JobResult | None:
        """Enter a request that came inside a Celery message into the ledger, without publishing another message for it.

        body: of the message. lane: the one on which it came, for a request that names none.

        A request that can't be accepted never becomes a job: its result is written for Celery to read, and returned.
        If Redis is away, this waits, because the request exists nowhere else.
        """
        operation = self._read(job_id, body, lane)
        while True:
            try:
                if isinstance(operation, str):
                    return await self._write_end(job_id, JobStatus.FAILED, "invalid_request", operation)
                accepted = await self.send.uninterrupted(operation)
                if (outcome := accepted.outcome) in (Intake.QUEUED, Intake.DUPLICATE):
                    if accepted.state == "queued" and await self._was_revoked(job_id):
                        await self._cancel([job_id])
                    return None
                end = JobStatus.FAILED, outcome.value, f"the job was not accepted: {outcome}"
                if outcome is Intake.CONFLICT:  # the record is another job's, and may hold its answer
                    return JobResult.unanswered(job_id, *end)
                return await self._write_end(job_id, *end)
            except (redis.RedisError, OSError) as error:
                if not (
                    isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or takes_no_writes(error)
                ):
                    raise
                logger.warning("a request waits for Redis: %s", server_message(error), extra={"job": job_id})
                await asyncio.sleep(RETRY_S)

    def _read(self, job_id: str, body: Any, lane: Lane | None) -> Operation[Enqueued] | str:
        """The operation that accepts the requested job, or why it can't be accepted."""
        if not job_id.isprintable() or len(job_id) > MAX_ID_CHARS:
            return f"task_id: must be one line of at most {MAX_ID_CHARS} characters, none of them a control character"
        args, kwargs, embed = body
        callbacks = {name: value for name, value in (embed or {}).items() if value is not None}
        try:
            request = InferenceRequest.model_validate(_request_of(args, kwargs))
            if lane is not None and "lane" not in (constraints := request.constraints).model_fields_set:
                request = request.model_copy(update={"constraints": constraints.model_copy(update={"lane": lane})})
            job = NewJob.of(job_id, request, embed=dumps(callbacks) if callbacks else None, publish=False)
            return TOO_DEEP if too_deep(job.payload) else self.ledger.enqueue(job)
        except ValidationError as error:
            return explain(error)
        except UnicodeEncodeError:
            return "a text contains a lone surrogate, which is not valid Unicode"
        except Exception as error:  # unforeseen, but its sender must not wait for ever
            return f"the request can't be accepted: {type(error).__name__}"

    async def revoke(self, job_ids: Sequence[str]) -> list[str]:
        """Cancel these jobs wherever they wait, as far as the ledger knows them. Returns those."""
        # Celery drops the messages of the others when they arrive.
        with log_if_redis_is_away(logger.warning, "can't cancel revoked jobs now"):
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                return await self._cancel(job_ids)
        return []

    async def dropped(self, job_id: str, expired: bool) -> None:
        """Cancel a job whose message Celery has dropped because it expired or was revoked."""
        too_late = JobStatus.EXPIRED, "deadline", "its message had expired when a worker received it"
        end = too_late if expired else (JobStatus.CANCELLED, "cancelled", "it was revoked")
        # Otherwise its message will be published again, and dropped again.
        with log_if_redis_is_away(logger.warning, "job %s was revoked, but can't be cancelled now", job_id, job=job_id):
            if not await self._cancel([job_id]):  # only its message existed
                await self._write_end(job_id, *end)

    async def unread(self, job_id: str, why: str) -> None:
        """Fail a job whose message can't be read."""
        with log_if_redis_is_away(logger.warning, "can't write the failure of job %s", job_id, job=job_id):
            if await self.send(self.ledger.facts(job_id)) is None:
                await self._write_end(job_id, JobStatus.FAILED, "invalid_request", why)

    async def _cancel(self, job_ids: Sequence[str]) -> list[str]:
        facts = await self.send.all(*(self.ledger.facts(job_id) for job_id in job_ids))
        jobs = {job_id: job for job_id, job in zip(job_ids, facts, strict=True) if job is not None}
        await self.send.all(*(self.ledger.cancel(job_id, job.batch) for job_id, job in jobs.items()))
        for job_id in jobs:
            logger.info("cancelled because it was revoked", extra={"job": job_id})
        return list(jobs)

    async def _was_revoked(self, job_id: str) -> bool:
        """Whether it was revoked while only its message existed, perhaps before this worker began: the worker that
        received the revocation has written Celery's record. Checked once the ledger has the job, because a later
        revocation finds it there."""
        record = await self.send(Operation(("GET", self.ledger.keys.result(job_id)), lambda reply: reply or b""))
        return re.search(rb'"status": ?"REVOKED"', record) is not None

    def stored(self, result: JobResult) -> Any:
        """The result as JSON, in the form in which it may be kept in Redis."""
        return json.loads(write_result(result, self.ledger.keyring))

    async def _write_end(self, job_id: str, status: JobStatus, code: str, message: str) -> JobResult:
        result = JobResult.unanswered(job_id, status, code, message)
        key, record = self.ledger.keys.result(job_id), celery_record(result, write_result(result, self.ledger.keyring))
        kept_s = int(self.current.config.retention.results_s)
        await self.send.all(
            Operation(("SET", key, record, "EX", kept_s), nothing), Operation(("PUBLISH", key, record), nothing)
        )
        return result


def _request_of(args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The request in a plain Celery app's message: a prompt, or a request's fields. Further keyword arguments are
    merged into it, as in the client: a constraint is taken or refused, and never ignored."""
    extra = dict(kwargs)
    request = extra.pop("request", args[0] if len(args) == 1 else args or {})
    if isinstance(request, str):
        request = {"prompt": request}
    return merged_fields(request, extra) if isinstance(request, dict) else request
