"""Jobs that plain Celery apps send and revoke, in messages alone: brought to the ledger, which is the truth."""

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

AGAIN_S = 1.0

REVOKED_WITHIN_S = 5.0
"""Celery's thread waits for it."""


@dataclass(frozen=True, slots=True)
class CeleryJobs:
    ledger: Ledger
    send: Coalescer
    current: CurrentConfig

    async def accept(self, job_id: str, body: Any, lane: Lane | None) -> JobResult | None:
        """Take a request that came inside a Celery message into the ledger; no other message is published for it.

        body: of the message. lane: the one by which it came, for a request that names none.

        What can't be accepted never was a job: gives its result, which is written for Celery to read. A Redis that is
        away is waited for, because nobody else has the request.
        """
        asked = self._read(job_id, body, lane)
        while True:
            try:
                if isinstance(asked, str):
                    return await self._ended(job_id, JobStatus.FAILED, "invalid_request", asked)
                accepted = await self.send.uninterrupted(asked)
                if (outcome := accepted.outcome) in (Intake.QUEUED, Intake.DUPLICATE):
                    if accepted.state == "queued" and await self._was_revoked(job_id):
                        await self._cancel([job_id])
                    return None
                why = JobStatus.FAILED, outcome.value, f"the job was not accepted: {outcome}"
                if outcome is Intake.CONFLICT:  # the record is the other's, and may tell of an answer
                    return JobResult.unanswered(job_id, *why)
                return await self._ended(job_id, *why)
            except (redis.RedisError, OSError) as error:
                if not (
                    isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or takes_no_writes(error)
                ):
                    raise
                logger.warning("a request waits for Redis: %s", server_message(error), extra={"job": job_id})
                await asyncio.sleep(AGAIN_S)

    def _read(self, job_id: str, body: Any, lane: Lane | None) -> Operation[Enqueued] | str:
        """How the job that is asked for is accepted, or why there can be none."""
        if not job_id.isprintable() or len(job_id) > MAX_ID_CHARS:
            return f"task_id: must be one line of at most {MAX_ID_CHARS} characters, none of them a control character"
        args, kwargs, embed = body
        callbacks = {name: value for name, value in (embed or {}).items() if value is not None}
        try:
            request = InferenceRequest.model_validate(_request_of(args, kwargs))
            if lane is not None and "lane" not in (wish := request.constraints).model_fields_set:
                request = request.model_copy(update={"constraints": wish.model_copy(update={"lane": lane})})
            job = NewJob.of(job_id, request, embed=dumps(callbacks) if callbacks else None, publish=False)
            return TOO_DEEP if too_deep(job.payload) else self.ledger.enqueue(job)
        except ValidationError as error:
            return explain(error)
        except UnicodeEncodeError:
            return "a text has half a surrogate pair, which is no character"
        except Exception as error:  # foreseen by nobody; its sender isn't to wait for ever
            return f"it can't be accepted: {type(error).__name__}"

    async def revoke(self, job_ids: Sequence[str]) -> list[str]:
        """Cancel those of these jobs that the ledger knows, wherever they wait. Gives them."""
        # Otherwise Celery will drop their messages when they come.
        with log_if_redis_is_away(logger.warning, "can't cancel what was revoked now"):
            async with asyncio.timeout(REVOKED_WITHIN_S):
                return await self._cancel(job_ids)
        return []

    async def dropped(self, job_id: str, expired: bool) -> None:
        """Cancel a job whose message Celery has dropped: it has expired, or somebody has revoked it."""
        late = JobStatus.EXPIRED, "deadline", "its message had expired when a worker had it"
        end = late if expired else (JobStatus.CANCELLED, "cancelled", "it was revoked")
        # Otherwise its message will be published again, and dropped again.
        with log_if_redis_is_away(logger.warning, "job %s was revoked, but can't be cancelled now", job_id, job=job_id):
            if not await self._cancel([job_id]):  # it was in its message alone
                await self._ended(job_id, *end)

    async def unread(self, job_id: str, why: str) -> None:
        """Tell the sender of a message that can't be read."""
        with log_if_redis_is_away(logger.warning, "can't tell the sender of job %s", job_id, job=job_id):
            if await self.send(self.ledger.facts(job_id)) is None:
                await self._ended(job_id, JobStatus.FAILED, "invalid_request", why)

    async def _cancel(self, job_ids: Sequence[str]) -> list[str]:
        facts = await self.send.all(*(self.ledger.facts(job_id) for job_id in job_ids))
        known = {job_id: job for job_id, job in zip(job_ids, facts, strict=True) if job is not None}
        await self.send.all(*(self.ledger.cancel(job_id, job.batch) for job_id, job in known.items()))
        for job_id in known:
            logger.info("cancelled, for it was revoked", extra={"job": job_id})
        return list(known)

    async def _was_revoked(self, job_id: str) -> bool:
        """Whether it was revoked while its message alone had it, perhaps before this worker began: whoever heard of it
        has written Celery's record. That is looked at once the ledger has the job, where a later one finds it."""
        record = await self.send(Operation(("GET", self.ledger.keys.result(job_id)), lambda reply: reply or b""))
        return re.search(rb'"status": ?"REVOKED"', record) is not None

    def stored(self, result: JobResult) -> Any:
        """The result as JSON, and as it may lie in Redis."""
        return json.loads(write_result(result, self.ledger.keyring))

    async def _ended(self, job_id: str, status: JobStatus, code: str, message: str) -> JobResult:
        result = JobResult.unanswered(job_id, status, code, message)
        key, record = self.ledger.keys.result(job_id), celery_record(result, write_result(result, self.ledger.keyring))
        kept_s = int(self.current.config.retention.results_s)
        await self.send.all(
            Operation(("SET", key, record, "EX", kept_s), nothing), Operation(("PUBLISH", key, record), nothing)
        )
        return result


def _request_of(args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The request that a plain Celery app has put into the message: a prompt, or its fields. What is named beside it
    adds to it, as for the client: a constraint is taken or refused, and never ignored."""
    beside = dict(kwargs)
    asked = beside.pop("request", args[0] if len(args) == 1 else args or {})
    if isinstance(asked, str):
        asked = {"prompt": asked}
    return merged_fields(asked, beside) if isinstance(asked, dict) else asked
