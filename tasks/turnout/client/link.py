"""How a client reaches Redis: it asks, and it listens on one channel of its own. For threads, and for asyncio.

A link is one process's alone: a fork of a process that has a client begins with another, see `AsyncClient`.

Each word on the channel is the id of a job that has settled, or `+` and the id of a job whose answer has grown. Words
can be lost with the connection, so whoever waits asks again whenever the channel has been opened, and now and then.
Waiting goes on while Redis is away for a moment, as in a restart or a failover.
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
"""Seconds that Redis may take for an answer: no web request waits for ever."""
AGAIN: Any = (NoBackoff(), 1, (redis.ConnectionError,))
"""A connection may have died since its last use, or its server become a replica, and only the next use shows it. So
each request is made once more, which is safe for all that a client asks."""
CONNECTIONS = 50
"""Most that a process's threads ask by at a time, besides the main one; all others wait. redis-py's pools hold more."""
AGAIN_S = 0.2
"""Between two tries to reach Redis."""
LINGER_S = 5.0
"""How long a thread listens on when nobody waits any more. It holds its client, so it must end."""
QUIET_S = 60.0
"""How long to wait for one message. Told no time, redis-py 6 gives a quiet channel that of an answer, and closes it."""
AWAY_S = 60.0
"""How long waiting goes on while Redis is away. After that, its error is raised."""
OPENED = ""
"""The word to all that the channel has just been opened, perhaps again: what was said before was not heard."""
CLOSED = "this client is closed"


class Patience:
    """`with patience:` suppresses the errors of a Redis that is away, until it has been away for AWAY_S, or less."""

    def __init__(self, within_s: float | None = None) -> None:
        self._within_s = AWAY_S if within_s is None else min(within_s, AWAY_S)
        self.away_since: float | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None:
            self.away_since = None
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError) or takes_no_writes(error):
            now = time.monotonic()
            self.away_since = self.away_since or now
            return now - self.away_since < self._within_s
        return False


class _Listeners(defaultdict[str, set[Any]]):
    """Who listens for which words. A listener is a queue, and each of its words is put into it."""

    def add(self, listener: Any, words: Iterable[str]) -> None:
        for word in words:
            self[word].add(listener)

    def remove(self, listener: Any, words: Iterable[str]) -> None:
        for word in words:
            self[word].discard(listener)
            if not self[word]:
                del self[word]

    def tell(self, message: dict[str, Any]) -> None:
        word = message["data"].decode() if message["type"] == "message" else OPENED
        for listener in set().union(*self.values()) if word == OPENED else tuple(self.get(word, ())):
            listener.put_nowait(word)


class LoopHeard(asyncio.Queue[str]):
    """The words for one listener."""

    async def wait(self, limit_s: float) -> list[str]:
        """All words since the last call; none if there was none within the limit."""
        words = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                words.append(await self.get())
        while not self.empty():
            words.append(self.get_nowait())
        return words


class LoopLink:
    """For the coroutines of a loop: what they ask for at once shares a round trip, and one task listens for all."""

    def __init__(self, url: str, channel: str) -> None:
        self.channel = channel
        self._redis = connect_async(url, retry=redis.asyncio.retry.Retry(*AGAIN), **LIMITS)
        self._call = Coalescer(self._redis)
        self._listeners = _Listeners(set)
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def ask(self, *calls: Operation[T]) -> list[T]:
        """Send calls in one round trip. Raises RuntimeError once it is closed."""
        self._check_loop()
        if self._closed:
            raise RuntimeError(CLOSED)
        return await self._call.all(*calls)

    async def rest(self) -> None:
        """Between two tries."""
        await asyncio.sleep(AGAIN_S)

    async def close(self) -> None:
        """Free the connections."""
        self._check_loop()
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def listening(self, words: Iterable[str]) -> AsyncIterator[LoopHeard]:
        """Hear these words, and OPENED, while the block runs."""
        self._check_loop()
        heard, words = LoopHeard(), tuple(words)
        self._listeners.add(heard, words)
        try:
            if not self._closed and (self._task is None or self._task.done()):
                self._task = asyncio.create_task(self._listen())
            yield heard
        finally:
            self._listeners.remove(heard, words)

    def _check_loop(self) -> None:
        """Connections live in the loop that opened them; in another they would fail now and then, and obscurely."""
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
                        # in the moment of its end. The next message is the one that confirms what was sent.
                        if task.cancelling():
                            return
                        if message is not None:
                            self._listeners.tell(message)
            except (RedisError, OSError, RuntimeError):  # the last is uvloop's, of a connection just closed
                await self.rest()


class ThreadHeard(queue.SimpleQueue[str]):
    async def wait(self, limit_s: float) -> list[str]:
        words = []
        with contextlib.suppress(queue.Empty):
            words.append(self.get(timeout=limit_s))
        while not self.empty():
            words.append(self.get_nowait())
        return words


class ThreadLink:
    """The same for the threads of a process. No coroutine here ever waits for a loop: it blocks, see `run_sync`."""

    def __init__(self, url: str, channel: str) -> None:
        self.channel = channel
        self._redis = connect(url, retry=redis.retry.Retry(*AGAIN), **LIMITS)
        self._free = threading.Semaphore(CONNECTIONS)
        self._unanswered_at = 0.0
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._listeners = _Listeners(set)
        self._thread: threading.Thread | None = None
        self._wanted_at = 0.0
        self._closed = False

    async def ask(self, *calls: Operation[T]) -> list[T]:
        """Whoever waits for a connection while Redis leaves a call unanswered fails with it, as in a Coalescer.

        The main thread never waits for one: an exception out of a signal's handler, which comes to it alone, would cut
        into a semaphore's own code, and leave that locked for ever.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        came_at, limit_s = time.monotonic(), LIMITS["socket_timeout"]
        waits = threading.current_thread() is not threading.main_thread()
        if waits and not self._free.acquire(timeout=limit_s):
            raise redis.TimeoutError(f"all {CONNECTIONS} connections to Redis were in use for {limit_s:g} s")
        try:
            if self._unanswered_at > came_at:
                raise redis.TimeoutError("Redis gave no answer to those who had all connections")
            return run(self._redis, calls)
        except UNANSWERED:
            self._unanswered_at = time.monotonic()
            raise
        finally:
            if waits:
                self._free.release()

    async def rest(self) -> None:
        time.sleep(AGAIN_S)  # noqa: ASYNC251  (there is no loop)

    async def close(self) -> None:
        self._closed = True
        if (thread := self._thread) is not None:
            thread.join(2)
        self._redis.close()

    @contextlib.asynccontextmanager
    async def listening(self, words: Iterable[str]) -> AsyncIterator[ThreadHeard]:
        heard, words = ThreadHeard(), tuple(words)
        try:
            with self._lock:
                self._listeners.add(heard, words)
                if self._thread is None and not self._closed:
                    thread = threading.Thread(target=self._listen, name="turnout-inbox", daemon=True)
                    thread.start()  # which may fail; it does nothing before the lock is free
                    self._thread = thread
            yield heard
        finally:
            if self._pid == os.getpid():  # else it was forked meanwhile, and the lock may be held for ever
                with self._lock:
                    self._listeners.remove(heard, words)

    def _listen(self) -> None:
        while self._goes_on():
            try:
                with self._redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(self.channel)
                    while self._goes_on():
                        if (message := pubsub.get_message(timeout=0.25)) is not None:
                            with self._lock:
                                self._listeners.tell(message)
                    return
            except (RedisError, OSError):
                time.sleep(AGAIN_S)

    def _goes_on(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if self._listeners:
                self._wanted_at = now
            if self._closed or now - self._wanted_at > LINGER_S:
                self._thread = None  # whoever waits next starts another
                return False
            return True
