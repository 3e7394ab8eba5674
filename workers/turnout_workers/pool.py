"""Celery's pool on one asyncio loop: first a job's coroutine, then Celery's own tracer.

Celery has no asyncio pool, and its tracer is synchronous. Instead of making the tracer awaitable, this pool
splits a task in two. Its `execute` coroutine does the work on a loop in a separate thread, next to some thousand
others. When it ends, its outcome is handed back to Celery's thread, where the unmodified tracer calls the task's `run`,
which merely returns or raises that outcome. So events, callbacks, chords and signals are Celery's own; no Celery code
ever blocks the loop, and threads share no connection of Celery's.

Three kinds of outcome bypass the tracer:

- `Retry` and `Ignore`, which don't end the task. The tracer would format a traceback that is never read, which is three
  quarters of what it costs to park a job.
- A success that concerns only Celery's event. The tracer would double what Celery does at a job's end.
- `Ended`: the task ended elsewhere, and its callbacks were called there, so only the event is missing.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, sleep
from typing import Any, ClassVar

import uvloop
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import Task
from celery.concurrency.base import BasePool
from celery.exceptions import Ignore, Retry
from celery.signals import task_postrun, task_prerun, task_success
from celery.utils.log import get_logger
from celery.worker.state import maybe_shutdown
from vine import promise

from turnout.redis_trouble import server_message
from turnout.request import Lane
from turnout_workers import transport
from turnout_workers.process_limits import raise_open_file_limit
from turnout_workers.routing.sharing import headroom
from turnout_workers.runtime import Worker

logger = get_logger(__name__)

OUTCOME = "turnout_outcome"
"""The key in a task's request under which `run` finds the outcome of `execute`."""
HAND_BACK_S = 5.0
"""After the grace period, the remaining jobs are handed back to the ledger. If none has been for this time, the rest go
back when their leases run out."""
FOLLOWERS = ("callbacks", "chain", "chord")
"""Fields of a message that name what waits for a task's success."""
TRACED = (task_prerun, task_postrun, task_success)
"""Signals that the tracer sends when a task succeeds."""
STOP_CHECK_S = 0.1
"""How often a starting pool checks whether it should stop."""
SLOTS_KEPT_S = 3600.0
"""How long after a lane's last job the less urgent lanes leave slots to it: a call may hold one for minutes."""
OBJECTS_A_JOB = 100
"""Objects of a job under way, as the garbage collector counts them."""


class AsyncTask(Task):  # type: ignore[type-arg]
    """A task whose work is a coroutine: override `execute`, not `run`."""

    abstract = True

    async def execute(self, request: dict[str, Any], body: Any) -> Any:
        """Do the work. Returns its result, or the exception with which it failed.

        body: the message's positional arguments, keyword arguments, and the rest, such as callbacks.
        Raises Retry or Ignore if the task goes on, and Ended if it had ended before.
        """
        raise NotImplementedError

    def run(self, *_args: Any, **_kwargs: Any) -> Any:
        outcome = self.request.get(OUTCOME, NotImplemented)
        if outcome is NotImplemented:  # called by another task: by Celery's map, starmap or chunks
            raise RuntimeError(f"{self.name} can only be sent as a separate task: send a group of them")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Ended(Exception):
    """Raised by `execute`: the task has ended already, and its followers were called. `outcome` is what `execute` would
    return."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


class TaskPool(BasePool):
    """A worker's slots: one asyncio loop in a separate thread."""

    body_can_be_buffer = True
    worker: ClassVar[Worker]
    """What runs on the loop. Set on the class because Celery makes the pool, one per process."""
    publish_events: Callable[[], None]
    """Publishes task events at once. Set by the consumer."""
    hurried = False
    """Whether a stop was requested a second time: then the rest of the grace period is skipped."""
    _stopping = False

    def on_start(self) -> None:
        self.limit = raise_open_file_limit(int(self.limit))
        self._pids = itertools.count(1)
        self._jobs: dict[int, _Job] = {}
        self._held: Counter[Lane | None] = Counter()
        """Jobs by lane."""
        self._last_job_at: dict[Lane, float] = {}
        """By lane."""
        self._done: deque[_Job] = deque()
        self._finishing = promise(self._finish_done)
        """Celery's loop calls it once, however often that was requested meanwhile."""
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="turnout-loop", daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(
            self.worker.start(int(self.limit), lambda: transport.free_slots()), self._loop
        )
        while not wait([starting], STOP_CHECK_S).done:  # Redis may be away
            maybe_shutdown()
        starting.result()
        transport.free_slots, transport.room_for = self.free_slots, self.room_for
        _collect_garbage_rarely(int(self.limit))

    def free_slots(self) -> int:
        """How many more jobs may be fetched. None is fetched to wait in this process's memory."""
        return int(self.limit) - len(self._jobs)

    def room_for(self, lane: str) -> int:
        """How many more jobs of a lane may be fetched so that other lanes keep their slots. `free_slots` applies as
        well."""
        share = headroom(Lane(lane), self._last_job_at, monotonic(), self.worker.current.reserved, SLOTS_KEPT_S)
        return max(1, math.floor(int(self.limit) * share)) - self._held[Lane(lane)]

    def register_with_event_loop(self, hub: Any) -> None:
        self._hub = hub

    def on_apply(self, target: Any, args: Any, *_: Any, callback: Any, accept_callback: Any, **__: Any) -> None:
        job = _Job(next(self._pids), target, args, callback)
        self._jobs[job.pid] = job
        self._held[lane := job.lane] += 1
        if lane is not None:
            self._last_job_at[lane] = monotonic()
        accept_callback(job.pid, monotonic())
        self._loop.call_soon_threadsafe(self._begin, job)

    def _begin(self, job: _Job) -> None:
        job.running = self._loop.create_task(self._execute(job), name=job.args[1])
        job.running.add_done_callback(partial(self._ended, job))

    async def _execute(self, job: _Job) -> None:
        """On the loop's thread."""
        name, _, request, body, *_ = job.args
        task = self.app.tasks[name]
        if isinstance(task, AsyncTask):
            try:
                job.outcome = await task.execute(request, body)
            except (Retry, Ignore, Ended) as outcome:
                # Its frames refer to the job, which will refer to it: a cycle that only a collection would free.
                job.outcome = outcome.with_traceback(None)
            except asyncio.CancelledError:
                raise
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # the tracer reports it like any task's
                job.outcome = error
            except BaseException as error:  # a panic of a Rust library, which would make the tracer end the worker
                job.outcome = RuntimeError(f"{type(error).__name__} in a library")

    def _ended(self, job: _Job, running: asyncio.Task[None]) -> None:
        if running.cancelled() and job.outcome is None:
            # The tracer would let the cancellation through, which would end the worker.
            job.outcome = Ignore("stopped before it began")
        self._done.append(job)
        self._hub.call_soon(self._finishing)

    def _finish_done(self) -> None:
        """On Celery's thread."""
        moved_on = False
        while self._done:
            job = self._done.popleft()
            moved_on |= isinstance(job.outcome, Retry)
            failed, value = job.finish()
            del self._jobs[job.pid]
            self._held[job.lane] -= 1
            self._finished_at = monotonic()
            job.callback((failed, value, self._finished_at - job.started_at))
        transport.fill()
        if moved_on:  # if another worker ended such a job before this event, Flower would show it as retried for ever
            self.publish_events()

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Also called by Celery's `revoke(terminate=True)`."""
        if job := self._jobs.get(pid):
            self._loop.call_soon_threadsafe(lambda: job.running.cancel())  # it has begun by then

    def on_stop(self) -> None:
        """Warm: let calls in flight end within a grace period, then hand the rest back."""
        self._drain(self.worker.drain_s)

    def on_terminate(self) -> None:
        """Cold: hand everything back now."""
        self._drain(0.0)

    def _drain(self, grace_s: float) -> None:
        if self._stopping:  # Celery calls this twice; on a second Ctrl-C from a signal handler, during the first call
            self.hurried = True
            return
        self._stopping = True
        transport.free_slots = lambda: 0
        logger.info("stopping: %d jobs have %g s to end", len(self._jobs), grace_s)
        ends_at = monotonic() + grace_s
        self._finish_while(lambda: not self.hurried and monotonic() < ends_at)
        for pid in list(self._jobs):
            self.terminate_job(pid)
        self._finished_at = monotonic()
        self._finish_while(lambda: monotonic() - self._finished_at < HAND_BACK_S)
        try:
            asyncio.run_coroutine_threadsafe(self.worker.stop(), self._loop).result(10)
        except TimeoutError:
            logger.error("the worker's loop did not close in time; its leases will expire")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _finish_while(self, there_is_time: Callable[[], bool]) -> None:
        """Finish jobs as they end, until none is left or time is up."""
        while self._jobs and there_is_time():
            self._finish_done()
            sleep(0.01)

    def grow(self, n: int = 1) -> None:
        self.limit = self.worker.slots = max(1, int(self.limit) + n)

    def shrink(self, n: int = 1) -> None:
        self.grow(-n)


@dataclass(slots=True, eq=False)
class _Job:
    """One task under way in the pool."""

    pid: int
    target: Callable[..., tuple[Any, Any, float]]
    """Celery's tracer."""
    args: tuple[Any, ...] = field(repr=False)
    """The tracer's arguments: the task's name and id, its request, the message's body, and two more."""
    callback: Any
    started_at: float = field(default_factory=monotonic, init=False)
    running: asyncio.Task[None] = field(init=False, repr=False)
    outcome: Any = field(default=None, init=False)
    """What `execute` returned or raised. None: the task isn't a coroutine, and the tracer does everything."""

    @property
    def request(self) -> dict[str, Any]:
        return self.args[2]  # type: ignore[no-any-return]

    @property
    def lane(self) -> Lane | None:
        return lane_of(self.request)

    def finish(self) -> tuple[bool, Any]:
        """Trace the task if it needs it. Returns whether it failed, and the value's repr or the error, as Celery's
        tracer does."""
        value = self.outcome.outcome if isinstance(self.outcome, Ended) else self.outcome
        if self._needs_tracer:
            self.request[OUTCOME] = self.outcome
            try:
                failed, traced, _ = self.target(*self.args)
                return failed, traced
            except Exception as error:  # a `link_error` may be for a queue to which this worker may not write
                logger.error(
                    "job %s has ended, but its callbacks can't be called: %s", self.args[1], server_message(error)
                )
                value = error if value is None else value
        return (True, _ErrorInfo(value)) if isinstance(value, Exception) else (False, repr(value))

    @property
    def _needs_tracer(self) -> bool:
        """Whether to call the tracer: if the task ended here and either failed, or something waits for its success:
        Celery's own record, callbacks, a chain, a chord, receivers of signals."""
        if isinstance(self.outcome, Retry | Ignore | Ended):
            return False
        if self.outcome is None or isinstance(self.outcome, BaseException) or not self.request.get("ignore_result"):
            return True
        _, _, embed = self.args[3]
        return any((embed or {}).get(name) for name in FOLLOWERS) or any(signal.receivers for signal in TRACED)


class _ErrorInfo:
    """What Celery reads of a `billiard.einfo.ExceptionInfo`, for an error that was never traced."""

    traceback = ""

    def __init__(self, error: Exception) -> None:
        self.exception = ExceptionWithTraceback(error, "") if isinstance(error, Retry) else error


def lane_of(request: dict[str, Any]) -> Lane | None:
    """The lane on which a task came. None: an app used another routing key."""
    key = (request.get("delivery_info") or {}).get("routing_key")
    return Lane(key) if key in transport.LANES else None


def _collect_garbage_rarely(slots: int) -> None:
    """Nearly all objects of a job are freed by reference counting. At Python's default thresholds, made for small
    programs, the search for cycles costs a sixth of a worker's time. A wave of calls that begin isn't garbage."""
    gc.collect()
    gc.freeze()  # modules, classes, the configuration: they stay for ever
    gc.set_threshold(50_000 + OBJECTS_A_JOB * slots, 20, 20)
