"""Celery's task events, many in one message and each tried once. `PatientConsumer` decides when."""

from __future__ import annotations

from time import monotonic
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from kombu import Producer

from turnout_workers import celery_json

MAX_EVENTS = 500
"""Most events in one message."""
SLOW_S, REST_S = 1.0, 10.0
"""After publishing took `SLOW_S`, further events are kept for `REST_S`."""


class Dispatcher(EventDispatcher):
    app: Any
    exchange: Any
    _outbound_buffer: Any
    _closed: bool
    serializer: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "buffer_limit": MAX_EVENTS})
        self.serializer = celery_json.EVENTS
        self._rests_until = 0.0

    def _publish(self, event: Any, producer: Any, routing_key: str, **_retries: Any) -> None:
        """Publish once. Celery would retry until Redis is back, and meanwhile do nothing else, nor stop.

        What can't be published is kept. If Redis was silent, later events are kept too: each might wait as long.
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
        """Whether there are events that could not be published yet."""
        return bool(self._outbound_buffer) and not self._closed

    def close(self) -> None:
        """Publish the last events of a stopping worker, if Redis is there, and close.

        Celery has closed the connection by now, so they use a new one. What can't be published is kept for the next
        dispatcher after a reconnect.
        """
        with self.app.connection_for_write() as connection:
            self.producer = Producer(connection, exchange=self.exchange, serializer=self.serializer, auto_declare=False)
            self.flush()
        super().close()


class Events(CeleryEvents):
    dispatcher_cls = f"{__name__}:Dispatcher"
