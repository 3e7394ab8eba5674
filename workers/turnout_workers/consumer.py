"""Celery's consumer: patient with a Redis that is away, silent on what messages carry, and telling events together."""

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
"""How long task events wait for others, and so how much later Flower shows them. By itself Celery publishes what it has
at each turn of its loop."""
AGAIN_S = 2.0
"""How soon what could not be published is tried again if no other event comes."""


class PatientConsumer(Consumer):
    """Rests before it reconnects to a Redis that refused a command: one that takes no writes, because its disk is full,
    say, would refuse the next at once. Of one that can't be reached it asks every 2 s, where kombu would wait for 2 s
    more each time, up to half a minute. Tells once that Redis is away, and when it is back, however often it asks."""

    hub: Any
    event_dispatcher: Any
    task_consumer: Any
    pool: TaskPool
    _away = False
    _tells_at = 0.0
    """When what was gathered is published next, on the clock of `monotonic`."""

    def ensure_connected(self, conn: Any) -> Any:
        ask = conn.ensure_connection
        conn.ensure_connection = lambda _tell, *limits, **options: ask(self._say, *limits, **options, interval_step=0)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._say(exc)
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, ResponseError):
            sleep(transport.REST_S)

    def _say(self, error: Exception, again_s: float = 0.0) -> None:
        if not self._away:
            logger.warning("no jobs are fetched until Redis is back: %s", error)
        logger.debug("Redis is asked again in %g s", again_s)
        self._away = True

    def on_ready(self) -> None:
        super().on_ready()
        transport.Channel.serving = self.task_consumer.channel
        if self._away:
            logger.info("Redis is back: jobs are fetched again")
        self._away = False
        self.pool.tell = self.tell
        self._tell_due()  # what was kept while Redis was away, with the timers of the time before

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # the stubs think it returns something
        self._tell_in(GATHER_S)

    def _tell_in(self, seconds: float) -> None:
        if monotonic() >= self._tells_at:
            self._tells_at = monotonic() + seconds
            self.hub.call_later(seconds, self._tell_due)

    def _tell_due(self) -> None:
        self._tells_at = 0.0
        self.tell()

    def tell(self) -> None:
        """Publish the task events that were gathered."""
        if self.event_dispatcher is not None:  # else it is being replaced, and its successor takes its events over
            self.event_dispatcher.flush()
            if self.event_dispatcher.keeps:
                self._tell_in(AGAIN_S)

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
