"""How a client reaches Redis: it asks, and it listens on one channel of its own. For threads, and for asyncio.

A link belongs to one process: a fork of a process that has a client starts with another, see `AsyncClient`.

Each notice on the channel is the id of a job that has settled, or `+` and the id of a job whose answer has grown.
Notices can be lost with the connection, so a waiter asks again whenever the channel has been reopened, and from time to
time. Waiting goes on while Redis is away for a moment, as in a restart or a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from turnout.ledger import Coalescer, Operation, run
from turnout.redis_address import connect, connect_async
from turnout.redis_trouble import UNANSWERED, takes_no_writes

T = TypeVar("T")

LIMITS: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 5}
"""Seconds that Redis may take to answer, so that no web request waits for ever."""
RETRY: Any = (NoBackoff(), 1, (redis.ConnectionError,))
"""A connection may have died since its last use, or its server become a replica, and only the next use shows it. So
each request is retried once, which is safe for everything that a client asks."""
CONNECTIONS = 50
"""Most connections that a process's threads use at a time, besides the main thread; the others wait. redis-py's pools
hold more."""
RETRY_PAUSE_S = 0.2
"""Pause between two tries to reach Redis."""
LINGER_S = 5.0
"""How long a thread listens on after the last waiter. It holds its client, so it must end."""
QUIET_S = 60.0
"""How long to wait for one message. Without it, redis-py 6 closes a quiet channel after the timeout of an answer."""
AWAY_S = 60.0
"""How long waiting goes on while Redis is away. After that, its error is raised."""
RESUBSCRIBED = ""
"""Sent to every listener when the channel has been (re)opened: earlier notices may be lost, so look again."""
CLOSED = "this client is closed"


class Outage:
    """`with outage:` suppresses the errors of a Redis that is away, until it has been away for AWAY_S, or less."""

    def __init__(self, within_s: float | None = None) -> None:
        self._within_s = AWAY_S if within_s is None else min(within_s, AWAY_S)
        self.since: float | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None:
            self.since = None
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError) or takes_no_writes(error):
            now = time.monotonic()
            self.since = self.since or now
            return now - self.since < self._within_s
        return False


class _Listeners(defaultdict[str, set[Any]]):
    """The inboxes that listen for each notice."""

    def add(self, inbox: Any, notices: Iterable[str]) -> None:
        for notice in notices:
            self[notice].add(inbox)

    def remove(self, inbox: Any, notices: Iterable[str]) -> None:
        for notice in notices:
            self[notice].discard(inbox)
            if not self[notice]:
                del self[notice]

    def deliver(self, message: dict[str, Any]) -> None:
        notice = message["data"].decode() if message["type"] == "message" else RESUBSCRIBED
        for inbox in set().union(*self.values()) if notice == RESUBSCRIBED else tuple(self.get(notice, ())):
            inbox.put_nowait(notice)


class LoopInbox(asyncio.Queue[str]):
    """The notices for one listener."""

    async def wait(self, limit_s: float) -> list[str]:
        """All notices since the last call; none if none came within the limit."""
        notices = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                notices.append(await self.get())
        while not self.empty():
            notices.append(self.get_nowait())
        return notices


class LoopLink:
    """For the coroutines of a loop: what they ask for concurrently shares a round trip, and one task listens for
    all."""

    def __init__(self, url: str, channel: str) -> None:
        self.channel = channel
        self._redis = connect_async(url, retry=redis.asyncio.retry.Retry(*RETRY), **LIMITS)
        self._send = Coalescer(self._redis)
        self._listeners = _Listeners(set)
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def ask(self, *operations: Operation[T]) -> list[T]:
        """Send operations in one round trip. Raises RuntimeError once it is closed."""
        self._check_loop()
        if self._closed:
            raise RuntimeError(CLOSED)
        return await self._send.all(*operations)

    async def pause(self) -> None:
        """Wait between two tries."""
        await asyncio.sleep(RETRY_PAUSE_S)

    async def close(self) -> None:
        """Free the connections."""
        self._check_loop()
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def listening(self, notices: Iterable[str]) -> AsyncIterator[LoopInbox]:
        """Receive these notices, and RESUBSCRIBED, while the block runs."""
        self._check_loop()
        inbox, notices = LoopInbox(), tuple(notices)
        self._listeners.add(inbox, notices)
        try:
            if not self._closed and (self._task is None or self._task.done()):
                self._task = asyncio.create_task(self._listen())
            yield inbox
        finally:
            self._listeners.remove(inbox, notices)

    def _check_loop(self) -> None:
        """Connections belong to the loop that opened them; in another they would fail at times, and obscurely."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError("this AsyncClient belongs to another event loop: open one in each, or use Client")

    async def _listen(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self.channel)
                    while True:
                        message = await pubsub.get_message(timeout=QUIET_S)
                        # redis-py sends by `asyncio.wait_for`, which until Python 3.12 loses a cancellation that comes
                        # as it ends. The next message is the one that confirms what was sent.
                        if task.cancelling():
                            return
                        if message is not None:
                            self._listeners.deliver(message)
            except (RedisError, OSError, RuntimeError):  # RuntimeError: uvloop's, for a connection just closed
                await self.pause()


class ThreadInbox(queue.SimpleQueue[str]):
    async def wait(self, limit_s: float) -> list[str]:
        notices = []
        with contextlib.suppress(queue.Empty):
            notices.append(self.get(timeout=limit_s))
        while not self.empty():
            notices.append(self.get_nowait())
        return notices


class ThreadLink:
    """The same for the threads of a process. No coroutine here ever waits for a loop: it blocks, see `run_sync`."""

    def __init__(self, url: str, channel: str) -> None:
        self.channel = channel
        self._redis = connect(url, retry=redis.retry.Retry(*RETRY), **LIMITS)
        self._free = threading.Semaphore(CONNECTIONS)
        self._unanswered_at = 0.0
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._listeners = _Listeners(set)
        self._thread: threading.Thread | None = None
        self._wanted_at = 0.0
        self._closed = False

    async def ask(self, *operations: Operation[T]) -> list[T]:
        """While Redis leaves an operation unanswered, threads that wait for a connection fail with it, as in a
        Coalescer.

        The main thread never waits for one: an exception from a signal handler, which runs only there, could interrupt
        the semaphore's own code and leave it locked for ever.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        asked_at, limit_s = time.monotonic(), LIMITS["socket_timeout"]
        waits = threading.current_thread() is not threading.main_thread()
        if waits and not self._free.acquire(timeout=limit_s):
            raise redis.TimeoutError(f"all {CONNECTIONS} connections to Redis were in use for {limit_s:g} s")
        try:
            if self._unanswered_at > asked_at:
                raise redis.TimeoutError("Redis gave no answer while all connections were in use")
            return run(self._redis, operations)
        except UNANSWERED:
            self._unanswered_at = time.monotonic()
            raise
        finally:
            if waits:
                self._free.release()

    async def pause(self) -> None:
        time.sleep(RETRY_PAUSE_S)  # noqa: ASYNC251  (there is no loop)

    async def close(self) -> None:
        self._closed = True
        if (thread := self._thread) is not None:
            thread.join(2)
        self._redis.close()

    @contextlib.asynccontextmanager
    async def listening(self, notices: Iterable[str]) -> AsyncIterator[ThreadInbox]:
        inbox, notices = ThreadInbox(), tuple(notices)
        try:
            with self._lock:
                self._listeners.add(inbox, notices)
                if self._thread is None and not self._closed:
                    thread = threading.Thread(target=self._listen, name="turnout-inbox", daemon=True)
                    thread.start()  # may fail; the thread does nothing before the lock is free
                    self._thread = thread
            yield inbox
        finally:
            if self._pid == os.getpid():  # else this is a fork, in which the lock may be held for ever
                with self._lock:
                    self._listeners.remove(inbox, notices)

    def _listen(self) -> None:
        while self._is_needed():
            try:
                with self._redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(self.channel)
                    while self._is_needed():
                        if (message := pubsub.get_message(timeout=0.25)) is not None:
                            with self._lock:
                                self._listeners.deliver(message)
                    return
            except (RedisError, OSError):
                time.sleep(RETRY_PAUSE_S)

    def _is_needed(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._listeners:
                self._wanted_at = now
            if self._closed or now - self._wanted_at > LINGER_S:
                self._thread = None  # the next waiter starts another
                return False
            return True
