"""Celery's task events, many in one message. By itself Celery publishes what it has at each turn of its loop."""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import Any, ClassVar

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from kombu import Producer
from redis.exceptions import RedisError

from turnout_workers import celery_json

GATHER_S = 0.25
"""How long events wait for others, and so how much later Flower shows them."""
GATHER = 500
"""Most events in one message."""
SLOW_S, REST_S = 1.0, 10.0
"""After an event that took so long to publish, others are kept for so long."""
AGAIN_S = 2.0
"""How soon what was kept is published if no other event comes."""


class Dispatcher(EventDispatcher):
    app: Any
    exchange: Any
    on_send_buffered: Any
    _outbound_buffer: Any
    _closed: bool
    serializer: Any
    of_tasks: ClassVar[Dispatcher | None] = None
    """The worker's own, which gathers."""
    _hub: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "buffer_limit": GATHER})
        self.serializer = celery_json.EVENTS
        self._gathering = False
        self._rests_until = 0.0
        if options.get("on_send_buffered") is not None:
            Dispatcher.of_tasks = self

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

    def gather(self, hub: Any) -> None:
        """An event was kept: have all that come within a moment published together."""
        self._hub = hub
        self._tell_in(GATHER_S)

    def extend_buffer(self, other: Any) -> None:
        super().extend_buffer(other)
        if self.on_send_buffered is not None:  # what can't be published now is to be later
            self.on_send_buffered()

    def _tell_in(self, seconds: float) -> None:
        if not self._gathering:
            self._gathering = True
            self._hub.call_later(seconds, self._gathered)

    def _gathered(self) -> None:
        self._gathering = False
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RedisError, OSError):  # they stay here
            self.flush()
        if self._outbound_buffer and self._hub is not None and not self._closed:
            self._tell_in(AGAIN_S)

    @classmethod
    def tell_now(cls) -> None:
        """Publish what the worker has gathered."""
        if cls.of_tasks is not None:
            cls.of_tasks._tell()

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
