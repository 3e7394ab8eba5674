"""Celery's Redis transport, made to fetch many messages at once and to keep no record of them.

Stock kombu pops one message, then writes it to an `unacked` hash, then deletes it there: three round trips a job, and a
message is lost all the same if the worker dies between the first and the second. Here a message is only a hint that a
queued job exists: the ledger has the job, and republishes what was lost. So nothing is written on fetch, and as many
messages are taken at once as the pool has free slots, of each lane its share, so that none waits for ever. BRPOP only
waits for the next message, while the lanes are empty.
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
"""Set by the pool: how many more jobs this process has room for. There is one pool a process."""
room_for: Callable[[str], int] = lambda lane: 0  # noqa: E731
"""The same, of a lane's jobs alone: for the less urgent ones fewer."""

FETCH_SHARE: dict[str, float] = {Lane.INTERACTIVE: 0.7, Lane.STANDARD: 0.2, Lane.BATCH: 0.1}
"""The share of what is fetched that is a lane's own while it has jobs; what one leaves goes to the most urgent."""
OTHERS_SHARE = 0.1
"""The same of each queue that is no lane, and that an operator has a worker serve besides."""

REST_S = 1.0
"""How long a Redis that has refused something is left in peace."""
LANES = frozenset(Lane)
FETCH = Script.load("turnout_workers", "fetch").source


class QoS(virtual.QoS):
    """Counts in memory alone; of the channel for jobs, the pool's free slots are the limit."""

    rests_until: ClassVar[float] = 0.0
    """Nothing is fetched until then, on the clock of `monotonic`."""

    @classmethod
    def rest(cls) -> None:
        """Fetch nothing for a while: Redis gives messages also when it is out of memory, but takes no claim of their
        jobs."""
        cls.rests_until = monotonic() + REST_S

    def can_consume(self) -> bool:
        takes_more = self.channel is not Channel.serving or (free_slots() > 0 and monotonic() >= self.rests_until)
        return bool(super().can_consume()) and takes_more


class Channel(kombu_redis.Channel):
    QoS = QoS  # type: ignore[assignment]
    serving: ClassVar[Channel | None] = None
    """The one that fetches jobs for this process, as the consumer tells; events and remote control have channels of
    their own."""
    _left_out: Sequence[str] = ()
    """Lanes that had no room when BRPOP was sent, which waits for the others alone."""

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Fetch what is there, and wait only if that leaves room, for lanes that have some."""
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
        most = [room_for(queue) if queue in LANES else room for queue in queues]
        named: Callable[[str, int], str] = self._q_for_pri  # type: ignore[attr-defined]
        ranked = [named(queue, step) for queue in queues for step in self.priority_steps[1:]]
        try:
            fetched = self._fetching([*queues, *ranked], (room, random.random(), *shares, *most))
        except OutOfMemoryError:
            QoS.rest()
            return
        trouble: Exception | None = None
        for index, raw in fetched:
            try:
                with _odd_dropped(queue := queues[index - 1]):
                    self.connection._deliver(celery_json.read(raw), queue)
            except (RedisError, OSError) as error:  # Redis took no word of this one; the others are nowhere but here
                trouble = error
        if trouble is not None:
            raise trouble

    def fill(self) -> None:
        """Fetch for lanes that have room again, and that the BRPOP under way leaves out: it may wait for a second."""
        room = free_slots() - 1  # one is for what BRPOP brings
        wanted = room > 0 and any(room_for(lane) > 0 for lane in self._left_out)
        if wanted and self._in_poll and self.qos.can_consume():  # type: ignore[attr-defined]
            with suppress(RedisError, OSError):  # of which BRPOP will tell
                self._fetch(room)

    def _brpop_read(self, **options: Any) -> Any:
        with _odd_dropped("a lane"):
            return super()._brpop_read(**options)  # type: ignore[misc]

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str | None, **options: Any) -> str:
        def taken(message: Any) -> None:
            with _odd_dropped(queue):
                callback(message)
                return
            if not message.acknowledged:  # else it would take a place for ever
                message.ack()

        tag: str = super().basic_consume(queue, no_ack, taken, consumer_tag, **options)
        return tag

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Put a message back at its queue's front, whence it came, whatever kombu says: at the back, its place would be
        before all others'. Kombu would look for it in the record that isn't kept here."""
        raw, info = dumps(message.serializable()), message.delivery_info
        for queue in self._lookup(info["exchange"], info["routing_key"]):
            self._at_hand.rpush(queue, raw)

    def maybe_refresh_binding_expiry(self) -> None:
        """Done each second. If Redis refuses it, housekeeping will say so: no traceback is needed here."""
        with suppress(ResponseError):
            super().maybe_refresh_binding_expiry()  # type: ignore[misc]

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """One client for all commands. Kombu makes one for each, which takes as long as ten commands."""
        yield client or self._at_hand

    @cached_property
    def _at_hand(self) -> Any:
        return self._create_client()  # type: ignore[attr-defined]

    @cached_property
    def _fetching(self) -> Any:
        return self._at_hand.register_script(FETCH)


def _urgency(queue: str) -> int:
    return list(Lane).index(Lane(queue)) if queue in LANES else len(Lane)


def fill() -> None:
    """Jobs have ended: let others come, at once."""
    if Channel.serving is not None:
        Channel.serving.fill()


@contextmanager
def _odd_dropped(queue: str) -> Iterator[None]:
    """Drop what is no task's message: Celery would end the worker over it, and the rest of a fetch would be lost.

    The log tells where it was found out, and no word of what it says, which may be a prompt.
    """
    try:
        yield
    except (RedisError, OSError, Empty):  # no fault of the message
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        told = (queue, type(error).__name__, at.filename, at.lineno)
        logger.error("what came in %s is no task's message, and is dropped: %s at %s:%d", *told)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same, on the primary that Sentinel names."""


class Transport(kombu_redis.Transport):
    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    Channel = SentinelChannel


# Under this name, because kombu goes by the scheme of the address once it has to try the next sentinel.
TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
