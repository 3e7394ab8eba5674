"""Celery's consumer: waits for a Redis that is away, logs no message's content, and publishes events in groups."""

from __future__ import annotations

import logging
from time import monotonic, sleep
from typing import Any

from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed
from redis.exceptions import ResponseError

from turnout_workers import transport
from turnout_workers.pool import TaskPool
from turnout_workers.task import Infer

logger = logging.getLogger(__name__)

GATHER_S = 0.25
"""How long task events are collected, and so how much later Flower shows them. Celery alone would publish them at each
turn of its loop."""
RETRY_S = 2.0
"""When events that could not be published are tried again, unless another event comes first."""


class PatientConsumer(Consumer):
    """Pauses before it reconnects to a Redis that refused a command: one that takes no writes, for example because its
    disk is full, would refuse the next command at once. It tries a Redis that can't be reached every 2 s, where kombu
    would wait 2 s longer each time, up to half a minute. It logs once that Redis is away, and once that it is back."""

    hub: Any
    event_dispatcher: Any
    task_consumer: Any
    pool: TaskPool
    _away = False
    _publishes_at = 0.0
    """When collected events are published next, on the clock of `monotonic`."""

    def ensure_connected(self, conn: Any) -> Any:
        connect = conn.ensure_connection
        conn.ensure_connection = lambda _, *limits, **options: connect(
            self._log_away, *limits, **options, interval_step=0
        )
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._log_away(exc)
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, ResponseError):
            sleep(transport.REST_S)

    def _log_away(self, error: Exception, retry_s: float = 0.0) -> None:
        if not self._away:
            logger.warning("no jobs are fetched until Redis is back: %s", error)
        logger.debug("next attempt to reach Redis in %g s", retry_s)
        self._away = True

    def on_ready(self) -> None:
        super().on_ready()
        transport.Channel.serving = self.task_consumer.channel
        if self._away:
            logger.info("Redis is back: jobs are fetched again")
        self._away = False
        self.pool.publish_events = self.publish_events
        self._publish_due()  # events kept while Redis was away: the timers for them are gone

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # the stubs think it returns something
        self._publish_in(GATHER_S)

    def _publish_in(self, seconds: float) -> None:
        if monotonic() >= self._publishes_at:
            self._publishes_at = monotonic() + seconds
            self.hub.call_later(seconds, self._publish_due)

    def _publish_due(self) -> None:
        self._publishes_at = 0.0
        self.publish_events()

    def publish_events(self) -> None:
        """Publish the collected task events."""
        if self.event_dispatcher is not None:  # else it is being replaced, and its successor takes over its events
            self.event_dispatcher.flush()
            if self.event_dispatcher.has_unsent:
                self._publish_in(RETRY_S)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        super().on_decode_error(Unread(message), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        super().on_unknown_message(None, Unread(message))

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        super().on_unknown_task(None, Unread(message), exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        super().on_invalid_task(None, Unread(message), exc)
        if isinstance(exc, ContentDisallowed) and message.headers.get("task") == Infer.name:
            worker, why = self.pool.worker, f"{exc}; send it with serializer='json'"
            worker.on_loop(worker.celery_jobs.unread(message.headers["id"], why))


# `_log_away` logs it, once.
logging.getLogger(Consumer.__module__).addFilter(lambda line: line.funcName != "on_connection_error_after_connected")


class Unread:
    """A message that isn't a job's, as Celery logs it: without its content, which may be a prompt."""

    body = b"(not shown)"

    def __init__(self, message: Any) -> None:
        self._message = message
        headers = message.headers or {}
        self.headers = {name: headers[name] for name in ("id", "task", "root_id") if name in headers}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)
