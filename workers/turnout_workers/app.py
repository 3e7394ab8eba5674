"""The composition root: Celery's app, its one task, and the worker process that stands behind it.

celery -A turnout_workers.app:app worker     (or `turnout worker`, which is lighter, and says sooner what is wrong)
"""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import signal
import time
from typing import Any

import celery.apps.worker
from celery.concurrency import get_implementation
from celery.exceptions import Ignore, Retry
from celery.signals import setup_logging, worker_init, worker_shutting_down
from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker.consumer import Consumer
from celery.worker.state import revoked
from kombu import Queue
from kombu.exceptions import ContentDisallowed
from redis.exceptions import RedisError, ResponseError

from turnout.errors import Cancelled, JobError
from turnout.ledger import message
from turnout.request import Lane
from turnout.result import JobResult
from turnout_workers import transport
from turnout_workers.attempts.held import Done, Moved, Skipped
from turnout_workers.config import configured
from turnout_workers.monitoring import logs
from turnout_workers.monitoring.events import Dispatcher, Events
from turnout_workers.pool import AsyncRequest, AsyncTask, Ended, TaskPool, lane_of
from turnout_workers.runtime import Worker
from turnout_workers.transport import celery_app

logger = logging.getLogger(__name__)

settings = configured(os.environ)

app = celery_app(settings.file.redis_url, events=Events)
app.conf.update(
    # The ledger is the acknowledgement: a message is only a hint. (With late acks, Celery 5.7.0 exits when
    # Redis restarts.)
    task_acks_late=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,  # a Redis that takes no writes; else Celery ends the worker
    task_queues=[Queue(lane.value) for lane in Lane],
    task_default_queue=Lane.STANDARD.value,
    # Settling a job writes Celery's result record, in the same step; Celery itself stores nothing.
    task_ignore_result=True,
    result_expires=int(settings.file.retention.results_s),
    accept_content=["json"],
    # What Celery's own command takes where it is given no -P and no -c.
    worker_pool=f"{TaskPool.__module__}:{TaskPool.__name__}",
    worker_concurrency=settings.file.worker.concurrency,
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    worker_consumer=f"{__name__}:PatientConsumer",
    # It concerns tasks that are acknowledged late, and so none; but without it Celery warns at each reconnect.
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_enable_prefetch_count_reduction=False,  # the pool's free slots are the limit
    worker_send_task_events=settings.file.monitoring.task_events,
)

NOT_BEFORE = "turnout_not_before"
"""Under this name a task's request has the `eta` of its message, as Unix time."""


class Answer:
    """A result as Celery's events and callbacks see it: its repr tells the story and never the answer."""

    def __init__(self, result: JobResult) -> None:
        self._result = result

    def __repr__(self) -> str:
        return self._result.summary()

    def __json__(self) -> Any:
        """What `link` callbacks and chains get, by way of Redis."""
        return worker.foreign.stored(self._result)


def outcome_of(result: JobResult) -> Answer | JobError:
    """How a job ended, as `AsyncTask.execute` returns it."""
    try:
        result.answer()
    except JobError as error:
        return error
    return Answer(result)


class Infer(AsyncTask):
    """`turnout.infer`: takes a job's id. Sent by a plain Celery app, it may carry the request itself."""

    name = "turnout.infer"
    throws = (JobError,)
    Request = f"{__name__}:JobRequest"

    async def execute(self, request: dict[str, Any], body: Any) -> Answer | JobError:
        job_id: str = request["id"]
        args, kwargs, embed = body
        if request.get("origin") != message.ORIGIN and args != [job_id]:
            refused = await worker.foreign.accept(job_id, _request_of(args, kwargs), embed, lane_of(request))
            if refused is not None:
                return outcome_of(refused)
        try:
            end = await worker.attempts(job_id, request.get(NOT_BEFORE, 0.0))
            ended = await worker.ended(job_id) if isinstance(end, Skipped) else None
        except (RedisError, OSError) as error:  # no end of the job: nobody's `link_error` is to hear of it
            logger.info("job %s waits for Redis: %s", job_id, error, extra={"job": job_id})
            transport.QoS.rest()
            raise Ignore("Redis is away") from None
        match end:
            case Done(result):
                return outcome_of(result)
            case Moved(_, note):
                raise MovedOn(note)
            case Skipped(note):
                raise Ended(outcome_of(ended)) if ended else Ignore(note)


def _request_of(args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The request that a plain Celery app has put into the message: a prompt, or its fields. What is named beside it
    adds to it, as for the client: a constraint is taken or refused, and never ignored."""
    beside = dict(kwargs)
    asked = beside.pop("request", args[0] if len(args) == 1 else args or {})
    if isinstance(asked, str):
        asked = {"prompt": asked}
    return asked | beside if isinstance(asked, dict) else asked


class JobRequest(AsyncRequest):
    """Stores no errors, for settling a job writes its record. Of a revoked job whose sender wants results, Celery would
    write a record of its own before that."""

    store_errors = False
    _already_revoked: bool

    def __init__(self, sent: Any, **options: Any) -> None:
        """Hide an `eta` from Celery, which would hold the job in memory until then, and lose it with the process: the
        ledger parks it. Only a message that expires before its `eta` is left to Celery, which then drops it."""
        super().__init__(sent, **options)
        if self.eta is not None and (self.expires is None or self.eta < self.expires):
            self.request_dict[NOT_BEFORE], self._eta = self.eta.timestamp(), None
        if self.request_dict.get("origin") != message.ORIGIN:
            self._hide()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """A job that was cancelled is a revoked task."""
        if not isinstance(exc_info.exception, Cancelled):
            super().on_failure(exc_info, send_failed_event, return_ok)
        elif not self._already_revoked:
            super()._announce_revoked("cancelled", False, None, False)  # type: ignore[misc]  # the stubs lack it

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Cancel what was revoked or expired before the ledger had it, or while Redis was away."""
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        worker.on_loop(worker.foreign.dropped(self.id, expired))

    def on_retry(self, exc_info: Any) -> None:
        """Nothing is told of a job's move once it was revoked."""
        if not self._already_revoked:
            super().on_retry(exc_info)

    def _hide(self) -> None:
        """Keep a request that its message carries out of what Celery shows, in events, `inspect` and logs, and so in
        Flower: show its lane, as of a job whose message the ledger has written."""
        shown = f"{self.delivery_info['routing_key']} · sent by Celery"
        self._args, self._kwargs = [shown], dict[str, Any]()
        self._argsrepr, self._kwargsrepr = shown, ""
        self.request_dict.update(argsrepr=shown, kwargsrepr="")


class PatientConsumer(Consumer):
    """Rests before it reconnects to a Redis that refused a command: one that takes no writes, because its disk is full,
    say, would refuse the next at once. Of one that can't be reached it asks every 2 s, where kombu would wait for 2 s
    more each time, up to half a minute. Tells once that Redis is away, and when it is back, however often it asks."""

    hub: Any
    event_dispatcher: Any
    _away = False

    def ensure_connected(self, conn: Any) -> Any:
        ask = conn.ensure_connection
        conn.ensure_connection = lambda _tell, *limits, **options: ask(self._tell, *limits, **options, interval_step=0)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._tell(exc)
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, ResponseError):
            time.sleep(transport.REST_S)

    def _tell(self, error: Exception, again_s: float = 0.0) -> None:
        if not self._away:
            logger.warning("no jobs are fetched until Redis is back: %s", error)
        logger.debug("Redis is asked again in %g s", again_s)
        self._away = True

    def on_ready(self) -> None:
        super().on_ready()
        if self._away:
            logger.info("Redis is back: jobs are fetched again")
        self._away = False

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # the stubs think it returns something
        if self.event_dispatcher is not None:  # else it is being replaced, and its successor takes its events over
            self.event_dispatcher.gather(self.hub)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        super().on_decode_error(Unread(message), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        super().on_unknown_message(None, Unread(message))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        super().on_unknown_task(None, Unread(message), exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        super().on_invalid_task(None, Unread(message), exc)
        if isinstance(exc, ContentDisallowed) and message.headers.get("task") == Infer.name:
            why = f"{exc}; send it with serializer='json'"
            worker.on_loop(worker.foreign.unread(message.headers["id"], why))


# Told above, once.
logging.getLogger(Consumer.__module__).addFilter(lambda line: line.funcName != "on_connection_error_after_connected")


class Unread:
    """A message that is of no job, as Celery logs it: without what it carries, which may be a prompt."""

    body = b"(not shown)"

    def __init__(self, message: Any) -> None:
        self._message = message
        headers = message.headers or {}
        self.headers = {name: headers[name] for name in ("id", "task", "root_id") if name in headers}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


class MovedOn(Retry):
    """A job that goes on elsewhere: to Celery and Flower a retry, of which they show the repr."""

    def __repr__(self) -> str:
        return str(self.message)


def _tell_stacks() -> None:
    """SIGUSR1 writes each thread's stack to standard error. Celery's own handler would tell the values of all local
    variables, keys and prompts among them."""
    faulthandler.register(signal.SIGUSR1)


celery.apps.worker.install_cry_handler = _tell_stacks  # type: ignore[attr-defined]


def _say_nothing(*_: object) -> None:
    """What Celery says of signals is no JSON, and the pool logs a stop, too."""


@setup_logging.connect
def _logging(loglevel: int, **_: Any) -> None:
    logs.configure(loglevel, settings.file.monitoring.log_format)
    if settings.file.monitoring.log_format == "json":
        celery.apps.worker.safe_say = _say_nothing  # type: ignore[attr-defined]


@worker_init.connect
def _check_pool(sender: Any, **_: Any) -> None:
    """No other pool would ever fetch a job, nor does a number of slots that changes fit ours."""
    if get_implementation(sender.pool_cls) is not TaskPool or sender.options.get("autoscale"):
        raise SystemExit("Turnout's worker has a pool of its own: leave out -P and --autoscale, and set its size by -c")


@control.control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def _revoke(state: Any, task_id: Any, **options: Any) -> Any:
    """As Celery's own command, which Flower's buttons send. But jobs are cancelled at once, and then not remembered as
    revoked, so that they can be replayed.

    They are cancelled before Celery does its part, for it would write a record of its own where it finds none.
    """
    cancelled = worker.on_loop(worker.foreign.revoke(maybe_list(task_id))).result()
    reply = control.revoke(state, task_id, **options)  # type: ignore[attr-defined]  # the stubs lack it
    for job_id in cancelled:
        revoked.discard(job_id)
    return reply


@control.control_command(name="terminate", variadic="task_id", signature="<signal> [id1 [id2 [... [idN]]]]")
def _terminate(state: Any, signal: Any, task_id: Any, **options: Any) -> Any:
    """Celery's own command would call its own `revoke`."""
    return _revoke(state, task_id, terminate=True, signal=signal, **options)


@worker_shutting_down.connect
def _stopping(how: str, **_: Any) -> None:
    """Celery drops all but the first SIGTERM."""
    TaskPool.hurried = how == "Cold" or next(_stops) > 0


_stops = itertools.count()
infer = app.register_task(Infer())
worker = Worker(settings, free_slots=lambda: transport.free_slots())
TaskPool.grace_s = settings.file.worker.drain_s
TaskPool.reserved = staticmethod(worker.reserved)
TaskPool.on_loop_start = worker.start
TaskPool.on_loop_stop = worker.stop
TaskPool.on_moved = Dispatcher.tell_now
