"""Celery's Redis transport, changed to fetch many messages at once and to keep no record of them.

Stock kombu pops one message, then writes it to an `unacked` hash, then deletes it there: three round trips a job, and
still a message is lost if the worker dies between the first and the second. Here a message is only a hint that a
queued job exists: the ledger has the job, and republishes lost messages. So nothing is written on fetch. A fetch takes
as many messages as the pool has free slots, from each lane its share, so that no lane waits for ever. BRPOP only waits
for the next message while the lanes are empty.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from turnout.ledger import Script
from turnout.request import Lane
from turnout_workers import celery_json

logger = logging.getLogger(__name__)

free_slots: Callable[[], int] = lambda: 0  # noqa: E731
"""Set by the pool, of which a process has one: how many more jobs this process has room for."""
room_for: Callable[[str], int] = lambda lane: 0  # noqa: E731
"""The same for one lane's jobs: fewer for the less urgent lanes."""

FETCH_SHARE: dict[str, float] = {Lane.INTERACTIVE: 0.7, Lane.STANDARD: 0.2, Lane.BATCH: 0.1}
"""Each lane's share of a fetch while it has jobs. What a lane leaves goes to the most urgent one."""
OTHERS_SHARE = 0.1
"""The same for each queue that isn't a lane, if an operator has a worker serve it too."""

REST_S = 1.0
"""How long to send nothing to a Redis that has refused a command."""
LANES = frozenset(Lane)
FETCH = Script.load("turnout_workers", "fetch").source


class QoS(virtual.QoS):
    """Counts only in memory. The channel for jobs is limited by the pool's free slots."""

    rests_until: ClassVar[float] = 0.0
    """Nothing is fetched until then, on the clock of `monotonic`."""

    @classmethod
    def rest(cls) -> None:
        """Fetch nothing for a while: a Redis that is out of memory still gives messages, but accepts no claims of their
        jobs."""
        cls.rests_until = monotonic() + REST_S

    def can_consume(self) -> bool:
        has_room = self.channel is not Channel.serving or (free_slots() > 0 and monotonic() >= self.rests_until)
        return bool(super().can_consume()) and has_room


class Channel(kombu_redis.Channel):
    QoS = QoS  # type: ignore[assignment]
    serving: ClassVar[Channel | None] = None
    """The one that fetches jobs for this process, set by the consumer. Events and remote control have other
    channels."""
    _left_out: Sequence[str] = ()
    """Lanes that had no room when BRPOP was sent: it waits for the others only."""

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Fetch what is there. If room is left, wait for the lanes that have some."""
        if self is Channel.serving:
            self._fetch(free_slots())
            if not self.qos.can_consume():
                return
            self._left_out = [queue for queue in self.active_queues if queue in LANES and room_for(queue) <= 0]
            others = (queue for queue in self.active_queues if queue not in self._left_out)
            self._queue_cycle.update(others)  # type: ignore[attr-defined]
        super()._brpop_start(timeout)  # type: ignore[misc]

    def _fetch(self, room: int) -> None:
        queues = sorted(self.active_queues, key=_urgency)
        shares = [str(FETCH_SHARE.get(queue, OTHERS_SHARE)) for queue in queues]
        limits = [room_for(queue) if queue in LANES else room for queue in queues]
        key_of: Callable[[str, int], str] = self._q_for_pri  # type: ignore[attr-defined]
        by_priority = [key_of(queue, step) for queue in queues for step in self.priority_steps[1:]]
        try:
            fetched = self._fetch_script([*queues, *by_priority], (room, random.random(), *shares, *limits))
        except OutOfMemoryError:
            QoS.rest()
            return
        failed: Exception | None = None
        for index, raw in fetched:
            try:
                with _malformed_dropped(queue := queues[index - 1]):
                    self.connection._deliver(celery_json.read(raw), queue)
            except (RedisError, OSError) as error:  # the other messages are nowhere but here: deliver them first
                failed = error
        if failed is not None:
            raise failed

    def fill(self) -> None:
        """Fetch for lanes that have room again and that the current BRPOP leaves out: it may wait for a second."""
        room = free_slots() - 1  # one is for BRPOP's message
        wanted = room > 0 and any(room_for(lane) > 0 for lane in self._left_out)
        if wanted and self._in_poll and self.qos.can_consume():  # type: ignore[attr-defined]
            with suppress(RedisError, OSError):  # BRPOP will raise it too
                self._fetch(room)

    def _brpop_read(self, **options: Any) -> Any:
        with _malformed_dropped("a lane"):
            return super()._brpop_read(**options)  # type: ignore[misc]

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str | None, **options: Any) -> str:
        def deliver(message: Any) -> None:
            with _malformed_dropped(queue):
                callback(message)
                return
            if not message.acknowledged:  # else it would be counted for ever
                message.ack()

        tag: str = super().basic_consume(queue, no_ack, deliver, consumer_tag, **options)
        return tag

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Put a message back at the front of its queue, where it came from, whatever kombu says: at the back, its
        position would precede all others. Kombu would look for it in the record that isn't kept here."""
        raw, info = dumps(message.serializable()), message.delivery_info
        for queue in self._lookup(info["exchange"], info["routing_key"]):
            self._shared_client.rpush(queue, raw)

    def maybe_refresh_binding_expiry(self) -> None:
        """Called each second. If Redis refuses it, housekeeping logs that: no traceback is needed here."""
        with suppress(ResponseError):
            super().maybe_refresh_binding_expiry()  # type: ignore[misc]

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """One client for all commands. Kombu makes one for each, which takes as long as ten commands."""
        yield client or self._shared_client

    @cached_property
    def _shared_client(self) -> Any:
        return self._create_client()  # type: ignore[attr-defined]

    @cached_property
    def _fetch_script(self) -> Any:
        return self._shared_client.register_script(FETCH)


def _urgency(queue: str) -> int:
    return list(Lane).index(Lane(queue)) if queue in LANES else len(Lane)


def fill() -> None:
    """Fetch at once, because jobs have ended."""
    if Channel.serving is not None:
        Channel.serving.fill()


@contextmanager
def _malformed_dropped(queue: str) -> Iterator[None]:
    """Drop a message that isn't a task's: Celery would end the worker over it, and the rest of a fetch would be lost.

    The log says where in the code it was found, and nothing of its content, which may be a prompt.
    """
    try:
        yield
    except (RedisError, OSError, Empty):  # not the message's fault
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        error_name = type(error).__name__
        logger.error("dropped a malformed message from %s: %s at %s:%d", queue, error_name, at.filename, at.lineno)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same, on the primary that Sentinel names."""


class Transport(kombu_redis.Transport):
    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    Channel = SentinelChannel


# Under this name because kombu looks at the scheme of the address once it has to try the next sentinel.
TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
