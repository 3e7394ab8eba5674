"""The composition root: Celery's app, its one task, and the worker process behind it.

celery -A turnout_workers.app:app worker     (or `turnout worker`, which is lighter and reports errors sooner)
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
from contextlib import suppress
from typing import Any

import celery.apps.worker
from celery.concurrency import get_implementation
from celery.signals import setup_logging, worker_init, worker_shutting_down
from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker.state import revoked
from kombu import Queue

from turnout.request import Lane
from turnout_workers import transport
from turnout_workers.celery_app import celery_app
from turnout_workers.config import configured
from turnout_workers.consumer import PatientConsumer
from turnout_workers.monitoring import logs
from turnout_workers.monitoring.events import Events
from turnout_workers.pool import TaskPool
from turnout_workers.runtime import Worker
from turnout_workers.task import Infer

settings = configured(os.environ)

app = celery_app(settings.config.redis_url, events=Events)
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
    result_expires=int(settings.config.retention.results_s),
    accept_content=["json"],
    # Defaults of Celery's own command for -P and -c.
    worker_pool=f"{TaskPool.__module__}:{TaskPool.__name__}",
    worker_concurrency=settings.config.worker.concurrency,
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    worker_consumer=f"{PatientConsumer.__module__}:{PatientConsumer.__name__}",
    # It concerns only tasks that are acknowledged late. There are none, but without it Celery warns at each reconnect.
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_enable_prefetch_count_reduction=False,  # the pool's free slots are the limit
    worker_send_task_events=settings.config.monitoring.task_events,
)
worker = TaskPool.worker = Worker(settings)
infer = app.register_task(Infer(worker))


# SIGUSR1 writes each thread's stack to standard error. Celery's own handler would print the values of all local
# variables, including keys and prompts.
celery.apps.worker.install_cry_handler = lambda: faulthandler.register(signal.SIGUSR1)  # type: ignore[attr-defined]


def _stop_on_sigterm_and_sighup(worker: Any) -> None:
    """SIGHUP, sent when a terminal is closed, stops the worker too, unless it is ignored (nohup). Celery would restart
    the worker, which would go on spending unnoticed, or let it die during its calls."""
    _stop_on_sigterm(worker)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        _stop_on_sigterm(worker, sig="SIGHUP")


_stop_on_sigterm = celery.apps.worker.install_worker_term_handler  # type: ignore[attr-defined]
celery.apps.worker.install_worker_term_handler = _stop_on_sigterm_and_sighup  # type: ignore[attr-defined]
celery.apps.worker.install_worker_restart_handler = lambda _: None  # type: ignore[attr-defined]
celery.apps.worker.install_HUP_not_supported_handler = lambda _: None  # type: ignore[attr-defined]


def _say_if_possible(*message: Any) -> None:
    """Print what Celery says about signals, but not among JSON lines, where the pool's log line about the stop is
    enough. If the terminal is gone, ignore the error: it would be raised in the middle of any code."""
    if settings.config.monitoring.log_format != "json":
        with suppress(OSError):
            _say(*message)


_say = celery.apps.worker.safe_say  # type: ignore[attr-defined]
celery.apps.worker.safe_say = _say_if_possible  # type: ignore[attr-defined]


@setup_logging.connect
def _logging(loglevel: int, logfile: str | None, **_: Any) -> None:
    logs.configure(loglevel, settings.config.monitoring.log_format, logfile)


@worker_init.connect
def _check_pool(sender: Any, **_: Any) -> None:
    """Refuse options that can't work. No other pool would ever fetch a job, and ours has a fixed number of slots. A
    worker without a lane would leave jobs of another queue to other workers once they had been parked."""
    if get_implementation(sender.pool_cls) is not TaskPool or sender.options.get("autoscale"):
        raise SystemExit("Turnout's worker needs its own pool: leave out -P and --autoscale, and set the size with -c")
    if transport.LANES.isdisjoint(sender.app.amqp.queues.consume_from):
        raise SystemExit(f"Turnout's worker serves lanes: name at least one of {', '.join(Lane)} with -Q")


@control.control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def _revoke(state: Any, task_id: Any, **options: Any) -> Any:
    """Celery's own command, which Flower's buttons send. But jobs are cancelled at once, and then not remembered as
    revoked, so that they can be replayed.

    They are cancelled before Celery does its part, because it would write its own record where it finds none.
    """
    cancelled = worker.on_loop(worker.celery_jobs.revoke(maybe_list(task_id))).result()
    reply = control.revoke(state, task_id, **options)  # type: ignore[attr-defined]  # the stubs lack it
    for job_id in cancelled:
        revoked.discard(job_id)
    return reply


@control.control_command(name="terminate", variadic="task_id", signature="<signal> [id1 [id2 [... [idN]]]]")
def _terminate(state: Any, signal: Any, task_id: Any, **options: Any) -> Any:
    """Replaces Celery's own command, which would call Celery's `revoke`."""
    return _revoke(state, task_id, terminate=True, signal=signal, **options)


def _refuse_limit(state: Any, **_: Any) -> Any:
    return {"error": "set the providers' limits in turnout.toml, and timeout_s and deadline_s in requests"}


for _name in ("rate_limit", "time_limit"):  # Celery's own report success without any effect
    _command = control.Panel.meta[_name]
    control.control_command(name=_name, args=_command.args, signature=_command.signature)(_refuse_limit)


@worker_shutting_down.connect
def _stopping(how: str, **_: Any) -> None:
    """Count stops: Celery ignores all but the first SIGTERM or SIGHUP."""
    TaskPool.hurried = how == "Cold" or next(_stops) > 0


_stops = itertools.count()
