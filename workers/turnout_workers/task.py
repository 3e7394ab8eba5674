"""The one task as Celery sees it: a message becomes a job, and the end of the job ends the task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Retry
from celery.states import FAILURE
from celery.worker.request import Request
from redis.exceptions import RedisError, ResponseError

from turnout.errors import Cancelled, JobError
from turnout.ledger import message
from turnout.redis_trouble import server_message
from turnout.result import JobResult
from turnout_workers import transport
from turnout_workers.pool import AsyncTask, Ended, lane_of
from turnout_workers.runtime import Worker

logger = logging.getLogger(__name__)

NOT_BEFORE = "turnout_not_before"
"""The key in a task's request for the `eta` of its message, as Unix time."""

EARLY_HEADERS = ("root_id", "stamps", "stamped_headers")
"""Headers of a task that Celery reads before the tracer; the tracer finds all that the ledger has kept."""


class Infer(AsyncTask):
    """`turnout.infer`: takes a job's id. If a plain Celery app sends it, it may carry the request itself."""

    name = "turnout.infer"
    throws = (JobError,)
    Request = f"{__name__}:JobRequest"

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def execute(self, request: dict[str, Any], body: Any) -> Answer | JobError:
        worker, job_id = self.worker, request["id"]
        if request.get("origin") != message.ORIGIN and body[0] != [job_id]:
            refused = await worker.celery_jobs.accept(job_id, body, lane_of(request))
            if refused is not None:
                return _outcome(refused, partial(worker.celery_jobs.stored, refused))
        try:
            end = await worker.attempts.run(job_id, request.get(NOT_BEFORE, 0.0))
            ended = await worker.ended(job_id) if end.how == "skipped" else None
        except (RedisError, OSError) as error:  # the job hasn't ended: its `link_error` must not be called
            level = logging.ERROR if type(error) is ResponseError else logging.INFO  # a script's fault won't pass
            logger.log(level, "job %s waits for Redis: %s", job_id, error, extra={"job": job_id})
            transport.QoS.rest()
            raise Ignore("Redis is away") from None
        if end.result is not None:
            return _outcome(end.result, partial(worker.celery_jobs.stored, end.result))
        if ended is not None:
            outcome = _outcome(ended.result, ended.stored)
            if ended.untold and not isinstance(outcome, Cancelled):  # Celery calls nothing for a revoked task
                return outcome
            raise Ended(outcome)
        raise Ignore(end.note) if end.how == "skipped" else MovedOn(end.note)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Store the failure for the rest of a chain, so that its waiters learn of it. Celery does so where it stores
        results itself; as there, a chord ends with its body."""
        rest: list[Any] = list(self.request.chain or ())
        try:
            for signature in rest:
                if (next_id := signature["options"].get("task_id")) is not None:
                    self.backend.store_result(next_id, exc, FAILURE)
                if signature.get("subtask_type") == "chord" and signature["kwargs"]["body"] is not None:
                    rest.append(signature["kwargs"]["body"])
        except Exception as error:  # if raised, the tracer would repeat everything and call errbacks twice
            logger.error("job %s failed, but its chain can't be marked as failed: %s", task_id, server_message(error))


def _outcome(result: JobResult, stored: Callable[[], Any]) -> Answer | JobError:
    """How a job ended, as `AsyncTask.execute` returns it. stored: returns the result as JSON, in the form in which it
    may be kept in Redis."""
    try:
        result.answer()
    except JobError as error:
        return error
    return Answer(result, stored)


class Answer:
    """A result as Celery's events and callbacks see it: its repr is a summary without the answer."""

    def __init__(self, result: JobResult, stored: Callable[[], Any]) -> None:
        self._result, self._stored = result, stored

    def __repr__(self) -> str:
        return self._result.summary()

    def __json__(self) -> Any:
        """What `link` callbacks and chains get, through Redis."""
        return self._stored()


class MovedOn(Retry):
    """A job that goes on elsewhere. Celery and Flower see a retry, and show its repr."""

    def __repr__(self) -> str:
        return str(self.message)


class JobRequest(Request):
    """A message on its way through Celery, and what Celery learns of its job.

    It stores no errors because settling a job writes its record. For a revoked job whose sender wants results, Celery
    would write another record before that.
    """

    store_errors = False
    task: Infer
    _already_revoked: bool
    _root_id: Any

    def __init__(self, sent: Any, *, body: Any = None, decoded: bool = False, **options: Any) -> None:
        """Decode the message once; Celery's own request decodes it again in the tracer.

        Hide an `eta` from Celery, which would hold the job in memory until then and lose it with the process. The
        ledger parks it instead. A message that expires before its `eta` is left to Celery, which drops it.
        """
        body = body if decoded else sent.payload
        match body:
            case [list(), dict(), dict() | None]:  # Celery makes a tuple of the first protocol's
                body = list(body)
                super().__init__(sent, body=body, decoded=True, **options)
            case _:
                raise ValueError("the message doesn't contain a task's arguments")
        if self.eta is not None and (self.expires is None or self.eta < self.expires):
            self.request_dict[NOT_BEFORE], self._eta = self.eta.timestamp(), None
        if self.request_dict.get("origin") != message.ORIGIN:
            self._hide()
            body[2] = (body[2] or {}) | self._kept(body[2] or {})
        elif body[2]:
            self.request_dict.update((name, body[2][name]) for name in EARLY_HEADERS if name in body[2])
            self._root_id = self.request_dict.get("root_id")

    def _kept(self, embed: dict[str, Any]) -> dict[str, Any]:
        """Headers that Celery needs, added to what the ledger keeps of a message, for the messages that it
        publishes."""
        sent, names = self.request_dict, list[str]()
        if embed.get("chord"):
            names += ("group", "group_index")
        if sent.get("stamped_headers"):
            names += ("stamps", "stamped_headers")
        if sent.get("root_id") not in (None, self.id):
            names += ("root_id",)
        return {name: sent.get(name) for name in names}

    def _hide(self) -> None:
        """Hide a request that its message carries from Celery's events, `inspect` and logs, and so from Flower. They
        show its lane instead, as for messages that the ledger has written."""
        shown = f"{self.delivery_info['routing_key']} · sent by Celery"
        self._args, self._kwargs = [shown], dict[str, Any]()
        self._argsrepr, self._kwargsrepr = shown, ""
        self.request_dict.update(argsrepr=shown, kwargsrepr="")

    def acknowledge(self) -> None:
        """Free the message, which isn't needed from here on: more than half of what Celery holds of a job."""
        super().acknowledge()
        self._message = self._on_ack = self._on_reject = None
        self.request_dict.pop("properties", None)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """A job that was cancelled is a revoked task."""
        if not isinstance(exc_info.exception, Cancelled):
            super().on_failure(exc_info, send_failed_event, return_ok)
        elif not self._already_revoked:
            super()._announce_revoked("cancelled", False, None, False)  # type: ignore[misc]  # the stubs lack it

    def on_retry(self, exc_info: Any) -> None:
        """Report no move of a job once it was revoked."""
        if not self._already_revoked:
            super().on_retry(exc_info)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Cancel what was revoked or expired before the ledger had it, or while Redis was away."""
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        worker = self.task.worker
        worker.on_loop(worker.celery_jobs.dropped(self.id, expired))
