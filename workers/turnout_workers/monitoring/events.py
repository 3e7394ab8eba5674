"""Celery's task events, many in one message, each tried once: `PatientConsumer` says when."""

from __future__ import annotations

from time import monotonic
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from kombu import Producer

from turnout_workers import celery_json

GATHER = 500
"""Most events in one message."""
SLOW_S, REST_S = 1.0, 10.0
"""After an event that took so long to publish, others are kept for so long."""


class Dispatcher(EventDispatcher):
    app: Any
    exchange: Any
    _outbound_buffer: Any
    _closed: bool
    serializer: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "buffer_limit": GATHER})
        self.serializer = celery_json.EVENTS
        self._rests_until = 0.0

    def _publish(self, event: Any, producer: Any, routing_key: str, **_retries: Any) -> None:
        """Once: Celery would try again until Redis is back, and do nothing else, nor stop, meanwhile.

        What can't be published is kept, and after a Redis that was silent what follows, too: each might wait as long.
        """
        began = monotonic()
        if began < self._rests_until:
            self._outbound_buffer.append((event, routing_key))
            return
        super()._publish(event, producer, routing_key)  # type: ignore[misc]  # the stubs lack it
        if monotonic() - began > SLOW_S:
            self._rests_until = monotonic() + REST_S

    @property
    def has_unsent(self) -> bool:
        """Whether something could not be published, and is to be tried again."""
        return bool(self._outbound_buffer) and not self._closed

    def close(self) -> None:
        """The last events of a stopping worker, if Redis is there, and the end.

        Celery has closed the connection by now, so they take one of their own. What can't be published is kept for the
        dispatcher that follows after a reconnect.
        """
        with self.app.connection_for_write() as connection:
            self.producer = Producer(connection, exchange=self.exchange, serializer=self.serializer, auto_declare=False)
            self.flush()
        super().close()


class Events(CeleryEvents):
    dispatcher_cls = f"{__name__}:Dispatcher"
